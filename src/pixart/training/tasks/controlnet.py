"""A ControlNet for a model that stays as it is: PixArt-δ's recipe (arXiv 2401.05252, section 4; PixArt-alpha
`train_scripts/train_controlnet.py`), on the features of images and of condition images of the same names.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pixart.checkpoints.controlnet import check_fit, read_controlnet, write_controlnet
from pixart.checkpoints.diffusers import diffusers_config
from pixart.data.dataset import ALLOWED
from pixart.data.features import Features, open_features
from pixart.diffusion.objective import Objective
from pixart.errors import UsageError
from pixart.model.controlnet import ControlNet, usual_copies
from pixart.model.dit import DiTConfig
from pixart.model.pixart import PixArt
from pixart.training.batches import Phase, Source
from pixart.training.latents import LatentRows, Rng, denoising_validation
from pixart.training.loop import prepare_blocks
from pixart.training.recipe import Recipe
from pixart.training.rows import RowStreams
from pixart.training.start import fill, read_start
from pixart.training.tasks.text_to_image import check_shares, with_start

SAME = ("base_size", "step", "square", "crop", "crops", "seed", "flip")  # settings that decide what a view shows


@dataclass
class ControlNetTraining:
    """Train a ControlNet for the model `init`: a run, model folder, hub id or official file; it is not changed.

    `copies` of its first blocks are trained, just under half of all if left out (13 of 28), from `control`, an earlier
    ControlNet, or else as they are. The rest is as in text_to_image. It ends as the folder `controlnet` in the run
    folder, for `pixart generate --control`.
    """

    init: str | None = None
    copies: int | None = None
    control: str | None = None
    objective: Objective = field(default_factory=Objective)
    caption_dropout: float = 0.1
    first_caption_share: float = 0.0
    validation: int = 256
    allow_dropped: float = ALLOWED

    def __post_init__(self):
        check_shares(self, "caption_dropout", "first_caption_share", "allow_dropped")

    def build(self, recipe: Recipe, device: torch.device) -> ControlNet:
        if self.init is None:
            raise UsageError("A ControlNet is for one model; name it with init.")
        start = read_start(self.init)
        if isinstance(start.config, DiTConfig):
            raise UsageError(f"{self.init} reads no text; a ControlNet is trained for a text-to-image model.")
        self.recipe, self.config, self.objective = recipe, start.config, with_start(self.objective, start)
        self.rows = LatentRows(
            "text", self.validation, self.allow_dropped, self.caption_dropout, self.first_caption_share,
            start.config.micro_conditions, padded=recipe.loop.compile,
        )  # fmt: skip
        self.conditions = {phase: self._conditions(phase) for phase in recipe.phases}
        self.validated = self.rows.validation_batches(recipe.phases[-1])
        for number, batch in enumerate(self.validated):
            self.conditions[recipe.phases[-1]].add(batch, np.random.default_rng([1, number]))
        self.base = PixArt(start.config)
        fill(self.base, start, 0.0)
        self.base.requires_grad_(False).eval().to(device)
        torch.manual_seed(recipe.loop.seed)
        given = read_controlnet(self.control) if self.control else None
        self.copies = given.copies if given else self.copies or usual_copies(start.config.depth)
        model = ControlNet(start.config, self.copies)
        if given is None:
            model.copy_from(self.base)
        else:
            check_fit(given, diffusers_config(start.config))
            model.load_state_dict(given.state)
        prepare_blocks(self.base, recipe.loop)  # gradients pass through it
        return model

    def source(self, phase: Phase) -> Source:
        source, conditions = self.rows.source(phase), self.conditions[phase]
        fingerprint = f"{source.fingerprint} {conditions.store.fingerprint()}"
        return replace(source, read=_Read(source.read, conditions), fingerprint=fingerprint)

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        noised = self.objective.add_noise(batch["latent"], batch["rng"])
        batch["levels"] = noised.levels
        text = batch["text"], batch["text_mask"]
        prediction = model(self.base, noised.x_t, noised.timestep, *text, batch["control"], batch.get("size"))
        return self.objective.losses(prediction, noised)

    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        return denoising_validation(model, self.loss, self.validated, self.recipe)

    def export(self, model: torch.nn.Module, folder: Path) -> Path:
        sizes = {"copies": self.copies, "sample_size": self.config.sample_size}
        write_controlnet(model.state_dict(), folder / "controlnet", **sizes)
        return folder / "controlnet"

    def _conditions(self, phase: Phase) -> "_Conditions":
        """The condition image of each row of a phase's features. UsageError where one is missing or does not fit."""
        store = self.rows.open(phase)
        if (store.manifest.latent_channels, store.manifest.text_dim) != (self.config.in_channels, self.config.text_dim):
            raise UsageError(f"{phase.features} was not made with the encoders of {self.init}; extract with --model.")
        if phase.conditions is None:
            raise UsageError(
                "Each phase of a ControlNet needs conditions = FOLDER, made of the condition images by pixart data "
                "extract --labels-only."
            )
        conditions = open_features(phase.conditions)
        ours, theirs = store.manifest.origin, conditions.manifest.origin
        differ = [name for name in SAME if getattr(ours.settings, name) != getattr(theirs.settings, name)]
        differ += ["autoencoder"] if ours.vae != theirs.vae else []
        if differ:
            raise UsageError(f"{phase.conditions} was not made as {phase.features}: {', '.join(differ)} differ.")
        wanted, found = store.columns["key_hash"], conditions.columns["key_hash"]
        order = np.argsort(found)
        places = order[np.minimum(np.searchsorted(found, wanted, sorter=order), len(found) - 1)]
        shapes = [np.array(each.bucket_names)[each.bucket] for each in (store, conditions)]
        without = (found[places] != wanted) | (shapes[1][places] != shapes[0])
        if without.any():
            first = store.read(np.flatnonzero(without)[:1]).keys[0]
            raise UsageError(
                f"{int(without.sum())} of {len(store)} images of {phase.features} have no condition image of the same "
                f"name and shape in {phase.conditions}, first {first}."
            )
        return _Conditions(conditions, places)


@dataclass(frozen=True)
class _Conditions:
    """`places` (N,): where in `store` the condition image of each row of the features is."""

    store: Features
    places: np.ndarray

    def add(self, batch: dict[str, Any], rng: Rng) -> dict[str, Any]:
        """The batch with `control`, a sample of the latents of the condition images, in the same views."""
        found = self.store.read(self.places[batch["rows"]], views=batch["views"])
        mean, std = found.mean.float(), found.std.float()
        noise = torch.from_numpy(rng.standard_normal(tuple(mean.shape), dtype=np.float32))
        batch["control"] = (mean + std * noise) * self.store.manifest.scaling_factor
        return batch


@dataclass(frozen=True)
class _Read:
    """What a source calls, also in other processes."""

    images: Callable[[np.ndarray, RowStreams], dict[str, Any]]
    conditions: _Conditions

    def __call__(self, rows: np.ndarray, rng: RowStreams) -> dict[str, Any]:
        return self.conditions.add(self.images(rows, rng), rng)
