"""What the data never shows together: the prompts are new, right answers are found right, mistakes are seen."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_data import add, draw
from tiny_judge import write_shapes

from emojis.composition import COPY, RIGHT, held_out_answers, per_image, recoloured_answers, scores
from emojis.judge import TEXT_MODEL, open_judge
from emojis.prompts import FILE, SKIN_TONES, combinations, toned_caption
from emojis.records import read_split
from emojis.reference import Seen, open_reference
from make import main
from pixart.errors import UsageError
from pixart.evaluation.prompt_sets import read_prompts


@pytest.fixture(scope="module")
def judge():
    return open_judge()


def right_answers(prompts, judge) -> Seen:
    """What one would see who sees exactly what was asked for."""
    words = [
        toned_caption(prompt, prompt.about["skin_tone"])
        if "skin_tone" in prompt.about
        else f"{prompt.about['object']}, {prompt.about['style']}"
        for prompt in prompts
    ]
    styles, colours = ([prompt.about.get(name) for prompt in prompts] for name in ("style", "colour"))
    return Seen(judge.captions(words), styles, np.zeros((len(prompts), 4)), colours)


def test_the_prompts_say_what_they_ask_for_in_the_styles_of_the_shipped_model():
    styles = set(json.loads((TEXT_MODEL / "styles.json").read_text()))
    for name in ("prompts.jsonl", FILE.name):
        for prompt in read_prompts(FILE.parent / name):
            about = prompt.about
            assert about["style"] in styles and prompt.text.endswith(f", {about['style']}")
            assert all(about.get(key, "") in prompt.text for key in ("object", "colour", "skin_tone"))
    prompts = combinations()
    assert len(prompts) == 200 and len({prompt.text for prompt in prompts}) == 200
    assert not any(p.about["style"] == "black and white" for p in prompts if p.category == "colour")
    assert combinations(60) == prompts[:60] and combinations(60, seed=1) != prompts[:60]
    assert sum(prompt.category == "skin tone" for prompt in prompts[:60]) > 5
    with pytest.raises(UsageError):
        combinations(201)


def test_right_answers_are_right_and_each_mistake_is_one(judge):
    prompts = combinations(80)
    seen = right_answers(prompts, judge)
    each = per_image(seen, prompts, judge)
    colours = np.array([prompt.category == "colour" for prompt in prompts])
    assert (each["thing"][colours] == 1).all() and (each["tone"][~colours] == 1).all() and (each["style"] == 1).all()
    assert (each["colour"][colours] == 1).all() and np.isnan(each["colour"][~colours]).all()
    assert (each["every"][colours] == 1).all() and np.isnan(each["tone"][colours]).all()

    grey = per_image(replace(seen, colours=["grey"] * 80), prompts, judge)
    assert (grey["colour"][colours] == 0).all() and (grey["every"][colours] == 0).all()
    assert (grey["every"][~colours] == each["every"][~colours]).all()
    plain = per_image(replace(seen, styles=["black and white"] * 80), prompts, judge)
    assert plain["style"].sum() == 0 and plain["every"].sum() == 0 and (plain["thing"] == each["thing"]).all()
    other = per_image(replace(seen, vectors=seen.vectors[::-1]), prompts, judge)
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
    assert all(rows[toned_caption(p, p.about["skin_tone"])].split == "test_cells" for p in asked)
    assert len({p.about["skin_tone"] for p in asked}) == len(SKIN_TONES)
    assert per_image(true.seen, asked, judge)["tone"].mean() > 0.35  # chance is one in five


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


def test_recoloured_true_images_have_the_colour_and_the_nearest_captions_images_do_not(data, judge):
    prompts = combinations()
    right, copies = recoloured_answers(read_split(data / "train"), prompts, judge)
    asked = [prompts[k] for k in right.rows]
    drawn = {"apple", "banana", "frog"}
    wanted = [p for p in prompts if p.about["object"] in drawn and p.about["style"] in ("flat", "Noto")]
    assert asked == [p for p in wanted if p.category == "colour"] and len(asked) > 2
    assert per_image(right.seen, asked, judge)["colour"].mean() == 1
    assert len(copies.rows) == 160
    mine = [k for k, row in enumerate(copies.rows) if prompts[row] in asked]
    found = per_image(copies.seen[mine], asked, judge)
    assert found["colour"].mean() == 0


def test_the_command_reports_what_is_right_beside_what_would_be_and_compares(
    data, home, tiny_model_with_graphs, capsys
):
    given = f"--composition --num 50 --size 64 --steps 2 --engine onnx --images {home / 'images'} --data {data}"
    assert main(["evaluate", str(tiny_model_with_graphs), *given.split(), "--output", str(home / "a.json")]) == 0
    told = json.loads((home / "a.json").read_text())
    assert list(told["scores"]) == ["generated", RIGHT, COPY] and told["protocol"]["num"] == 50
    assert told["scores"]["generated"]["all"]["every"]["value"] < 0.1
    assert len(told["images"]) == len(list((home / "images").glob("*.png"))) == 50
    assert {row["group"] for row in told["images"]} == {"colour", "skin tone"}
    (home / "b.json").write_text(json.dumps(told | {"model": "another"}))
    assert main(["compare", str(home / "a.json"), str(home / "b.json")]) == 0
    out = capsys.readouterr().out
    assert "another (b.json)" in out and "  colour right: 0.0% (0.0% to 0.0%)" in out and RIGHT in out


def test_missing_data_is_named_before_anything_is_generated(tiny_model_with_graphs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(tiny_model_with_graphs), "--composition", "--data", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err and not list(tmp_path.iterdir())
