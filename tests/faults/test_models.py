"""Model folders that are made to harm: one sentence by the command line, never a panic, a hang or a flood of memory."""

import json
import os
import subprocess
import sys

import pytest

LONG = "x" * 100_000


def generate(model, folder, *options: str, **environment: str):
    """`pixart generate` in a process of its own, which may use 30 seconds of a processor and 6 GB of addresses."""
    limits = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (30, 30)); resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); "  # noqa: E501
    run = limits + "import sys; from pixart.cli import main; sys.exit(main(sys.argv[1:]))"
    sizes = ("--width", "64", "--height", "64", "--steps", "1", "--seed", "1")
    command = [sys.executable, "-c", run, "generate", "a red apple", "--model", str(model), *sizes, *options]
    return subprocess.run(
        command, cwd=folder, env=os.environ | {"RUST_BACKTRACE": "0"} | environment, capture_output=True, text=True,
        timeout=50,
    )  # fmt: skip


def refused(done, code: int = 1) -> None:
    assert done.returncode == code, done.stderr[-2000:]
    assert done.stdout == "" and "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("pixart: ")]
    assert len(said) == 1 and len(said[0]) < 3000


def template(*items):
    special = {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}
    return {"type": "TemplateProcessing", "single": list(items), "pair": list(items), "special_tokens": special}


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaa"}
BAD_TOKENIZERS = {
    "normalizer": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}},
    "unknown template token": {
        "post_processor": {**template(TEXT, {"SpecialToken": {"id": "[CLS]", "type_id": 0}}), "special_tokens": {}}
    },
    "bad merges": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "zz"]]}},
    "no model": {"model": {"type": "BPE", "vocab": {}, "merges": []}, "normalizer": 7},
    "exploding replacements": {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 12}},
    "exploding template": {"post_processor": template(*[TEXT] * 5000)},
    "exploding special token": {
        "post_processor": {
            **template(TEXT, {"SpecialToken": {"id": "[CLS]", "type_id": 0}}),
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2] * 500_000, "tokens": ["[CLS]"] * 500_000}},
        }
    },
}


@pytest.mark.parametrize("name", BAD_TOKENIZERS)
def test_tokenizers_that_cannot_work(folder, tmp_path, name):
    file = folder / "tokenizer" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | BAD_TOKENIZERS[name]))
    refused(generate(folder, tmp_path))


def test_token_ids_outside_the_table(folder, tmp_path):
    file = folder / "tokenizer" / "tokenizer.json"
    value = json.loads(file.read_text())
    value["model"]["vocab"]["apple"] = 99_999
    file.write_text(json.dumps(value))
    refused(generate(folder, tmp_path))


@pytest.mark.parametrize("layers", [1000, 10**6, 10**12])
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("transformer/config.json", "num_layers"),
        ("text_encoder/config.json", "num_hidden_layers"),
        ("text_encoder/config.json", "num_layers"),
        ("vae/config.json", "layers_per_block"),
    ],
)
def test_absurd_numbers_of_layers(folder, tmp_path, file, name, layers):
    config = json.loads((folder / file).read_text())
    if name == "num_layers" and "text" in file:
        config = {**config, "model_type": "t5", "d_model": 32, name: layers}
    (folder / file).write_text(json.dumps(config | {name: layers}))
    refused(generate(folder, tmp_path))


@pytest.mark.parametrize(
    "file",
    ["transformer/diffusion_pytorch_model.safetensors", "transformer/config.json", "text_encoder/config.json",
     "tokenizer/tokenizer.json", "model_index.json", "styles.json"],
)  # fmt: skip
def test_pipes_and_devices_in_place_of_files(folder, tmp_path, file):
    (folder / file).unlink()
    os.mkfifo(folder / file)
    refused(generate(folder, tmp_path))
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    refused(generate(folder, tmp_path))


@pytest.mark.parametrize("threads", ["1" + "0" * 20, "100000", "0", "-1", "1e20"])
def test_absurd_numbers_of_threads(tiny_model_with_graphs, tmp_path, threads):
    done = generate(tiny_model_with_graphs, tmp_path, OMP_NUM_THREADS=threads)
    assert done.returncode == 0, done.stderr


def test_what_is_repeated_of_the_input_is_short(tiny_model, tmp_path):
    for option in ("--style", "--sampler", "--engine", "--dtype"):
        refused(generate(tiny_model, tmp_path, option, LONG), 2)
