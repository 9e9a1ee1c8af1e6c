"""What the recipe of a judge brings to the loop: pictures with one of their captions and their style."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pixart.data import features
from pixart.data.imagefolder import Record, read_split
from pixart.encoders import judge
from pixart.training.batches import TextCondition, check_batch_sizes, digest, phase_at, weights_of_splits
from pixart.training.files import write_whole
from pixart.training.recipe import DEFAULT_MODEL, JudgeRecipe
from pixart.training.rows import WHOLE, RowStreams, Share
from pixart.training.sources import HELD_OUT, keys_of, pictures_by_size, spread
from pixart.training.stage import Stage

ASKED = 500  # held-out pictures that an evaluation takes, each of which is looked for among all their captions


class JudgeBatches:
    """`{"pixels", "text", "text_mask", "styles", "indices", "count", "keys"}` as `judge.loss` takes them."""

    def __init__(
        self, recipe: JudgeRecipe, pictures: dict[int, Tensor], splits: list[list[Record]], text, styles: Tensor
    ):
        self.recipe, self.pictures, self.styles = recipe, pictures, styles
        self.keys = keys_of(["train", *recipe.sampling.extra_splits], splits)
        self.cumulative = np.cumsum(weights_of_splits(splits, recipe.sampling))
        self.condition = TextCondition(text, 0.0, recipe.sampling.short_caption_share)
        check_batch_sizes(recipe.phases, len(self.keys), "the training split")

    def __call__(self, step: int, share: Share = WHOLE) -> dict:
        phase = phase_at(self.recipe.phases, step)
        rows = share.rows(phase.batch_size)
        rng = RowStreams(self.recipe.loop.seed, step, rows, purpose=1)
        chosen = np.searchsorted(self.cumulative, rng.random(len(rows)) * self.cumulative[-1], side="right")
        return {
            "pixels": features.to_unit(self.pictures[phase.size][chosen]),
            "styles": self.styles[chosen],
            "indices": torch.from_numpy(chosen),
            "count": len(rows),
            "keys": [self.keys[i] for i in chosen],
            **self.condition(chosen, rng),
        }

    def fingerprint(self) -> str:
        return digest(
            *self.pictures.values(), self.styles, torch.from_numpy(self.cumulative), *self.condition.tensors()
        )

    def data_size(self) -> int:
        return len(self.keys)


def judge_stage(recipe: JudgeRecipe, report: Callable[[str], None]) -> Stage:
    """Raises PixArtError where the data is missing or broken."""
    encoder, tokenizer = DEFAULT_MODEL / "text_encoder", DEFAULT_MODEL / "tokenizer"
    names = ["train", *recipe.sampling.extra_splits]
    splits, held_records = [read_split(recipe.data / name) for name in names], read_split(recipe.data / HELD_OUT)
    styles = sorted({record.style for record in splits[0]})

    def told(split: str) -> features.TextStates:
        return features.text_states(recipe.data, split, encoder, tokenizer, recipe.cache, report)

    def numbers(rows: list[Record]) -> Tensor:
        return torch.tensor([styles.index(record.style) if record.style in styles else -1 for record in rows])

    size = recipe.phases[-1].size
    text = features.joined([told(name) for name in names])
    styles_of_all = torch.cat([numbers(records) for records in splits])
    batches = JudgeBatches(recipe, pictures_by_size(recipe, report), splits, text, styles_of_all)
    asked = spread(len(held_records), ASKED)
    held = {
        "pixels": features.to_unit(features.pixels(recipe.data, HELD_OUT, size, recipe.cache, report)[asked]),
        "styles": numbers(held_records)[asked],
        **TextCondition(told(HELD_OUT), 0.0, 1.0)(asked, np.random.default_rng(0)),
    }
    torch.manual_seed(recipe.loop.seed)
    model = judge.Judge(recipe.judge, text.null.shape[1], len(styles))

    def finish(ema: torch.nn.Module) -> Path:
        config = {
            "size": size,
            "text_dim": text.null.shape[1],
            "styles": styles,
            "judge": asdict(recipe.judge),
            "trained_on": batches.fingerprint(),
        }
        return write_judge(recipe.run / "judge", ema, config)

    return Stage(model, partial(judge.loss, config=recipe.judge), batches, partial(_held_out, held), finish)


@torch.no_grad()
def _held_out(held: dict[str, Tensor], ema: torch.nn.Module, step: int) -> dict[str, float]:
    """How often a real held-out picture's own short caption is first, or of the first ten; how often its style."""
    device = next(ema.parameters()).device
    seen = [ema.pictures(part.to(device)) for part in held["pixels"].split(128)]
    pictures = torch.cat([vectors for vectors, _ in seen])
    style = torch.cat([logits for _, logits in seen]).argmax(dim=1).cpu()
    fits = pictures @ ema.captions(held["text"].to(device), held["text_mask"].to(device)).T
    better = (fits > fits.diagonal()[:, None]).sum(dim=1)
    return {
        "held_out_at_1": (better < 1).float().mean().item(),
        "held_out_at_10": (better < 10).float().mean().item(),
        "held_out_style": (style == held["styles"]).float().mean().item(),
    }


def write_judge(folder: Path, model: torch.nn.Module, config: dict) -> Path:
    """`model.safetensors` in half precision and `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    partial_file = folder / "model.partial"
    save_file({name: value.half().contiguous().cpu() for name, value in model.state_dict().items()}, partial_file)
    partial_file.replace(folder / "model.safetensors")
    write_whole(folder / "config.json", json.dumps(config, indent=1) + "\n")
    return folder
