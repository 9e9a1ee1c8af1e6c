"""Whether a model combines what its data never shows together: things in colours and people in tones they never have.

The prompts are those of the set "composition" that can be judged: one thing in one colour, one person in one skin tone.
"""

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pixart.errors import PixArtError, UsageError
from pixart.evaluation import drawing
from pixart.evaluation.judge import OpenedJudge
from pixart.evaluation.prompt_sets.emoji import SKIN_TONES
from pixart.evaluation.prompt_sets.prompts import Prompt, read_prompts
from pixart.evaluation.reference import Look, Reference, look, nearest_captions
from pixart.evaluation.statistics import Estimate, check_enough, mean

if TYPE_CHECKING:
    from pixart.data.imagefolder import Record
    from pixart.pipeline.pipeline import Pipeline

SET = "composition"
GROUPS = {"all": "all combinations", "colour": "thing x colour", "skin tone": "person x skin tone x style"}
FIGURES = (
    ("thing", "thing right, of 60", "share"),
    ("style", "style right", "share"),
    ("colour", "colour right", "share"),
    ("tone", "skin tone right, of five", "share"),
    ("every", "all of it right", "share"),
)
RIGHT, COPY = "what would be right", "nearest caption's picture"
Columns = dict[str, dict[str, dict[str, Estimate]]]


@dataclass(frozen=True)
class Answers:
    """Pictures that were not drawn, for some of the prompts: `rows` are their places among them."""

    rows: list[int]
    seen: Look


def combinations(num: int | None = None, seed: int = 0) -> list[Prompt]:
    """The prompts that can be judged, in an order by `seed`; the first `num` of them, all if None.

    Raises UsageError where there are not so many.
    """
    prompts = [prompt for prompt in read_prompts(SET) if prompt.category in GROUPS]
    if num is not None and not 1 <= num <= len(prompts):
        raise UsageError(f"The number of pictures is {num}; the set {SET} has {len(prompts)} that can be judged.")
    random.Random(seed).shuffle(prompts)
    check_enough(len(prompts[:num]), "An evaluation")
    return prompts[:num]


def check_data(data: Path | None) -> None:
    """Before anything is drawn. Raises PixArtError where there is no data in `data`."""
    if data is not None and not (data / "train" / "metadata.jsonl").is_file():
        raise PixArtError(f"{data} has no train/metadata.jsonl. Make the data first: pixart data emoji {data}")


def per_picture(seen: Look, prompts: Sequence[Prompt], judge: OpenedJudge) -> dict[str, np.ndarray]:
    """1 for right and 0 for wrong, (N,) for each of FIGURES; NaN where the prompt does not ask for it.

    `thing`: of the names of all things and people of the set, all in the asked style and without colour and tone, the
    judge finds the asked one fits best. `tone`: likewise of the five captions that differ in the tone only. `style`
    is the judge's answer, `colour` the colour that most of the object has, by rules.
    """
    things = sorted({prompt.about["object"] for prompt in combinations()})
    styles = sorted({prompt.about["style"] for prompt in prompts})
    named = judge.captions([f"{thing}, {style}" for style in styles for thing in things])
    named = named.reshape(len(styles), len(things), -1)
    best = [
        things[int((named[styles.index(prompt.about["style"])] @ vector).argmax())]
        for prompt, vector in zip(prompts, seen.vectors, strict=True)
    ]
    tone = np.full(len(prompts), np.nan)
    toned = [k for k, prompt in enumerate(prompts) if "skin_tone" in prompt.about]
    five = [caption_of(prompts[k], tone) for k in toned for tone in SKIN_TONES]
    vectors = judge.captions(five).reshape(len(toned), len(SKIN_TONES), seen.vectors.shape[1])
    for k, captions in zip(toned, vectors, strict=True):
        tone[k] = SKIN_TONES[int((captions @ seen.vectors[k]).argmax())] == prompts[k].about["skin_tone"]
    style = [prompt.about["style"] == found for prompt, found in zip(prompts, seen.styles, strict=True)]
    colour = [
        float(prompt.about["colour"] == found) if "colour" in prompt.about else np.nan
        for prompt, found in zip(prompts, seen.colours, strict=True)
    ]
    each = {
        "thing": np.array(
            [prompt.about["object"] == thing for prompt, thing in zip(prompts, best, strict=True)], float
        ),
        "style": np.array(style, float),
        "colour": np.array(colour),
        "tone": tone,
    }
    return each | {"every": np.nanmin(np.stack(list(each.values())), axis=0)}


def caption_of(prompt: Prompt, tone: str) -> str:
    """The short caption of a person in a tone, as the data has it."""
    return f"{prompt.about['object']} with {tone} skin tone, {prompt.about['style']}"


def scores(each: dict[str, np.ndarray], prompts: Sequence[Prompt]) -> dict[str, dict[str, Estimate]]:
    """`{group: {figure: Estimate}}`; intervals from resampling whole things."""
    thing = np.unique([prompt.about["object"] for prompt in prompts], return_inverse=True)[1]
    found: dict[str, dict[str, Estimate]] = {}
    for group in GROUPS:
        chosen = np.array([group in ("all", prompt.category) for prompt in prompts])
        if chosen.any():
            known = {name: chosen & np.isfinite(values) for name, values in each.items()}
            found[group] = {n: mean(values[known[n]], thing[known[n]]) for n, values in each.items() if known[n].any()}
    return found


def held_out_answers(prompts: Sequence[Prompt], reference: Reference) -> tuple[Answers, Answers]:
    """For the skin tones: the true pictures, which were held out, and the trivial answers, from the reference."""
    at = {row.caption: k for k, row in enumerate(reference.rows)}
    known = {
        number: at[caption]
        for number, prompt in enumerate(prompts)
        if "skin_tone" in prompt.about and (caption := caption_of(prompt, prompt.about["skin_tone"])) in at
    }
    rows = list(known.values())
    return Answers(list(known), reference.real[rows]), Answers(list(known), reference.copies[rows])


def recoloured_answers(data: Path, prompts: Sequence[Prompt], judge: OpenedJudge) -> tuple[Answers, Answers]:
    """For the colours: the thing's own picture in that style, recoloured; and the trivial answer, from `data`.

    Things whose picture has no one colour to turn are left out of the first.
    """
    from pixart.data.imagefolder import read_split
    from pixart.data.recolour import ANCHORS, leading, recoloured

    records = read_split(data / "train")
    asked = [number for number, prompt in enumerate(prompts) if prompt.category == "colour"]
    rows, pictures = [], []
    for number in asked:
        about = prompts[number].about
        record = _picture_of(about["object"], about["style"], records)
        image = None if record is None else _opened(record)
        found = None if image is None else leading(image)
        if found is not None and found.share >= 0.4:
            rows.append(number)
            pictures.append(recoloured(image, found, ANCHORS[about["colour"]]))
    words = {word for number in asked for word in prompts[number].about["object"].split()}
    near = [record for record in records if words & set(re.findall(r"[a-z]+", record.text))]
    nearest = nearest_captions([prompts[k].text for k in asked], [record.text for record in near], judge)
    copies = look([_opened(near[k]) for k in nearest], judge)
    return Answers(rows, look(pictures, judge)), Answers(asked, copies)


def _picture_of(thing: str, style: str, records: "Sequence[Record]") -> "Record | None":
    """The training picture of a thing in a style: "red apple" is one of an apple."""
    return next((r for r in records if r.style == style and re.fullmatch(rf"(\w+ )?{thing}", r.base_concept)), None)


def _opened(record: "Record") -> Image.Image:
    with Image.open(record.path) as image:
        return image.convert("RGB")


def evaluate(
    pipeline: "Pipeline", judge: OpenedJudge, reference: Reference, asked: drawing.Asked, folder: Path,
    report: Callable[[str], None], *, num: int | None = None, data: Path | None = None,
) -> dict:  # fmt: skip
    """Draw, look, and say what is right, beside what would be right and the trivial answer, as JSON values.

    Without `data` the two are there for the skin tones only, whose true pictures the reference has.
    """
    prompts = combinations(num, asked.seed)
    paths = drawing.draw_captions(pipeline, [prompt.text for prompt in prompts], asked, folder, report)
    report(f"judging {len(paths):,} pictures")
    each = per_picture(look(drawing.read(paths), judge), prompts, judge)
    columns = {"drawn": scores(each, prompts)}
    others = [held_out_answers(prompts, reference)]
    if data is not None:
        others.append(recoloured_answers(data, prompts, judge))
    for name, found in zip((RIGHT, COPY), zip(*others, strict=True), strict=True):
        rows = [k for answers in found for k in answers.rows]
        if rows:
            parts = [
                per_picture(answers.seen, [prompts[k] for k in answers.rows], judge)
                for answers in found
                if answers.rows
            ]
            both = {figure: np.concatenate([part[figure] for part in parts]) for figure in parts[0]}
            columns[name] = scores(both, [prompts[k] for k in rows])
    settings = drawing.settings_of(pipeline, asked)
    texts = json.dumps([prompt.text for prompt in prompts])
    return {
        "format": 1,
        "set": SET,
        "protocol": {
            **{key: settings[key] for key in settings if key not in ("model", "model_hash", "engine", "dtype")},
            "num": len(prompts),
            "set": SET,
            "prompts": hashlib.sha256(texts.encode()).hexdigest(),
            "judge": judge.sha256,
            "reference": reference.sha256,
        },
        **{key: settings[key] for key in ("model", "model_hash", "engine", "dtype")},
        "versions": pipeline.provenance["versions"],
        "scores": {
            column: {group: {name: asdict(e) for name, e in found.items()} for group, found in groups.items()}
            for column, groups in columns.items()
        },
        "pictures": [
            {
                "file": path.name,
                "caption": prompt.text,
                "concept": prompt.about["object"],
                "split": prompt.category,
                "seed": asked.seed + number,
                **{name: None if np.isnan(values[number]) else float(values[number]) for name, values in each.items()},
            }
            for number, (prompt, path) in enumerate(zip(prompts, paths, strict=True))
        ],
    }
