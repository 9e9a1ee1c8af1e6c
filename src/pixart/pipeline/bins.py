"""Generating at a size that the model was trained on, and fitting the image to the size that was requested.

What stock Diffusers calls `use_resolution_binning` (PixArtAlphaPipeline, PixArtSigmaPipeline): the released models know
the shapes of the official bucket tables only, so the nearest of these is generated, resized to cover the
requested size, and the rest is cut off on both sides.
"""

from pixart.buckets import OFFICIAL_SIZES, Bucket, BucketTable, cover, official_table
from pixart.checkpoints.model_folder import ModelFolder
from pixart.errors import UsageError


def bins_of(folder: ModelFolder) -> BucketTable | None:
    """The official table for sampling at the model's own size, 33 shapes (40 at 2048 px); None where there is none."""
    if folder.vae_factor != 8 or folder.native_size not in OFFICIAL_SIZES:
        return None
    return official_table(folder.native_size, sampling=True)


def bins_by_itself(folder: ModelFolder) -> bool:
    """Whether this model uses bins if nothing is given: every released PixArt, which all predict eps.

    Flow models, the shipped one among them, generate the requested size itself.
    """
    return bins_of(folder) is not None and folder.scheduler.get("prediction_type", "epsilon") == "epsilon"


def choose_bin(folder: ModelFolder, height: int, width: int) -> Bucket:
    """The bin whose aspect ratio is nearest. Raises UsageError for a model without official bins."""
    table = bins_of(folder)
    if table is None:
        sizes = ", ".join(str(size) for size in OFFICIAL_SIZES)
        raise UsageError(
            f"There are no bins for this model: they exist for models of {sizes} pixels, and this one is of "
            f"{folder.native_size}; leave binning out."
        )
    return table.buckets[table.nearest(height, width)]


def fit(image, height: int, width: int):
    """The PIL image resized to cover height x width and cut in the middle; the same image if it has that size.

    Stock Diffusers does this to the decoded tensor, bilinear; this is done to the pixels, bicubic, which is a little
    sharper when enlarging and does not alias when shrinking.
    """
    from PIL import Image

    if image.size == (width, height):
        return image
    tall, wide = cover(image.height, image.width, Bucket(height / width, height, width))
    left, top = (wide - width) // 2, (tall - height) // 2
    across, down = image.width / wide, image.height / tall
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return image.resize((width, height), Image.Resampling.BICUBIC, box)  # of a narrow image, all would be gigabytes
