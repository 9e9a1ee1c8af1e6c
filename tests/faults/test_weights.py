"""Weights as people have them: float8, whole training checkpoints, wrapped names; by the command line alone."""

import argparse
import datetime
import json
import os
import random
import resource
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pixart.cli import main

WIDTH, HEADS = 32, 2


@pytest.fixture(autouse=True)
def limits():
    """A hang or a flood of memory ends as an exception, and so as a failed test, after 60 seconds or 8 GB more."""

    def stop(*_):
        raise TimeoutError("the command hangs")

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), before[1]))
    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def official(folder, tmp_path, capsys) -> dict[str, torch.Tensor]:
    """The tiny model by official names."""
    assert main(["convert", str(folder), str(tmp_path / "plain.safetensors"), "--to", "official"]) == 0
    capsys.readouterr()
    return load_file(tmp_path / "plain.safetensors")


def heads(folder) -> str:
    return str(json.loads((folder / "transformer" / "config.json").read_text())["num_attention_heads"])


def facts(capsys, *arguments) -> dict:
    code = main(["info", *map(str, arguments), "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return json.loads(shown.out)


def one_sentence(capsys, *arguments) -> str:
    code = main(list(map(str, arguments)))
    error = capsys.readouterr().err
    assert code in (1, 2)
    assert "Traceback" not in error
    return error


def in_dtype(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {n: t.to(dtype).contiguous() if t.dim() > 1 and n != "pos_embed" else t for n, t in state.items()}


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_files_are_read_as_their_numbers(folder, tmp_path, official, capsys, name):
    stored = in_dtype(official, getattr(torch, name))
    save_file(stored, tmp_path / "fp8.safetensors")
    assert name in facts(capsys, tmp_path / "fp8.safetensors", "--num-heads", heads(folder))["dtype"]
    made = tmp_path / "made"
    options = ["--to", "diffusers", "--parts", str(folder), "--num-heads", heads(folder)]
    assert main(["convert", str(tmp_path / "fp8.safetensors"), str(made), *options]) == 0
    assert main(["convert", str(made), str(tmp_path / "again.safetensors"), "--to", "official"]) == 0
    again = load_file(tmp_path / "again.safetensors")
    for tensor in set(stored) - {"pos_embed"}:
        assert torch.equal(again[tensor].float(), stored[tensor].float()), tensor
    small = ["--steps", "1", "--width", "64", "--height", "64", "--engine", "torch"]
    assert main(["generate", "a fox", "--model", str(made), *small, "--output", str(tmp_path / "a.png")]) == 0


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_a_diffusers_folder_with_a_float8_part_generates(folder, tmp_path, capsys, part):
    weights = next((folder / part).glob("*.safetensors"))
    save_file(in_dtype(load_file(weights), torch.float8_e4m3fn), weights, {"format": "pt"})
    assert ("float8_e4m3fn" in facts(capsys, folder)["dtype"]) == (part == "transformer")
    small = ["--steps", "1", "--width", "64", "--height", "64", "--engine", "torch"]
    assert main(["generate", "a fox", "--model", str(folder), *small, "--output", str(tmp_path / "a.png")]) == 0


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_a_quantised_part_of_a_model_makes_no_image(folder, tmp_path, capsys, part, dtype):
    weights = next((folder / part).glob("*.safetensors"))
    save_file({name: tensor.to(dtype) for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    small = ["--steps", "1", "--width", "64", "--height", "64", "--output", tmp_path / "a.png"]
    for command in (["generate", "a fox", "--model", folder, *small], ["info", folder]):
        assert str(weights) in one_sentence(capsys, *command)
    assert not (tmp_path / "a.png").exists()


def test_not_a_number_in_float8_is_found(folder, tmp_path, official, capsys):
    stored = in_dtype(official, torch.float8_e4m3fn)
    name = next(name for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn)
    stored[name].view(torch.uint8).view(-1)[0] = 0x7F
    save_file(stored, tmp_path / "fp8.safetensors")
    error = one_sentence(capsys, "info", tmp_path / "fp8.safetensors", "--num-heads", heads(folder))
    assert name in error


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64], ids=str)
def test_quantised_and_complex_weights_are_one_sentence(folder, tmp_path, official, capsys, dtype):
    name = "blocks.0.attn.qkv.weight"
    save_file(official | {name: official[name].to(dtype)}, tmp_path / "odd.safetensors")
    for command in (
        ["info", tmp_path / "odd.safetensors"],
        ["convert", tmp_path / "odd.safetensors", tmp_path / "made", "--to", "diffusers"],
    ):
        assert name in one_sentence(capsys, *command, "--num-heads", heads(folder))
    assert not (tmp_path / "made").exists()


def beside_the_weights() -> dict:
    """What trainers keep beside the weights."""
    return {
        "args": argparse.Namespace(model="PixArt", lr=1e-4, betas=(0.9, 0.999), resume=None),
        "epoch": np.int64(3),
        "loss": np.float32(0.5),
        "numpy_state": np.random.RandomState(0).get_state(),
        "random_state": random.Random(0).getstate(),
        "counts": Counter(a=1),
        "seen": {1, 2},
        "more": SimpleNamespace(a=1),
        "when": datetime.datetime(2024, 1, 1),
        "took": datetime.timedelta(seconds=5),
        "where": Path("runs/1"),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "shape": torch.Size([1, 2]),
        "torch_state": torch.get_rng_state(),
        "opt": {"state": {}, "param_groups": [{"lr": np.float64(1e-4)}]},
    }


@pytest.mark.parametrize("key", ["state_dict", "model", "module", "ema", "state_dict_ema"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_training_checkpoint_is_read_whole(folder, tmp_path, official, capsys, key, dtype):
    state = {f"module.{name}": tensor.to(dtype) for name, tensor in official.items()}
    torch.save({key: state, **beside_the_weights()}, tmp_path / "0000100.pt")
    found = facts(capsys, tmp_path / "0000100.pt", "--num-heads", heads(folder))
    assert found["kind"] == "official file"
    assert found["dtype"] == str(dtype).removeprefix("torch.")


def tiny_dit() -> dict[str, torch.Tensor]:
    from pixart.model.dit import DiT, DiTConfig

    config = DiTConfig(
        class_counts=(10,), in_channels=4, out_channels=8, width=WIDTH, depth=2, num_heads=HEADS, sample_size=32,
        interpolation_scale=None,
    )  # fmt: skip
    state = DiT(config).state_dict()
    state["y_embedder.embedding_table.weight"] = state.pop("y_embedders.0.embedding_table.weight")
    return {name: torch.zeros_like(tensor) if tensor.isnan().any() else tensor for name, tensor in state.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_the_training_of_dit_writes_becomes_a_start(tmp_path, capsys, prefix):
    state = {prefix + name: tensor for name, tensor in tiny_dit().items()}
    torch.save({"model": state, "ema": state, **beside_the_weights()}, tmp_path / "0000100.pt")
    options = ["--num-heads", HEADS, "--image-size", 256, "--text-dim", 16, "--to", "reparameterized"]
    assert main(["convert", str(tmp_path / "0000100.pt"), str(tmp_path / "start"), *map(str, options)]) == 0
    assert (tmp_path / "start").exists()


def test_a_pickle_in_a_folder_is_opened_only_by_its_own_name(tmp_path, capsys):
    from diffusers import DiTTransformer2DModel

    sizes = {"num_attention_heads": HEADS, "attention_head_dim": WIDTH // HEADS, "num_layers": 1, "sample_size": 32}
    model = DiTTransformer2DModel(**sizes, num_embeds_ada_norm=10)
    model.save_pretrained(tmp_path / "dit", safe_serialization=False)
    pickle = tmp_path / "dit" / "diffusion_pytorch_model.bin"
    assert pickle.name in one_sentence(capsys, "info", tmp_path / "dit")
    assert facts(capsys, pickle)["classes"] == 10


class Unknown:
    """Something of a user's own program."""


def test_other_objects_in_a_pickle_are_refused_and_never_made(tmp_path, official, capsys):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "written"), "w")

    for value in (Trap(), Unknown()):
        torch.save({"state_dict": official, "extra": value}, tmp_path / "a.pth")
        one_sentence(capsys, "info", tmp_path / "a.pth")
    assert not (tmp_path / "written").exists()


def test_tensors_that_share_their_bytes_are_converted(folder, tmp_path, official, capsys):
    names = ["blocks.0.attn.proj.weight", "blocks.1.attn.proj.weight"]
    shared = official[names[0]]
    torch.save({"state_dict": official | dict.fromkeys(names, shared)}, tmp_path / "a.pth")
    options = ["--num-heads", heads(folder), "--to", "official"]
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), *options]) == 0
    written = load_file(tmp_path / "b.safetensors")
    assert torch.equal(written[names[0]], written[names[1]])


@pytest.mark.parametrize("name", ["x_embedder.proj.weight", "final_layer.linear.weight", "pos_embed"])
@pytest.mark.parametrize("shape", [(0,), (0, 4, 2, 2), (0, 0)])
def test_tensors_without_numbers_are_one_sentence(folder, tmp_path, official, capsys, name, shape):
    save_file(official | {name: torch.zeros(shape)}, tmp_path / "a.safetensors")
    one_sentence(capsys, "info", tmp_path / "a.safetensors", "--num-heads", heads(folder))


def test_the_advice_for_a_file_by_diffusers_names_works(folder, tmp_path, capsys):
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    assert str(weights.parent) in one_sentence(capsys, "info", weights)
    assert facts(capsys, weights.parent)["kind"] == "transformer folder"
    save_file(load_file(weights), tmp_path / "alone.safetensors")
    assert "config.json" in one_sentence(capsys, "info", tmp_path / "alone.safetensors")


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_names_that_wrappers_made_longer_are_understood(tmp_path, folder, official, capsys, wrapper):
    inner = {n.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): t for n, t in official.items()}
    torch.save({"state_dict": {wrapper + n: t for n, t in inner.items()}}, tmp_path / "a.pth")
    options = ["--num-heads", heads(folder), "--to", "official"]
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), *options]) == 0
    written = load_file(tmp_path / "b.safetensors")
    assert written.keys() == official.keys()
    assert all(torch.equal(written[name], official[name]) for name in official)


def test_a_module_that_was_pickled_entire_is_refused_by_its_name(tmp_path, capsys):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    assert "torch.nn.modules.linear.Linear" in one_sentence(capsys, "info", tmp_path / "a.pth")


DAMAGED_JSON = {
    "deep": "[" * 200_000,
    "deep object": '{"a":' * 200_000,
    "list": "[]",
    "number": "1e30",
    "overflow": '{"sample_size": 1e999}',
    "empty": "",
    "not text": "\udcff",
}
SMALL_FILES = [
    "model_index.json",
    "styles.json",
    "pixart.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "transformer/config.json",
    "vae/config.json",
]


@pytest.mark.parametrize("file", SMALL_FILES)
@pytest.mark.parametrize("content", DAMAGED_JSON)
def test_damaged_json_is_one_sentence(folder, tmp_path, capsys, file, content):
    (folder / file).write_bytes(DAMAGED_JSON[content].encode(errors="surrogateescape"))
    assert str(folder / file) in one_sentence(capsys, "convert", folder, tmp_path / "made", "--to", "diffusers")
    assert os.listdir(tmp_path) == ["model"]
    assert str(folder / file) in one_sentence(capsys, "info", folder)


@pytest.mark.parametrize("size", [0, -1, 10**9, 10**30, 1e30, 1e999, 1.5, True, None, "12", [12], {}], ids=repr)
@pytest.mark.parametrize("name", ["num_layers", "cross_attention_dim", "sample_size", "patch_size"])
def test_absurd_sizes_are_one_sentence(folder, tmp_path, capsys, name, size):
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {name: size}))
    for command in (["info", folder], ["convert", folder, tmp_path / "made", "--to", "official"]):
        one_sentence(capsys, *command)


def fifo(path):
    path.unlink()
    os.mkfifo(path)


def endless(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def emptied(path):
    os.truncate(path, 0)


def a_huge_header(path):
    with path.open("rb+") as file:
        file.write((1 << 62).to_bytes(8, "little"))


@pytest.mark.parametrize("damage", [fifo, endless, cut, emptied, a_huge_header], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "model", "model/vae"])
def test_damaged_weights_are_one_sentence(folder, tmp_path, official, capsys, damage, name):
    save_file(official, tmp_path / "a.safetensors")
    torch.save({"state_dict": official}, tmp_path / "a.pth")
    part = folder / "transformer" if name == "model" else tmp_path / name
    damage(part / "diffusion_pytorch_model.safetensors" if name.startswith("model") else part)
    source = folder if name.startswith("model") else tmp_path / name
    for command in (["info", source], ["convert", source, tmp_path / "made", "--to", "diffusers"]):
        assert str(source) in one_sentence(capsys, *command)
    assert not (tmp_path / "made").exists()


LONG = "x" * 100_000
FIRST = "x_embedder.proj.weight"
ODD_STATES = {
    "a block of a huge number": lambda s: s | {"blocks.999999999.attn.qkv.weight": s["blocks.0.attn.qkv.weight"]},
    "a block of an endless number": lambda s: s | {f"blocks.{'9' * 5000}.attn.qkv.weight": s[FIRST]},
    "numbers as names": lambda s: s | {1: s[FIRST]},
    "a name of any length": lambda s: s | {LONG: s[FIRST]},
    "a huge tensor of few bytes": lambda s: s | {FIRST: torch.zeros(1).expand(10**6, 10**6, 2, 2)},
    "a huge grid of few bytes": lambda s: s | {"pos_embed": torch.zeros(1).expand(1, 10**12, 32)},
    "sparse": lambda s: s | {"final_layer.linear.weight": s["final_layer.linear.weight"].to_sparse()},
    "quantised": lambda s: s | {
        "final_layer.linear.weight": torch.quantize_per_tensor(s["final_layer.linear.weight"], 0.1, 0, torch.qint8)
    },
    "without storage": lambda s: s | {"final_layer.linear.weight": s["final_layer.linear.weight"].to("meta")},
    "text": lambda s: s | {"final_layer.linear.weight": "none"},
    "only one": lambda s: {FIRST: s[FIRST]},
    "none": lambda s: {},
    "a list": lambda s: list(s.values()),
    "a tensor": lambda s: s[FIRST],
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD_STATES)
@pytest.mark.parametrize("to", ["official", "reparameterized"])
def test_state_dicts_that_no_network_has_are_one_sentence(folder, tmp_path, official, capsys, kind, to):
    torch.save({"state_dict": ODD_STATES[kind](official)}, tmp_path / "a.pth")
    options = ["--num-heads", heads(folder)]
    for command in (["info", tmp_path / "a.pth"], ["convert", tmp_path / "a.pth", tmp_path / "b.pth", "--to", to]):
        assert len(one_sentence(capsys, *command, *options)) < 3000
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize("option", ["--image-size", "--num-heads"])
@pytest.mark.parametrize("value", ["0", "-8", "1000000000000", "1e30"])
def test_absurd_options_are_one_sentence(tmp_path, official, capsys, option, value):
    save_file({name: tensor for name, tensor in official.items() if name != "pos_embed"}, tmp_path / "a.safetensors")
    one_sentence(capsys, "info", tmp_path / "a.safetensors", option, value)
    command = ["convert", tmp_path / "a.safetensors", tmp_path / "b.pth", "--to", "official"]
    one_sentence(capsys, *command, option, value)
    assert not (tmp_path / "b.pth").exists()
