"""Which extra brings which library: the base install generates with the shipped model and has none of these."""

from pixart.errors import PixArtError

# Library, as it is imported -> the extra that installs it.
EXTRA_OF = {
    "gradio": "app",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "accelerate": "torch",
    "diffusers": "torch",
    "huggingface_hub": "torch",
    "onnx": "torch",
    "onnxscript": "torch",
    "torch": "torch",
    "transformers": "torch",
    "torchmetrics": "eval",
    "pyarrow": "data",
    "fsspec": "cluster",
    "ray": "cluster",
    "codecarbon": "track",
    "tensorboard": "track",
    "trackio": "track",
    "wandb": "track",
}


def missing_extra(error: ModuleNotFoundError) -> PixArtError | None:
    """One sentence for a library that an extra brings and that is not installed; None if the error is another one."""
    library = (error.name or "").split(".")[0]
    extra = EXTRA_OF.get(library)
    if extra is None:
        return None
    return PixArtError(f"This needs {library}, which is not installed: pip install 'pixart[{extra}]'")
