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
def images(tiny_model_with_graphs, tmp_path_factory) -> dict[str, Path]:
    """Images of the same model, generated in different ways. Do not change them; copy them."""
    folder = tmp_path_factory.mktemp("images")
    paths = {}
    for name, options, request in (
        ("onnx.png", {"engine": "onnx"}, {"style": "Flat", "negative_prompt": "house"}),
        ("int8.png", {"engine": "onnx", "dtype": "int8"}, {"sampler": "sa-solver"}),
        ("torch.webp", {"engine": "torch", "dtype": "float32"}, {"guidance_interval": (200, 900), "upscale": 2}),
        ("bfloat16.png", {"engine": "torch", "dtype": "bfloat16"}, {"sampler": "euler"}),
    ):
        pipe = pixart.Pipeline.from_pretrained(tiny_model_with_graphs, **options)
        result = pipe("a red fox, 苹果", seed=4, **SMALL, **request)
        paths[name] = write_image(result.images[0], result.settings[0], folder / name)
    return paths


@pytest.fixture
def verify(capsys, tiny_model_with_graphs):
    """Reports of the command; `code` is the exit code that it should have."""

    def run(*paths, code: int, model=tiny_model_with_graphs) -> list[dict]:
        named = [] if model is None else ["--model", str(model)]
        assert main(["verify", *map(str, paths), *named]) == code
        said = capsys.readouterr().out
        assert said.replace("\n", "").isprintable() and len(said) < 10_000 * len(paths)
        assert main(["verify", *map(str, paths), *named, "--json"]) == code
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def rewritten(path: Path, target: Path, *, record=None, image=None) -> Path:
    """A copy of an image whose record or pixels were changed by somebody."""
    settings = read_settings(path) if record is None else record
    with Image.open(path) as old:
        info = PngInfo()
        info.add_text("pixart", json.dumps(settings))
        (old if image is None else image).save(target, format="PNG", pnginfo=info)
    return target


def test_images_of_every_engine_and_dtype_are_generated_again_bit_by_bit(images, verify):
    for report, path in zip(verify(*images.values(), code=0), images.values(), strict=True):
        stored = read_settings(path)["pixels_sha256"]
        assert (report["verdict"], report["path"], report["reasons"]) == ("identical", str(path), [])
        assert report["file_sha256"] == report["generated_sha256"] == report["stored_sha256"] == stored
        assert path.stem in report["generated_with"]


def test_an_image_of_the_shipped_model_needs_no_name(tmp_path, capsys, monkeypatch, verify):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a red apple, 3D", "--seed", "7", "--size", "64x64", "--steps", "2"]) == 0
    path = capsys.readouterr().out.strip()
    assert verify(path, code=0, model=None)[0]["verdict"] == "identical"
    assert main(["generate", "a fox", "--no-metadata", "--size", "64x64", "--steps", "1", "--output", "b.png"]) == 0
    capsys.readouterr()
    assert [report["verdict"] for report in verify(path, "b.png", code=2, model=None)] == ["identical", "unchecked"]
    assert main(["verify"]) == 2


def test_edited_pixels_are_told_from_other_settings(images, verify, tmp_path):
    with Image.open(images["onnx.png"]) as image:
        image = image.copy()
    before = np.asarray(image).astype(int)
    ImageDraw.Draw(image).rectangle((0, 0, 15, 19), fill=(255, 255, 255))
    apart = np.abs(np.asarray(image) - before)
    edited = rewritten(images["onnx.png"], tmp_path / "edited.png", image=image)
    cut = rewritten(images["onnx.png"], tmp_path / "cut.png", image=image.crop((0, 0, 32, 80)))
    other = rewritten(images["onnx.png"], tmp_path / "a.png", record=read_settings(images["onnx.png"]) | {"seed": 5})
    report, of_cut, of_other = verify(edited, cut, other, code=1)
    assert (report["maximum"], report["mean"]) == (apart.max(), pytest.approx(apart.mean()))
    assert 0 < report["share"] <= 1 / 16
    assert report["stored_sha256"] == report["generated_sha256"] != report["file_sha256"]
    assert of_cut["maximum"] is None and any("32 x 80" in reason for reason in of_cut["reasons"])
    assert of_other["verdict"] == "differs" and len(of_other["reasons"]) == 1


def test_other_conditions_are_named(images, verify, tmp_path, tiny_model):
    """A torch image whose record says that ONNX generated it, elsewhere; and a model without graphs."""
    record = read_settings(images["torch.webp"]) | {"engine": "onnx", "threads": 10**9}
    record["versions"] = record["versions"] | {"numpy": "1.0", "cupy": "2"}
    (report,) = verify(rewritten(images["bfloat16.png"], tmp_path / "other.png", record=record), code=1)
    for name in ("threads", "numpy", "cupy"):
        assert any(f": {name}: " in reason for reason in report["reasons"])
    (report,) = verify(images["onnx.png"], code=1, model=tiny_model)
    assert any("engine" in reason for reason in report["reasons"])
    assert report["maximum"] <= 2, "the engines agree to within 2 of 255"


def test_another_model_is_refused_unless_it_is_named(images, verify, tiny_model_with_graphs, tmp_path):
    from safetensors.numpy import load_file, save_file

    path = images["onnx.png"]
    (report,) = verify(path, code=2, model=None)
    assert read_settings(path)["model_hash"][:12] in report["reasons"][0]
    other = shutil.copytree(tiny_model_with_graphs, tmp_path / "other")
    weights = other / "transformer" / "diffusion_pytorch_model.safetensors"
    changed = {name: np.array(value) for name, value in load_file(weights).items()}
    changed["proj_out.bias"] += 0.5
    save_file(changed, weights, metadata={"format": "pt"})
    (report,) = verify(path, code=1, model=other)
    assert any(f"transformer/{weights.name}" in reason for reason in report["reasons"])
    # What is generated does not depend on the styles that the folder has by now.
    (other / "styles.json").write_text("{}")
    shutil.copy(tiny_model_with_graphs / "transformer" / weights.name, weights)
    verify(path, code=0, model=other)


def test_the_number_of_threads_is_the_images_own(images, verify, tmp_path):
    path = images["onnx.png"]
    (report,) = verify(rewritten(path, tmp_path / "two.png", record=read_settings(path) | {"threads": 2}), code=0)
    assert report["generated_with"].endswith("2")


def broken(**changes):
    def write(path: Path, target: Path) -> None:
        record = {key: value for key, value in read_settings(path).items() if key not in changes}
        rewritten(path, target, record=record | {k: v for k, v in changes.items() if v is not None})

    return write


def save_as(kind: str):
    return lambda path, target: Image.open(path).convert("RGB").save(target, format=kind)


def with_parameters(text: str | None):
    def write(path: Path, target: Path) -> None:
        info = PngInfo()
        with Image.open(path) as image:
            info.add_text("parameters", text or image.text["parameters"])
            image.save(target, format="PNG", pnginfo=info)

    return write


@pytest.mark.parametrize(
    "write",
    [
        save_as("JPEG"),
        save_as("WEBP"),
        save_as("PNG"),
        with_parameters("a fox\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 5, Size: 512x512"),
        with_parameters(None),  # the short copy for other tools
        lambda path, target: target.write_bytes(path.read_bytes()[:-2000]),
        broken(steps=10**9),
        broken(sampler=["euler"]),
        broken(width=4096),
        broken(width=65),
        broken(resolved_prompt=None),
        broken(resolved_prompt="\ud800"),
        broken(image={"sha256": "0"}),
        lambda path, target: rewritten(path, target, record=[1]),
        lambda path, target: None,
        lambda path, target: target.write_text("nothing"),
    ],
)
def test_what_cannot_be_checked_is_one_sentence(images, verify, tmp_path, write):
    write(images["onnx.png"], tmp_path / "image.png")
    (report,) = verify(tmp_path / "image.png", code=2)
    assert report["verdict"] == "unchecked" and len(report["reasons"]) == 1


@pytest.mark.parametrize("weights", [None, {"transformer/a": 7}])
def test_settings_that_name_no_weights_need_a_model(images, verify, tmp_path, weights):
    broken(weights=weights)(images["onnx.png"], tmp_path / "image.png")
    verify(tmp_path / "image.png", code=2, model=None)


def test_strange_records_do_no_harm(images, verify, tmp_path):
    """Nothing in a record that is not understood stops the work; what is said of it is short and plain."""
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
    record = read_settings(images["onnx.png"]) | strange
    verify(rewritten(images["onnx.png"], tmp_path / "s.png", record=record), code=0)
    verify(rewritten(images["bfloat16.png"], tmp_path / "t.png", record=record), code=1)
