"""What the data never shows together: the prompts are new, right answers are found right, mistakes are seen."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_data import add, draw
from tiny_judge import write_shapes

from pixart.checkpoints.model_folder import DEFAULT_MODEL
from pixart.data.recolour_split import KEPT_APART
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.command import run
from pixart.evaluation.composition import (
    COPY,
    RIGHT,
    caption_of,
    combinations,
    held_out_answers,
    per_picture,
    recoloured_answers,
    scores,
)
from pixart.evaluation.judge import open_judge
from pixart.evaluation.prompt_sets.emoji import NEVER_IN, SKIN_TONES
from pixart.evaluation.reference import Look, open_reference


@pytest.fixture(scope="module")
def judge():
    return open_judge()


def right_answers(prompts, judge) -> Look:
    """What one would see who sees exactly what was asked for."""
    words = [
        caption_of(prompt, prompt.about["skin_tone"])
        if "skin_tone" in prompt.about
        else f"{prompt.about['object']}, {prompt.about['style']}"
        for prompt in prompts
    ]
    styles, colours = ([prompt.about.get(name) for prompt in prompts] for name in ("style", "colour"))
    return Look(judge.captions(words), styles, np.zeros((len(prompts), 4)), colours)


def test_the_things_are_those_that_training_never_recolours_and_never_in_a_colour_of_theirs():
    assert {thing.split(" ", 1)[1] for thing, _ in NEVER_IN} == set(KEPT_APART)
    never = {thing.split(" ", 1)[1]: colours.split() for thing, colours in NEVER_IN}
    prompts = combinations()
    assert len(prompts) == 200 and len({prompt.text for prompt in prompts}) == 200
    for prompt in prompts:
        if prompt.category == "colour":
            assert prompt.about["colour"] not in never[prompt.about["object"]]
            assert prompt.about["style"] != "black and white"
    assert combinations(60) == prompts[:60] and combinations(60, seed=1) != prompts[:60]
    assert sum(prompt.category == "skin tone" for prompt in prompts[:60]) > 5
    for num, words in ((201, "has 200"), (49, "at least 50")):
        with pytest.raises(UsageError, match=words):
            combinations(num)


def test_right_answers_are_right_and_each_mistake_is_one(judge):
    prompts = combinations(80)
    seen = right_answers(prompts, judge)
    each = per_picture(seen, prompts, judge)
    colours = np.array([prompt.category == "colour" for prompt in prompts])
    assert (each["thing"][colours] == 1).all() and (each["tone"][~colours] == 1).all() and (each["style"] == 1).all()
    assert (each["colour"][colours] == 1).all() and np.isnan(each["colour"][~colours]).all()
    assert (each["every"][colours] == 1).all() and np.isnan(each["tone"][colours]).all()

    grey = per_picture(replace(seen, colours=["grey"] * 80), prompts, judge)
    assert (grey["colour"][colours] == 0).all() and (grey["every"][colours] == 0).all()
    assert (grey["every"][~colours] == each["every"][~colours]).all()
    plain = per_picture(replace(seen, styles=["black and white"] * 80), prompts, judge)
    assert plain["style"].sum() == 0 and plain["every"].sum() == 0 and (plain["thing"] == each["thing"]).all()
    other = per_picture(replace(seen, vectors=seen.vectors[::-1]), prompts, judge)
    assert other["thing"][colours].mean() < 0.2

    found = scores(each, prompts)
    assert set(found) == {"all", "colour", "skin tone"} and set(found["colour"]) == {
        "thing",
        "style",
        "colour",
        "every",
    }
    assert found["all"]["every"].value == pytest.approx(each["every"].mean())


def test_the_reference_has_the_true_pictures_of_every_skin_tone_that_is_asked(judge):
    prompts, reference = combinations(), open_reference()
    true, copies = held_out_answers(prompts, reference)
    assert len(true.rows) == len(copies.rows) == 40
    asked = [prompts[k] for k in true.rows]
    rows = {row.caption: row for row in reference.rows}
    assert all(rows[caption_of(p, p.about["skin_tone"])].split == "test_cells" for p in asked)
    assert len({p.about["skin_tone"] for p in asked}) == len(SKIN_TONES)
    assert per_picture(true.seen, asked, judge)["tone"].mean() > 0.35  # chance is one in five


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("composition")


@pytest.fixture(scope="module")
def data(home):
    """Shapes, and with them a few of the things that are asked for, each a disc of its usual colour."""
    folder = write_shapes(home / "data")
    lines = (folder / "train" / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    usual = (("red apple", (220, 40, 40)), ("banana", (250, 205, 50)), ("frog", (60, 170, 80)))
    for thing, rgb in usual:
        for style in ("flat", "Noto"):
            add(folder / "train", rows, thing, thing, None, "things", style, draw("circle", rgb, "flat"))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train" / "metadata.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_recoloured_true_pictures_have_the_colour_and_the_nearest_captions_pictures_do_not(data, judge):
    prompts = combinations()
    right, copies = recoloured_answers(data, prompts, judge)
    asked = [prompts[k] for k in right.rows]
    drawn = {"apple", "banana", "frog"}
    wanted = [p for p in prompts if p.about["object"] in drawn and p.about["style"] in ("flat", "Noto")]
    assert asked == [p for p in wanted if p.category == "colour"] and len(asked) > 2
    assert per_picture(right.seen, asked, judge)["colour"].mean() == 1
    assert len(copies.rows) == 160
    mine = [k for k, row in enumerate(copies.rows) if prompts[row] in asked]
    found = per_picture(copies.seen[mine], asked, judge)
    assert found["colour"].mean() == 0


def test_the_command_says_what_is_right_beside_what_would_be_and_compares(data, home, tiny_model_with_graphs, capsys):
    given = f"--composition --num 50 --size 64 --steps 2 --engine onnx --pictures {home / 'pictures'} --data {data}"
    assert run([str(tiny_model_with_graphs), *given.split(), "--output", str(home / "a.json")]) == 0
    said = capsys.readouterr().out
    assert "THING X COLOUR" in said and "all of it right" in said and "50 pictures of 64 x 64 px" in said
    told = json.loads((home / "a.json").read_text())
    assert list(told["scores"]) == ["drawn", RIGHT, COPY] and told["protocol"]["num"] == 50
    assert told["scores"]["drawn"]["all"]["every"]["value"] < 0.1
    assert len(told["pictures"]) == len(list((home / "pictures").glob("*.png"))) == 50
    assert {row["split"] for row in told["pictures"]} == {"colour", "skin tone"}
    told["model"] = "another"
    (home / "b.json").write_text(json.dumps(told))
    assert run(["--compare", str(home / "a.json"), str(home / "b.json")]) == 0
    said = capsys.readouterr().out
    assert "another (b.json)" in said and "  colour right: 0.0% (0.0% to 0.0%)" in said and RIGHT in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--num 300", "has 200 that can be judged"),
        ("--num 20", "at least 50"),
        ("--guidance-sweep 1,2", "one --guidance-scale"),
        ("--data nowhere", "metadata.jsonl"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence, tmp_path):
    with pytest.raises(PixArtError, match=sentence):
        run([str(DEFAULT_MODEL), "--composition", "--pictures", str(tmp_path), *words.split()])
