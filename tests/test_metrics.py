"""FID and its kin and CLIPScore with small or random stand-ins for their extractors; benchmark folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pixart.cli import main
from pixart.errors import PixArtError, UsageError
from pixart.evaluation import metrics
from pixart.evaluation.metrics import open_folder, prompts_of, read, sampling_settings


def write_images(folder: Path, count: int, *, shift: int, seed: int) -> Path:
    """Discs of random colours and places; `shift` makes them darker."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        image = Image.new("RGB", (48 + number % 3 * 8, 48), "white")
        x, y = (int(v) for v in rng.integers(0, 20, 2))
        colour = tuple(int(v) for v in rng.integers(100, 250, 3) - shift)
        ImageDraw.Draw(image).ellipse((x, y, x + 24, y + 24), colour)
        image.save(folder / f"a red disc_{number:06}.png")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("images")
    return [write_images(home / str(seed), 40, shift=shift, seed=seed) for seed, shift in ((0, 0), (1, 0), (2, 95))]


class Extractor(torch.nn.Module):
    """Stands in for Inception: the same call, features of 16 dimensions."""

    def __init__(self):
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 16, 9, 5)

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        features = torch.relu(self.convolution(images.float() / 128 - 1)).mean(dim=(2, 3))
        return features if return_features else features.softmax(dim=1)


@pytest.fixture(scope="module")
def inception(tmp_path_factory) -> Path:
    """A TorchScript file with the call of the published one."""
    path = tmp_path_factory.mktemp("inception") / "inception.pt"
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(Extractor()), path)
    return path


@pytest.fixture
def few(monkeypatch):
    """Lets as few images through as the stand-in's features allow."""
    monkeypatch.setattr(metrics, "FEWEST", 17)
    monkeypatch.setattr(metrics, "FEATURES", 16)


def test_like_folders_are_nearer_than_unlike_ones(folders, inception, few, capsys, tmp_path):
    results = []
    for other, wanted, name in zip(folders[1:], ("kid,prc", "fid,kid,prc"), ("near", "far"), strict=True):
        output = tmp_path / f"{name}.json"
        words = ["--inception", str(inception), "--output", str(output), "--metrics", wanted]
        assert main(["metrics", str(folders[0]), "--reference", str(other), *words]) == 0
        results.append(json.loads(output.read_text()))
    near, far = (one["metrics"] for one in results)
    assert near["kid"] < far["kid"] and near["precision"] > far["precision"]
    assert 0 <= far["recall"] <= near["recall"] <= 1 and far["fid"] > 0 and "fid" not in near
    out = capsys.readouterr().out
    assert out.count("biased: ") == 3  # precision and recall twice, FID once
    both = ["--compare", str(tmp_path / "near.json"), str(tmp_path / "far.json")]
    assert main(["metrics", *both]) == 2 and "reference" in capsys.readouterr().err
    assert main(["metrics", *both, "--across", "reference"]) == 0
    kid, fid = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("kid ", "fid ")))
    assert (kid, fid) == (["kid", *(f"{one['kid']:.4f}" for one in (near, far))], ["fid", "-", f"{far['fid']:.4f}"])
    protocol = results[0]["protocol"]
    assert protocol["count"] == 40 and protocol["reference"] == open_folder(folders[1]).sha256
    assert len(protocol["inception"]) == 64 and "299 px" in protocol["resize"]


def test_the_protocol_says_how_our_own_images_were_sampled(tiny_model_with_graphs, tmp_path):
    small = ["--width", "64", "--height", "64", "--seed", "7", "--num-images", "2", "--output", str(tmp_path)]
    for steps in ("2", "3"):
        assert main(["generate", "a fox", "--model", str(tiny_model_with_graphs), "--steps", steps, *small]) == 0
    found = sampling_settings(open_folder(tmp_path))
    assert (found["steps"], found["width"], found["seed"]) == ([2, 3], 64, "7 to 8, 2 of them")
    assert isinstance(found["guidance_scale"], float) and found["sampler"] == "dpm-solver"
    Image.new("RGB", (64, 64)).save(tmp_path / "theirs.png")
    assert set(sampling_settings(open_folder(tmp_path)).values()) == {None}


def test_the_formulas_give_what_torch_fidelity_gives():
    """Its version 0.4.0 on these numbers: its functions of features, with KID's subsets of 55."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(0, 1, (120, 8)).astype(np.float32), rng.normal(0.3, 1.2, (110, 8)).astype(np.float32)
    assert metrics.frechet_distance(a, b) == pytest.approx(1.8050605682, rel=1e-6)
    state = torch.get_rng_state()
    kid = metrics.kernel_inception_distance(a, b)
    assert kid == metrics.kernel_inception_distance(a, b) and torch.equal(torch.get_rng_state(), state)
    # Other random subsets than torch-fidelity's, so to within the error of a mean of 100.
    assert kid[0] == pytest.approx(0.6533216763, abs=4 * 0.1987395485 / 100**0.5)
    assert kid[1] == pytest.approx(0.1987395485, rel=0.3)
    assert metrics.precision_recall(a, b) == pytest.approx((0.9333333373, 0.6636363864), rel=1e-6)


def test_too_few_images_are_refused_or_marked():
    with pytest.raises(UsageError, match="100"):
        metrics.check_count(99, 5000, ("kid",))
    with pytest.raises(UsageError, match="2,048"):
        metrics.check_count(2048, 50_000, ("fid", "kid"))
    assert metrics.check_count(512, 1359, ("kid",)) == []
    assert len(metrics.check_count(5000, 50_000, ("fid",))) == 1
    assert metrics.check_count(10_000, 50_000, ("fid", "kid", "prc")) == []


def test_missing_weights_are_named_with_where_to_get_them(folders, tmp_path, few):
    with pytest.raises(PixArtError, match="https://nvlabs-fi-cdn"):
        metrics.find_weights(tmp_path / "nowhere.pt")
    with pytest.raises(PixArtError, match="hf download openai/clip-vit-large-patch14"):
        metrics.Clip(tmp_path)
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(b"\x80\x04this is no state")
    with pytest.raises(PixArtError, match="not Inception v3"):
        metrics.fidelity(open_folder(folders[0]), open_folder(folders[1]), ("kid",), damaged, 299)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A tiny CLIP with random weights, as transformers writes it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(letter + "</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    names = [*letters, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: k for k, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(names), "max_position_embeddings": 24, "hidden_act": "gelu"},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "hidden_act": "gelu"},
        projection_dim=16,
    )
    torch.manual_seed(1)
    model = CLIPModel(config)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.05)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, CLIPTokenizer.from_pretrained(folder)).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_clip_score_is_what_the_logits_of_transformers_say(clip_folder, folders):
    folder = open_folder(folders[0], 5)
    prompts = ["a red disc", "a fox", "blue", "a house", "red"]
    clip = metrics.Clip(clip_folder)
    found = clip.scores(folder, prompts)
    assert found.std() > 0
    for file, prompt, score in zip(folder.files, prompts, found, strict=True):  # alone, so padding changes nothing
        given = clip.processor(text=[prompt], images=[read(file)], return_tensors="pt")
        logit = clip.model(**given).logits_per_image.item() / clip.model.logit_scale.exp().item()
        assert score == pytest.approx(100 * max(logit, 0), abs=1e-3)


def test_the_command_scores_each_image_against_its_own_prompt(clip_folder, folders, capsys, tmp_path):
    output = tmp_path / "out.json"
    words = ["metrics", str(folders[0]), "--clip", str(clip_folder), "--num", "3", "--output", str(output)]
    assert main(words) == 0
    expected = metrics.Clip(clip_folder).scores(open_folder(folders[0], 3), ["a red disc"] * 3).mean()
    out = capsys.readouterr().out
    assert f"{expected:.4f}" in out and out.startswith("clip_score ")
    protocol = json.loads(output.read_text())["protocol"]
    assert len(protocol["clip"]) == len(protocol["prompts"]) == 64
    output.unlink()
    # What would fail later is refused before anything is measured.
    reference = ["--reference", str(folders[1]), "--inception", str(tmp_path / "none.pt")]
    assert main([*words, *reference]) == 2 and not output.exists()  # too few images


def test_images_of_a_benchmark_lie_where_its_scripts_look(tiny_model_with_graphs, tmp_path, capsys):
    lines = [
        {"tag": "colors", "prompt": "a red apple", "include": [{"class": "apple"}]},
        {"tag": "x", "prompt": "a fox"},
    ]
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    dest = tmp_path / "geneval"
    words = ["--model", str(tiny_model_with_graphs), *["-n", "2", "--steps", "2", "--size", "64x64"]]

    def generate(layout, file, dest, *words):
        return main(["generate", "--prompts", str(file), "--layout", layout, "-o", str(dest), *words])

    assert generate("geneval", file, dest, *words) == 0
    assert sorted(str(path.relative_to(dest)) for path in dest.rglob("*.*")) == [
        *("00000/metadata.jsonl", "00000/samples/0000.png", "00000/samples/0001.png"),
        *("00001/metadata.jsonl", "00001/samples/0000.png", "00001/samples/0001.png"),
    ]
    assert json.loads((dest / "00000" / "metadata.jsonl").read_text()) == lines[0]
    (dest / "00001" / "samples" / "0001.png").unlink()
    before = (dest / "00001" / "samples" / "0000.png").stat().st_mtime_ns
    capsys.readouterr()
    assert generate("geneval", file, dest, *words) == 0
    assert (dest / "00001" / "samples" / "0000.png").stat().st_mtime_ns == before
    assert prompts_of(open_folder(dest)) == ["a red apple"] * 2 + ["a fox"] * 2

    before = {path: path.read_bytes() for path in dest.rglob("*.*")}
    assert generate("geneval", file, dest, *words[:5], "3", *words[6:]) == 2
    assert {path: path.read_bytes() for path in dest.rglob("*.*")} == before

    texts = tmp_path / "color_val.txt"
    texts.write_text("a red apple\na fox\n")
    dest = tmp_path / "t2i"
    assert generate("t2i-compbench", texts, dest, *words) == 0
    names = sorted(path.name for path in (dest / "samples").iterdir())
    assert names == [f"{p}_{k:06}.png" for p, k in (("a fox", 2), ("a fox", 3), ("a red apple", 0), ("a red apple", 1))]


def test_prompts_are_found_beside_or_in_the_images(tmp_path):
    samples = tmp_path / "00000" / "samples"
    samples.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(samples / "0000.png")
    (tmp_path / "00000" / "metadata.jsonl").write_text('{"prompt": "two cats"}\n')
    folder = open_folder(tmp_path)
    assert prompts_of(folder) == ["two cats"] and prompts_of(folder, ["a dog"]) == ["a dog"]
    with pytest.raises(UsageError, match="2 prompts"):
        prompts_of(folder, ["a", "b"])
    (tmp_path / "00000" / "metadata.jsonl").unlink()
    with pytest.raises(UsageError, match="--prompts"):
        prompts_of(folder)


def test_pictures_of_other_sizes_are_cut_to_the_middle_square(tmp_path):
    image = Image.new("RGB", (90, 30), "white")
    image.paste((255, 0, 0), (30, 0, 60, 30))
    image.save(tmp_path / "wide.png")
    assert np.asarray(read(tmp_path / "wide.png", 20)).reshape(-1, 3).tolist() == [[255, 0, 0]] * 400


@pytest.mark.parametrize(
    "words",
    [
        "nowhere --clip x",
        "{images}",
        "",
        "{images} --clip x --num 0",
        "--compare a.json",
        "{images} --across steps",
        "{images} --reference {empty}",
        "{images} --reference {images} --metrics fid,is",
        "{images} --clip x --num 50",
        "{images} --clip x --device tpu",
    ],
)
def test_bad_input_ends_with_2(folders, tmp_path, words, capsys):
    (tmp_path / "empty").mkdir()
    given = [word.format(images=folders[0], empty=tmp_path / "empty") for word in words.split()]
    assert main(["metrics", *given]) == 2 and capsys.readouterr().err.startswith("pixart: ")


@pytest.mark.parametrize(
    ("layout", "content"),
    [
        ("geneval", '{"prompt": "a cat"}\n{"tag": "x"}\n'),
        ("coco", "{}"),
        ("t2i-compbench", '{"prompt": "a cat / a dog"}'),
    ],
)
def test_bad_benchmark_files_are_refused(tmp_path, capsys, layout, content):
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    command = ["generate", "--layout", layout, "-o", str(tmp_path / "out")]
    assert main([*command, "--prompts", str(file)]) == 2 and main([*command, "a cat"]) == 2
    assert not (tmp_path / "out").exists()
