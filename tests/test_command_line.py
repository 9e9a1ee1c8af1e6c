"""The command line beside `generate` itself: names and spellings that people bring, standard input, completion."""

import io
import subprocess

import pytest

from pixart.cli import main
from pixart.pipeline.image_files import read_settings

SMALL = ["--width", "64", "--height", "64", "--steps", "1", "--seed", "1"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("name", "ours"), [("gui", "app"), ("draw", "generate"), ("server", "serve")])
def test_other_names_of_commands_are_answered_with_ours(name, ours, capsys):
    assert main([name, "x"]) == 2
    assert f"pixart {ours}" in capsys.readouterr().err


def test_an_option_or_a_prompt_is_no_command(capsys):
    assert main(["version"]) == 0
    for first in ("--size", "a red fox"):
        assert main([first]) == 2
        assert "Did you mean" not in capsys.readouterr().err


def test_the_prompt_as_an_option_and_from_standard_input(tiny_model, tmp_path, capsys, monkeypatch):
    options = ["--model", str(tiny_model), *SMALL]
    assert main(["generate", "-p", "a fox", *options]) == 0
    stdin = io.TextIOWrapper(io.BytesIO("a red owl\n\nein grüner Apfel\n".encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert main(["generate", "-", *options]) == 0
    assert capsys.readouterr().out.split() == ["a-fox-1.png", "a-red-owl-1.png", "ein-grüner-apfel-1.png"]
    assert read_settings(tmp_path / "a-red-owl-1.png")["prompt"] == "a red owl"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert main(["generate", "-", *options]) == 2


def test_a_file_of_prompts_is_not_a_prompt(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a fox\n")
    assert main(["generate", "prompts.txt"]) == 2
    assert "--prompts" in capsys.readouterr().err


def test_styles_of_both_kinds_are_named_and_a_long_value_is_cut(tiny_model, capsys):
    assert main(["generate", "a fox", "--model", str(tiny_model), "--style", "zzzz"]) == 2
    err = capsys.readouterr().err
    assert "Flat" in err and "Cinematic" in err
    assert main(["generate", "a fox", "--steps", "9a" * 100_000]) == 2
    assert len(capsys.readouterr().err) < 10_000


def test_help_has_groups_and_ends_with_examples(capsys):
    assert main(["generate", "--help"]) == 0
    out = capsys.readouterr().out
    groups = [out.index(f"{name} options") for name in ("image", "model", "device", "memory", "output")]
    assert groups == sorted(groups) and out.rindex("examples:") > groups[-1]


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command_and_its_options(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("generate", "finetune", "statistics", "guidance-scale"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_completion_of_another_shell_is_refused():
    assert main(["completion", "fish"]) == 2
