"""The released PixArt models: sizes, defaults and licences. Everything else is inferred from its files.

Facts from the authors' repositories (PixArt-alpha, PixArt-sigma) and model cards.
"""

from dataclasses import dataclass
from pathlib import Path

from pixart.encoders.tokenizer import MAX_TOKENS, SIGMA_TOKENS

USUAL_SAMPLER = "dpm-solver"
FILES = (".pth", ".safetensors")  # official files, which carry the names of their repositories
ALPHA, SIGMA = "PixArt-α", "PixArt-Σ"
ALPHA_PARTS, SIGMA_PARTS = "PixArt-alpha/PixArt-XL-2-1024-MS", "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers"


@dataclass(frozen=True)
class KnownModel:
    """A released model, by its id on the Hub.

    Attributes:
        size: side of its square images, in pixels.
        parameters: of the transformer, in millions.
        sampler: what suits it; steps and guidance scale are the sampler's.
        parts: the model that has text encoder, tokenizer and autoencoder, where this one is published without.
        licence: as its model card names it; "" where it was not looked up.
    """

    name: str
    family: str
    size: int
    parameters: int = 611
    sampler: str = USUAL_SAMPLER
    parts: str | None = None
    licence: str = "openrail++"

    @property
    def tokens(self) -> int:
        """Of a text that it reads."""
        return MAX_TOKENS if self.family == ALPHA else SIGMA_TOKENS

    @property
    def defaults(self) -> dict[str, str]:
        """What its files do not say, or not always."""
        return {} if self.sampler == USUAL_SAMPLER else {"sampler": self.sampler}


KNOWN = (
    KnownModel("PixArt-alpha/PixArt-XL-2-256x256", ALPHA, 256, parts=ALPHA_PARTS),
    KnownModel("PixArt-alpha/PixArt-XL-2-512x512", ALPHA, 512),
    KnownModel("PixArt-alpha/PixArt-XL-2-1024-MS", ALPHA, 1024),
    KnownModel("PixArt-alpha/PixArt-LCM-XL-2-1024-MS", ALPHA, 1024, sampler="lcm"),
    KnownModel("PixArt-alpha/PixArt-Alpha-DMD-XL-2-512x512", ALPHA, 512, sampler="dmd", parts=ALPHA_PARTS, licence=""),
    KnownModel("PixArt-alpha/PixArt-Sigma-XL-2-256x256", SIGMA, 256, parts=SIGMA_PARTS),
    KnownModel("PixArt-alpha/PixArt-Sigma-XL-2-512-MS", SIGMA, 512, parts=SIGMA_PARTS),
    KnownModel("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", SIGMA, 1024, parts=SIGMA_PARTS),
    KnownModel("PixArt-alpha/PixArt-Sigma-XL-2-2K-MS", SIGMA, 2048, parts=SIGMA_PARTS),
    KnownModel(
        "terminusresearch/pixart-900m-1024-ft-v0.6",
        SIGMA,
        1024,
        908,
        parts=SIGMA_PARTS,
        licence="creativeml-openrail-m",
    ),
)


def known_model(source: str | Path | None) -> KnownModel | None:
    """The released model that a hub id, a folder or an official file is by its name; None where it is another."""
    name = Path(str(source).partition("@")[0])
    name = name.stem if name.suffix in FILES else name.name
    return next((model for model in KNOWN if Path(model.name).name == name), None)
