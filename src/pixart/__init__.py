"""PixArt-α, end to end: data, three training stages, drawing."""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Importing torch takes seconds; `import pixart` and `pixart --help` must not pay for it.
    if name == "Pipeline":
        from pixart.pipeline.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'pixart' has no attribute {name!r}")
