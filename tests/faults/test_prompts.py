"""Prompts from files of others, and numbers from Python programs."""

import json

import numpy as np
import pytest


def test_tsv_knows_no_quoting(tmp_path, capsys):
    from pixart.cli import main

    rows = ["a red barn", '"K E E P" on the door of a barn', 'a 5" tall fox', '"open', "''quoted'' \"\"twice\"\""]
    file = tmp_path / "prompts.tsv"
    file.write_text("Prompt\tCategory\tChallenge\tNote\n" + "".join(f"{row}\tA\tBasic\t\n" for row in rows))
    assert main(["prompts", str(file)]) == 0
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == rows


@pytest.fixture(scope="module")
def pipe(tiny_model_with_graphs):
    import pixart

    return pixart.Pipeline.from_pretrained(tiny_model_with_graphs)


SMALL = {"seed": 7, "steps": 2, "width": 64, "height": 64, "num_images": 1, "guidance_scale": 2.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", np.int64(7)), ("seed", np.uint32(7)), ("steps", np.int32(2)), ("num_images", np.int64(1)),
        ("width", np.int64(64)), ("height", np.uint16(64)), ("guidance_scale", np.float32(2.5)),
        ("guidance_scale", np.float16(2.5)), ("guidance_interval", (np.int64(0), np.int64(1000))),
        ("negative_prompt", None), ("num_images", None), ("guidance_interval", None), ("guidance_rescale", None),
    ],
)  # fmt: skip
def test_numbers_of_numpy_and_none_are_taken(pipe, name, value):
    plain = pipe("a red apple", **SMALL)
    given = pipe("a red apple", **{**SMALL, name: value})
    assert given.settings == plain.settings
    json.dumps(given.settings)


@pytest.mark.parametrize(("name", "value"), [("seed", True), ("steps", np.float64(2.5)), ("guidance_scale", np.nan)])
def test_what_is_no_such_number_is_refused(pipe, name, value):
    from pixart.errors import UsageError

    with pytest.raises(UsageError):
        pipe("a red apple", **{**SMALL, name: value})
