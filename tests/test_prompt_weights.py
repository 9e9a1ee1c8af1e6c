"""Weights in a prompt as A1111 writes them."""

import json

import numpy as np
import pytest
from PIL import Image
from test_published_layout import published  # noqa: F401  a fixture

import pixart
from pixart.cli import main
from pixart.errors import UsageError
from pixart.pipeline.prompt_weights import read_weights
from pixart.pipeline.request import make_request

SMALL = {"seed": 4, "steps": 2, "width": 64, "height": 64}
FLAGS = ("--seed", "4", "--steps", "2", "--size", "64x64", "--dtype", "float32")


@pytest.fixture(scope="module")
def torch_pipe(tiny_model):
    return pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype="float32")


def by_word(prompt: str) -> dict[str, float]:
    weighted = read_weights(prompt)
    assert len(weighted.text) == len(weighted.weights)
    ends = [weighted.text.index(word) for word in weighted.text.split()]
    return {word: round(weighted.weights[end], 4) for word, end in zip(weighted.text.split(), ends, strict=True)}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("one two", {"one": 1, "two": 1}),
        (" (One) [two] (three: 0.5 )", {"one": 1.1, "two": 0.9091, "three": 0.5}),
        ("((one)) ((two:1.2)) [[three]] ([four])", {"one": 1.21, "two": 1.32, "three": 0.8264, "four": 1}),
        ("(one two:1.5) three:1.5", {"one": 1.5, "two": 1.5, "three:1.5": 1}),
        ("one (two [three", {"one": 1, "two": 1.1, "three": 1}),  # open to the end
        ("one) two] three:2)", {"one)": 1, "two]": 1, "three:2)": 1}),  # never opened
        (r"one \(two\) \[three\] \x", {"one": 1, "(two)": 1, "[three]": 1, r"\x": 1}),
        # Nested as A1111 reads it: an unclosed bracket around the rest
        ("x (((one:1.3)) [two] y (four:0.5), six, (((ten))).", {"x": 1, "one": 1.573, "two": 1, "y": 1.1, "four,": 0.55,
                                                                "six,": 1.1, "ten.": 1.4641}),
        ("", {}),
        ("()", {}),
    ],
)  # fmt: skip
def test_weights_are_read_as_a1111_reads_them(prompt, expected):
    assert by_word(prompt) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("prompt", ["(one:11)", "(one:-1)", "(" * 30 + "one", "(" * 5000 + "x" + ")" * 5000, "[(" * 60])
def test_weights_beyond_measure_are_refused(torch_pipe, prompt):
    with pytest.raises(UsageError):
        make_request(torch_pipe.folder, prompt, prompt_weights=True)
    make_request(torch_pipe.folder, prompt)


def test_the_states_of_a_token_are_multiplied_and_no_others(torch_pipe):
    def states(prompt, **settings):
        request = make_request(torch_pipe.folder, prompt, prompt_weights=True, negative_prompt="(blue:0)", **settings)
        (conditioning,) = torch_pipe.core.encode(request)
        assert not conditioning.unconditional.states[0, 1:2].any()
        return conditioning.text.states[0].numpy(), conditioning.cut

    plain, _ = states("a red fox")
    weighted, cut = states("A (red:1.5) [fox]")
    tokens = torch_pipe.core.tokenizer.spans("a red fox")  # [CLS], words in one or more tokens, [SEP]
    factors = [
        1.0 if start == end else 1.5 if 2 <= start < 5 else 1 / 1.1 if start > 5 else 1.0 for start, end in tokens
    ]
    factors += [1.0] * (len(plain) - len(tokens))
    np.testing.assert_allclose(weighted, plain * np.array(factors)[:, None], rtol=1e-5)
    # The end of a text that is cut is the special token, which has no weight.
    long = "zq " * 200
    (whole, cut), (strong, cut_too) = states(long), states(f"({long}:2)")
    assert cut == cut_too != ""
    np.testing.assert_allclose(strong[1:-9], 2 * whole[1:-9], rtol=1e-4)
    kept = len(torch_pipe.core.tokenizer.tokenize(long)[0])
    np.testing.assert_allclose(strong[kept - 1], whole[kept - 1], rtol=1e-4)


def test_images_follow_their_weights(torch_pipe, published):  # noqa: F811
    for pipe, more in (
        (torch_pipe, {}),
        (pixart.Pipeline.from_pretrained(published, dtype="float32"), {"binning": False}),
    ):
        plain, one, strong = (
            np.asarray(pipe(prompt, prompt_weights=on, **SMALL, **more).images[0])
            for prompt, on in (("a red fox", False), ("a (red:1) fox", True), ("a (red:3) fox", True))
        )
        assert np.array_equal(plain, one) and not np.array_equal(plain, strong)
    result = torch_pipe("a (red:3) fox", **SMALL)
    assert any("--prompt-weights" in notice for notice in result.notices)
    assert not torch_pipe("a fox (red)", **SMALL).notices


def test_the_command_line_and_prompt_files_have_it(tiny_model_with_graphs, tmp_path, capsys):
    model, path = ["--model", str(tiny_model_with_graphs)], tmp_path / "a.png"
    given = ["a (red:3) fox", *model, *FLAGS, "--prompt-weights", "-o", str(path)]
    assert main(["generate", *given, "--engine", "onnx"]) == 2
    assert main(["generate", *given, "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert (settings["engine"], settings["prompt_weights"], settings["prompt"]) == ("torch", True, given[0])
    assert main(["verify", str(path), *model]) == 0
    lines = [{"prompt": "a (red:3) fox", "prompt_weights": True, "seed": 4}, {"prompt": "a red fox", "seed": 4}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = ["generate", "--prompts", str(tmp_path / "p.jsonl"), *model, *FLAGS[2:], "-o", str(tmp_path / "out")]
    assert main([*command, "--engine", "torch"]) == 0
    first, second = sorted((tmp_path / "out").iterdir())
    assert Image.open(first).tobytes() == Image.open(path).tobytes() != Image.open(second).tobytes()
    states = tmp_path / "s.safetensors"
    assert main(["encode", "a red fox", *model, "--output", str(states)]) == 0
    again = ["a (red:3) fox", *model, *FLAGS, "--prompt-weights", "--text-states", str(states)]
    assert main(["generate", *again, "-o", str(tmp_path / "b.png")]) == 0
    assert Image.open(tmp_path / "b.png").tobytes() == Image.open(path).tobytes()
