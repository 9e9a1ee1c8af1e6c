"""What an unfinished image looks like, cheaply enough to show it while it is generated."""

import base64
import io
import time
from typing import Any

import numpy as np

SIDE = 16  # latents of the images that the map is measured on
LARGEST, SMALL = 384, 160  # pixels of a preview's longer side
DECODER_SECONDS = 0.12  # a preview by the decoder itself may take this long, else the linear map makes it


class Preview:
    """Latents -> a small image: by the decoder where that is quick, else by a linear map of the channels to RGB.

    The map is not a table for one autoencoder: it is fitted, once a model is loaded, to what the model's own decoder
    makes of two random smooth latents, each latent against the mean colour of the pixels it stands for.
    """

    def __init__(self, networks, channels: int, factor: int, *, by_decoder: bool = True):
        """`networks` as in `pixart.pipeline.networks`; `channels`, `factor` (pixels per latent): the autoencoder's."""
        self.networks, self.by_decoder = networks, by_decoder
        latents, colours = [], []
        random = np.random.Generator(np.random.Philox(0))
        for coarse in (2, 4):
            field = random.standard_normal((channels, coarse, coarse), dtype=np.float32)
            field = field.repeat(SIDE // coarse, 1).repeat(SIDE // coarse, 2)
            started = time.perf_counter()
            pixels = networks.decode(networks.latents(field[None]))[0]
            self.seconds_per_latent = (time.perf_counter() - started) / SIDE**2  # the second is warm
            latents.append(field.reshape(channels, -1).T)
            colours.append(pixels.reshape(SIDE, factor, SIDE, factor, 3).mean((1, 3)).reshape(-1, 3))
        known = np.concatenate(latents)
        known = np.concatenate([known, np.ones((len(known), 1), np.float32)], 1)
        self.map, *_ = np.linalg.lstsq(known, np.concatenate(colours), rcond=None)

    def pixels(self, x_0: Any) -> np.ndarray:
        """Latents (1, C, h, w) of the networks' kind -> uint8 (H, W, 3), of any size with the right shape."""
        height, width = x_0.shape[2:]
        if self.by_decoder and self.seconds_per_latent * height * width <= DECODER_SECONDS:
            return self.networks.decode(x_0)[0]
        return self.rough(self.networks.to_numpy(x_0))

    def rough(self, x_0: np.ndarray) -> np.ndarray:
        """Latents (1, C, h, w) -> uint8 (h, w, 3), a pixel for each latent."""
        colours = np.tensordot(x_0[0], self.map[:-1], ([0], [0])) + self.map[-1]
        return np.clip(np.nan_to_num(colours), 0, 255).round().astype(np.uint8)


def data_uri(pixels: np.ndarray, small: bool = False) -> str:
    """uint8 (H, W, 3) as the text of a JPEG that stands in a page itself: no file, no second request."""
    from PIL import Image

    image, side = Image.fromarray(pixels), SMALL if small else LARGEST
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
