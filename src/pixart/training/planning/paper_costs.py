"""What the paper and its competitors cost, as published, and what our own arithmetic makes of the same work.

Sources: PixArt-α (2310.00426) table 2, figure 2 and the appendix's table of stages, in both published versions (v1: 675
A100 days; v2 and v3: 753, with the 1024-px part); days, USD and CO2 of the others as PixArt-α states them.
"""

from dataclasses import dataclass

from pixart.model.pixart import PixArtConfig
from pixart.training.planning.flops import training_flops
from pixart.training.planning.hardware import Hardware

XL = PixArtConfig(in_channels=4, out_channels=8, width=1152, depth=28, num_heads=16, text_dim=4096)
TEXT_TOKENS = 120
V100_PER_A100 = 2.2  # the paper's own rate: 1656 V100 days are 753 A100 days


@dataclass(frozen=True)
class Published:
    """A model's training as published: A100 days, thousands of USD, tonnes of CO2 (read from a bar chart)."""

    name: str
    parameters: str
    images: str
    fid: float
    days: float
    thousand_usd: float
    tonnes: float


# The paper gives CO2 in years of a person's emissions, at about 5 t a year.
PUBLISHED = (
    Published("RAPHAEL", "3.0 B", "5000 M+", 6.61, 60_000, 3_080, 35.0),
    Published("DALL-E 2", "6.5 B", "650 M", 10.39, 41_667, 2_140, 25.0),
    Published("Imagen", "3.0 B", "860 M", 7.27, 7_132, 366, 4.0),
    Published("SD v1.5", "0.9 B", "2000 M", 9.62, 6_250, 320, 3.5),
    Published("GigaGAN", "0.9 B", "2700 M", 9.09, 4_783, 245, 3.0),
    Published("PixArt-α (v1)", "0.6 B", "25 M", 7.32, 675, 26, 0.4),
    Published("PixArt-α (v2, v3)", "0.6 B", "25 M", 7.32, 753, 28.4, 0.4),
)


@dataclass(frozen=True)
class Stage:
    """One row of the appendix's table: latent of `side`, so many steps of so many pictures, V100 days."""

    name: str
    side: int
    steps: int
    batch_size: int
    v100_days: float

    @property
    def flops(self) -> float:
        # Stage 1 is counted with the network of the others; the class-conditional DiT of it takes 8% less.
        tokens = 0 if self.name.startswith("1") else TEXT_TOKENS
        return float(training_flops(XL, self.side, tokens)) * self.steps * self.batch_size

    def implied_utilisation(self, gpu: Hardware) -> float:
        """The share of the peak at which these FLOPs take the published days."""
        return self.flops / (self.v100_days * 86_400 * gpu.peak)


STAGES = (
    Stage("1 pixels 256", 32, 300_000, 128 * 8, 88),
    Stage("2 alignment 256", 32, 150_000, 178 * 64, 672),
    Stage("3 aesthetics 256", 32, 90_000, 178 * 64, 416),
    Stage("3 aesthetics 512", 64, 100_000, 40 * 64, 320),
    Stage("3 aesthetics 1024", 128, 16_000, 12 * 32, 160),
)
