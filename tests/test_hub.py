"""Models by their hub id: a real download from a small Hub on the loopback, the cache, and what can go wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, serve
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file

from pixart.checkpoints.hub import looks_like_hub_id, patterns

SMALL = ("--seed", "3", "--steps", "2", "--width", "64", "--height", "64")
# Several ids in one process, since starting one takes longer than all of them.
RESOLVE = """
import json, sys
from pixart.checkpoints.hub import keep_libraries_offline, resolve
from pixart.errors import PixArtError
keep_libraries_offline()
for source, wanted in json.loads(sys.argv[1]):
    try:
        print(json.dumps(str(resolve(source, wanted))))
    except PixArtError as error:
        print(json.dumps(f"error: {error}"))
"""


def environment(cache: Path, **more: str) -> dict[str, str]:
    """A person's own: the tests' offline switch is taken out, so that only what pixart does decides."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PIXART_"))}
    return kept | {"HF_HOME": str(cache), "OMP_NUM_THREADS": "1"} | more


def pixart(arguments: list, env: dict[str, str], code: int = 0) -> tuple[str, str]:
    command = [sys.executable, "-m", "pixart", *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    return done.stdout.strip(), done.stderr


def resolve(cases: list[tuple[str, str]], env: dict[str, str], where: Path) -> list[str]:
    command = [sys.executable, "-c", RESOLVE, json.dumps(cases)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=where)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def repository(tiny_model_with_graphs, tmp_path) -> Path:
    """A model with what published ones have beside it, and nobody needs: pickles, half precision, pictures."""
    folder = shutil.copytree(tiny_model_with_graphs, tmp_path / "repository")
    for name in ("text_encoder/pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors", "asset/a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not to be fetched")
    return folder


def test_an_adapter_is_fetched_by_its_id(repository, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    layer, rows = "base_model.model.transformer_blocks.0.attn1.to_q", 32
    save_file({f"{layer}.lora_{k}.weight": torch.ones(rows, rows) for k in "AB"}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"lora_alpha": 1, "r": 32}')
    (folder / "training.bin").write_bytes(b"not to be fetched")
    words = ["generate", "a red fox", *SMALL, "--json", "--model", repository, "--output", tmp_path / "a.png"]
    with serve({"org/lora": folder}) as hub:
        out, _ = pixart([*words, "--lora", "org/lora:0.5"], environment(tmp_path / "home", HF_ENDPOINT=hub.url))
        assert not any(path.endswith(".bin") for path in hub.asked)
    (used,) = json.loads(out)["loras"]
    assert used["name"] == "org/lora" and used["strength"] == 0.5


def test_a_hub_id_is_fetched_once_and_draws_what_the_folder_draws(repository, tmp_path):
    draw = ["generate", "a red fox", *SMALL, "--json", "--model"]
    with serve({"org/tiny": repository}) as hub:
        env = environment(tmp_path / "home", HF_ENDPOINT=hub.url, HF_TOKEN="hf_secret")
        out, _ = pixart([*draw, "org/tiny", "--output", tmp_path / "hub.png"], env)
        assert hub.tokens == {"Bearer hf_secret"}
        fetched = {path.split(f"{COMMIT}/", 1)[1] for path in hub.asked if "/resolve/" in path}
        unwanted = {file for file in fetched if file.endswith((".bin", ".png", ".fp16.safetensors"))}
        assert not unwanted and "transformer/diffusion_pytorch_model.safetensors" in fetched
        hub.asked.clear()
        pixart([*draw, "org/tiny", "--output", tmp_path / "again.png"], env)
        assert not any("/resolve/" in path for path in hub.asked)
    # The Hub is gone, or nobody may be asked: the cache gives the same.
    pixart([*draw, "org/tiny", "--output", tmp_path / "gone.png"], env)
    offline, _ = pixart([*draw, "org/tiny", "--output", tmp_path / "off.png"], env | {"HF_HUB_OFFLINE": "1"})
    local, _ = pixart([*draw, repository, "--output", tmp_path / "local.png"], env)
    settings, again, expected = json.loads(out), json.loads(offline), json.loads(local)
    assert settings["pixels_sha256"] == again["pixels_sha256"] == expected["pixels_sha256"]
    assert settings["model"] == "org/tiny"
    assert settings["source"]["model"] == "org/tiny" and settings["source"]["revision"] == COMMIT
    assert expected["source"] == settings["source"] | {"model": "repository", "revision": None}


def test_only_what_is_wanted_is_fetched_and_what_goes_wrong_is_one_sentence(repository, tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    (here / "mine" / "local").mkdir(parents=True)
    cases = [
        ("org/tiny", "configs"),
        ("org/tiny@main", "transformer"),
        ("mine/local", "model"),
        ("org/unknown", "model"),
        ("org/tiny@v9", "model"),
        ("org/gated", "model"),
        ("org/empty", "model"),
        ("org/tiny", "model"),
    ]
    (tmp_path / "empty").mkdir()
    vae = "vae/diffusion_pytorch_model.safetensors"
    with serve({"org/tiny": repository, "org/empty": tmp_path / "empty", "mine/local": repository}) as hub:
        hub.gated.add("org/gated")
        hub.broken.add(vae)
        env = environment(home, HF_ENDPOINT=hub.url)
        configs, transformer, local, unknown, revision, gated, empty, broken = resolve(cases, env, here)
    snapshot = home / "hub" / "models--org--tiny" / "snapshots" / COMMIT
    assert configs == transformer == str(snapshot)
    assert local == "mine/local"  # a folder of that name is here
    assert unknown.startswith("error: ") and "org/unknown" in unknown
    assert revision.startswith("error: ") and "v9" in revision
    assert gated.startswith("error: ") and f"{hub.url}/org/gated" in gated and "HF_TOKEN" in gated
    assert empty.startswith("error: ") and "model_index.json" in empty
    assert broken.startswith("error: ") and "org/tiny" in broken
    assert (snapshot / "transformer" / "diffusion_pytorch_model.safetensors").is_file()
    assert not (snapshot / vae).exists()
    _, err = pixart(["generate", "a fox", "--model", "org/tiny"], env | {"HF_HUB_OFFLINE": "1"}, code=1)
    assert err.count("\n") == 1 and "org/tiny" in err
    for more in ({"HF_HUB_OFFLINE": "1"}, {}):
        _, err = pixart(["generate", "a fox", "--model", "org/other"], env | more, code=1)
        assert err.count("\n") == 1 and "org/other" in err


def test_a_cache_that_others_filled_is_read_offline(tiny_model_with_graphs, tmp_path):
    stored = tmp_path / "cache" / "models--org--tiny"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(COMMIT)
    (stored / "blobs").mkdir()
    for number, path in enumerate(path for path in tiny_model_with_graphs.rglob("*") if path.is_file()):
        shutil.copyfile(path, stored / "blobs" / str(number))
        link = stored / "snapshots" / COMMIT / path.relative_to(tiny_model_with_graphs)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(stored / "blobs" / str(number), link.parent))
    env = environment(tmp_path, HF_HUB_CACHE=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    model = f"org/tiny@{COMMIT}"
    out, _ = pixart(["generate", "a fox", *SMALL, "--model", model, "--output", tmp_path / "a.png", "--json"], env)
    assert json.loads(out)["source"]["revision"] == COMMIT and (tmp_path / "a.png").is_file()


def test_without_huggingface_hub_the_extra_is_named(tmp_path):
    (tmp_path / "huggingface_hub.py").write_text("raise ModuleNotFoundError(name='huggingface_hub')")
    env = environment(tmp_path, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    _, err = pixart(["generate", "a fox", "--model", "org/tiny"], env, code=1)
    assert err.count("\n") == 1 and "org/tiny" in err and "pip install 'pixart[torch]'" in err


def needed(names: list[str], wanted: str) -> set[str]:
    return set(filter_repo_objects(names, allow_patterns=patterns(wanted)))


def test_of_the_published_layout_one_form_of_each_weight_is_wanted():
    published = [
        ".gitattributes",
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "text_encoder/pytorch_model-00001-of-00002.bin",
        "tokenizer/special_tokens_map.json",
        "tokenizer/spiece.model",
        "tokenizer/tokenizer_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    left = {published[0], published[8], published[13], published[16]}
    assert needed(published, "model") == set(published) - left
    weights = {name for name in published if name.endswith(".safetensors")} - left
    assert (needed(published, "configs")) == set(published) - left - weights
    assert (needed(published, "transformer")) & weights == {published[14]}
    assert (needed(published, "parts")) & weights == weights - {published[14]}
    alone = ["config.json", "diffusion_pytorch_model.safetensors", "x.bin"]
    assert (needed(alone, "transformer")) == set(alone[:2])


@pytest.mark.parametrize(
    "source", ["folder", "/a/b", "./a/b", "a/b/c", "~/model", "a/b/", "a//b", "../a", "a/.b", "a\0/b", "C:\\a"]
)
def test_paths_are_no_hub_ids(source):
    assert not looks_like_hub_id(source)


def test_hub_ids_are_told_from_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looks_like_hub_id("PixArt-alpha/PixArt-XL-2-512x512") and looks_like_hub_id("org/name@refs/pr/1")
    assert not looks_like_hub_id(Path("PixArt-alpha/PixArt-XL-2-512x512"))  # nobody types a Path
    (tmp_path / "PixArt-alpha" / "PixArt-XL-2-512x512").mkdir(parents=True)
    assert not looks_like_hub_id("PixArt-alpha/PixArt-XL-2-512x512")
    # What is missing in a folder that is here was meant to be there; but the names of releases are those of the Hub.
    assert not looks_like_hub_id("PixArt-alpha/mine") and looks_like_hub_id("PixArt-alpha/mine@main")
    assert looks_like_hub_id("PixArt-alpha/PixArt-XL-2-1024-MS") and looks_like_hub_id("other/mine")
    assert not looks_like_hub_id("runs/mine") and not looks_like_hub_id("models/PixArt-XL-2-512x512.pth")
