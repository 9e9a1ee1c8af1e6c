"""README.md of a finished model folder: how to draw with it, how it was trained, what that cost."""

import json
from pathlib import Path
from typing import Any

from pixart.training import receipt
from pixart.training.files import write_whole
from pixart.training.recipe import DecoderRecipe, TextRecipe

HEAD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [pixart]
---
"""
PYTHON = """```python
from diffusers import PixArtAlphaPipeline

PixArtAlphaPipeline.from_pretrained("model")("a prompt")
```
"""


def write_card(folder: Path, recipe: TextRecipe | DecoderRecipe, *, figures: dict[str, float]) -> None:
    """Write README.md into the model folder of a finished run. `figures` are the last held-out ones.

    That of a decoder goes on from the README of the model whose decoder it was, if that had one.
    """
    path = folder / "README.md"
    if isinstance(recipe, DecoderRecipe):
        before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else HEAD
        lines = [before, *_decoder(recipe, figures)]
    else:
        lines = [HEAD, *_denoiser(folder, recipe, figures)]
    write_whole(path, "\n".join(lines) + "\n")


def _denoiser(folder: Path, recipe: TextRecipe, figures: dict[str, float]) -> list[str]:
    size = recipe.model
    return [
        f"# {recipe.run.name}\n",
        "A PixArt-α model, trained with pixart. Draw with it:\n",
        f'```sh\npixart generate "a prompt" --model {folder.name}\n```\n',
        PYTHON,
        "## Training\n",
        f"Width {size.width}, {size.depth} blocks, {size.num_heads} heads. Objective: {recipe.objective}. "
        f"{recipe.caption_dropout:.0%} of the captions were replaced by the empty prompt.\n",
        *_phases(recipe),
        *_figures(figures),
        "" if not figures else "\nThe loss is that of pictures that training never saw.\n",
        "## What it cost\n",
        *_cost(_receipts(recipe)),
    ]


def _decoder(recipe: DecoderRecipe, figures: dict[str, float]) -> list[str]:
    row = receipt.read(recipe.run)
    return [
        "## The decoder\n",
        f"The autoencoder's decoder was trained on, by {recipe.run.name}. {recipe.drawn.share:.0%} of its latents were "
        "drawn again by the denoiser. Denoiser and encoder are unchanged.\n",
        *_phases(recipe),
        *_figures(figures),
        "" if not figures else "\nPSNR in dB, of pictures that training never saw.\n",
        *_cost([(recipe.run.name, row)] if row else []),
    ]


def _phases(recipe: TextRecipe | DecoderRecipe) -> list[str]:
    rows = (f"| {phase.steps:,} | {phase.size} | {phase.batch_size} |" for phase in recipe.phases)
    return ["| Steps | Pixels | Batch |\n| --- | --- | --- |", *rows, ""]


def _figures(figures: dict[str, float]) -> list[str]:
    return [f"- {name.replace('_', ' ')}: {figure:.4g}" for name, figure in figures.items()]


def _cost(rows: list[tuple[str, dict[str, Any]]]) -> list[str]:
    lines = [
        "| Run | Pictures | FLOPs | Hours | Energy | Money | CO2 |\n| --- | --- | --- | --- | --- | --- | --- |",
        *(f"| {name} | {_cells(row)} |" for name, row in rows),
    ]
    if len(rows) > 1:
        names = ("images", "flops", "hours", "energy_kwh", "usd", "co2_kg")
        total = {name: sum(row[name] for _, row in rows) for name in names}
        lines.append(f"| all | {_cells(total)} |")
    if rows:
        row = rows[-1][1]
        lines += [
            f"\nMachine: {row['machine']}. Energy: {row['energy_source']}. Money at {row['usd_per_hour']:g} USD an "
            f"hour, CO2 at {row['grid_g_per_kwh']:g} g per kWh: both are assumptions. Hours are those of the training "
            "loop, evaluation included, making features not."
        ]
    return lines


def _cells(row: dict[str, Any]) -> str:
    return (
        f"{row['images']:,} | {row['flops']:.2g} | {row['hours']:.2f} | {row['energy_kwh']:.3g} kWh | "
        f"{row['usd']:.2f} USD | {row['co2_kg']:.2g} kg"
    )


def _receipts(recipe: TextRecipe) -> list[tuple[str, dict[str, Any]]]:
    """The receipts of this run and of those that it builds on, the first first; runs without a receipt are left out."""
    found, seen = [], set()
    for run in (recipe.run, recipe.autoencoder.parent):
        while run is not None and run.resolve() not in seen:
            seen.add(run.resolve())
            if row := receipt.read(run):
                found.insert(0, (run.name, row))
            run = _init_of(run)
    return found


def _init_of(run: Path) -> Path | None:
    try:
        init = json.loads((run / "config.json").read_text(encoding="utf-8")).get("init")
    except (OSError, ValueError, AttributeError):
        return None
    return Path(init) if init else None
