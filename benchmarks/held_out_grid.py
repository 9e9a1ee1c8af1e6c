"""Draw held-out captions, unselected, and count how many drawings are nearest to their own true picture.

    python benchmarks/held_out_grid.py --data runs/emoji

Writes three files into --out:
    held-out-grid.png    drawn beside true, numbered and captioned; a green bar where the own true picture is nearest
    held-out-drawn.png   the drawings alone, numbered, for a reader who must name them without seeing the captions
    held-out-grid.json   every figure and setting, and the captions in order

The captions are chosen before anything is drawn: `count` base concepts of the split by --seed, each equally likely, and
of each concept one picture (one style, one skin tone), each equally likely.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import pixart
from pixart.data.imagefolder import Record, read_split
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.nearest import nearest

CELL = 144  # pixels of a picture in the grid
GAP = 10
GREEN = (30, 150, 60)


def choose(records: list[Record], count: int, seed: int) -> list[Record]:
    """One record for each of `count` base concepts; depends on the data and the seed only, not on the file order."""
    by_concept: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda record: record.file_name):
        by_concept[record.base_concept].append(record)
    if not 2 <= count <= len(by_concept):
        raise UsageError(f"--count must be from 2 to {len(by_concept)}, the base concepts of this split; not {count}.")
    rng = random.Random(seed)
    return [rng.choice(by_concept[concept]) for concept in rng.sample(sorted(by_concept), count)]


def other_style(chosen: list[Record], train: list[Record], seed: int) -> list[Record | None]:
    """What copying the nearest caption would give: a training picture of the same base concept in another style.

    One with the same skin tone if there is one, at random among those; None where training has no such concept.
    """
    by_concept: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(train, key=lambda record: record.file_name):
        by_concept[record.base_concept].append(record)
    rng = random.Random(seed)
    copies = []
    for record in chosen:
        others = by_concept[record.base_concept]
        best = [other for other in others if other.concept == record.concept] or others
        copies.append(rng.choice(best) if best else None)
    return copies


def open_picture(record: Record, size: int) -> Image.Image:
    with Image.open(record.path) as image:
        return image.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)


def draw_all(pipe: pixart.Pipeline, chosen: list[Record], arguments: argparse.Namespace):
    """The drawings, the settings of the first, and the seconds that each took (text encoding to pixels)."""
    images, settings, seconds = [], {}, []
    for index, record in enumerate(chosen):
        begun = time.perf_counter()
        result = pipe(
            record.text,
            seed=arguments.seed + index,
            steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            width=arguments.size,
            height=arguments.size,
        )
        seconds.append(time.perf_counter() - begun)
        images.append(result.images[0])
        settings = settings or result.settings[0]
        print(f"{index + 1} of {len(chosen)}: {record.text}  {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    return images, settings, seconds


def wrapped(words: str, font: ImageFont.ImageFont, width: int, lines: int) -> str:
    """Broken at spaces to fit `width` pixels, cut after `lines` lines."""
    done: list[str] = []
    for word in words.split():
        if done and font.getlength(f"{done[-1]} {word}") <= width:
            done[-1] += f" {word}"
        else:
            done.append(word)
    if len(done) > lines:
        done = [*done[: lines - 1], done[lines - 1] + " ..."]
    return "\n".join(done)


def grid_of_pairs(drawn: list[Image.Image], true: list[Image.Image], captions: list[str], own: list[bool]):
    """Left drawn, right true, in rows of 8 pairs."""
    font = ImageFont.load_default(15)
    columns, text_height = min(8, len(drawn)), 44
    width, height = 2 * CELL + 2 + GAP, CELL + text_height + GAP
    sheet = Image.new("RGB", (columns * width + GAP, -(-len(drawn) // columns) * height + 40), "white")
    pen = ImageDraw.Draw(sheet)
    heading = "In each pair: left drawn, right true. Green bar: nearest to its own true picture"
    pen.text((GAP, 10), f"{heading} ({sum(own)} of {len(own)}).", "black", font)
    for index, (ours, theirs, caption, found) in enumerate(zip(drawn, true, captions, own, strict=True)):
        x, y = GAP + index % columns * width, 40 + index // columns * height
        for at, image in ((x, ours), (x + CELL + 2, theirs)):
            sheet.paste(image.resize((CELL, CELL), Image.Resampling.LANCZOS), (at, y))
            pen.rectangle((at, y, at + CELL - 1, y + CELL - 1), outline=(210, 210, 210))
        if found:
            pen.rectangle((x, y + CELL + 1, x + 2 * CELL + 1, y + CELL + 4), fill=GREEN)
        words = wrapped(f"{index + 1}. {caption}", font, 2 * CELL, 2)
        pen.multiline_text((x, y + CELL + 6), words, "black", font, spacing=2)
    return sheet


def numbered_sheet(drawn: list[Image.Image]) -> Image.Image:
    """The drawings alone, 8 a row, each under its number."""
    font = ImageFont.load_default(20)
    cell, columns, heading = 192, min(8, len(drawn)), 26
    rows = -(-len(drawn) // columns)
    sheet = Image.new("RGB", (columns * (cell + GAP) + GAP, rows * (cell + heading + GAP)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, image in enumerate(drawn):
        x, y = GAP + index % columns * (cell + GAP), index // columns * (cell + heading + GAP)
        pen.text((x, y + 2), str(index + 1), "black", font)
        sheet.paste(image.resize((cell, cell), Image.Resampling.LANCZOS), (x, y + heading))
        pen.rectangle((x, y + heading, x + cell - 1, y + heading + cell - 1), outline=(210, 210, 210))
    return sheet


def count_copies(copies: list[Record | None], true: list[Image.Image], size: int) -> dict[str, int]:
    """The same count when each drawing is replaced by the training picture that `other_style` found."""
    there = [k for k, copy in enumerate(copies) if copy is not None]
    at = nearest([open_picture(copies[k], size) for k in there], true)
    return {"own_is_nearest": sum(int(a) == k for a, k in zip(at, there, strict=True)), "of": len(there)}


def write_whole(path: Path, save) -> None:
    partial = path.with_name(f".{path.name}.part")
    save(partial)
    partial.replace(path)


def run(arguments: argparse.Namespace) -> dict:
    chosen = choose(read_split(arguments.data / arguments.split), arguments.count, arguments.seed)
    copies = other_style(chosen, read_split(arguments.data / "train"), arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pipe = pixart.Pipeline.from_pretrained(arguments.model)
    drawn, settings, seconds = draw_all(pipe, chosen, arguments)
    true = [open_picture(record, arguments.size) for record in chosen]
    at = [int(k) for k in nearest(drawn, true)]
    own = [k == index for index, k in enumerate(at)]
    styles = {style: [own[i] for i, r in enumerate(chosen) if r.style == style] for style in {r.style for r in chosen}}
    kept = ("steps", "guidance_scale", "width", "height", "sampler", "model", "model_hash", "threads", "versions")
    figures = {
        "own_is_nearest": sum(own),
        "of": len(own),
        "by_style": {s: {"own_is_nearest": sum(hits), "of": len(hits)} for s, hits in sorted(styles.items())},
        "trivial_answers": {
            "chance": {"own_is_nearest": 1, "of": len(own)},  # expected, whatever is drawn without the caption
            "training_picture_of_the_concept_in_another_style": count_copies(copies, true, arguments.size),
        },
        "data": {"split": arguments.split, "seed": arguments.seed, "count": arguments.count},
        "settings": {key: settings[key] for key in kept},
        "seconds_per_picture": {"median": round(statistics.median(seconds), 2), "largest": round(max(seconds), 2)},
        "pictures": [
            {
                "number": index + 1,
                "text": record.text,
                "style": record.style,
                "base_concept": record.base_concept,
                "file_name": record.file_name,
                "seed": arguments.seed + index,
                "nearest_number": at[index] + 1,
            }
            for index, record in enumerate(chosen)
        ],
    }
    grid = grid_of_pairs(drawn, true, [record.text for record in chosen], own)
    write_whole(arguments.out / "held-out-grid.png", lambda path: grid.save(path, "PNG", optimize=True))
    sheet = numbered_sheet(drawn)
    write_whole(arguments.out / "held-out-drawn.png", lambda path: sheet.save(path, "PNG", optimize=True))
    words = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    write_whole(arguments.out / "held-out-grid.json", lambda path: path.write_text(words, encoding="utf-8"))
    return figures


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of `pixart data emoji`")
    parser.add_argument("--model", type=Path, help="model folder (the one in the package)")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0, help="chooses the captions; picture k has seed + k")
    parser.add_argument("--split", default="test_cells")
    parser.add_argument("--size", type=int, default=256, help="pixels")
    parser.add_argument("--steps", type=int, help="the model's own")
    parser.add_argument("--guidance-scale", type=float, help="the model's own")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args(words)
    try:
        figures = run(arguments)
    except PixArtError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"{arguments.out} cannot be written ({error}).", file=sys.stderr)
        return 1
    print(json.dumps({key: value for key, value in figures.items() if key != "pictures"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
