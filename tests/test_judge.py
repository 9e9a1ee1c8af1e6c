"""The judge, trained by one command, knows held-out pictures; drawings are judged beside real pictures and copies."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import draw
from tiny_judge import recipe, train_judge, write_shapes

from pixart.data.imagefolder import read_split
from pixart.encoders.judge import Judge, JudgeConfig, loss, moved_about
from pixart.errors import PixArtError, UsageError
from pixart.evaluation.command import run
from pixart.evaluation.judge import open_judge, prepared
from pixart.evaluation.reference import FEATURES, build, choose, open_reference, save
from pixart.evaluation.score import score
from pixart.training.command import run as train
from pixart.training.judge_stage import judge_stage
from pixart.training.recipe import load
from pixart.training.rows import Share


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("judge")


@pytest.fixture(scope="module")
def built(data, home):
    """The reference of a judge that was trained, as it was made."""
    folder = train_judge(home, data)
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


def true_pictures(data, captions):
    where = {r.text: r.path for split in ("test_cells", "test_concepts") for r in read_split(data / split)}
    return [Image.open(where[caption]) for caption in captions]


def test_the_judge_knows_held_out_pictures_and_not_those_of_other_captions(opened, data):
    judge, reference = opened
    captions = [reference.rows[k].caption for k in choose(reference, num=100)]
    found = score(true_pictures(data, captions), captions, judge=judge, reference=reference)
    assert found["all"]["retrieval_at_1"].low > 0.2  # chance is 1 in 108
    assert found["all"]["retrieval_at_10"].value > 0.9 and found["all"]["style_accuracy"].value > 0.6
    assert found["all"]["similarity_to_true"].value == pytest.approx(1, abs=1e-3)
    assert found["all"]["kernel_distance_judge"].low < 0 < found["all"]["kernel_distance_judge"].high
    others = captions[7:] + captions[:7]
    wrong = score(true_pictures(data, others), captions, judge=judge, reference=reference)
    assert wrong["all"]["retrieval_at_1"].value < 0.1 < 0.3 < found["all"]["retrieval_at_1"].value
    assert set(found) == {"all", "test_cells", "test_concepts"}


def test_drawings_without_objects_are_far_away_and_one_drawing_for_all_is_no_copy(opened, data):
    judge, reference = opened
    captions = [reference.rows[k].caption for k in choose(reference, num=60)]
    real = score(true_pictures(data, captions), captions, judge=judge, reference=reference)["all"]
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
    with pytest.raises(PixArtError, match="Make the data first: pixart data emoji"):
        build(data / "nowhere", judge)


def test_a_smaller_choice_of_captions_is_the_beginning_of_a_larger_one(opened):
    reference = opened[1]
    rows = choose(reference, num=80)
    assert choose(reference, num=50) == rows[:50] and choose(reference, num=80, seed=1) != rows
    assert sum(reference.rows[k].split == "test_cells" for k in rows) == 40 and len(set(rows)) == 80
    with pytest.raises(UsageError, match="from 2 to 108"):
        choose(reference, num=500)


def test_what_cannot_be_judged_is_refused(opened):
    judge, reference = opened
    captions = [reference.rows[k].caption for k in choose(reference, num=60)]
    few = [draw("circle", (220, 30, 30), "flat")] * 3
    with pytest.raises(UsageError, match="at least 50 pictures, not 3"):
        score(few, captions[:3], judge=judge, reference=reference)
    with pytest.raises(UsageError, match='"a unicorn" is not a held-out caption'):
        score(few, ["a unicorn"] * 3, judge=judge, reference=reference)


def test_a_transparent_picture_is_judged_on_white(opened):
    judge = opened[0]
    solid = draw("circle", (220, 30, 30), "flat")
    clear = solid.convert("RGBA")
    pixels = np.asarray(clear).copy()
    pixels[(pixels[..., :3] == 255).all(axis=2)] = 0  # black, and nothing to be seen of it
    black_below = Image.fromarray(pixels)
    assert np.abs(np.asarray(prepared(black_below, 32), int) - np.asarray(prepared(solid, 32), int)).max() == 0
    assert (judge.pictures([solid])[0] == judge.pictures([black_below])[0]).all()
    alone, among = judge.pictures([solid])[0][0], judge.pictures([draw("square", (0, 0, 0), "Noto"), solid])[0][1]
    assert np.allclose(alone, among, atol=1e-5)


def test_a_row_of_the_same_picture_is_no_wrong_answer():
    torch.manual_seed(0)
    config = JudgeConfig(widths=(8, 8), text_width=8, embedding=8, zoom=0.0, shift=0.0, style_weight=0.0)
    network = Judge(config, 6, 2).eval()
    batch = {
        "pixels": torch.rand(3, 3, 16, 16),
        "text": torch.randn(3, 4, 6),
        "text_mask": torch.ones(3, 4, dtype=torch.bool),
        "styles": torch.zeros(3, dtype=torch.int64),
        "indices": torch.tensor([5, 5, 7]),
        "rng": np.random.default_rng(0),
    }
    logits, _ = network(batch["pixels"], batch["text"], batch["text_mask"])
    kept = [[0, 2], [1, 2], [0, 1, 2]]
    rows = [-(logits[k, k] - logits[k, kept[k]].logsumexp(0)) for k in range(3)]
    columns = [-(logits[k, k] - logits[kept[k], k].logsumexp(0)) for k in range(3)]
    expected = (sum(rows) + sum(columns)) / 6
    assert loss(network, batch, config=config).item() == pytest.approx(expected.item(), abs=1e-4)


def test_pictures_are_moved_on_white_and_stay_when_nothing_is_asked():
    pixels = torch.full((64, 3, 16, 16), -1.0)
    still = moved_about(pixels, np.random.default_rng(0), JudgeConfig(zoom=0.0, shift=0.0))
    assert torch.allclose(still, pixels, atol=1e-5)
    moved = moved_about(pixels, np.random.default_rng(0), JudgeConfig(zoom=0.2, shift=0.3))
    assert moved.max() == 1.0 and moved.min() == -1.0 and (moved[:, :, 7:9, 7:9] < 0).all()


def test_a_batch_is_the_same_whole_and_in_shares(data, home, built):
    """So that accumulation and continued runs see what one unbroken run sees."""
    batches = judge_stage(recipe(home, data), lambda line: None).batches
    whole, again = batches(7), batches(7)
    halves = [batches(7, Share(part, 2)) for part in range(2)]
    for name in ("pixels", "styles", "indices"):
        assert torch.equal(whole[name], again[name])
        assert torch.equal(whole[name], torch.cat([half[name] for half in halves]))
    assert whole["keys"] == halves[0]["keys"] + halves[1]["keys"] and len(set(whole["keys"])) > 40
    assert not torch.equal(whole["indices"], batches(8)["indices"])


def test_the_recipe_is_shipped_and_can_be_planned(capsys):
    shipped = load("emoji/judge")
    assert shipped.phases[0].size == 64
    assert train(["emoji/judge", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["kind"] == "judge" and "emoji/judge: judge, into runs/emoji-judge" in said.err
    from pixart.training.planning.plan import works

    small, large = works(shipped)
    assert 1e7 < small.flops_per_image < large.flops_per_image
    assert [small.steps, large.steps] == [phase.steps for phase in shipped.phases]
    with pytest.raises(UsageError, match="leave crop out"):
        train(["emoji/judge", "--phases.0.crop", "32", "--dry-run"])


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
    """The folder of an evaluation of 50 pictures by the command."""
    home = tmp_path_factory.mktemp("evaluated")
    assert run([*ask(tiny_model_with_graphs, judge_folder, home / "pictures"), "--output", str(home / "a.json")]) == 0
    return home


def ask(model, judge, pictures) -> list[str]:
    return [str(model), *f"--judge {judge} --num 50 --size 64 --steps 2 --pictures {pictures}".split()]


def test_the_command_prints_model_real_pictures_and_copies_with_the_protocol(evaluated, capsys, judge_folder):
    told = json.loads((evaluated / "a.json").read_text())
    assert list(told["scores"]) == ["drawn", "real pictures", "nearest caption's picture"]
    real, model = told["scores"]["real pictures"]["all"], told["scores"]["drawn"]["all"]
    assert model["retrieval_at_1"]["value"] < real["retrieval_at_1"]["low"]
    assert model["kernel_distance_plain"]["low"] > real["kernel_distance_plain"]["high"]
    protocol = told["protocol"]
    assert (protocol["num"], protocol["steps"], protocol["width"], protocol["seed"]) == (50, 2, 64, 0)
    assert protocol["judge"] == open_judge(judge_folder).sha256 and len(protocol["reference"]) == 64
    assert len(told["pictures"]) == 50 and len(list((evaluated / "pictures").glob("*.png"))) == 50
    assert len({row["seed"] for row in told["pictures"]}) == 50 and told["model_hash"]


def test_a_stopped_run_draws_only_what_is_missing_and_damage_again(
    evaluated, tiny_model_with_graphs, judge_folder, tmp_path, capsys
):
    pictures = shutil.copytree(evaluated / "pictures", tmp_path / "pictures")
    files = sorted(pictures.glob("*.png"))
    before = {path.name: path.read_bytes() for path in files}
    kept = files[5].stat().st_mtime_ns
    files[3].unlink()
    files[4].write_bytes(before[files[4].name][:500])
    assert run(ask(tiny_model_with_graphs, judge_folder, pictures)) == 0
    said = capsys.readouterr()
    assert "48 of 50 pictures are in" in said.err and "drew 2 of 2" in said.err
    for path in (files[3], files[4]):
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(evaluated / "pictures" / path.name)))
    assert files[5].stat().st_mtime_ns == kept
    first, second = (json.loads(p.read_text())["scores"] for p in (evaluated / "a.json", pictures / "scores-50.json"))
    assert first == second
    assert "own caption first of 500" in said.out and said.out.strip().endswith("scores-50.json")
    with pytest.raises(UsageError, match="drawn with another steps"):
        run([*ask(tiny_model_with_graphs, judge_folder, pictures), "--steps", "3"])


def test_results_of_different_protocols_are_not_compared(evaluated, tmp_path, capsys):
    a = evaluated / "a.json"
    told = json.loads(a.read_text())
    other = tmp_path / "b.json"
    told["model"] = "another"
    for row in told["pictures"]:
        row["style_accuracy"] = 1.0
    other.write_text(json.dumps(told))
    assert run(["--compare", str(a), str(other)]) == 0
    out = capsys.readouterr().out
    assert "tiny (a.json)" in out and "another (b.json)" in out and "b.json minus a.json, picture by picture:" in out
    assert "  own caption first of 500: 0.0% (0.0% to 0.0%)" in out
    told["protocol"] |= {"steps": 4, "reference": "f" * 64}
    other.write_text(json.dumps(told))
    with pytest.raises(UsageError, match=r"measured differently \(reference .*, steps 2 and 4\)"):
        run(["--compare", str(a), str(other)])
    with pytest.raises(UsageError, match=r"measured differently \(reference"):
        run(["--compare", str(a), str(other), "--across", "steps"])
    assert run(["--compare", str(a), str(other), "--across", "steps,reference"]) == 0
    other.write_text("{}")
    with pytest.raises(PixArtError, match="is not a file of pixart evaluate"):
        run(["--compare", str(a), str(other)])


def test_a_guidance_sweep_is_a_table_and_a_curve(tiny_model_with_graphs, judge_folder, tmp_path, capsys):
    words = [*ask(tiny_model_with_graphs, judge_folder, tmp_path / "sweep"), "--engine", "onnx"]
    assert run([*words, "--guidance-sweep", "4.5,1", "--output", str(tmp_path / "sweep.json")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("guidance") and out[1].startswith("1 ") and out[2].startswith("4.5 ")
    told = json.loads((tmp_path / "sweep.json").read_text())["sweep"]
    assert [one["protocol"]["guidance_scale"] for one in told] == [1, 4.5]
    import xml.etree.ElementTree as tree

    svg = tree.parse(tmp_path / "sweep.svg").getroot()
    assert len(svg.findall("{http://www.w3.org/2000/svg}circle")) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--num 49", "at least 50 pictures, not 49"),
        ("--num 5000", "from 2 to 108"),
        ("--guidance-sweep 1,x", "numbers with commas between"),
        ("--guidance-sweep 1,1", "2 to 20 different scales"),
        ("--guidance-sweep 1,2 --guidance-scale 3", "Give either"),
        ("--output table.csv", "give the name of a .json file"),
        ("--across steps", "--across goes with --compare"),
        ("--compare a.json", "needs two files"),
    ],
)
def test_bad_input_is_one_sentence(judge_folder, words, sentence):
    with pytest.raises(UsageError, match=sentence):
        run(["--judge", str(judge_folder), *words.split()])


def test_a_judge_that_is_missing_or_has_seen_no_pictures_is_named(judge_folder, tmp_path):
    with pytest.raises(PixArtError, match=r"cannot be loaded .* train it: pixart train emoji/judge"):
        run(["--judge", str(tmp_path)])
    without = shutil.copytree(judge_folder, tmp_path / "judge")
    (without / FEATURES).unlink()
    with pytest.raises(UsageError, match="give --data, a folder of pixart data emoji"):
        run(["--judge", str(without)])
    with pytest.raises(UsageError, match="--data goes with --judge"):
        run(["--data", str(tmp_path)])
    (without / "model.safetensors").write_bytes(b"short")
    with pytest.raises(PixArtError, match="cannot be loaded"):
        open_judge(without)
