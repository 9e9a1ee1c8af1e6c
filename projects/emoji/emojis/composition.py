"""Whether a model combines what its data never shows together: things in new colours, people in new skin tones."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emojis.evaluate import COPY, GENERATED, Report, Scores, as_report, generate
from emojis.judge import Judge
from emojis.measures import check_enough, mean
from emojis.prompts import CATEGORIES, SKIN_TONES, combinations, toned_caption
from emojis.recolour import ANCHORS, leading, recoloured
from emojis.records import Record, read_split
from emojis.reference import Reference, Seen, look, look_at, nearest_captions
from pixart import Pipeline
from pixart.evaluation.metrics import read
from pixart.evaluation.prompt_sets import Prompt

RIGHT = "what would be right"
ENOUGH = 0.4  # of a thing that must change with its leading colour, for a recoloured image of it to be right


@dataclass(frozen=True)
class Answers:
    """Images that were not generated, for some of the prompts: `rows` are their places among them."""

    rows: list[int]
    seen: Seen


def evaluate(
    pipeline: Pipeline, judge: Judge, reference: Reference, *, num: int, seed: int, settings: dict[str, Any],
    folder: Path | None, data: Path | None, report: Report,
) -> tuple[dict, Path]:  # fmt: skip
    """Generate and measure what is right, beside what would be right and the trivial answer; the report and its folder.

    Without `data` the two are there for the skin tones only, whose true images the reference has.
    """
    check_enough(num)
    prompts = combinations(num, seed)
    records = [] if data is None else read_split(data / "train")
    texts = [prompt.text for prompt in prompts]
    paths, shared = generate(pipeline, texts, seed, settings, folder, report)
    report(f"judging {num:,} images")
    each = per_image(look([read(path) for path in paths], judge), prompts, judge)
    columns = {GENERATED: scores(each, prompts)}
    others = [held_out_answers(prompts, reference)]
    if records:
        others.append(recoloured_answers(records, prompts, judge))
    for name, found in zip((RIGHT, COPY), zip(*others, strict=True), strict=True):
        found = [answers for answers in found if answers.rows]
        asked = [prompts[k] for answers in found for k in answers.rows]
        if asked:
            parts = [per_image(answers.seen, [prompts[k] for k in answers.rows], judge) for answers in found]
            columns[name] = scores({m: np.concatenate([part[m] for part in parts]) for m in parts[0]}, asked)
    named = [{"caption": p.text, "concept": p.about["object"], "group": p.category} for p in prompts]
    protocol = {"set": "composition", "prompts": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}
    return as_report(judge, reference, shared, seed, protocol, columns, named, each, paths), paths[0].parent


def per_image(seen: Seen, prompts: Sequence[Prompt], judge: Judge) -> dict[str, np.ndarray]:
    """1 for right and 0 for wrong, (N,) for each metric; NaN where the prompt does not ask for it.

    `thing`: of the names of all things and people of the set, all in the prompt's style and without colour and tone,
    the judge finds the right one fits best. `tone`: likewise of the five captions that differ in the tone only. `style`
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
    vectors = judge.captions([toned_caption(prompts[k], tone) for k in toned for tone in SKIN_TONES])
    for k, five in zip(toned, vectors.reshape(len(toned), len(SKIN_TONES), seen.vectors.shape[1]), strict=True):
        tone[k] = SKIN_TONES[int((five @ seen.vectors[k]).argmax())] == prompts[k].about["skin_tone"]
    colour = [
        float(prompt.about["colour"] == found) if "colour" in prompt.about else np.nan
        for prompt, found in zip(prompts, seen.colours, strict=True)
    ]
    each = {
        "thing": np.array([float(p.about["object"] == thing) for p, thing in zip(prompts, best, strict=True)]),
        "style": np.array([float(p.about["style"] == found) for p, found in zip(prompts, seen.styles, strict=True)]),
        "colour": np.array(colour),
        "tone": tone,
    }
    return each | {"every": np.nanmin(np.stack(list(each.values())), axis=0)}


def scores(each: dict[str, np.ndarray], prompts: Sequence[Prompt]) -> Scores:
    """`{group: {metric: Estimate}}`; intervals from resampling things."""
    thing = np.unique([prompt.about["object"] for prompt in prompts], return_inverse=True)[1]
    found: Scores = {}
    for group in ("all", *CATEGORIES):
        chosen = np.array([group in ("all", prompt.category) for prompt in prompts])
        if chosen.any():
            known = {name: chosen & np.isfinite(values) for name, values in each.items()}
            found[group] = {n: mean(values[known[n]], thing[known[n]]) for n, values in each.items() if known[n].any()}
    return found


def held_out_answers(prompts: Sequence[Prompt], reference: Reference) -> tuple[Answers, Answers]:
    """For the skin tones: the true images, which training never saw, and the trivial answers, from the reference."""
    at = {row.caption: k for k, row in enumerate(reference.rows)}
    known = {
        number: at[caption]
        for number, prompt in enumerate(prompts)
        if "skin_tone" in prompt.about and (caption := toned_caption(prompt, prompt.about["skin_tone"])) in at
    }
    rows = list(known.values())
    return Answers(list(known), reference.real[rows]), Answers(list(known), reference.copies[rows])


def recoloured_answers(records: list[Record], prompts: Sequence[Prompt], judge: Judge) -> tuple[Answers, Answers]:
    """For the colours: the thing's own training image in that style, recoloured; and the trivial answer.

    Things whose image has no one colour to turn are left out of the first.
    """
    asked = [number for number, prompt in enumerate(prompts) if prompt.category == "colour"]
    rows, images = [], []
    for number in asked:
        about = prompts[number].about
        named = rf"(\w+ )?{about['object']}"  # a red apple is an apple
        record = next((r for r in records if r.style == about["style"] and re.fullmatch(named, r.base_concept)), None)
        image = None if record is None else record.open()
        found = None if image is None else leading(image)
        if found is not None and found.share >= ENOUGH:
            rows.append(number)
            images.append(recoloured(image, found, ANCHORS[about["colour"]]))
    words = {word for number in asked for word in prompts[number].about["object"].split()}
    near = [record for record in records if words & set(re.findall(r"[a-z]+", record.text))]
    nearest = nearest_captions([prompts[k].text for k in asked], [record.text for record in near])
    return Answers(rows, look(images, judge)), Answers(asked, look_at([near[k] for k in nearest], judge))
