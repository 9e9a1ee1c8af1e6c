"""Class-conditional DiT: stage 1 of the paper, pixel dependency, on a feature folder with classes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pixart.config import plain
from pixart.data.dataset import ALLOWED
from pixart.diffusion.objective import Objective
from pixart.errors import UsageError
from pixart.files import replacing, write_json
from pixart.model.dit import DiT, DiTConfig
from pixart.training.batches import Phase, Source
from pixart.training.latents import LatentRows, denoising_validation
from pixart.training.recipe import Recipe
from pixart.training.start import fill, read_start
from pixart.training.tasks.text_to_image import Network, check_shares, with_start


@dataclass
class ClassDiT:
    """Train the DiT that a text-to-image model can start from.

    `class_dropout` of the images lose their classes. The other fields are those of `TextToImage`.
    """

    init: str | None = None
    network: Network = field(default_factory=Network)
    objective: Objective = field(default_factory=Objective)
    class_dropout: float = 0.1
    validation: int = 256
    allow_dropped: float = ALLOWED

    def __post_init__(self):
        check_shares(self, "class_dropout", "allow_dropped")
        if self.network.micro_conditions:
            raise UsageError("class_dit: micro_conditions belong to text_to_image; the DiT of stage 1 has none.")

    def build(self, recipe: Recipe, device: torch.device) -> DiT:
        start = read_start(self.init) if self.init else None
        if start and not isinstance(start.config, DiTConfig):
            raise UsageError(f"{self.init} reads text; a class-conditional DiT cannot start from it.")
        self.objective = with_start(self.objective, start)
        self.rows = LatentRows("classes", self.validation, self.allow_dropped, self.class_dropout)
        store = self.rows.open(recipe.phases[-1])
        self.class_names = store.manifest.labels
        sizes, channels = self.network.sizes(start), store.manifest.latent_channels
        self.config = DiTConfig(
            class_counts=tuple(len(names) for names in self.class_names.values()),
            in_channels=channels,
            out_channels=self.objective.out_channels(channels),
            **sizes,
        )
        if start and replace(start.config, sample_size=self.config.sample_size) != self.config:
            raise UsageError(f"{self.init} has other classes or latents than {store.folder}.")
        self.recipe = recipe
        torch.manual_seed(recipe.loop.seed)
        model = DiT(self.config)
        if start:
            fill(model, start, 0.0)
        self.validated = self.rows.validation_batches(recipe.phases[-1])
        return model

    def source(self, phase: Phase) -> Source:
        return self.rows.source(phase)

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        noised = self.objective.add_noise(batch["latent"], batch["rng"])
        batch["levels"] = noised.levels
        return self.objective.losses(model(noised.x_t, noised.timestep, batch["classes"]), noised)

    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        return denoising_validation(model, self.loss, self.validated, self.recipe)

    def export(self, model: torch.nn.Module, folder: Path) -> Path:
        with replacing(folder / "dit") as partial:
            partial.mkdir(parents=True)
            about = {
                "network": plain(self.config),
                "objective": self.objective.name,
                "classes": plain(self.class_names),
            }
            write_json(partial / "config.json", about)
            state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            save_file(state, partial / "model.safetensors")
        return folder / "dit"
