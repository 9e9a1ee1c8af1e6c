"""The command `pixart generate`: what it prints, writes and returns, and that it never shows a traceback."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

from pixart import __version__
from pixart.cli import main
from pixart.pipeline.image_files import read_settings

SMALL = ["--width", "64", "--height", "64", "--steps", "2"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def generate(tiny_model, *arguments) -> int:
    return main(["generate", *arguments, "--model", str(tiny_model), *SMALL])


def test_the_path_is_printed_and_nothing_else(tiny_model, tmp_path, capsys):
    assert generate(tiny_model, "a red apple, 3D", "--seed", "7") == 0
    out, err = capsys.readouterr()
    assert out == "a-red-apple-3d-7.png\n"
    assert err.startswith("torch on ") and "Loading the model.\n" in err
    assert read_settings(tmp_path / out.strip())["seed"] == 7


def test_several_images_have_the_next_seeds_and_nothing_is_overwritten(tiny_model, capsys):
    assert generate(tiny_model, "a fox", "--seed", "7", "--num-images", "2", "--json") == 0
    both = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["seed"] for record in both] == [7, 8]
    assert [record["path"] for record in both] == ["a-fox-7.png", "a-fox-8.png"]
    assert generate(tiny_model, "a fox", "--seed", "8", "--json") == 0
    captured = capsys.readouterr()
    alone = json.loads(captured.out)
    assert alone["seed"] == 8
    assert alone["path"] == "a-fox-8-1.png"
    assert "exists already and was kept" in captured.err


def test_a_style_by_its_name(tiny_model, capsys):
    assert generate(tiny_model, "a fox", "--style", "3d", "--seed", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["resolved_prompt"] == "a fox, 3d"
    assert generate(tiny_model, "a fox", "--style", "oil", "--seed", "1") == 2
    error = capsys.readouterr().err
    assert "3D" in error and "Cinematic" in error  # the model's own, and the general ones


def test_a_random_seed_is_shown(tiny_model, capsys):
    for given in ([], ["--seed", "-1"]):
        assert generate(tiny_model, "a fox", "--json", *given) == 0
        out, err = capsys.readouterr()
        assert str(json.loads(out)["seed"]) in err


@pytest.mark.parametrize(
    "options",
    [
        ["--size", "96x64", "--sampler", "Euler a", "--steps", "2", "--output", "fox.webp"],
        ["-W", "96", "-H", "64", "--scheduler", "Euler a", "--num-inference-steps", "2", "-o", "fox.webp"],
    ],
)
def test_the_habits_of_others(tiny_model, tmp_path, capsys, options):
    options = ["--model", str(tiny_model), "--cfg", "3", "-n", "2", "--seed", "1", *options]
    assert main(["generate", "a fox", *options, "--json"]) == 0
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (first["width"], first["height"], first["guidance_scale"]) == (96, 64, 3.0)
    assert (first["sampler"], second["seed"]) == ("euler-ancestral", 2)
    assert read_settings(tmp_path / "fox.webp")["steps"] == 2


def test_output_may_be_a_file_or_a_folder(tiny_model, tmp_path, capsys):
    assert generate(tiny_model, "a fox", "--seed", "1", "--output", "x/y/fox.png") == 0
    assert generate(tiny_model, "a fox", "--seed", "1", "--output", "x/y/") == 0
    assert generate(tiny_model, "a fox", "--seed", "1", "--output", "x/y") == 0
    assert sorted(path.name for path in (tmp_path / "x" / "y").iterdir()) == ["a-fox-1-1.png", "a-fox-1.png", "fox.png"]
    assert capsys.readouterr().out.split() == ["x/y/fox.png", "x/y/a-fox-1.png", "x/y/a-fox-1-1.png"]


def test_only_an_earlier_image_is_reported_as_kept(tiny_model, tmp_path, capsys):
    assert generate(tiny_model, "a fox", "--seed", "1", "--num-images", "2", "--output", "fox.png") == 0
    out, err = capsys.readouterr()
    assert out.split() == ["fox.png", "fox-1.png"]
    assert "exists already" not in err
    assert generate(tiny_model, "a fox", "--seed", "1", "--output", "fox.png") == 0
    assert "exists already" in capsys.readouterr().err


def test_empty_prompt_and_cut_words_are_said(tiny_model, capsys):
    assert generate(tiny_model, "", "--seed", "1") == 0
    out, err = capsys.readouterr()
    assert out == "image-1.png\n"
    assert "The prompt is empty" in err
    assert generate(tiny_model, "red " * 118 + "[fox] green", "--seed", "1") == 0
    assert 'these words were left out: "[fox] green"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--width", "100"], 2),
        (["--steps", "0"], 2),
        (["--num-images", "-1"], 2),
        (["--num_images", "0"], 2),
        (["--guidance-scale", "nan"], 2),
        (["--seed", "-2"], 2),
        (["--size", "100"], 2),
        (["--size", "64x64"], 2),  # and the width again
        (["--seed", "99999999999"], 2),
        (["--sampler", "eular"], 2),
        (["--style", "x" * 100_000], 2),
        (["--engine", "onyx"], 2),
        (["--engine", "onnx"], 1),  # there are no graphs
        (["--dtype", "float8"], 2),
        (["--device", "tpu"], 2),
        (["--engine", "onnx", "--dtype", "bfloat16"], 2),
        (["--engine", "onnx", "--dtype", "int8"], 1),
        (["--engine", "torch", "--dtype", "int8"], 2),
        (["--null-text", "caption"], 2),
        (["--output", "fox.gif"], 2),
        (["--output", "fox\0.png"], 2),
        (["--model", "now\0here"], 1),
        (["--output", "a-file/fox.png"], 1),
        (["--output", "n" * 300 + ".png"], 1),
        (["--model", "nowhere"], 1),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], 2)]),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_loaded(tiny_model, tmp_path, capsys, arguments, code):
    (tmp_path / "a-file").write_text("in the way")
    assert main(["generate", "a fox", "--model", str(tiny_model), *SMALL, *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pixart: ") and err.count("\n") == 1 and len(err) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_a_damaged_model_names_the_file(tmp_path, tiny_model, capsys):
    import shutil

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert generate(folder, "a fox") == 1
    err = capsys.readouterr().err
    assert str(weights) in err


@pytest.mark.parametrize("arguments", [["--stepz", "3"], ["--steps", "2.5"], ["--seed"], ["more", "words"]])
def test_a_wrong_flag_is_usage(tiny_model, arguments, capsys):
    assert main(["generate", "a fox", "--model", str(tiny_model), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert arguments[0] in err


def test_what_is_wrong_with_the_command_itself(capsys):
    assert main([]) == 2
    assert main(["genrate"]) == 2
    assert 'Did you mean "generate"' in capsys.readouterr().err
    assert main(["generate"]) == 2
    assert "There is no prompt" in capsys.readouterr().err
    assert main(["generate", "an", "owl", "--seed", "7"]) == 2
    assert capsys.readouterr().err == 'pixart: The prompt is one text, so put it in quotes: pixart generate "an owl"\n'
    assert main(["data"]) == 2
    assert "caption PATH" in capsys.readouterr().err
    assert main(["data", "captions"]) == 2
    assert 'no pixart data command "captions"' in capsys.readouterr().err


def test_the_live_bar_leaves_stdout_alone(tiny_model, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    assert generate(tiny_model, "a [red] fox", "--num-images", "2", "--seed", "7") == 0
    out, err = capsys.readouterr()
    assert out == "a-red-fox-7.png\na-red-fox-8.png\n"
    assert "generating" in err


def test_ctrl_c_is_130_without_a_traceback(tiny_model, tmp_path, monkeypatch, capsys):
    from pixart.progress import Progress

    def press_ctrl_c(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "advance", press_ctrl_c)
    assert generate(tiny_model, "a fox", "--seed", "1") == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("pixart: stopped.\n")
    assert list(tmp_path.iterdir()) == []


def test_help_and_version_do_not_load_what_they_do_not_need():
    script = (
        "import sys\nfrom pixart.cli import main\n"
        "for arguments in (['--help'], ['--version'], ['generate', '--help'], ['data', '--help']):\n"
        "    assert main(arguments) == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"pixart {__version__}\n" in done.stdout
    assert "--guidance-scale" in done.stdout


def clean_environment() -> dict[str, str]:
    """Ours without the libraries' switches, which the tests before may have set."""
    switches = ("HF_", "TRANSFORMERS_", "DIFFUSERS_")
    return {key: value for key, value in os.environ.items() if not key.startswith(switches)}


def test_the_real_command_generates_with_the_network_cut_off(tiny_model, tmp_path):
    # Any attempt to open a socket fails; the environment has no offline switch set that could help.
    (tmp_path / "sitecustomize.py").write_text(
        "import socket\n\ndef refuse(*args, **kwargs):\n    raise SystemExit('no network, please')\n\n"
        "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
    )
    environment = clean_environment()
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pixart", "generate", "a red apple", "--model", str(tiny_model), *SMALL]
    done = subprocess.run([*command, "--seed", "7"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a-red-apple-7.png\n"
    # Ours and nothing of the libraries' own chatter.
    assert len(done.stderr.splitlines()) == 2
    assert (tmp_path / "a-red-apple-7.png").is_file()


def test_every_style_and_one_sheet(tiny_model_with_graphs, tmp_path, capsys):
    from pixart.evaluation.style_sheet import GAP

    arguments = ["generate", "a red fox", "--model", str(tiny_model_with_graphs), "--steps", "1", "--seed", "3"]
    assert main([*arguments, "--styles", "--num-images", "2", "--output", str(tmp_path / "all")]) == 0
    written = [os.path.basename(line) for line in capsys.readouterr().out.splitlines()]
    assert written == [
        "a-red-fox-3d-3.png", "a-red-fox-3d-4.png", "a-red-fox-flat-3.png", "a-red-fox-flat-4.png",
        "a-red-fox-styles-3.png",
    ]  # fmt: skip
    sheet = Image.open(tmp_path / "all" / written[-1])
    drawn = Image.open(tmp_path / "all" / written[-2]).tobytes()  # of the second style, the second seed
    left, top = GAP + 256 + GAP, GAP + 256 // 14 + GAP + 256 + GAP
    assert sheet.crop((left, top, left + 256, top + 256)).tobytes() == drawn
    name = sheet.crop((left, GAP, left + 256, GAP + 256 // 14))
    assert len(set(name.tobytes())) > 10  # its name is written above
    assert "pixart" not in sheet.text and "XML:com.adobe.xmp" in sheet.text  # not one picture, and made by a model
    assert main([*arguments, "--styles", "--style", "flat"]) == 2
    assert "leave one of the two out" in capsys.readouterr().err
    assert main([*arguments, "--styles", "--output", str(tmp_path / "sheet.png")]) == 0
    written = [os.path.basename(line) for line in capsys.readouterr().out.splitlines()]
    assert written == ["sheet-3d.png", "sheet-flat.png", "sheet.png"]


def test_a_file_of_prompts_goes_on_where_it_was_stopped(tiny_model, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a red fox\n\n a green apple, flat \n", encoding="utf-8")
    command = ["--prompts", "prompts.txt", "--output", "out/", "-n", "2"]

    def run(*more):
        assert main(["generate", "--model", str(tiny_model), *SMALL, *command, *more]) == 0
        return [os.path.basename(line) for line in capsys.readouterr().out.splitlines()]

    names = ["0001-a-red-fox-0.png", "0001-a-red-fox-1.png", "0003-a-green-apple-flat-0.png",
             "0003-a-green-apple-flat-1.png"]  # fmt: skip
    assert run() == names
    assert read_settings(tmp_path / "out" / names[3])["prompt"] == "a green apple, flat"
    before = (tmp_path / "out" / names[1]).read_bytes()
    assert run() == []
    (tmp_path / "out" / names[2]).unlink()
    assert run() == [names[2]]
    (tmp_path / "out" / names[1]).write_bytes(b"not an image")
    assert run() == ["0001-a-red-fox-1-1.png"], (
        "what is no image of these settings is kept, and made under another name"
    )
    assert (tmp_path / "out" / "0001-a-red-fox-1-1.png").read_bytes() == before
    assert len(run("--cfg", "2")) == 4
    assert len(run("--transparent")) == 4


def test_json_lines_have_settings_of_their_own(tiny_model, tmp_path, capsys):
    rows = [{"prompt": "a fox", "seed": 3, "style": "flat"}, {"prompt": "a house", "width": 96, "num_images": 2}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert main(["generate", "--model", str(tiny_model), *SMALL, "--prompts", "p.jsonl", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["seed"], r["style"], r["width"]) for r in records] == [(3, "Flat", 64), (0, None, 96), (1, None, 96)]
    assert records[0]["path"] == "0001-a-fox-flat-3.png"
    (tmp_path / "p.tsv").write_text("Prompt\tCategory\na fox\tAnimals\n")
    assert main(["generate", "--model", str(tiny_model), *SMALL, "--prompts", "p.tsv"]) == 0
    (tmp_path / "p.tsv").write_text("prompt\tseed\na fox\t3\n")
    assert main(["generate", "--model", str(tiny_model), *SMALL, "--prompts", "p.tsv"]) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"\xff\xfe", b'{"prompt": "a"}\n{"prompt": 7}', b'{"prompt": "a", "stepz": 3}', b"[1]", b"{",
     b'{"prompt": "a", "steps": 2, "steps": 3}', b'{"prompt": "a", "control_image": "p.png"}',
     b'{"prompt": "a", "steps": 0}'],
)  # fmt: skip
def test_a_bad_prompt_file_is_one_sentence_before_anything_is_loaded(tiny_model, tmp_path, capsys, content):
    (tmp_path / "p.jsonl").write_bytes(content)
    Image.new("RGB", (64, 64)).save("p.png")
    assert main(["generate", "--model", str(tiny_model), "--prompts", "p.jsonl"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("pixart: ") and err.count("\n") == 1
    assert main(["generate", "a fox", "--model", str(tiny_model), "--prompts", "p.jsonl"]) == 2


def test_without_standard_input_there_are_no_prompts(tiny_model):
    command = 'exec "$0" -m pixart generate - --model "$1" <&-'
    refused = subprocess.run(["sh", "-c", command, sys.executable, tiny_model], capture_output=True, timeout=60)
    assert refused.returncode == 2 and refused.stderr.count(b"\n") == 1


def test_a_terminal_that_knows_no_greek_and_a_full_disk_give_no_traceback():
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([sys.executable, "-m", "pixart", "--help"], env=env, capture_output=True, timeout=60)
    assert shown.returncode == 0 and b"PixArt-\\u03b1" in shown.stdout and not shown.stderr
    with open("/dev/full", "w") as full:
        refused = subprocess.run([sys.executable, "-m", "pixart", "--help"], stdout=full, stderr=subprocess.PIPE)
    assert refused.returncode == 1 and refused.stderr == b"pixart: No space left on device.\n"


def test_a_path_that_is_no_text_is_printed_as_it_is(tiny_model, tmp_path, capfdbinary):
    assert generate(tiny_model, "a fox", "--output", os.fsdecode(b"fox-\xff.png")) == 0
    assert capfdbinary.readouterr().out == b"fox-\xff.png\n"
    assert (tmp_path / os.fsdecode(b"fox-\xff.png")).is_file()
