"""The noise levels that training samples: one small config for both objectives."""

import math
from dataclasses import dataclass
from typing import Literal

from pixart.errors import UsageError


@dataclass(frozen=True)
class Timesteps:
    """How training samples its noise levels, from 0 (image) to 1 (noise).

    `sampler`: "logit_normal" (2403.03206, section 3.1) spends steps where the prediction is hard; "uniform" is the
    official recipe. `uniform_share` of the logit-normal samples are uniform instead, so that both ends stay trained.
    `shift` above 1 moves levels towards noise (2403.03206, eq. 23), as larger images need. With a side in pixels as
    `shift_base`, the shift also grows with the image: by the root of its area over that of a square of this side.
    """

    sampler: Literal["logit_normal", "uniform"] = "logit_normal"
    uniform_share: float = 0.1
    shift: float = 1.0
    shift_base: int | None = None

    def __post_init__(self):
        if not 0 <= self.uniform_share <= 1 or not 0 < self.shift < math.inf:
            raise UsageError(
                f"timesteps: uniform_share {self.uniform_share} must be from 0 to 1, shift {self.shift} above 0."
            )
        if self.shift_base is not None and self.shift_base < 1:
            raise UsageError(f"timesteps: shift_base {self.shift_base} must be a side in pixels, such as 256.")

    def shift_for(self, height: int, width: int) -> float:
        """The shift for images of so many pixels."""
        return self.shift * (math.sqrt(height * width) / self.shift_base if self.shift_base else 1.0)


def draw_levels(rng, count: int, timesteps: Timesteps, shift: float = 1.0) -> "torch.Tensor":  # noqa: F821
    """Noise levels (count,) fp32 in (0, 1); `shift` is `timesteps.shift_for` the image.

    `rng` has the methods `random` and `standard_normal` of numpy's Generator.
    """
    import torch

    levels = torch.from_numpy(rng.random(count))
    if timesteps.sampler == "logit_normal":
        normal = torch.from_numpy(rng.standard_normal(count))
        levels = torch.where(torch.from_numpy(rng.random(count)) < timesteps.uniform_share, levels, normal.sigmoid())
    levels = levels.float()
    return shift * levels / (1 + (shift - 1) * levels)
