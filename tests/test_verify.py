"""The command `pixart verify`: identical, or how an image differs and why, or why it cannot be checked."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

import pixart
from pixart.cli import main
from pixart.pipeline.image_files import read_settings, write_image

SMALL = {"width": 64, "height": 80, "steps": 2}


@pytest.fixture(autouse=True)
def threads_of_the_environment_come_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


@pytest.fixture(scope="module")
def drawn(tiny_model_with_graphs, tmp_path_factory) -> dict[str, Path]:
    """Images of the same model, generated in different ways. Do not change them; copy them."""
    folder = tmp_path_factory.mktemp("drawn")
    paths = {}
    for name, options, request in (
        ("onnx", {"engine": "onnx"}, {"style": "Flat", "negative_prompt": "house"}),
        ("int8", {"engine": "onnx", "dtype": "int8"}, {"sampler": "sa-solver"}),
        ("torch", {"engine": "torch", "dtype": "float32"}, {"guidance_interval": (200, 900), "guidance_rescale": 0.3}),
        ("bfloat16", {"engine": "torch", "dtype": "bfloat16"}, {"sampler": "euler"}),
    ):
        pipe = pixart.Pipeline.from_pretrained(tiny_model_with_graphs, **options)
        result = pipe("a red fox, 苹果", seed=4, **SMALL, **request)
        paths[name] = write_image(result.images[0], result.settings[0], folder / f"{name}.png")
    return paths


def rewritten(path: Path, target: Path, *, record: dict | None = None, image=None) -> Path:
    """A copy of a picture whose record or pixels were changed by somebody."""
    settings = read_settings(path) if record is None else record
    with Image.open(path) as old:
        info = PngInfo()
        info.add_text("pixart", json.dumps(settings))
        (old if image is None else image).save(target, format="PNG", pnginfo=info)
    return target


def verify(capsys, *arguments, code: int) -> str:
    assert main(["verify", *map(str, arguments)]) == code
    return capsys.readouterr().out


def test_images_of_every_engine_and_dtype_are_generated_again_bit_by_bit(drawn, tiny_model_with_graphs, capsys):
    out = verify(capsys, *drawn.values(), "--model", tiny_model_with_graphs, code=0)
    lines = out.splitlines()
    assert len(lines) == len(drawn)
    for line, (name, path) in zip(lines, drawn.items(), strict=True):
        hash_start = read_settings(path)["pixels_sha256"][:16]
        assert line.startswith(f"{path}: identical, SHA-256 {hash_start}")
        assert name in line


def test_a_picture_of_the_shipped_model_needs_no_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a red apple, 3D", "--seed", "7", "--width", "64", "--height", "64", "--steps", "2"]) == 0
    path = capsys.readouterr().out.strip()
    out = verify(capsys, path, code=0)
    assert out.startswith(f"{path}: identical") and "pixart-default, onnx, float32" in out
    assert main(["generate", "a fox", "--no-metadata", "--width", "64", "--steps", "1", "--output", "b.png"]) == 0
    capsys.readouterr()
    out = verify(capsys, "b.png", code=2)
    assert out.startswith("b.png: cannot be checked. ")


def test_edited_pixels_are_told_from_other_settings(drawn, tiny_model_with_graphs, tmp_path, capsys):
    with Image.open(drawn["onnx"]) as image:
        image = image.copy()
    before = np.asarray(image).astype(int)
    ImageDraw.Draw(image).rectangle((0, 0, 15, 19), fill=(255, 255, 255))
    apart = np.abs(np.asarray(image) - before)
    path = rewritten(drawn["onnx"], tmp_path / "edited.png", image=image)
    out = verify(capsys, path, "--model", tiny_model_with_graphs, "--json", code=1)
    report = json.loads(out)
    assert report["verdict"] == "differs"
    assert len(report["reasons"]) == 2
    assert (report["maximum"], report["mean"]) == (apart.max(), pytest.approx(apart.mean()))
    assert 0 < report["share"] <= 1 / 16
    assert report["stored_sha256"] == report["generated_sha256"] != report["file_sha256"]
    cut = rewritten(drawn["onnx"], tmp_path / "cut.png", image=image.crop((0, 0, 32, 80)))
    out = verify(capsys, cut, "--model", tiny_model_with_graphs, code=1)
    assert "32 x 80" in out and "64 x 80" in out


def test_a_picture_of_other_conditions_says_which(drawn, tiny_model_with_graphs, tmp_path, capsys):
    """A torch picture whose record says that ONNX drew it, elsewhere."""
    record = read_settings(drawn["torch"]) | {"engine": "onnx", "threads": 10**9}
    record["versions"] = record["versions"] | {"numpy": "1.0", "onnxruntime": "0.1", "cupy": "2"}
    path = rewritten(drawn["bfloat16"], tmp_path / "other.png", record=record)
    out = verify(capsys, path, "--model", tiny_model_with_graphs, code=1)
    first, *reasons = out.splitlines()
    assert first.startswith(f"{path}: differs") and " of 255, " in first
    assert any(reason.startswith("  Not the same: threads: 1000000000 then, ") for reason in reasons)
    assert "  Not the same: numpy: 1.0 then, " + np.__version__ + " now." in reasons
    assert "  Not the same: cupy: 2 then, nothing now." in reasons


def test_changed_settings_are_suspected_when_nothing_else_is_left(drawn, tiny_model_with_graphs, tmp_path, capsys):
    path = rewritten(drawn["onnx"], tmp_path / "a.png", record=read_settings(drawn["onnx"]) | {"seed": 5})
    out = verify(capsys, path, "--model", tiny_model_with_graphs, code=1)
    assert "differs" in out and len(out.splitlines()) == 2


def test_another_model_is_refused_unless_it_is_named(drawn, tiny_model_with_graphs, tmp_path, capsys):
    record = read_settings(drawn["onnx"])
    hash_start = record["model_hash"][:12]
    out = verify(capsys, drawn["onnx"], code=2)
    assert hash_start in out and "--model" in out
    from safetensors.numpy import load_file, save_file

    other = shutil.copytree(tiny_model_with_graphs, tmp_path / "other")
    weights = other / "transformer" / "diffusion_pytorch_model.safetensors"
    changed = {name: np.array(value) for name, value in load_file(weights).items()}
    changed["proj_out.bias"] += 0.5
    save_file(changed, weights, metadata={"format": "pt"})
    out = verify(capsys, drawn["onnx"], "--model", other, code=1)
    assert "Not the same: transformer/diffusion_pytorch_model.safetensors is another file." in out
    # What is drawn does not depend on the styles that the folder has by now.
    (other / "styles.json").write_text("{}")
    shutil.copy(tiny_model_with_graphs / "transformer" / weights.name, weights)
    verify(capsys, drawn["onnx"], "--model", other, code=0)


def test_without_graphs_the_other_engine_draws_and_says_so(drawn, tiny_model, capsys):
    report = json.loads(verify(capsys, drawn["onnx"], "--model", tiny_model, "--json", code=1))
    assert "Not the same: engine: onnx then, torch now." in report["reasons"]
    assert report["maximum"] <= 2, "the engines agree to within 2 of 255"


def test_the_number_of_threads_is_the_pictures_own(drawn, tiny_model_with_graphs, tmp_path, capsys):
    record = read_settings(drawn["onnx"]) | {"threads": 2}
    path = rewritten(drawn["onnx"], tmp_path / "two.png", record=record)
    report = json.loads(verify(capsys, path, "--model", tiny_model_with_graphs, "--json", code=0))
    assert report["generated_with"].endswith("2")


def broken(**changes):
    def write(drawn: dict[str, Path], target: Path) -> None:
        record = {key: value for key, value in read_settings(drawn["onnx"]).items() if key not in changes}
        rewritten(drawn["onnx"], target, record=record | {k: v for k, v in changes.items() if v is not None})

    return write


def save_as(kind: str, **options):
    def write(drawn: dict[str, Path], target: Path) -> None:
        with Image.open(drawn["onnx"]) as image:
            image.convert("RGB").save(target, format=kind, **options)

    return write


def foreign(drawn: dict[str, Path], target: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", "a fox\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 512x512")
    Image.new("RGB", (8, 8)).save(target, format="PNG", pnginfo=info)


def short_copy(drawn: dict[str, Path], target: Path) -> None:
    info = PngInfo()
    with Image.open(drawn["onnx"]) as image:
        info.add_text("parameters", image.text["parameters"])
        image.save(target, format="PNG", pnginfo=info)


def cut_short(drawn: dict[str, Path], target: Path) -> None:
    target.write_bytes(drawn["onnx"].read_bytes()[:-2000])


@pytest.mark.parametrize(
    "write",
    [
        save_as("JPEG"),
        save_as("WEBP"),
        save_as("PNG"),
        foreign,
        short_copy,
        cut_short,
        broken(steps=10**9),
        broken(sampler=["euler"]),
        broken(width=4096),
        broken(width=65),
        broken(resolved_prompt=None),
        broken(resolved_prompt="\ud800"),
        lambda drawn, target: rewritten(drawn["onnx"], target, record=[1]),
        lambda drawn, target: None,
        lambda drawn, target: target.write_text("nothing"),
    ],
)
def test_what_cannot_be_checked_is_one_line(drawn, tmp_path, capsys, write, tiny_model_with_graphs):
    target = tmp_path / "image.png"
    write(drawn, target)
    assert main(["verify", str(target), "--model", str(tiny_model_with_graphs)]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{target}: cannot be checked. ") and out.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("weights", [None, {"transformer/a": 7}])
def test_settings_that_name_no_weights_need_a_model(drawn, tmp_path, capsys, weights):
    broken(weights=weights)(drawn, tmp_path / "image.png")
    verify(capsys, tmp_path / "image.png", code=2)


def test_lossless_webp_is_verified_too(drawn, tiny_model_with_graphs, tmp_path, capsys):
    with Image.open(drawn["onnx"]) as image:
        path = write_image(image, read_settings(drawn["onnx"]), tmp_path / "image.webp")
    verify(capsys, path, "--model", tiny_model_with_graphs, code=0)


def test_strange_records_do_no_harm(drawn, tiny_model_with_graphs, tmp_path, capsys):
    """Nothing in a record that is not understood stops the drawing; what is said of it is short and plain."""
    strange = {
        "engine": ["onnx"],
        "dtype": {"a": 1},
        "device": "cuda:9",
        "memory": {"decode": "upside down", "staged": "yes", "\x1b[31m": 1},
        "threads": True,
        "versions": {f"\x1b{number}": "x" * 1000 for number in range(1000)},
        "source": {"model": "../../etc/passwd", "ema": "yes", "num_heads": -1},
        "model": "\x1b[31m" * 100,
        "bin": 5,
        "style": {"a": []},
        "prompt": None,
        "pixels_sha256": 5,
    }
    path = rewritten(drawn["onnx"], tmp_path / "s.png", record=read_settings(drawn["onnx"]) | strange)
    out = verify(capsys, path, "--model", tiny_model_with_graphs, code=0)
    assert out.replace("\n", "").isprintable()
    path = rewritten(drawn["bfloat16"], tmp_path / "t.png", record=read_settings(drawn["onnx"]) | strange)
    out = verify(capsys, path, "--model", tiny_model_with_graphs, code=1)
    assert out.replace("\n", "").isprintable() and len(out) < 10_000
    out = verify(capsys, path, tmp_path / "absent.png", code=2)
    assert out.count("cannot be checked") == 2


def test_several_pictures_the_worst_of_them_counts(drawn, tiny_model_with_graphs, tmp_path, capsys):
    edited = rewritten(drawn["bfloat16"], tmp_path / "e.png", record=read_settings(drawn["onnx"]))
    named = ["--model", tiny_model_with_graphs]
    assert verify(capsys, drawn["onnx"], edited, *named, code=1).count("\n") >= 2
    verify(capsys, drawn["onnx"], edited, tmp_path / "absent.png", *named, code=2)
    assert main(["verify"]) == 2
