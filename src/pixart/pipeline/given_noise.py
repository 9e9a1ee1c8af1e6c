"""Noise that a caller brings in place of that of a seed, as Diffusers takes it: torch.Generator, or latents."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixart.config import shortened
from pixart.diffusion.noise import noise_stream
from pixart.errors import UsageError


@dataclass(frozen=True, eq=False)
class GivenNoise:
    """`latents` (B, C, h, w) fp32 of all images of a call, and what the noise of their later steps comes from.

    `source` says in image metadata where the first noise came from; `generators` has one for each image, or is empty.
    """

    source: str
    latents: np.ndarray
    generators: list[Any]

    def of(self, index: int, seed: int) -> tuple[int, Callable[[], np.ndarray]]:
        """The seed and the noise of an image, a new (C, h, w) at each call; samplers that add noise call it again.

        Args:
            seed: what later noise comes from where only latents were given.
        """
        first, shape = iter([self.latents[index]]), self.latents.shape[1:]
        if not self.generators:
            later = noise_stream(seed, shape)
        else:
            generator = self.generators[index]
            seed = generator.initial_seed()

            def later() -> np.ndarray:
                return _normal(shape, generator, "float32")

        def noise() -> np.ndarray:
            latent = next(first, None)
            return later() if latent is None else latent

        return seed, noise


def given_noise(generator: Any, latents: Any, images: int, shape: tuple[int, int, int], dtype: str) -> GivenNoise:
    """The noise of so many images of latent shape (C, h, w).

    One generator fills all latents at once, a list has one for each image: on its own device, in `dtype`, as
    `diffusers.utils.torch_utils.randn_tensor` does, so that the same generator gives the latents of Diffusers.

    Args:
        latents: a tensor or array (B, C, h, w), which the generator is not asked for.

    Raises:
        UsageError: other types, another count or another shape.
    """
    import torch

    alone = not isinstance(generator, list | tuple)
    generators = [] if generator is None else [generator] * images if alone else list(generator)
    if any(not isinstance(each, torch.Generator) for each in generators):
        raise UsageError("The generator must be a torch.Generator, or a list of them with one for each image.")
    if generator is not None and len(generators) != images:
        raise UsageError(f"There are {len(generators)} generators for {images} images; give one, or one for each.")
    if latents is not None:
        array = _array(latents)
        if array is None or array.shape != (images, *shape) or not np.isfinite(array).all():
            raise UsageError(
                f"The latents must be a tensor or array of finite floating-point numbers of shape {(images, *shape)}, "
                f"not {shortened(getattr(latents, 'dtype', type(latents)))} of "
                f"{shortened(tuple(getattr(latents, 'shape', ())))}."
            )
        return GivenNoise("latents", array, generators)
    if alone:
        return GivenNoise("generator", _normal((images, *shape), generator, dtype), generators)
    return GivenNoise("generator", np.stack([_normal(shape, each, dtype) for each in generators]), generators)


def _array(latents: Any) -> np.ndarray | None:
    """In fp32 on the CPU; None where it is no dense tensor or array of floating-point numbers."""
    import torch

    if isinstance(latents, np.ndarray) and latents.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return latents.astype(np.float32)
    if not (isinstance(latents, torch.Tensor) and latents.is_floating_point()):
        return None
    if latents.is_meta or latents.layout != torch.strided:
        return None
    return latents.detach().float().cpu().numpy()


def _normal(shape: tuple[int, ...], generator: Any, dtype: str) -> np.ndarray:
    import torch

    noise = torch.randn(shape, generator=generator, device=generator.device, dtype=getattr(torch, dtype))
    return noise.float().cpu().numpy()
