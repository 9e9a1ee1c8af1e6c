"""The judge as a task of pixart's training: on the training split only, so that validation is of new images."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from emojis.judge import JudgeConfig, JudgeNetwork, mean_states, prepared, save_judge, to_unit
from emojis.records import Record, read_split
from pixart.files import replacing
from pixart.training import train
from pixart.training.batches import Phase, Source
from pixart.training.ema import EmaConfig
from pixart.training.loop import LoopConfig
from pixart.training.optimizers import OptimizerConfig
from pixart.training.recipe import Recipe
from pixart.training.rows import RowStreams

VALIDATION = "test_cells"
SHORT_SHARE = 0.5  # of the captions are the first, short one, which is what an evaluation asks with
CANDIDATES = 500  # validation images, each of which is looked for among all their captions
WHITE = 1.0  # of pixels in [-1, 1]: what lies outside a shifted image
BATCH_SIZE = 256
# 3D and glossy are the same artwork, told apart by shading that 64 px does not show.
PHASES = (Phase(2600, BATCH_SIZE, size=64), Phase(800, BATCH_SIZE, size=128))
LOOP = LoopConfig(validate_every=400, save_every=100, log_every=50)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup_steps=50, decay_share=0.5)


def train_judge(
    data: Path,
    run: Path,
    *,
    phases: tuple[Phase, ...] = PHASES,
    config: JudgeConfig | None = None,
    loop: LoopConfig = LOOP,
    optimizer: OptimizerConfig = OPTIMIZER,
) -> Path:
    """Train a judge on `data` in the run folder `run`, or continue, and return the folder of the judge."""
    recipe = Recipe(output=run, phases=phases, loop=loop, optimizer=optimizer, ema=EmaConfig(decays=(0.99,)))
    return train(Judge(data, config or JudgeConfig()), recipe)


@dataclass
class Judge:
    """See `pixart.training.task.Task`."""

    data: Path
    network: JudgeConfig = field(default_factory=JudgeConfig)

    def build(self, recipe: Recipe, device: torch.device) -> JudgeNetwork:
        self.images = Images(self.data, recipe.output / "cache")
        self.size = recipe.phases[-1].size
        validation = read_split(self.data / VALIDATION)
        evenly = np.linspace(0, len(validation) - 1, min(len(validation), CANDIDATES)).astype(int)
        validation = [validation[k] for k in evenly]
        pixels = np.stack([prepared(record.open(), self.size) for record in validation])
        self.validated = to_unit(torch.from_numpy(pixels)), mean_states([record.text for record in validation])
        self.validated_styles = self.images.numbers(validation)
        torch.manual_seed(recipe.loop.seed)
        return JudgeNetwork(self.network, self.images.text.shape[1], len(self.images.styles))

    def source(self, phase: Phase) -> Source:
        rows = np.arange(len(self.images.style))
        read = partial(self.images.read, phase.size)
        return Source(rows, np.zeros_like(rows), np.ones(len(rows)), read, self.images.fingerprint)

    def loss(self, model: torch.nn.Module, batch: dict[str, Any]) -> Tensor:
        """Find each image's caption among the batch's and each caption's image, and name the style; (B,)."""
        logits, styles = model(moved_about(batch["pixels"], batch["moves"], self.network), batch["text"])
        same = batch["indices"][:, None] == batch["indices"]  # a row of the same image is no wrong answer
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -30.0)
        target = torch.arange(len(logits), device=logits.device)
        contrast = [functional.cross_entropy(part, target, reduction="none") for part in (logits, logits.T)]
        smoothing = self.network.label_smoothing
        style = functional.cross_entropy(styles, batch["styles"], label_smoothing=smoothing, reduction="none")
        return sum(contrast) / 2 + self.network.style_weight * style

    @torch.no_grad()
    def validate(self, model: JudgeNetwork) -> dict[str, float]:
        """How often a validation image's own short caption is first, or of the first ten, and its style is right."""
        device = next(model.parameters()).device
        pixels, text = self.validated
        found = [model.images(part.to(device)) for part in pixels.split(128)]
        images = torch.cat([vectors for vectors, _ in found])
        style = torch.cat([logits for _, logits in found]).argmax(dim=1).cpu()
        fits = images @ model.captions(torch.from_numpy(text).to(device)).T
        better = (fits > fits.diagonal()[:, None]).sum(dim=1)
        return {
            "validation_at_1": (better < 1).float().mean().item(),
            "validation_at_10": (better < 10).float().mean().item(),
            "validation_style": (style == self.validated_styles).float().mean().item(),
        }

    def export(self, model: JudgeNetwork, folder: Path) -> Path:
        images = self.images
        about = {"text_dim": images.text.shape[1], "styles": images.styles, "trained_on": images.fingerprint}
        save_judge(folder / "judge", model.cpu(), self.network, size=self.size, **about)
        return folder / "judge"


class Images:
    """The images of the training split with the states of their captions, in arrays that are made once."""

    def __init__(self, data: Path, cache: Path):
        records = read_split(data / "train")
        self.records, self.cache = records, cache
        self.styles = sorted({record.style for record in records})
        self.style = self.numbers(records)
        self.first = np.cumsum([0, *(len(record.captions) for record in records)])
        sizes = str([record.path.stat().st_size for record in records])  # other images may have the same metadata
        self.fingerprint = hashlib.sha256((data / "train" / "metadata.jsonl").read_bytes() + sizes.encode()).hexdigest()

        def texts() -> np.ndarray:
            return mean_states([caption for record in records for caption in record.captions]).astype(np.float16)

        self.text = self._cached("text", texts)

    def numbers(self, records: list[Record]) -> Tensor:
        return torch.tensor([self.styles.index(r.style) if r.style in self.styles else -1 for r in records])

    def read(self, size: int, rows: np.ndarray, rng: RowStreams) -> dict[str, Any]:
        """Rows with one caption each, as `Judge.loss` takes them, at `size` pixels."""
        images = self._cached(f"{size}", lambda: np.stack([prepared(r.open(), size) for r in self.records]))
        numbers = rng.random((len(rows), 5))
        count = np.diff(self.first)[rows]
        short = numbers[:, 0] < SHORT_SHARE
        caption = self.first[rows] + np.where(short, 0, (numbers[:, 1] * count).astype(int))
        return {
            "pixels": to_unit(torch.from_numpy(images[rows])),
            "text": torch.from_numpy(self.text[caption]).float(),
            "styles": self.style[rows],
            "indices": torch.from_numpy(rows),
            "moves": torch.from_numpy(numbers[:, 2:]).float(),
            "keys": [self.records[row].path.name for row in rows],
        }

    def _cached(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of that name, mapped; made and written where it is not there."""
        path = self.cache / f"{self.fingerprint[:16]}-{name}.npy"
        if not path.is_file():
            array = make()
            with replacing(path) as partial, partial.open("wb") as file:
                np.save(file, array)
        return np.load(path, mmap_mode="r")


def moved_about(pixels: Tensor, moves: Tensor, config: JudgeConfig) -> Tensor:
    """Each image at a scale and place by its `moves`, on white: (B, 3, S, S) as before."""
    numbers = moves * 2 - 1
    matrix = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 + config.zoom * numbers[:, 0]
    matrix[:, :, 2] = 2 * config.shift * numbers[:, 1:]
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels - WHITE, grid, align_corners=False) + WHITE
