"""`pixart compare`: the same images as `Pipeline` generates, kept one by one, whatever happens to the process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import write_photos
from PIL import Image
from safetensors.torch import save_file

from pixart.checkpoints.official import NULL_CAPTION
from pixart.cli import main
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.comparison.models import Model, Settings, read_models
from pixart.evaluation.comparison.record import Cell, Plan, Row, begin, outcomes, read
from pixart.evaluation.comparison.run import match

PROMPTS = 'a red apple\na "green" <b>fox</b>, flat\n'


@pytest.fixture(scope="module")
def begun(tmp_path_factory, tiny_model_with_graphs) -> tuple[Path, list[str]]:
    """A comparison that is done, and its arguments: a model with 2 and with 3 steps, and images from elsewhere."""
    home = tmp_path_factory.mktemp("compare")
    (home / "prompts.txt").write_text(PROMPTS)
    (home / "theirs").mkdir()
    for row in range(2):
        for seed in (4, 9):
            Image.new("RGBA", (96, 48), (200, 40 * row, seed, 255)).save(home / "theirs" / f"{row}-{seed}.png")
    arguments = [
        "compare", f"{tiny_model_with_graphs},steps=2", f"{tiny_model_with_graphs},steps=3,name=three",
        str(home / "theirs"), "--prompts", str(home / "prompts.txt"), "--seeds", "4", "9", "--output",
        str(home / "out"),
    ]  # fmt: skip
    assert main(arguments) == 0
    return home / "out", arguments


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def test_every_model_generates_what_the_pipeline_generates(begun, tiny_model_with_graphs):
    from pixart import Pipeline

    out, _ = begun
    plan = read(out)
    assert [(model.name, model.kind) for model in plan.models] == [
        ("tiny, steps 2", "pixart"), ("three", "pixart"), ("theirs", "images")
    ]  # fmt: skip
    pipe = Pipeline.from_pretrained(tiny_model_with_graphs)
    for model, steps in zip(plan.models, (2, 3), strict=False):
        expected = pipe(PROMPTS.splitlines(), seed=9, steps=steps).images
        for row, image in enumerate(expected):
            made = Image.open(out / "models" / model.folder / f"{row:04d}-9.png")
            assert made.tobytes() == image.tobytes()


def test_time_memory_and_settings_are_kept(begun):
    out, _ = begun
    plan = read(out)
    first, _, theirs = outcomes(plan, out)
    assert len(first.images) == 4 and [p.warm for p in first.images.values()] == [False, True, True, True]
    assert first.seconds > 0 and first.sampled.load_seconds > 0
    sampled = first.sampled
    assert sampled.ended == "done" and 50e6 < sampled.peak_bytes < 4e9
    assert sampled.settings["steps"] == 2 and sampled.settings["sampler"] == "dpm-solver"
    assert any(name.startswith("transformer/") for name in sampled.weights)
    assert theirs.seconds is None and {(p.width, p.height) for p in theirs.images.values()} == {(96, 48)}


def test_metrics_know_how_a_model_of_a_comparison_sampled(begun):
    from pixart.evaluation.metrics import open_folder, prompts_of, sampling_settings

    out, _ = begun
    folder = open_folder(out / "models" / "three")
    assert prompts_of(folder) == [prompt for prompt in PROMPTS.splitlines() for _ in range(2)]
    found = sampling_settings(folder)
    assert (found["steps"], found["sampler"], found["seed"]) == (3, "dpm-solver", "4 to 9, 2 of them")
    assert sampling_settings(open_folder(out / "models" / "theirs"))["steps"] is None


def test_the_page_holds_all_and_asks_nobody(begun):
    import base64

    out, _ = begun
    page = (out / "index.html").read_text()
    for path in out.glob("models/*/*.png"):
        assert base64.b64encode(path.read_bytes()).decode() in page
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page
    assert "a &#34;green&#34; &lt;b&gt;fox&lt;/b&gt;" in page and "<b>fox" not in page
    assert "96 × 48" in page and "256 × 256" in page  # sizes that differ are said


def test_the_same_command_makes_only_what_is_missing(begun, tmp_path):
    out, arguments = begun
    again = shutil.copytree(out, tmp_path / "again")
    own = again / "models" / "three"
    (own / "0001-4.png").unlink()
    Image.new("RGB", (256, 256)).save(own / "0000-9.png")  # somebody painted over it
    with (own / "images.jsonl").open("a") as file:
        file.write('{"row": 0, "seed"')  # a line that a kill cut short
    before = files_of(again)
    assert main([*arguments[:-1], str(again)]) == 0
    after = files_of(again)
    assert {name for name in after if after[name] != before.get(name)} == {
        "models/three/0001-4.png", "models/three/0000-9.png"
    }  # fmt: skip
    for name in ("0001-4.png", "0000-9.png"):
        assert (own / name).read_bytes() == (out / "models" / "three" / name).read_bytes()
    assert main([*arguments[:-1], str(again)]) == 0 and files_of(again) == after


def test_another_comparison_in_the_same_folder_is_refused(begun, tmp_path, capsys):
    out, arguments = begun
    before = files_of(out)
    few = tmp_path / "few.txt"
    few.write_text("a red apple\n")
    model = arguments[1].removesuffix(",steps=2")
    for changed, word in (
        ({7: "5"}, "seeds"),
        ({1: f"{model},steps=2,guidance_scale=3,name=tiny, steps 2"}, "models"),
        ({1: f"{model},steps=4"}, "models"),
        ({5: str(few)}, "prompts"),
    ):
        assert main([changed.get(n, argument) for n, argument in enumerate(arguments)]) == 2
        assert word in capsys.readouterr().err
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine.txt").write_text("mine")
    assert main([*arguments[:-1], str(used)]) == 2
    assert files_of(out) == before and [path.name for path in used.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("changed", ["weights", "engine"])
def test_images_of_another_model_or_engine_are_not_mixed_in(begun, tmp_path, changed):
    out, arguments = begun
    again = shutil.copytree(out, tmp_path / "again")
    own = again / "models" / "three"
    (own / "0000-4.png").unlink()
    sampled = json.loads((own / "sampled.json").read_text())
    if changed == "weights":
        sampled["weights"] = dict.fromkeys(sampled["weights"], "0" * 64)
    else:
        sampled["settings"]["engine"] = "torch"
    (own / "sampled.json").write_text(json.dumps(sampled))
    assert main([*arguments[:-1], str(again)]) == 1
    assert not (own / "0000-4.png").exists()


def sampling(arguments: list[str], at: Path) -> tuple[subprocess.Popen, int]:
    """`pixart compare` in the background, and the process that samples, once the first image is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pixart", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not list(at.glob("models/*/0000-0.png")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    # The other one is multiprocessing's own.
    return process, next(int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes())


def test_a_model_that_runs_out_of_memory_keeps_what_it_made(tiny_model_with_graphs, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "p.txt").write_text("".join(f"a red apple and {number} foxes\n" for number in range(12)))
    arguments = ["compare", f"{tiny_model_with_graphs},steps=40", "--prompts", str(tmp_path / "p.txt")]
    arguments += ["--output", str(out)]
    process, child = sampling(arguments, out)
    assert main(arguments) == 1
    assert str(out) in capsys.readouterr().err
    os.kill(child, signal.SIGKILL)  # as the system does when memory is short
    stdout, stderr = process.communicate(timeout=300)
    (first,) = outcomes(read(out), out)
    assert process.returncode == 1, stderr
    assert 1 <= len(first.images) < 12 and first.sampled.ended == "memory"
    assert stdout.strip() == str(out / "index.html")
    assert '<div class="gap">' in (out / "index.html").read_text()
    kept = files_of(out)
    assert main(arguments) == 0
    (whole,) = outcomes(read(out), out)
    assert len(whole.images) == 12 and {name: files_of(out)[name] for name in kept} == kept
    assert whole.sampled.ended == "done" and '<div class="gap">' not in (out / "index.html").read_text()


def with_null_caption(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    caption = torch.randn(120, 32, generator=torch.Generator().manual_seed(0))
    save_file({NULL_CAPTION: caption}, folder / "transformer" / "null_caption.safetensors")
    return folder


def test_settings_of_generate_are_settings_of_one_model_or_of_all(tiny_model, tmp_path):
    from pixart import Pipeline
    from pixart.evaluation.comparison.run import open_generator
    from pixart.runtime.memory import Memory

    folder = with_null_caption(tiny_model, tmp_path / "captioned")
    (tmp_path / "more.toml").write_text(f'[models.ends]\nsource = "{folder}"\nguidance_interval = [500, 1000]\n')
    guidance = "guidance-interval=200-800,guidance-rescale=0.5,guidance-channels=3,null-text=caption"
    small = {"steps": 3, "width": 64, "height": 64}
    words = [f"{folder},{guidance}", str(tmp_path / "more.toml"), f"{folder},staged=true,dtype=bfloat16,style=Flat"]
    guided, ends, staged = read_models(words, Settings(**small, guidance_interval=(0, 300), staged=False))
    assert ends.name == "ends" and guided.name != staged.name
    wanted = {"guidance_rescale": 0.5, "guidance_channels": 3, "null_text": "caption"}
    how = {"memory": Memory(staged=True), "dtype": "bfloat16", "engine": "torch"}
    for model, loading, settings in (
        (guided, {}, {"guidance_interval": (200, 800), **wanted}),
        (ends, {}, {"guidance_interval": (500, 1000)}),
        (staged, how, {"guidance_interval": (0, 300), "style": "Flat"}),
    ):
        generator = open_generator(model.kind, model.source, json.loads(json.dumps(model.settings.given())))
        expected = Pipeline.from_pretrained(folder, **loading)("a fox", seed=3, **small, **settings)
        assert generator.generate(["a fox"], 3)[0].tobytes() == expected.images[0].tobytes()
        for name, value in settings.items():
            assert generator.settings[name] == (list(value) if name == "guidance_interval" else value)
    assert generator.settings["memory"] == {"staged": True}


def test_graphs_and_other_families_take_no_null_captions(tiny_model_with_graphs, tmp_path, capsys):
    folder, out = with_null_caption(tiny_model_with_graphs, tmp_path / "captioned"), tmp_path / "out"
    words = [f"{folder},null_text=caption,engine=onnx", "--prompts", "styles", "--limit", "1", "--output", str(out)]
    assert main(["compare", *words]) == 2 and not out.exists()
    (tmp_path / "sdxl").mkdir()
    (tmp_path / "sdxl" / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    for given in ("guidance_interval=0-500", "guidance_channels=3", "null_text=caption"):
        with pytest.raises(UsageError, match=given.split("=")[0]):
            read_models([f"{tmp_path / 'sdxl'},{given}"], Settings())


def test_a_comparison_goes_on_with_less_memory_only_where_no_byte_changes(tmp_path):
    def plan(**settings) -> Plan:
        return Plan((Row("a fox", "x", ""),), (0,), (Model("m", "m", "pixart", "d", Settings(**settings)),))

    begin(plan(steps=3), tmp_path)
    begin(plan(steps=3, staged=True, offload=True), tmp_path)
    assert read(tmp_path).models[0].settings.staged and read(tmp_path).id == plan(steps=3).id
    with pytest.raises(UsageError):
        begin(plan(steps=3, decode="tiled"), tmp_path)


def test_what_libraries_say_when_there_is_no_memory_is_understood():
    from pixart.evaluation.comparison.run import explained

    for allocate in (lambda: np.ones(2**55), lambda: torch.ones(2**55)):
        with pytest.raises((MemoryError, RuntimeError)) as raised:
            allocate()
        assert explained(raised.value)[0] == "memory"
    assert explained(ValueError("a bug"))[0] == "failed"


@pytest.fixture(scope="module")
def text_run(tmp_path_factory, tiny_model) -> Path:
    """A finished run of the text stage, with two averages and two checkpoints; its data is gone."""
    from pixart.training import train
    from pixart.training.batches import Phase
    from pixart.training.ema import EmaConfig
    from pixart.training.loop import LoopConfig
    from pixart.training.recipe import Recipe
    from pixart.training.tasks.text_to_image import Network, TextToImage

    home = tmp_path_factory.mktemp("run")
    photos = write_photos(home / "photos")
    words = ["--model", str(tiny_model), "--base-size", "64"]
    assert main(["data", "extract", str(photos), str(home / "features"), *words]) == 0
    recipe = Recipe(
        output=home / "run", phases=(Phase(4, 4, home / "features"),), ema=EmaConfig((0.9, 0.1)),
        loop=LoopConfig(precision="float32", device="cpu", save_every=2, log_every=4, validate_every=4),
    )  # fmt: skip
    task = TextToImage(
        network=Network(width=32, depth=2, num_heads=2),
        autoencoder=tiny_model / "vae",
        text_encoder=tiny_model / "text_encoder",
    )
    train(task, recipe)
    shutil.rmtree(photos)
    return home / "run"


@pytest.mark.slow
def test_a_stock_sdxl_beside_a_run(text_run, tmp_path):
    from diffusers import StableDiffusionXLPipeline
    from tiny_sdxl import write_tiny_sdxl

    write_tiny_sdxl(tmp_path / "sdxl")
    (tmp_path / "p.txt").write_text("a red apple\n")
    models = {"SDXL": {"source": str(tmp_path / "sdxl"), "guidance_scale": 3.0, "width": 64, "height": 64}}
    models["early"] = {"source": str(text_run), "checkpoint": 2, "ema": 0.1}
    (tmp_path / "models.json").write_text(json.dumps({"models": models}))
    out = tmp_path / "out"
    arguments = ["compare", str(tmp_path / "models.json"), "--prompts", str(tmp_path / "p.txt"), "--seeds", "5"]
    assert main([*arguments, "--steps", "2", "--negative-prompt", "blur", "--output", str(out)]) == 0
    stock = StableDiffusionXLPipeline.from_pretrained(tmp_path / "sdxl")
    stock.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(5)
    expected = stock(
        "a red apple", negative_prompt="blur", num_inference_steps=2, guidance_scale=3.0, width=64, height=64,
        generator=generator,
    ).images[0]  # fmt: skip
    assert Image.open(out / "models" / "sdxl" / "0000-5.png").tobytes() == expected.tobytes()
    sdxl, early = outcomes(read(out), out)
    assert sdxl.sampled.settings["pipeline"] == "StableDiffusionXLPipeline" and sdxl.sampled.settings["sampler"]
    assert "unet/diffusion_pytorch_model.safetensors" in sdxl.sampled.weights
    assert early.images and early.sampled.settings["checkpoint"] == 2 and early.sampled.settings["ema"] == "ema-0.1"
    assert not (out / "models" / "early" / "export").exists()


def test_a_pipeline_of_diffusers_generates_alone_what_it_generates_in_a_batch(tiny_model):
    from pixart.evaluation.comparison.run import open_generator

    given = {"steps": 2, "negative_prompt": "blurry", "width": 256, "height": 256, "device": "cpu"}
    generator = open_generator("diffusers", str(tiny_model), given)
    several = generator.generate(["a fox", "an apple"], 5)
    (alone,) = generator.generate(["an apple"], 5)
    difference = np.abs(np.asarray(several[1], float) - np.asarray(alone, float))
    assert difference.max() <= 2 and np.asarray(several[0]).std() > 1
    assert generator.settings["pipeline"] == "PixArtAlphaPipeline" and generator.settings["steps"] == 2
    assert "transformer/diffusion_pytorch_model.safetensors" in generator.weights


def test_images_are_generated_in_batches(tiny_model_with_graphs, tmp_path):
    """With graphs in fp32 they are the images that are generated alone, bit by bit."""
    from pixart import Pipeline

    (tmp_path / "p.txt").write_text("a fox\nan apple\na house\n")
    arguments = ["compare", f"{tiny_model_with_graphs},steps=2,batch_size=2,width=64,height=64", "--prompts"]
    assert main([*arguments, str(tmp_path / "p.txt"), "--output", str(tmp_path / "out")]) == 0
    (found,) = outcomes(read(tmp_path / "out"), tmp_path / "out")
    assert [image.warm for image in found.images.values()] == [False, False, True]
    expected = Pipeline.from_pretrained(tiny_model_with_graphs)("an apple", seed=0, steps=2, width=64, height=64)
    assert Image.open(found.folder / "0001-0.png").tobytes() == expected.images[0].tobytes()


def plan_of(*texts: str, seeds: tuple[int, ...] = (0,)) -> Plan:
    return Plan(tuple(Row(text, "test", "") for text in texts), seeds, ())


@pytest.mark.parametrize(
    ("names", "seeds", "expected"),
    [
        (["0.png", "0001.jpg"], (0,), {(0, 0): "0.png", (1, 0): "0001.jpg"}),
        (["1.png", "2.png"], (0,), {(0, 0): "1.png", (1, 0): "2.png"}),  # counted from 1
        (["0-7.png", "0_8.png", "1-7.png"], (7, 8), {(0, 7): "0-7.png", (0, 8): "0_8.png", (1, 7): "1-7.png"}),
        (["a-red-fox-0.png", "two-cats.webp"], (0,), {(0, 0): "a-red-fox-0.png", (1, 0): "two-cats.webp"}),
        (["a red fox_000003.png", "2.png"], (3,), {(0, 3): "a red fox_000003.png", (1, 3): "2.png"}),
    ],
)  # fmt: skip
def test_images_made_elsewhere_find_their_prompts(tmp_path, names, seeds, expected):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    found, _ = match(tmp_path, plan_of("a red fox", "two cats!", seeds=seeds))
    assert found == {Cell(*cell): tmp_path / name for cell, name in expected.items()}


def test_images_that_do_not_match_are_named(tmp_path):
    plan = plan_of("a red fox", "two cats", "a dog")
    for name in ("0.png", "7.png", "stranger.jpg"):
        (tmp_path / name).write_bytes(b"")
    found, notes = match(tmp_path, plan)
    assert list(found) == [Cell(0, 0)]
    assert "7.png, stranger.jpg" in notes[0] and "1 two cats, 2 a dog" in notes[1]
    (tmp_path / "a-red-fox.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"0\.png and a-red-fox\.png"):
        match(tmp_path, plan)
    with pytest.raises(UsageError):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "x.png").write_bytes(b"")
        match(tmp_path / "other", plan)


def test_models_are_named_by_what_tells_them_apart(tiny_model, tmp_path):
    (tmp_path / "fast.toml").write_text(f'[models.fast]\nsource = "{tiny_model}"\nsteps = 4\nguidance_scale = 3\n')
    models = read_models(
        [str(tiny_model), f"{tiny_model},steps=8,dtype=int8", str(tmp_path / "fast.toml"), "default"],
        Settings(steps=5),
    )
    assert [model.name for model in models] == ["tiny, steps 5", "tiny, steps 8, int8", "fast", "pixart-default"]
    assert [model.folder for model in models] == ["tiny-steps-5", "tiny-steps-8-int8", "fast", "pixart-default"]
    assert [model.settings.steps for model in models] == [5, 8, 4, 5] and models[2].settings.guidance_scale == 3.0


@pytest.mark.parametrize(
    ("models", "named"),
    [
        (["nowhere"], "nowhere"),
        (["default,stepz=3"], "stepz"),
        (["default,steps=three"], "steps"),
        (["default,steps=2,steps=3"], "steps"),
        (["default,guidance_interval=high"], "guidance_interval"),
        (["{}/interval.json"], "guidance_interval"),
        (["default,staged=maybe"], "staged"),
        (["default,checkpoint=3"], "checkpoint"),
        (["default", "default"], "pixart-default"),
        ([], "1 to 20"),
        (["{}/broken.toml"], "broken.toml"),
        (["{}/other.json"], "models"),
        (["{}/sourceless.toml"], "source"),
        (["{}/typed.toml"], "steps"),
        (["{}/empty"], "empty"),
        (["{}/code"], "model_index.json"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(tmp_path, models, named):
    (tmp_path / "broken.toml").write_text("[models")
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "sourceless.toml").write_text("[models.a]\nsteps = 3\n")
    (tmp_path / "typed.toml").write_text('[models.a]\nsource = "default"\nsteps = "x"\n')
    (tmp_path / "interval.json").write_text('{"models": {"a": {"source": "default", "guidance_interval": [1, 2, 3]}}}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "model_index.json").write_text('{"_class_name": ["mine", "Mine"]}')
    with pytest.raises(PixArtError) as refused:
        read_models([model.format(tmp_path) for model in models], Settings())
    assert named in str(refused.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["default"],
        ["default", "--prompts", "genral"],
        ["default", "--prompts", "styles", "--seeds", "1", "1"],
        ["default", "--prompts", "styles", "--seeds", "-1"],
        ["default", "--prompts", "styles", "--limit", "0"],
        ["default,steps=0", "--prompts", "styles"],
        ["default,batch_size=0", "--prompts", "styles"],
        ["default,width=100", "--prompts", "styles"],
        ["default,dtype=int4", "--prompts", "styles"],
        ["default,sampler=ddim", "--prompts", "styles"],
        ["default", "--device", "gpu", "--prompts", "styles"],
        ["default,guidance_interval=800-200", "--prompts", "styles"],
        ["default", "--guidance-channels", "9", "--prompts", "styles"],
        ["default,null_text=caption", "--prompts", "styles"],
        ["default", "--text-states", "none.st", "--prompts", "styles"],
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    assert len(capsys.readouterr().err) > 20
    assert list(tmp_path.iterdir()) == []


def test_limit_takes_some_of_the_prompts_and_the_sets_are_listed(tiny_model_with_graphs, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["compare", f"{tiny_model_with_graphs},steps=1,width=64,height=64", "--prompts", "alignment"]
    assert main([*arguments, "--limit", "2", "--output", str(out)]) == 0
    rows = read(out).rows
    assert len(rows) == len(outcomes(read(out), out)[0].images) == 2
    capsys.readouterr()
    assert main(["prompts", "alignment"]) == 0
    listed = [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()]
    assert [row.text for row in rows] == [listed[0], listed[10]]
