"""What a run has learned so far, seen from outside: drawn by its checkpoints, read from its samples."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pixart
from pixart.checkpoints.folder import write_model_folder
from pixart.errors import PixArtError, UsageError
from pixart.model.dit import DiT
from pixart.training import checkpoint
from pixart.training.ema import Ema
from pixart.training.networks import class_config, expected_config, text_network
from pixart.training.optimizers.optimizer import Optimizer, OptimizerConfig
from pixart.training.recipe import ClassRecipe, Denoiser, Phase, TextRecipe, from_run, to_json
from pixart.training.samples import SamplesConfig
from pixart.training.strip import draw_checkpoint, newest_step, read_samples, some_classes
from pixart.web.glass_box_work import look_at_run

SIZE = Denoiser(width=32, depth=2, num_heads=2)
CLASSES = {"subgroup": ["birds", "fruit", "hearts"], "style": ["flat", "glossy"]}


def write_checkpoint(run: Path, step: int, network: torch.nn.Module) -> torch.nn.Module:
    """As training would have left it, of random weights that are not zero."""
    torch.manual_seed(step)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.15)
    checkpoint.save(run, step, network, Ema(network, decay=0.9), Optimizer(network, OptimizerConfig()))
    return network.eval()


def write_run(recipe) -> Path:
    recipe.run.mkdir(parents=True)
    (recipe.run / "config.json").write_text(json.dumps(to_json(recipe)))
    return recipe.run


@pytest.fixture
def text_run(tmp_path, tiny_model) -> Path:
    """Two checkpoints, one in each phase, and an autoencoder beside the run."""
    shutil.copytree(tiny_model / "vae", tmp_path / "autoencoder" / "vae")
    recipe = TextRecipe(
        run=tmp_path / "run",
        autoencoder=tmp_path / "autoencoder" / "vae",
        text_encoder=tiny_model / "text_encoder",
        features=tmp_path / "features",
        phases=(Phase(steps=4, size=64, batch_size=8), Phase(steps=4, size=128, batch_size=4)),
        model=SIZE,
        samples=SamplesConfig(prompts=("a red apple", "a fox")),
    )
    run = write_run(recipe)
    for step in (4, 6):
        write_checkpoint(run, step, text_network(recipe, expected_config(recipe)))
    return run


@pytest.fixture
def class_run(tmp_path, tiny_model) -> Path:
    phases = (Phase(steps=4, size=64, batch_size=8),)
    data = {"data": tmp_path / "data", "cache": tmp_path / "cache"}
    recipe = ClassRecipe(run=tmp_path / "run", autoencoder=tiny_model / "vae", phases=phases, model=SIZE, **data)
    run = write_run(recipe)
    (run / "classes.json").write_text(json.dumps(CLASSES))
    write_checkpoint(run, 4, DiT(class_config(recipe, 8, (3, 2))))
    return run


def files(run: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_checkpoint_draws_what_its_model_folder_would(text_run, tiny_model, tmp_path):
    from diffusers import AutoencoderKL

    before = files(text_run)
    row = draw_checkpoint(text_run, ("a red apple", "a fox"), seed=3, steps=3)
    assert (row.step, row.size, row.asked) == (6, 128, ("a red apple", "a fox"))
    assert files(text_run) == before  # the run may still train: nothing is written into it
    assert newest_step(text_run) == 6
    write_model_folder(
        tmp_path / "model",
        transformer_state=checkpoint.ema_state(text_run),
        config=expected_config(from_run(text_run)),
        vae=AutoencoderKL.from_pretrained(tiny_model / "vae", low_cpu_mem_usage=False),
        text_encoder_folder=tiny_model / "text_encoder",
        tokenizer_folder=tiny_model / "tokenizer",
        dtype=torch.float32,
        styles=None,
    )
    drawn = pixart.Pipeline.from_pretrained(tmp_path / "model", engine="torch", dtype="float32")
    result = drawn(["a red apple", "a fox"], seed=3, steps=3, guidance_scale=4.5, width=128, height=128)
    for ours, theirs in zip(row.images, result.images, strict=True):
        assert np.array(ours).std() > 1
        assert np.abs(np.array(ours).astype(int) - np.array(theirs).astype(int)).max() <= 2


def test_an_older_checkpoint_is_drawn_at_the_size_of_its_phase_and_differs(text_run):
    older = draw_checkpoint(text_run, ("a fox",), at=4, steps=2)
    newer = draw_checkpoint(text_run, ("a fox",), at=6, steps=2, size=64)
    assert (older.step, older.size) == (4, 64)
    assert older.images[0].size == newer.images[0].size == (64, 64)
    assert older.images[0].tobytes() != newer.images[0].tobytes()


def test_a_run_that_was_moved_with_its_autoencoder_still_draws(text_run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("run", "autoencoder"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    assert draw_checkpoint(tmp_path / "elsewhere" / "run", ("a fox",), steps=1).step == 6


def test_stage_1_is_asked_for_classes(class_run):
    asked = (("fruit", "glossy"), ("fruit", ""), ("birds", "glossy"))
    row = draw_checkpoint(class_run, asked, steps=2)
    assert (row.size, row.asked) == (64, ("fruit, glossy", "fruit", "birds, glossy"))
    assert len({image.tobytes() for image in row.images}) == 3
    alone = draw_checkpoint(class_run, asked[2:], steps=2).images[0]
    assert np.abs(np.array(alone).astype(int) - np.array(row.images[2]).astype(int)).max() <= 1
    assert some_classes(class_run, 2) == (("birds", ""), ("fruit", ""))


def test_samples_that_training_left_are_read_evenly_with_the_first_and_the_last(text_run):
    assert read_samples(text_run) == []
    (text_run / "samples").mkdir()
    for step in range(10, 210, 10):
        for number in range(2):
            shade = (step, number * 100, 0)
            Image.new("RGB", (64, 64), shade).save(text_run / "samples" / f"{step:08d}-{number}.png")
    (text_run / "samples" / "00000200-1.png").unlink()  # not drawn yet
    rows = read_samples(text_run, most=4)
    assert [row.step for row in rows] == [10, 70, 140, 200]
    assert rows[1].images[1].getpixel((0, 0)) == (70, 100, 0)
    assert [row.asked for row in rows] == [("a red apple", "a fox")] * 3 + [("a red apple",)]


@pytest.mark.parametrize(
    ("asked", "at", "said"),
    [
        ((("fruit", "painted"),), None, 'no style "painted"'),
        ((("fruit",),), None, "one class for each of subgroup, style"),
        ((("fruit", ""),), 3, "no checkpoint of step 3; it has 4"),
    ],
)
def test_what_is_not_there_is_named(class_run, asked, at, said):
    with pytest.raises(UsageError, match=said):
        draw_checkpoint(class_run, asked, at=at)


def test_a_folder_that_is_no_run_or_has_drawn_nothing_yet_is_named(text_run, tmp_path):
    with pytest.raises(PixArtError, match="not a run folder"):
        draw_checkpoint(tmp_path, ("a fox",))
    (text_run / "samples").mkdir()
    (text_run / "samples" / "00000010-0.png").write_bytes(b"not a picture")
    with pytest.raises(PixArtError, match="cannot be read"):
        read_samples(text_run)
    for path in text_run.glob("checkpoint-*"):
        shutil.rmtree(path)
    with pytest.raises(PixArtError, match="no checkpoint yet"):
        draw_checkpoint(text_run, ("a fox",))


def test_the_page_follows_a_run_and_draws_new_checkpoints_only(text_run):
    rows = look_at_run(str(text_run), "a fox\n\n a red apple ")
    assert [(row.step, row.asked) for row in rows] == [(6, ("a fox", "a red apple"))]
    assert look_at_run(str(text_run), "a fox\na red apple", rows) == rows
    recipe = from_run(text_run)
    write_checkpoint(text_run, 8, text_network(recipe, expected_config(recipe)))
    more = look_at_run(str(text_run), "a fox\na red apple", rows)
    assert [row.step for row in more] == [6, 8] and more[0] is rows[0]
    assert more[0].images[0].tobytes() != more[1].images[0].tobytes()


def test_the_page_asks_stage_1_for_classes(class_run):
    (row,) = look_at_run(str(class_run), "a fox")
    assert row.asked == ("birds", "fruit", "hearts")
