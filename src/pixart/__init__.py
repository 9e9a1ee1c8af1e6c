"""PixArt-α and PixArt-Σ end to end: generate, fine-tune, train, serve."""

__version__ = "0.2.0"


def __getattr__(name: str):
    # Importing torch takes seconds; `import pixart` and `pixart --help` must not pay for it.
    if name == "Pipeline":
        from pixart.pipeline.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'pixart' has no attribute {name!r}")
