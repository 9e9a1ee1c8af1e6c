"""Training the judge: on the training split only, so that validation images say how far to trust it."""

import hashlib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pixart.training.optimizers.optimizer import OptimizerConfig
from torch import Tensor
from torch.nn import functional

from emojis.judge import JudgeConfig, JudgeNetwork, mean_states, prepared, save_judge, to_unit
from emojis.records import Record, read_split
from pixart.errors import UsageError
from pixart.training.loop import LoopConfig, train
from pixart.training.rows import WHOLE, Share

VALIDATION = "test_cells"
SHORT_SHARE = 0.5  # of the captions are the first, short one, which is what an evaluation asks with
CANDIDATES = 500  # validation images, each of which is looked for among all their captions
WHITE = 1.0  # of pixels in [-1, 1]: what lies outside a shifted image
# 3D and glossy are the same artwork, told apart by shading that 64 px does not show.
PHASES = ((2600, 64), (800, 128))  # steps, image size
LOOP = LoopConfig(ema_decay=0.99, evaluate_every=400, save_every=100, log_every=50)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, betas=(0.9, 0.98), warmup_steps=50, decay_share=0.5)


def train_judge(
    data: Path,
    run: Path,
    *,
    phases: tuple[tuple[int, int], ...] = PHASES,
    batch_size: int = 256,
    config: JudgeConfig = JudgeConfig(),  # noqa: B008  frozen
    loop: LoopConfig = LOOP,
    optimizer: OptimizerConfig = OPTIMIZER,
    report: Callable[[str], None] = print,
) -> Path:
    """Train a judge on `data` in the run folder `run`, or continue, and return the folder of the judge.

    `phases` are steps and image sizes. Raises PixArtError where the data is missing, UsageError where a batch is larger
    than the data set.
    """
    batches = Batches(data, run / "cache", phases, batch_size, loop.seed, report)
    validation = read_split(data / VALIDATION)
    evenly = np.linspace(0, len(validation) - 1, min(len(validation), CANDIDATES)).astype(int)
    validation = [validation[k] for k in evenly]
    size = phases[-1][1]
    known = {
        "pixels": to_unit(torch.from_numpy(np.stack([prepared(record.open(), size) for record in validation]))),
        "text": torch.from_numpy(mean_states([record.text for record in validation])),
        "styles": batches.numbers(validation),
    }
    torch.manual_seed(loop.seed)
    network = JudgeNetwork(config, batches.text.shape[1], len(batches.styles))
    steps = sum(steps for steps, _ in phases)
    average = train(
        network, partial(loss, config=config), batches, steps, run,
        loop=loop, optimizer=optimizer, evaluate=partial(_evaluate, known), report=report, data=batches.origin,
    )  # fmt: skip
    about = {"size": size, "text_dim": batches.text.shape[1], "styles": batches.styles, "trained_on": batches.origin}
    save_judge(run / "judge", average, config, **about)
    return run / "judge"


class Batches:
    """Images with one of their captions and their style; batch k is a function of the seed and k."""

    def __init__(self, data: Path, cache: Path, phases, batch_size: int, seed: int, report: Callable[[str], None]):
        records = read_split(data / "train")
        if batch_size > len(records):
            raise UsageError(f"The batch size {batch_size} is larger than the training split, {len(records)} images.")
        self.phases, self.batch_size, self.seed = phases, batch_size, seed
        self.styles = sorted({record.style for record in records})
        self.style = self.numbers(records)
        self.first = np.cumsum([0, *(len(record.captions) for record in records)])
        sizes = str([record.path.stat().st_size for record in records])  # other images may have the same metadata
        self.origin = hashlib.sha256((data / "train" / "metadata.jsonl").read_bytes() + sizes.encode()).hexdigest()

        def texts() -> np.ndarray:
            report(f"encoding {self.first[-1]:,} captions")
            return mean_states([caption for record in records for caption in record.captions]).astype(np.float16)

        def images(size: int) -> np.ndarray:
            report(f"reading {len(records):,} images at {size} px")
            return np.stack([prepared(record.open(), size) for record in records])

        self.text = _cached(cache / f"{self.origin[:16]}-text.npy", texts)
        self.images = {
            size: _cached(cache / f"{self.origin[:16]}-{size}.npy", partial(images, size))
            for size in {s for _, s in phases}
        }

    def numbers(self, records: list[Record]) -> Tensor:
        return torch.tensor([self.styles.index(r.style) if r.style in self.styles else -1 for r in records])

    def __call__(self, step: int, share: Share = WHOLE) -> dict:
        """The rows of `share` of batch `step`, as `loss` takes them."""
        size = next(size for k, (_, size) in enumerate(self.phases) if step < sum(n for n, _ in self.phases[: k + 1]))
        rows = share.rows(self.batch_size)
        numbers = np.random.default_rng((self.seed, step)).random((self.batch_size, 6))[rows.start : rows.stop]
        chosen = (numbers[:, 0] * len(self.style)).astype(int)
        count = np.diff(self.first)[chosen]
        caption = self.first[chosen] + np.where(numbers[:, 1] < SHORT_SHARE, 0, (numbers[:, 2] * count).astype(int))
        return {
            "pixels": to_unit(torch.from_numpy(self.images[size][chosen])),
            "text": torch.from_numpy(self.text[caption]).float(),
            "styles": self.style[chosen],
            "indices": torch.from_numpy(chosen),
            "moves": torch.from_numpy(numbers[:, 3:]).float(),
            "count": len(chosen),
        }


def loss(model: torch.nn.Module, batch: dict, *, config: JudgeConfig) -> Tensor:
    """Find each image's caption among the batch's and each caption's image, and name the style.

    batch: "pixels" (B, 3, S, S), "text" (B, T), "styles" (B,) int64, "moves" (B, 3) in 0..1, "indices" (B,): which
    image of the data it is; a row of the same image is no wrong answer.
    """
    logits, styles = model(moved_about(batch["pixels"], batch["moves"], config), batch["text"])
    same = batch["indices"][:, None] == batch["indices"]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -30.0)
    target = torch.arange(len(logits), device=logits.device)
    contrast = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    style = functional.cross_entropy(styles, batch["styles"], label_smoothing=config.label_smoothing)
    return contrast / 2 + config.style_weight * style


def moved_about(pixels: Tensor, moves: Tensor, config: JudgeConfig) -> Tensor:
    """Each image at a scale and place by its `moves`, on white: (B, 3, S, S) as before."""
    numbers = moves * 2 - 1
    matrix = torch.zeros(len(pixels), 2, 3, device=pixels.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 + config.zoom * numbers[:, 0]
    matrix[:, :, 2] = 2 * config.shift * numbers[:, 1:]
    grid = functional.affine_grid(matrix, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels - WHITE, grid, align_corners=False) + WHITE


@torch.no_grad()
def _evaluate(known: dict[str, Tensor], ema: JudgeNetwork, step: int) -> dict[str, float]:
    """How often a validation image's own short caption is first, or of the first ten; how often its style is right."""
    device = next(ema.parameters()).device
    found = [ema.images(part.to(device)) for part in known["pixels"].split(128)]
    images = torch.cat([vectors for vectors, _ in found])
    style = torch.cat([logits for _, logits in found]).argmax(dim=1).cpu()
    fits = images @ ema.captions(known["text"].to(device)).T
    better = (fits > fits.diagonal()[:, None]).sum(dim=1)
    return {
        "validation_at_1": (better < 1).float().mean().item(),
        "validation_at_10": (better < 10).float().mean().item(),
        "validation_style": (style == known["styles"]).float().mean().item(),
    }


def _cached(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array at `path`, mapped; made and written whole where it is not there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".partial"), "wb") as file:
            np.save(file, make())
        os.replace(path.with_suffix(".partial"), path)
    return np.load(path, mmap_mode="r")
