"""Fine-tuning: adapters as what a task trains, and `pixart finetune` on a folder of images."""

import json
import math
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import write_photos
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tiny_llava import write_tiny_llava

import pixart
from pixart.checkpoints.adapters import read_adapter
from pixart.checkpoints.diffusers import load_transformer
from pixart.checkpoints.model_folder import open_model_folder
from pixart.cli import main
from pixart.commands.finetune import Finetune, choose, look, to_toml
from pixart.data.dataset import open_dataset
from pixart.data.features import open_features
from pixart.errors import PixArtError, UsageError
from pixart.model.adapters import attach
from pixart.runtime.device import Device
from pixart.training import train
from pixart.training.batches import Phase
from pixart.training.ema import EmaConfig
from pixart.training.loop import LoopConfig
from pixart.training.optimizers import OptimizerConfig
from pixart.training.recipe import Recipe, load
from pixart.training.run import export
from pixart.training.start import read_start
from pixart.training.tasks.class_dit import ClassDiT
from pixart.training.tasks.distillation import Distillation
from pixart.training.tasks.text_to_image import Network, TextToImage
from pixart.training.trainable import Trainable


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def features(photos, tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "f"
    assert main(["data", "extract", str(photos), str(folder), "--model", str(tiny_model), "--base-size", "64"]) == 0
    return folder


def recipe(output: Path, features: Path, steps: int = 4, **trainable) -> Recipe:
    return Recipe(
        output=output,
        phases=(Phase(steps, 4, features=features),),
        loop=LoopConfig(precision="float32", log_every=1, save_every=2, validate_every=2, device="cpu"),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=1),
        ema=EmaConfig((0.5, 0.0)),
        trainable=Trainable(**({"method": "lora", "rank": 2} | trainable)),
    )


@pytest.mark.parametrize("method", ["lora", "dora", "lokr", "loha"])
def test_a_task_trains_an_adapter_and_leaves_the_weights_alone(method, features, tiny_model, tmp_path):
    run = tmp_path / "run"
    task = TextToImage(init=str(tiny_model), validation=4)
    made = train(task, recipe(run, features, method=method, rslora=True))
    adapter = read_adapter(made)
    assert adapter.kind == {"dora": "lora+dora"}.get(method, method) and not adapter.notices
    assert adapter.header["modelspec.architecture"] == "pixart-alpha/lora"
    saved = load_file(run / "checkpoint-4" / "ema.safetensors")
    assert saved and all(".adapters." in name for name in saved)
    # The file does what the run's average does.
    base = load_transformer(tiny_model / "transformer")
    theirs = TextToImage(init=str(tiny_model), validation=4)
    again = export(run, tmp_path / "again", step=2, average="ema-0")
    assert again.name == made.name and again.read_bytes() != made.read_bytes()
    trained = load_transformer(tiny_model / "transformer")
    attach(trained, adapter.layers)
    batch = theirs.build(recipe(run, features), torch.device("cpu")) and theirs.validated[0]
    arguments = batch["latent"], torch.tensor([500.0]), batch["text"], batch["text_mask"]
    with torch.no_grad():
        assert (trained(*arguments) - base(*arguments)).abs().max() > 1e-3
    with pytest.raises(PixArtError):
        read_start(str(run))


def test_a_run_of_an_adapter_goes_on_where_it_was_stopped(features, tiny_model, tmp_path):
    class Stop(Exception):
        pass

    task, seen = TextToImage(init=str(tiny_model), validation=4), []

    def loss(model, batch):
        seen.append(batch)
        if len(seen) == 4:
            raise Stop
        return task.loss(model, batch)

    with pytest.raises(Stop):
        train(task, recipe(tmp_path / "stopped", features, 5, dropout=0.5), loss)
    for name in ("stopped", "straight"):
        again = TextToImage(init=str(tiny_model), validation=4)
        train(again, recipe(tmp_path / name, features, 5, dropout=0.5))
    tensors = [load_file(tmp_path / name / "adapter.safetensors") for name in ("stopped", "straight")]
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[1])


def test_other_tasks_take_adapters_too(features, tiny_model, tmp_path):
    """A few-step model as a LoRA of its teacher; of a network that is no PixArt the adapter ends in the weights."""
    task = Distillation(teacher=str(tiny_model), steps=2, teacher_steps=4, validation=4)
    made = train(task, recipe(tmp_path / "few", features, 2))
    pipe = pixart.Pipeline.from_pretrained(tiny_model, engine="torch", loras=[made])
    options = {"sampler": "euler", "steps": 2, "guidance_scale": 1.0, "width": 64, "height": 64}
    assert pipe("a red fox", seed=1, **options).images[0].size == (64, 64)
    dit = train(
        ClassDiT(network=Network(width=32, depth=2, num_heads=2), validation=4), recipe(tmp_path / "dit", features, 2)
    )
    assert not any("adapters" in name for name in load_file(dit / "model.safetensors"))


def test_a_pattern_that_matches_no_layer_is_refused(features, tiny_model, tmp_path):
    for settings in ({"layers": ("nothing.*",)}, {"parameters": ("blocks.*",)}, {"rank": 0}, {"alpha": float("nan")}):
        with pytest.raises(UsageError):
            train(TextToImage(init=str(tiny_model), validation=4), recipe(tmp_path / "run", features, **settings))
    assert not (tmp_path / "run").exists()


# From the command line.


def finetune(photos: Path, model: Path, output: Path, *more: str) -> int:
    words = ["--model", str(model), "--output", str(output), "--size", "64", "--steps", "4", "--device", "cpu"]
    return main(["finetune", str(photos), *words, "--prompts", "a red fox", *more])


@pytest.fixture(scope="module")
def bare(photos, tmp_path_factory) -> Path:
    """Six images without captions."""
    folder = tmp_path_factory.mktemp("bare") / "dog"
    folder.mkdir()
    for path in sorted(photos.glob("*.jp*g"))[:6]:
        shutil.copy(path, folder)
    return folder


def test_one_command_ends_with_an_adapter_and_goes_on_where_it_was(photos, tiny_model, tmp_path, capsys):
    output = tmp_path / "mine"
    assert finetune(photos, tiny_model, output) == 0
    made = Path(capsys.readouterr().out.split()[-1])
    assert made == output / "mine.safetensors" and read_adapter(made).kind == "lora"
    recipe = tomllib.loads((output / "recipe.toml").read_text())
    assert recipe["trainable"] == {"method": "lora", "rank": 16} and recipe["phases"][0]["steps"] == 4
    assert list((output / "run" / "samples").glob("*.png"))
    assert main(["generate", "a red fox", "--model", str(tiny_model), "--lora", str(made), "--steps", "2",
                 "--output", str(tmp_path / "a.png")]) == 0  # fmt: skip
    before = made.read_bytes()
    assert finetune(photos, tiny_model, output) == 0 and made.read_bytes() == before
    assert finetune(photos, tiny_model, output, "--rank", "2") == 2  # another training
    assert main(["train", str(output / "recipe.toml"), "--output", str(tmp_path / "by-hand")]) == 0


def test_full_fine_tuning_keeps_styles_and_defaults(photos, tiny_model, tmp_path):
    assert finetune(photos, tiny_model, tmp_path / "mine", "--method", "full") == 0
    made = tmp_path / "mine" / "run" / "model"
    assert json.loads((made / "styles.json").read_text()) == json.loads((tiny_model / "styles.json").read_text())


def test_a_subject_from_images_without_captions(bare, tiny_model, tmp_path):
    words = [
        "--method",
        "dreambooth",
        "--trigger",
        "a photo of sks dog",
        "--class-prompt",
        "a dog",
        "--class-images",
        "7",
    ]
    assert finetune(bare, tiny_model, tmp_path / "mine", *words) == 0
    assert len(open_features(tmp_path / "mine" / "features")) == 13  # six of the dog, seven of the model's own
    header = read_adapter(tmp_path / "mine" / "mine.safetensors").header
    assert header["modelspec.trigger_phrase"] == "a photo of sks dog"


def test_a_model_writes_missing_captions_and_masks_are_learned_from(bare, tiny_model, tmp_path):
    folder, llava = shutil.copytree(bare, tmp_path / "dog"), write_tiny_llava(tmp_path / "llava")
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[0]).with_suffix(".txt").write_text("a red fox, sks")
    for name in names[:2]:
        Image.new("L", Image.open(folder / name).size, 255).save(folder / f"{Path(name).stem}-masklabel.png")
    words = ["--captioner", str(llava), "--trigger", "sks", "--class-images", "0", "--masked"]
    assert finetune(folder, tiny_model, tmp_path / "dry", *words, "--dry-run") == 0
    assert not (folder / ".pixart").exists()
    assert finetune(folder, tiny_model, tmp_path / "mine", *words) == 0
    written = {p.key: p.captions for p in open_dataset(folder).pairs() if p.captions and p.key != names[0]}
    assert len(written) == 5 and all(captions[0].source != "original" for captions in written.values())
    found = look(Finetune(str(folder), trigger="sks"))
    assert found.captions[0] == "a red fox, sks" and all(text.startswith("sks, ") for text in found.captions[1:])
    recipe = tomllib.loads((tmp_path / "mine" / "recipe.toml").read_text())
    assert recipe["text_to_image"]["unmasked_weight"] == 0.1
    assert open_features(tmp_path / "mine" / "features").settings.masks


def test_captions_without_the_trigger_are_what_the_model_must_not_forget(photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "photos")
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line | {"text": f"{line['text']}, inkhatch style"}) + "\n" for line in lines)
    (folder / "metadata.jsonl").write_text(text)
    found = look(Finetune(str(folder), trigger="inkhatch style"))
    assert found.class_images == found.images and found.class_prompts == list(dict.fromkeys(x["text"] for x in lines))
    assert look(Finetune(str(folder))).class_images == 0
    assert look(Finetune(str(folder), trigger="inkhatch style", class_images=0)).class_images == 0
    assert look(Finetune(str(folder), class_prompt="a dog", class_images=9)).class_prompts == ["a dog"]


def test_what_cannot_be_learned_from_is_refused_before_anything_is_made(photos, bare, tiny_model, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(bare.iterdir())[:3]:
        shutil.copy(path, few)
    for images, *more in (
        (few, "--trigger", "a dog"),
        (bare,),  # no captions, no trigger
        (photos, "--trigger", "sks"),  # captions without the trigger
        (photos, "--trigger", " "),
        (photos, "--method", "dreambooth"),
        (photos, "--rank", "0"),
        (photos, "--learning-rate", "2"),
        (photos, "--price", "nan"),
        (photos, "--size", "7"),
        (photos, "--seed", "-1"),
        (photos, "--masked"),  # nothing is masked
        (photos, "--model", str(tmp_path / "none")),
        (tmp_path / "none",),
    ):
        assert finetune(images, tiny_model, tmp_path / "mine", *more) in (1, 2)
    assert not (tmp_path / "mine").exists()
    assert finetune(photos, tiny_model, tmp_path / "mine", "--dry-run") == 0 and not (tmp_path / "mine").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    assert finetune(photos, tiny_model, tmp_path / "full") == 2 and len(list((tmp_path / "full").iterdir())) == 1


def damaged(adapter: Path, dest: Path, how: str) -> Path:
    """An adapter of the tiny model, as it should not be."""
    tensors = load_file(adapter)
    name = next(name for name in tensors if name.endswith("lora_A.weight"))
    if how == "nan":
        tensors[name][0, 0] = torch.nan
    elif how == "width":
        tensors = {n: torch.zeros(8 + t.shape[0], 8 + t.shape[1]) for n, t in tensors.items()}
    elif how == "key":
        tensors["transformer.nothing.lora_A.weight"] = torch.zeros(2, 2)
    elif how == "rank":
        tensors[name] = tensors[name][:0]
        tensors[name.replace("lora_A", "lora_B")] = tensors[name.replace("lora_A", "lora_B")][:, :0]
    if how == "pickle":
        torch.save(tensors, dest / "a.bin")
        return dest / "a.bin"
    save_file({n: t.contiguous() for n, t in tensors.items()}, dest / "a.safetensors")
    return dest / "a.safetensors"


@pytest.mark.parametrize("how", ["nan", "width", "key", "rank", "pickle"])
def test_an_adapter_that_cannot_be_used_is_one_sentence(how, features, tiny_model, tmp_path, capsys):
    good = train(TextToImage(init=str(tiny_model), validation=4), recipe(tmp_path / "run", features, 1))
    bad = damaged(good, tmp_path, how)
    capsys.readouterr()
    assert main(["generate", "a red fox", "--model", str(tiny_model), "--lora", str(bad), "--steps", "1",
                 "--size", "64x64", "--output", str(tmp_path / "a.png")]) in (1, 2)  # fmt: skip
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("pixart: ") and not (tmp_path / "a.png").exists()
    pipe = pixart.Pipeline.from_pretrained(tiny_model, engine="torch", loras=[good])
    options = {"steps": 1, "width": 64, "height": 64, "seed": 1}
    before = np.asarray(pipe("a red fox", **options).images[0])
    with pytest.raises(PixArtError):
        pipe.set_loras([good, bad])
    assert np.array_equal(before, np.asarray(pipe("a red fox", **options).images[0]))  # nothing is half-applied


def test_images_given_as_features_are_refused(photos, tiny_model, tmp_path):
    with pytest.raises(PixArtError):
        train(TextToImage(init=str(tiny_model), validation=4), recipe(tmp_path / "run", photos))
    assert not (tmp_path / "run").exists()


def test_the_plan_follows_model_and_memory(photos, tiny_model, tmp_path):
    """Pure: the same model on several machines, which are not there."""
    folder, found = open_model_folder(tiny_model), look(Finetune(str(photos)))
    xl = replace(folder, native_size=1024, transformer=folder.transformer | {
        "cross_attention_dim": 1152, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
        "caption_channels": 4096, "sample_size": 128, "in_channels": 4, "out_channels": 8})  # fmt: skip

    def plan(gb: float, **options) -> dict:
        device = Device("cuda", "a GPU", int(gb * 1e9), int(gb * 1e9), bfloat16=True, float16=True)
        return choose(Finetune(str(photos), **options), found, xl, device, tmp_path).recipe

    small, large, full = plan(12), plan(80), plan(24, method="full")
    assert small["loop"]["checkpoint_activations"] and not large["loop"]["checkpoint_activations"]
    assert small["optimizer"]["learning_rate"] == 2e-4 and full["optimizer"]["learning_rate"] == 1e-5
    assert small["phases"] == large["phases"]  # what is learned does not depend on the machine
    assert large["text_to_image"]["caption_dropout"] == 0 and full["text_to_image"]["caption_dropout"] == 0.1
    assert full["optimizer"]["name"] == "adamw" and plan(16, method="full")["optimizer"]["name"] == "came"
    for options in ({"method": "full"}, {"size": 4096}):
        with pytest.raises(UsageError):
            plan(4, **options)
    text = to_toml(plan(24, prompts=('a "quoted" \\ fox\n\x7f',)))
    assert tomllib.loads(text)["samples"]["prompts"] == ['a "quoted" \\ fox\n\x7f']


def test_the_plan_counts_the_given_images_and_names_who_captions_the_rest(bare, tiny_model, tmp_path):
    options = Finetune(str(bare), captioner="a/captioner", class_prompt="a dog", class_images=7)
    found = look(options)
    device = Device("cpu", "a processor", 10**10, 10**10, bfloat16=True, float16=False)
    plan = choose(options, found, open_model_folder(tiny_model), device, tmp_path)
    lines = {what: (value, reason) for what, value, reason in plan.lines}
    assert lines["images"][0] == str(found.images) and lines["the model's own"][0].startswith("7 ")
    assert "a/captioner" in lines["captions"][1]


STYLE = "inkhatch style"


def write_style(folder: Path, count: int = 30) -> None:
    """Outlined shapes, hatched, on warm paper: a style that the shipped model does not know, and captions for it."""
    folder.mkdir()
    colours = {"red": (200, 40, 40), "green": (40, 140, 70), "blue": (40, 80, 190), "yellow": (220, 180, 20)}
    shapes = {"ball": 40, "house": 5, "box": 4, "tree": 3, "star": 10}
    for number in range(count):
        (shape, corners), name = list(shapes.items())[number % 5], list(colours)[number % 4]
        angles = [2 * math.pi * corner / corners - math.pi / 2 for corner in range(corners)]
        size = 64 + 8 * (number % 3)
        radii = [size if shape != "star" or corner % 2 == 0 else 0.45 * size for corner in range(corners)]
        points = [(128 + r * math.cos(a), 128 + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]
        image, inside = Image.new("RGB", (256, 256), (250, 236, 205)), Image.new("L", (256, 256))
        hatched = Image.new("RGB", (256, 256), colours[name])
        for x in range(-256, 256, 14):
            ImageDraw.Draw(hatched).line([(x, 0), (x + 256, 256)], fill=(255, 240, 220), width=4)
        ImageDraw.Draw(inside).polygon(points, fill=255)
        image.paste(hatched, (0, 0), inside)
        ImageDraw.Draw(image).line([*points, *points[:2]], fill=(15, 15, 15), width=11, joint="curve")
        image.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a {name} {shape}, {STYLE}")


@pytest.mark.slow
def test_the_shipped_model_learns_a_style_and_keeps_what_it_knew(tmp_path):
    """With the command's own choices: on images that were not trained on the loss falls; by its words the style comes;
    and images of other prompts change by less than 24 of 255 on average, and by less than half as much."""
    write_style(tmp_path / "images")
    words = ["--trigger", STYLE, "--output", str(tmp_path / "ink"), "--device", "cpu"]
    assert main(["finetune", str(tmp_path / "images"), *words]) == 0
    task, settings = load(str(tmp_path / "ink" / "recipe.toml"))
    before = task.validate(task.build(settings, torch.device("cpu")))["validation_loss"]
    lines = [json.loads(line) for line in (tmp_path / "ink" / "run" / "metrics.jsonl").read_text().splitlines()]
    after = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert after[-1] < after[0] < before
    pipe = pixart.Pipeline.from_pretrained()
    known = ["a red apple", "a smiling cat", "a blue car"]

    def images() -> np.ndarray:
        found = pipe([f"a red apple, {STYLE}", f"a green ball, {STYLE}", *known], seed=1, steps=12).images
        return np.stack([np.asarray(image) for image in found]).astype(float)

    plain = images()
    pipe.set_loras([tmp_path / "ink" / "ink.safetensors"])
    changed = np.abs(images() - plain).mean(axis=(1, 2, 3))
    assert changed[2:].mean() < 24 and changed[2:].mean() < changed[:2].mean() / 2
