"""The command `pixart verify`: identical, or how a picture differs and why, or why it cannot be checked."""

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


@pytest.fixture(scope="module")
def drawn(tiny_model_with_graphs, tmp_path_factory) -> dict[str, Path]:
    """Pictures of the same model, drawn in different ways. Do not change them; copy them."""
    folder = tmp_path_factory.mktemp("drawn")
    paths = {}
    for name, options, request in (
        ("onnx", {"engine": "onnx"}, {"style": "Flat", "negative_prompt": "house"}),
        ("int8", {"engine": "onnx", "dtype": "int8"}, {"sampler": "sa-solver"}),
        ("torch", {"engine": "torch"}, {"guidance_interval": (200, 900), "guidance_rescale": 0.3}),
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


def test_pictures_of_every_engine_and_dtype_are_drawn_again_bit_by_bit(drawn, tiny_model_with_graphs, capsys):
    out = verify(capsys, *drawn.values(), "--model", tiny_model_with_graphs, code=0)
    lines = out.splitlines()
    assert len(lines) == len(drawn)
    for line, (name, path) in zip(lines, drawn.items(), strict=True):
        hash_start = read_settings(path)["pixels_sha256"][:16]
        assert line.startswith(f"{path}: identical, SHA-256 {hash_start}; drawn again with tiny, ")
        assert name in line


def test_a_picture_of_the_shipped_model_needs_no_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a red apple, 3D", "--seed", "7", "--width", "64", "--height", "64", "--steps", "2"]) == 0
    path = capsys.readouterr().out.strip()
    out = verify(capsys, path, code=0)
    assert out.startswith(f"{path}: identical") and "pixart-default, onnx, float32" in out
    assert main(["generate", "a fox", "--no-metadata", "--width", "64", "--steps", "1", "--output", "b.png"]) == 0
    out = verify(capsys, "b.png", code=2)
    assert "b.png: cannot be checked. It holds no settings: pixart did not draw it, or drew it with --no-meta" in out


def test_edited_pixels_are_told_from_another_drawing(drawn, tiny_model_with_graphs, tmp_path, capsys):
    with Image.open(drawn["onnx"]) as image:
        image = image.copy()
    before = np.asarray(image).astype(int)
    ImageDraw.Draw(image).rectangle((0, 0, 15, 19), fill=(255, 255, 255))
    apart = np.abs(np.asarray(image) - before)
    path = rewritten(drawn["onnx"], tmp_path / "edited.png", image=image)
    out = verify(capsys, path, "--model", tiny_model_with_graphs, "--json", code=1)
    report = json.loads(out)
    assert report["verdict"] == "differs"
    assert report["reasons"] == [
        "The pixels were changed after the picture was written.",
        "Its settings still draw what was written, to the last bit.",
    ]
    assert (report["maximum"], report["mean"]) == (apart.max(), pytest.approx(apart.mean()))
    assert 0 < report["share"] <= 1 / 16
    assert report["stored_sha256"] == report["drawn_sha256"] != report["file_sha256"]
    cut = rewritten(drawn["onnx"], tmp_path / "cut.png", image=image.crop((0, 0, 32, 80)))
    out = verify(capsys, cut, "--model", tiny_model_with_graphs, code=1)
    assert "The picture is 32 x 80, and its settings draw 64 x 80." in out


def test_a_picture_of_other_conditions_says_which(drawn, tiny_model_with_graphs, tmp_path, capsys):
    """A torch picture whose record says that ONNX drew it, elsewhere."""
    record = read_settings(drawn["torch"]) | {"engine": "onnx", "threads": 10**9}
    record["versions"] = record["versions"] | {"numpy": "1.0", "onnxruntime": "0.1", "cupy": "2"}
    path = rewritten(drawn["bfloat16"], tmp_path / "other.png", record=record)
    out = verify(capsys, path, "--model", tiny_model_with_graphs, code=1)
    first, *reasons = out.splitlines()
    assert first.startswith(f"{path}: differs from what tiny, onnx, float32, ") and " of 255, " in first
    assert reasons[0] == "  The pixels were changed after the picture was written."
    assert any(reason.startswith("  Not the same: threads: 1000000000 then, ") for reason in reasons)
    assert "  Not the same: numpy: 1.0 then, " + np.__version__ + " now." in reasons
    assert "  Not the same: cupy: 2 then, nothing now." in reasons


def test_changed_settings_are_suspected_when_nothing_else_is_left(drawn, tiny_model_with_graphs, tmp_path, capsys):
    path = rewritten(drawn["onnx"], tmp_path / "a.png", record=read_settings(drawn["onnx"]) | {"seed": 5})
    out = verify(capsys, path, "--model", tiny_model_with_graphs, code=1)
    assert "either another processor drew it, or the settings in the file were changed" in out


def test_another_model_is_refused_unless_it_is_named(drawn, tiny_model_with_graphs, tmp_path, capsys):
    record = read_settings(drawn["onnx"])
    hash_start = record["model_hash"][:12]
    out = verify(capsys, drawn["onnx"], code=2)
    assert f'drawn with the model "tiny" (transformer {hash_start} ...), which is not the shipped one; name it' in out
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
    before = os.environ.get("OMP_NUM_THREADS")
    record = read_settings(drawn["onnx"]) | {"threads": 2}
    path = rewritten(drawn["onnx"], tmp_path / "two.png", record=record)
    report = json.loads(verify(capsys, path, "--model", tiny_model_with_graphs, "--json", code=0))
    assert report["drawn_with"] == "tiny, onnx, float32, 2 threads"
    assert os.environ.get("OMP_NUM_THREADS") == before


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
    ("write", "words"),
    [
        (save_as("JPEG"), "It is a JPEG file, and pixart writes PNG: saving a picture in another form drops its"),
        (save_as("WEBP"), "It is a WebP file"),
        (save_as("PNG"), "It holds no settings: pixart did not draw it"),
        (foreign, "It holds settings of A1111, whose pictures pixart cannot draw again; `pixart app` takes them over."),
        (short_copy, "only the short copy of its settings"),
        (cut_short, "The picture ends too early"),
        (broken(steps=10**9), 'Its steps is "1000000000" and must be a whole number from 1 to 500.'),
        (broken(sampler=["euler"]), 'Its sampler is "(list)" and must be one of'),
        (broken(width=4096), "This model cannot draw a width of 4096 pixels"),
        (broken(width=65), "a multiple of 16"),
        (broken(resolved_prompt=None), "Its resolved prompt is missing"),
        (broken(resolved_prompt="\ud800"), "not valid Unicode"),
        (broken(weights=None), "do not say which weights"),
        (broken(weights={"transformer/a": 7}), "do not say which weights"),
        (lambda drawn, target: rewritten(drawn["onnx"], target, record=[1]), "damaged (they are not a JSON object)"),
        (lambda drawn, target: None, "There is no file"),
        (lambda drawn, target: target.write_text("nothing"), "not a PNG, JPEG or WebP file"),
    ],
)
def test_what_cannot_be_checked_is_said_in_one_line(drawn, tmp_path, capsys, write, words, tiny_model_with_graphs):
    target = tmp_path / "picture.png"
    write(drawn, target)
    named = [] if "do not say" in words else ["--model", tiny_model_with_graphs]
    assert main(["verify", str(target), *map(str, named)]) == 2
    out, err = capsys.readouterr()
    assert out.startswith(f"{target}: cannot be checked. ") and out.count("\n") == 1
    assert words in out
    assert "Traceback" not in err


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
