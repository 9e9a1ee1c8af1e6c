"""An LCM-LoRA: an adapter by which a model that predicts eps generates in a few steps without guidance.

Latent consistency distillation (arXiv 2310.04378, algorithm 1) as PixArt-δ has it (arXiv 2401.05252; PixArt-alpha
`train_scripts/train_pixart_lcm_lora.py`), with a guidance scale that is fixed, and the student itself without gradients
as the target, as in Diffusers' LCM-LoRA script.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pixart.data.dataset import ALLOWED
from pixart.diffusion import ddpm
from pixart.diffusion.solvers import SIGMA_DATA, TIMESTEP_SCALE
from pixart.errors import UsageError
from pixart.model.dit import DiTConfig
from pixart.model.pixart import PixArt
from pixart.training.batches import Phase, Source
from pixart.training.latents import LatentRows, denoising_validation
from pixart.training.recipe import Recipe
from pixart.training.start import fill, read_start
from pixart.training.tasks.distillation import guided, size_of
from pixart.training.tasks.text_to_image import check_shares

HUBER = 0.001


@dataclass
class Consistency:
    """Distil `init`, a run, model folder, hub id or official file that predicts eps, into an adapter of itself.

    The teacher takes one of `steps` steps of DDIM with `guidance_scale`, and the student learns to predict the same
    image before and after it. The run ends as an adapter, for `pixart generate --lora ADAPTER --sampler lcm`.
    """

    init: str | None = None
    steps: int = 50
    guidance_scale: float = 4.5
    first_caption_share: float = 0.0
    validation: int = 256
    allow_dropped: float = ALLOWED

    def __post_init__(self):
        check_shares(self, "first_caption_share", "allow_dropped")
        if not 2 <= self.steps <= ddpm.STEPS or ddpm.STEPS % self.steps or not 0 <= self.guidance_scale <= 50:
            raise UsageError(
                f"consistency: steps {self.steps} must divide 1,000, guidance_scale {self.guidance_scale} be from 0 to "
                "50."
            )

    def build(self, recipe: Recipe, device: torch.device) -> PixArt:
        if self.init is None:
            raise UsageError("A consistency adapter is for one model; name it with init.")
        if recipe.trainable.method == "full":
            raise UsageError('consistency trains an adapter; give [trainable] method = "lora".')
        start = read_start(self.init)
        if start.objective != "ddpm" or isinstance(start.config, DiTConfig):
            raise UsageError(
                f"{self.init} is no text-to-image model that predicts eps; the task distillation is for flows."
            )
        self.recipe = recipe
        self.rows = LatentRows("text", self.validation, self.allow_dropped, 0.0, self.first_caption_share)
        store = self.rows.open(recipe.phases[-1])
        self.null_text, self.max_tokens = store.unconditional, store.settings.max_tokens
        self.validated = self.rows.validation_batches(recipe.phases[-1])
        self.teacher, student = PixArt(start.config), PixArt(start.config)
        for network in (self.teacher, student):
            fill(network, start, 0.0)
        self.teacher.requires_grad_(False).eval().to(device)
        torch.manual_seed(recipe.loop.seed)
        return student

    def source(self, phase: Phase) -> Source:
        return self.rows.source(phase)

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        """The pseudo-Huber distance of the two predictions of the image, (B,)."""
        x_0, text, mask = batch["latent"], batch["text"], batch["text_mask"]
        eps = torch.from_numpy(batch["rng"].standard_normal(tuple(x_0.shape))).to(x_0)
        every = ddpm.STEPS // self.steps
        chosen = torch.from_numpy(batch["rng"].random(len(x_0))).to(x_0.device) * self.steps
        timestep = (chosen.long().clamp(max=self.steps - 1) + 1) * every - 1
        before = (timestep - every).clamp(min=0)
        batch["levels"] = timestep / ddpm.STEPS
        x_t = ddpm.add_noise(x_0, eps, timestep)
        predicted = self._image(model, x_t, timestep, text, mask)
        with torch.no_grad():
            teacher = guided(self.teacher, self.null_text, self.guidance_scale, x_t, text, mask)
            guided_eps = teacher(x_t, timestep)[:, : x_0.shape[1]]
            x_before = ddpm.add_noise(image_of(x_t, guided_eps, timestep), guided_eps, before)
            wanted = self._image(model, x_before, before, text, mask)
        return ((predicted - wanted).square() + HUBER**2).sqrt().sub(HUBER).mean(dim=(1, 2, 3))

    def validate(self, model: torch.nn.Module) -> dict[str, float]:
        return denoising_validation(model, self.loss, self.validated, self.recipe)

    def export(self, model: torch.nn.Module, folder: Path) -> Path:
        raise UsageError("consistency trains an adapter, which the run writes by itself.")

    def _image(self, model: torch.nn.Module, x_t: Tensor, timestep: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """The consistency function: the image that the model sees in x_t, and x_t itself at timestep 0."""
        eps = model(x_t, timestep, text, mask, size_of(x_t).expand(len(x_t), 3))[:, : x_t.shape[1]].float()
        scaled = (TIMESTEP_SCALE * timestep.float()).view(-1, 1, 1, 1)
        norm = scaled.square() + SIGMA_DATA**2
        return SIGMA_DATA**2 / norm * x_t + scaled / norm.sqrt() * image_of(x_t, eps, timestep)


def image_of(x_t: Tensor, eps: Tensor, timestep: Tensor) -> Tensor:
    """x_0 (B, C, h, w) as noise of that shape in x_t implies it, at whole timesteps (B,)."""
    abar = ddpm.process(x_t.device).abar[timestep].float().view(-1, 1, 1, 1)
    return (x_t - (1 - abar).sqrt() * eps) / abar.sqrt()
