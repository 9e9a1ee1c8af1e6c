"""Text to image: stages 2 and 3 of the paper, and fine-tuning of any model, on a feature folder with captions."""

import shutil
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixart.checkpoints.folder import (
    DDPM_SCHEDULER,
    FLOW_SCHEDULER,
    SAMPLE_SIZES,
    check_fit,
    read_encoder_config,
    write_model_folder,
)
from pixart.data.dataset import ALLOWED
from pixart.data.encode import load_text_encoder, load_vae
from pixart.data.features import Features
from pixart.diffusion.objective import REPARAMETERIZATION_TIMESTEP, Objective
from pixart.errors import UsageError
from pixart.files import read_json_object
from pixart.model.dit import DiTConfig
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training.batches import Phase, Source
from pixart.training.latents import LatentRows, denoising_validation, encoder_folders
from pixart.training.recipe import Recipe
from pixart.training.samples import Sampler
from pixart.training.start import Start, fill, read_start


@dataclass(frozen=True)
class Network:
    """The size of a fresh network; XL/2 is width 1152, depth 28, num_heads 16. With `init` it is that of its network.

    `sample_size` is the side of the latent at which positions count 0, 1, 2, ...: 32, 64 or 128. `micro_conditions`:
    the network reads the image's original size and its aspect ratio; the stock pipeline passes them to models of
    sample_size 128 only, and they need a width that is a multiple of 3. These two may be given with `init` as well.
    """

    width: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    sample_size: int | None = None
    micro_conditions: bool | None = None

    def __post_init__(self):
        for name in ("width", "depth", "num_heads"):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= 2**14:
                raise UsageError(f"network: {name} {getattr(self, name)} must be from 1 to 16,384.")
        if self.sample_size is not None and self.sample_size not in SAMPLE_SIZES:
            raise UsageError(f"network: sample_size {self.sample_size} must be one of 32, 64 and 128.")
        if self.micro_conditions and (self.sample_size not in (None, 128) or (self.width or 3) % 3):
            raise UsageError("network: micro_conditions need sample_size 128 and a width that is a multiple of 3.")

    def sizes(self, start: Start | None) -> dict[str, Any]:
        """Keywords of the network's config. UsageError where a start has other sizes than those given."""
        fresh = {"width": 256, "depth": 8, "num_heads": 4, "sample_size": 32}
        found = {name: getattr(start.config, name) for name in fresh} if start else fresh
        for name, value in found.items():
            given = getattr(self, name)
            if start and name != "sample_size" and given not in (None, value):
                raise UsageError(
                    f"{start.name} has {name} {value}, not {given}; leave it out to take the network's own."
                )
            found[name] = value if given is None else given
        return found


@dataclass
class TextToImage:
    """Train the denoiser that reads text.

    `init`: what to start from, a run, model folder, hub id or official file; a run of class_dit is re-parameterised,
    equal to it at `reparameterization_timestep`. `caption_dropout` of the captions become the empty prompt,
    `first_caption_share` take their image's first caption and the others any. `validation` images, a tenth at most,
    are never trained on; `allow_dropped` is the share of images that extraction may have left out. `unmasked_weight` of
    the loss is left where a mask is black (0.1 is usual); at 1 masks are not read.

    Autoencoder and text encoder are those that the features were made with, unless their folders are given. The last
    three are written into the model folder, for generating, and are those of `init` if left out: above 1, `flow_shift`
    spends more of the steps at high noise; `styles` is a JSON file.
    """

    init: str | None = None
    network: Network = field(default_factory=Network)
    objective: Objective = field(default_factory=Objective)
    caption_dropout: float = 0.1
    first_caption_share: float = 0.0
    validation: int = 256
    allow_dropped: float = ALLOWED
    unmasked_weight: float = 1.0
    reparameterization_timestep: float | None = None
    autoencoder: Path | None = None
    text_encoder: Path | None = None
    flow_shift: float | None = None
    guidance_scale: float | None = None
    styles: Path | None = None

    def __post_init__(self):
        check_shares(self, "caption_dropout", "first_caption_share", "allow_dropped", "unmasked_weight")
        for name, low, high in (
            ("flow_shift", 0.01, 100),
            ("guidance_scale", 0, 50),
            ("reparameterization_timestep", 0, 1000),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"text_to_image: {name} is {value}; it must be from {low} to {high}.")

    def build(self, recipe: Recipe, device: torch.device) -> PixArt:
        start = read_start(self.init) if self.init else None
        self.objective = with_start(self.objective, start)
        sizes = self.network.sizes(start)
        micro = self.network.micro_conditions
        if micro is None:
            micro = bool(start and getattr(start.config, "micro_conditions", False))
        self.rows = LatentRows(
            "text", self.validation, self.allow_dropped, self.caption_dropout, self.first_caption_share, micro,
            padded=recipe.loop.compile, masked=self.unmasked_weight < 1,
        )  # fmt: skip
        store = self.rows.open(recipe.phases[-1])
        self.max_tokens = store.settings.max_tokens
        self.config = self._config(store, start, sizes | {"micro_conditions": micro})
        self.vae_folder, self.encoder, self.tokenizer = encoder_folders(store, self.autoencoder, self.text_encoder)
        self.vae = load_vae(self.vae_folder)
        check_fit(self.config, self.vae, read_encoder_config(self.encoder))  # now, not after hours
        if self.flow_shift is None:
            self.flow_shift = float(start.scheduler.get("flow_shift", 1.0)) if start else 1.0
        self.written_styles = self.styles or (start.styles if start else None)
        self.written_scale = start.guidance_scale if start and self.guidance_scale is None else self.guidance_scale
        self.recipe = recipe
        torch.manual_seed(recipe.loop.seed)
        model = PixArt(self.config)
        if start:
            timestep = self.reparameterization_timestep
            fill(model, start, REPARAMETERIZATION_TIMESTEP[self.objective.name] if timestep is None else timestep)
        self.validated = self.rows.validation_batches(recipe.phases[-1])
        self.sampler = self._sampler(store) if recipe.samples.prompts else None
        return model

    def source(self, phase: Phase) -> Source:
        return self.rows.source(phase)

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        noised = self.objective.add_noise(batch["latent"], batch["rng"])
        batch["levels"] = noised.levels
        prediction = model(noised.x_t, noised.timestep, batch["text"], batch["text_mask"], batch.get("size"))
        weight = self.unmasked_weight + (1 - self.unmasked_weight) * batch["mask"] if "mask" in batch else 1.0
        return self.objective.losses(prediction, noised, weight)

    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        return denoising_validation(model, self.loss, self.validated, self.recipe)

    def export(self, model: torch.nn.Module, folder: Path) -> Path:
        shutil.rmtree(folder / "model", ignore_errors=True)  # of an export that was killed before it was noted
        write_model_folder(
            folder / "model",
            transformer_state=model.state_dict(),
            config=self.config,
            vae=self.vae.to(memory_format=torch.contiguous_format),
            text_encoder_folder=self.encoder,
            tokenizer_folder=self.tokenizer,
            dtype=torch.float16,
            styles=read_json_object(self.written_styles) if self.written_styles else None,
            objective=self.objective.name,
            flow_shift=self.flow_shift,
            guidance_scale=self.written_scale,
        )
        return folder / "model"

    def _config(self, store: Features, start: Start | None, sizes: dict[str, Any]) -> PixArtConfig:
        """The network's sizes. UsageError where it does not fit the features."""
        channels, text_dim = store.manifest.latent_channels, store.manifest.text_dim
        out = self.objective.out_channels(channels)
        if start is None or isinstance(start.config, DiTConfig):
            config = PixArtConfig(in_channels=channels, out_channels=out, text_dim=text_dim, **sizes)
        else:
            config = replace(start.config, **sizes)
            if config.sample_size != start.config.sample_size:
                config = replace(config, interpolation_scale=None)
        theirs = {name: getattr(start.config, name, None) for name in ("in_channels", "out_channels")} if start else {}
        wanted = {"in_channels": channels, "out_channels": out}
        if (start and theirs != wanted) or config.text_dim != text_dim:
            raise UsageError(
                f"{self.init} does not fit {store.folder}: its latents have {config.in_channels} channels and its text "
                f"{config.text_dim}, those of the features {channels} and {text_dim}. Extract with its own encoders "
                "(pixart data extract --model)."
            )
        return config

    def _sampler(self, store: Features) -> Sampler:
        flow = FLOW_SCHEDULER | {"flow_shift": self.flow_shift}
        encoder = partial(load_text_encoder, self.encoder, self.tokenizer, max_tokens=store.settings.max_tokens)
        return Sampler(
            self.recipe.samples,
            self.recipe.output,
            vae=self.vae,
            scheduler=flow if self.objective.name == "flow" else DDPM_SCHEDULER,
            text_encoder=encoder,
        )


def with_start(objective: Objective, start: Start | None) -> Objective:
    """The objective with its name decided. UsageError where it is another one than the start's."""
    if start and objective.name not in (None, start.objective):
        raise UsageError(
            f"{start.name} was trained with the objective {start.objective}, not {objective.name}; leave "
            "objective.name out to go on with it."
        )
    return replace(objective, name=objective.name or (start.objective if start else "flow"))


def check_shares(settings: Any, *names: str) -> None:
    """UsageError unless each of these fields is a share."""
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise UsageError(f"{name} is {getattr(settings, name)}; it is a share, from 0 to 1.")
    if getattr(settings, "validation", 0) < 0:
        raise UsageError(f"validation is {settings.validation}; it is a number of images.")
