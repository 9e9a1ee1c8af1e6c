"""The judge, once trained, knows validation images; generated images are judged beside real ones and copies."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import draw
from tiny_judge import train_tiny_judge, write_shapes

from emojis.judge import JudgeConfig, JudgeNetwork, open_judge, prepared
from emojis.measures import scores
from emojis.records import read_split
from emojis.reference import FEATURES, build, choose, look, open_reference, save
from emojis.train_judge import Images, Judge, moved_about
from make import main
from pixart.errors import PixArtError, UsageError
from pixart.training.batches import Batches, Phase
from pixart.training.rows import MicrobatchSlice


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("judge")


@pytest.fixture(scope="module")
def built(data, home):
    """The reference of a judge that was trained, as it was made."""
    folder = train_tiny_judge(home, data)
    reference = build(data, open_judge(folder), lambda line: None)
    save(reference, folder)
    return reference


@pytest.fixture(scope="module")
def judge_folder(built, home):
    """A trained judge with its reference. Do not change it; copy it."""
    return home / "judge-run" / "judge"


@pytest.fixture(scope="module")
def opened(judge_folder):
    return open_judge(judge_folder), open_reference(judge_folder)


def true_images(data, captions):
    where = {r.text: r.path for split in ("test_cells", "test_concepts") for r in read_split(data / split)}
    return [Image.open(where[caption]) for caption in captions]


def score(images, captions, *, judge, reference):
    at = {row.caption: k for k, row in enumerate(reference.rows)}
    return scores(look(images, judge), [at[caption] for caption in captions], judge, reference)


def test_the_judge_knows_validation_images_and_not_those_of_other_captions(opened, data):
    judge, reference = opened
    captions = [reference.rows[k].caption for k in choose(reference, num=100)]
    found = score(true_images(data, captions), captions, judge=judge, reference=reference)
    assert found["all"]["retrieval_at_1"].low > 0.2  # chance is 1 in 108
    assert found["all"]["retrieval_at_10"].value > 0.9 and found["all"]["style_accuracy"].value > 0.6
    assert found["all"]["similarity_to_true"].value == pytest.approx(1, abs=1e-3)
    assert found["all"]["kernel_distance_judge"].low < 0 < found["all"]["kernel_distance_judge"].high
    others = captions[7:] + captions[:7]
    wrong = score(true_images(data, others), captions, judge=judge, reference=reference)
    assert wrong["all"]["retrieval_at_1"].value < 0.1 < 0.3 < found["all"]["retrieval_at_1"].value
    assert set(found) == {"all", "test_cells", "test_concepts"}


def test_images_without_objects_are_far_away_and_copies_are_memorised(opened, data):
    judge, reference = opened
    captions = [reference.rows[k].caption for k in choose(reference, num=60)]
    real = score(true_images(data, captions), captions, judge=judge, reference=reference)["all"]
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    found = score([Image.fromarray(one) for one in noise], captions, judge=judge, reference=reference)["all"]
    for name in ("kernel_distance_judge", "kernel_distance_plain"):
        assert found[name].low > real[name].high
    assert found["colour_accuracy"].value < real["colour_accuracy"].value and found["memorised_share"].value == 0
    copies = score(
        [Image.open(data / "train" / read_split(data / "train")[k].file_name) for k in range(60)], captions,
        judge=judge, reference=reference,
    )  # fmt: skip
    assert copies["all"]["memorised_share"].value > 0.9


def test_the_reference_says_the_same_after_it_was_written(opened, data, judge_folder):
    judge, read = opened
    built = build(data, judge, lambda line: None)
    assert (
        read.rows == built.rows
        and read.real.styles == built.real.styles
        and read.copies.colours == built.copies.colours
    )
    assert np.abs(read.real.plain - built.real.plain).max() < np.abs(built.real.plain).max() / 100
    assert np.allclose(read.real.vectors, built.real.vectors, atol=1e-3)
    train_captions = {record.text for record in read_split(data / "train")}
    assert all(row.copied in train_captions for row in read.rows)
    with pytest.raises(PixArtError, match="nowhere"):
        build(data / "nowhere", judge)


def test_a_smaller_choice_of_captions_is_the_beginning_of_a_larger_one(opened):
    reference = opened[1]
    rows = choose(reference, num=80)
    assert choose(reference, num=50) == rows[:50] and choose(reference, num=80, seed=1) != rows
    assert sum(reference.rows[k].split == "test_cells" for k in rows) == 40 and len(set(rows)) == 80
    with pytest.raises(UsageError):
        choose(reference, num=500)


def test_a_transparent_image_is_judged_on_white(opened):
    judge = opened[0]
    solid = draw("circle", (220, 30, 30), "flat")
    clear = solid.convert("RGBA")
    pixels = np.asarray(clear).copy()
    pixels[(pixels[..., :3] == 255).all(axis=2)] = 0  # black, and nothing to be seen of it
    black_below = Image.fromarray(pixels)
    assert np.abs(np.asarray(prepared(black_below, 32), int) - np.asarray(prepared(solid, 32), int)).max() == 0
    assert (judge.images([solid])[0] == judge.images([black_below])[0]).all()
    alone, among = judge.images([solid])[0][0], judge.images([draw("square", (0, 0, 0), "Noto"), solid])[0][1]
    assert np.allclose(alone, among, atol=1e-5)


def test_a_row_of_the_same_image_is_no_wrong_answer():
    torch.manual_seed(0)
    config = JudgeConfig(widths=(8, 8), text_width=8, embedding=8, zoom=0.0, shift=0.0, style_weight=0.0)
    network = JudgeNetwork(config, 6, 2).eval()
    batch = {
        "pixels": torch.rand(3, 3, 16, 16),
        "text": torch.randn(3, 6),
        "styles": torch.zeros(3, dtype=torch.int64),
        "indices": torch.tensor([5, 5, 7]),
        "moves": torch.rand(3, 3),
    }
    logits, _ = network(batch["pixels"], batch["text"])
    kept = [[0, 2], [1, 2], [0, 1, 2]]
    rows = [-(logits[k, k] - logits[k, kept[k]].logsumexp(0)) for k in range(3)]
    columns = [-(logits[k, k] - logits[kept[k], k].logsumexp(0)) for k in range(3)]
    expected = (sum(rows) + sum(columns)) / 6
    task = Judge(Path("none"), config)
    assert task.loss(network, batch).mean().item() == pytest.approx(expected.item(), abs=1e-4)


def test_images_are_moved_on_white_and_stay_without_moves():
    pixels, moves = torch.full((64, 3, 16, 16), -1.0), torch.rand(64, 3)
    still = moved_about(pixels, moves, JudgeConfig(zoom=0.0, shift=0.0))
    assert torch.allclose(still, pixels, atol=1e-5)
    moved = moved_about(pixels, moves, JudgeConfig(zoom=0.2, shift=0.3))
    assert moved.max() == 1.0 and moved.min() == -1.0 and (moved[:, :, 7:9, 7:9] < 0).all()


def test_a_batch_is_the_same_alone_and_in_microbatches(data, home, built):
    """So that accumulation and continued runs see what one unbroken run sees."""
    task = Judge(data)
    task.images = Images(data, home / "judge-run" / "cache")
    phases = (Phase(5, 64, size=32), Phase(5, 64, size=64))
    batches = Batches(phases, [task.source(phase) for phase in phases], 0)
    batch, again = batches(7), batches(7)
    halves = [batches(7, MicrobatchSlice(part, 2)) for part in range(2)]
    for name in ("pixels", "text", "styles", "indices", "moves"):
        assert torch.equal(batch[name], again[name])
        assert torch.equal(batch[name], torch.cat([half[name] for half in halves]))
    assert batches(4)["pixels"].shape[-1] == 32 and batch["pixels"].shape[-1] == 64
    assert not torch.equal(batch["indices"], batches(8)["indices"]) and len(set(batch["indices"].tolist())) > 40
    records = read_split(data / "train")
    row = int(batch["indices"][0])
    assert task.images.styles[batch["styles"][0]] == records[row].style
    assert np.array_equal(prepared(records[row].open(), 64), ((batch["pixels"][0] + 1) * 127.5).round().numpy())


def test_the_shipped_judge_knows_the_held_out_pictures_that_come_with_it():
    judge, reference = open_judge(), open_reference()
    assert len(reference.rows) == 1359 and len(judge.styles) == 7 and len(reference.train) == 17_982
    rows = choose(reference, num=40)
    fits = reference.real.vectors[rows] @ judge.captions([reference.rows[k].caption for k in rows]).T
    assert (fits.argmax(axis=1) == np.arange(40)).mean() > 0.7  # of 40, where 1 in 40 is chance
    right = [style == row.style for style, row in zip(reference.real.styles, reference.rows, strict=True)]
    assert 0.87 < np.mean(right) < 0.91  # as docs/benchmarks.md says


@pytest.fixture(scope="module")
def evaluated(judge_folder, tiny_model_with_graphs, tmp_path_factory):
    """The folder of an evaluation of 50 images by the command."""
    home = tmp_path_factory.mktemp("evaluated")
    words = ask(tiny_model_with_graphs, judge_folder, home / "images")
    assert main([*words, "--output", str(home / "a.json")]) == 0
    return home


def ask(model, judge, images) -> list[str]:
    return ["evaluate", str(model), *f"--judge {judge} --num 50 --size 64 --steps 2 --images {images}".split()]


def test_the_report_has_model_real_images_and_copies_with_the_protocol(evaluated, judge_folder):
    told = json.loads((evaluated / "a.json").read_text())
    assert list(told["scores"]) == ["generated", "real images", "nearest caption's image"]
    real, model = told["scores"]["real images"]["all"], told["scores"]["generated"]["all"]
    assert model["retrieval_at_1"]["value"] < real["retrieval_at_1"]["low"]
    assert model["kernel_distance_plain"]["low"] > real["kernel_distance_plain"]["high"]
    protocol = told["protocol"]
    assert (protocol["num"], protocol["steps"], protocol["width"], protocol["seed"]) == (50, 2, 64, 0)
    assert protocol["judge"] == open_judge(judge_folder).sha256 and len(protocol["reference"]) == 64
    assert len(told["images"]) == 50 and len(list((evaluated / "images").glob("*.png"))) == 50
    assert len({row["seed"] for row in told["images"]}) == 50 and told["model_hash"]


def test_a_stopped_run_generates_only_what_is_missing_and_damage_again(
    evaluated, tiny_model_with_graphs, judge_folder, tmp_path, capsys
):
    images = shutil.copytree(evaluated / "images", tmp_path / "images")
    files = sorted(images.glob("*.png"))
    before = {path.name: path.read_bytes() for path in files}
    kept = files[5].stat().st_mtime_ns
    files[3].unlink()
    files[4].write_bytes(before[files[4].name][:500])
    assert main(ask(tiny_model_with_graphs, judge_folder, images)) == 0
    assert capsys.readouterr().out.strip().endswith("scores-50.json")
    for path in (files[3], files[4]):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(evaluated / "images" / path.name)))
    assert files[5].stat().st_mtime_ns == kept
    first, second = (json.loads(p.read_text())["scores"] for p in (evaluated / "a.json", images / "scores-50.json"))
    assert first == second
    assert main([*ask(tiny_model_with_graphs, judge_folder, images), "--steps", "3"]) == 2
    assert "steps" in capsys.readouterr().err


def test_reports_of_different_protocols_are_not_compared(evaluated, tmp_path, capsys):
    a, other = evaluated / "a.json", tmp_path / "b.json"
    told = json.loads(a.read_text()) | {"model": "another"}
    other.write_text(json.dumps(told))
    assert main(["compare", str(a), str(other)]) == 0
    out = capsys.readouterr().out
    assert "tiny (a.json)" in out and "another (b.json)" in out
    assert "  own caption first of 500: 0.0% (0.0% to 0.0%)" in out
    told["protocol"] |= {"steps": 4, "reference": "f" * 64}
    other.write_text(json.dumps(told))
    assert main(["compare", str(a), str(other)]) == 2 and "steps" in capsys.readouterr().err
    assert main(["compare", str(a), str(other), "--across", "steps"]) == 2
    assert main(["compare", str(a), str(other), "--across", "steps,reference"]) == 0
    other.write_text("{}")
    assert main(["compare", str(a), str(other)]) == 1
    assert main(["compare", str(a)]) == 2


@pytest.mark.parametrize(
    "words",
    ["--num 49", "--num 5000", "--output table.csv", "--data nowhere", "--composition --num 201", "--steps 0"],
)
def test_bad_usage_is_refused(tiny_model_with_graphs, judge_folder, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", str(tiny_model_with_graphs), "--judge", str(judge_folder), *words.split()]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_judge_that_is_not_whole_is_named(judge_folder, tmp_path, capsys):
    assert main(["evaluate", "--judge", str(tmp_path)]) == 1 and str(tmp_path) in capsys.readouterr().err
    without = shutil.copytree(judge_folder, tmp_path / "judge")
    (without / FEATURES).unlink()
    assert main(["evaluate", "--judge", str(without)]) == 1
    (without / "model.safetensors").write_bytes(b"short")
    with pytest.raises(PixArtError):
        open_judge(without)
