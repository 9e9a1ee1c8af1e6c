"""`pixart train .../all`: every stage in turn, from the weights of the one before, however often it is stopped."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_data import emoji_recipe, write_tiny_data
from tiny_run import PROCESSES

from pixart.errors import PixArtError, UsageError
from pixart.training import checkpoint
from pixart.training import recipe as recipes
from pixart.training.chain import resolve
from pixart.training.command import run

STAGE3 = ("stage3", "stage3_256", "stage3_long", "stage3_colours", "stage3_again")
AGAIN = ("autoencoder_again", "stage3_even", "stage3_last", "decoder_again")
NAMES = ("autoencoder", "stage1", "stage2", *STAGE3, "decoder", *AGAIN)
SHIPPED = [emoji_recipe(name) for name in NAMES]
STEPS = {"first": 8, "second": 100, "third": 8, "again": 4}  # the second so long that a signal cannot come too late
STAGE = """
kind = "KIND"
run = "runs/NAME"
data = "data"
cache = "cache"
autoencoder = "AUTOENCODER"
MORE
[[phases]]
steps = STEPS
size = 64
batch_size = 8
[model]
width = 32
depth = 2
num_heads = 2
[loop]
save_every = 4
log_every = 4
[optimizer]
warmup_steps = 2
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model) -> Path:
    """A folder with data, recipes and two chains of them: three stages in all.toml, two DiTs in two.toml."""
    folder = tmp_path_factory.mktemp("chained")
    write_tiny_data(folder / "data")
    encoder = f'text_encoder = "{tiny_model / "text_encoder"}"\n'
    more = {
        "first": "",
        "second": f'{encoder}init = "runs/first"',
        "third": f'{encoder}init = "runs/second"',
        "again": 'init = "runs/first"',
    }
    for name, lines in more.items():
        kind = "class" if name in ("first", "again") else "text"
        text = STAGE.replace("KIND", kind).replace("NAME", name).replace("MORE", lines)
        text = text.replace("STEPS", str(STEPS[name])).replace("AUTOENCODER", str(tiny_model / "vae"))
        (folder / f"{name}.toml").write_text(text)
    (folder / "all.toml").write_text('kind = "chain"\nstages = ["first.toml", "second.toml", "third.toml"]\n')
    (folder / "two.toml").write_text('kind = "chain"\nstages = ["first.toml", "again.toml"]\n')
    return folder


@pytest.fixture
def home(made, monkeypatch) -> Path:
    """That folder as the working folder. What is made there stays; the cache of latents serves all."""
    monkeypatch.chdir(made)
    return made


def weights(root: Path, name: str) -> bytes:
    return (root / name / "model" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()


def test_the_shipped_chain_is_linked_and_follows_its_runs():
    assert recipes.chain(emoji_recipe("all")) == SHIPPED and recipes.chain(emoji_recipe("stage1")) is None
    assert "paper/all" in recipes.chains() and "paper/all" not in recipes.names()
    stages = {stage.short: stage.recipe for stage in resolve(emoji_recipe("all"), ["--run", "second/try"])}
    assert [stage.run for stage in stages.values()] == [Path("second/try") / name for name in stages]
    learned = [name for name, recipe in stages.items() if not isinstance(recipe, recipes.AutoencoderRecipe)]
    better = ("stage3_last", "decoder_again")
    assert all(stages[name].autoencoder == Path("second/try/autoencoder/vae") for name in learned if name not in better)
    assert all(stages[name].autoencoder == Path("second/try/autoencoder_again/vae") for name in better)
    assert stages["stage2"].init == Path("second/try/stage1") and stages["stage3_256"].init == Path("second/try/stage3")
    assert stages["decoder"].init == Path("second/try/stage3_again")
    assert stages["autoencoder_again"].init == Path("second/try/decoder")
    assert stages["decoder_again"].init == Path("second/try/stage3_last")
    unmoved = [stage.recipe for stage in resolve(emoji_recipe("all"), [])]
    assert unmoved == [recipes.load(name) for name in SHIPPED]


def test_overrides_reach_every_stage_that_has_the_key_and_those_with_a_stage_reach_one():
    words = "--loop.seed 5 --model.width 64 --stage2.loop.seed 6 --phases.1.steps 9 --stage3-256.flow-shift 2"
    stages = {stage.short: stage.recipe for stage in resolve(emoji_recipe("all"), words.split())}
    assert [r.loop.seed for r in stages.values()] == [6 if name == "stage2" else 5 for name in NAMES]
    assert {r.model.width for r in stages.values() if hasattr(r, "model")} == {64}
    second = {name: r.phases[1].steps for name, r in stages.items() if len(r.phases) > 1}
    assert second == dict.fromkeys(("autoencoder", "stage3", "decoder", "autoencoder_again", "decoder_again"), 9)
    assert (stages["stage3_256"].flow_shift, stages["stage3"].flow_shift) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--loop.sed 3", "all.toml has no option --loop.sed. Did you mean --loop.seed?"),
        ("--stage2.lop.seed 3", "Did you mean --stage2.loop.seed?"),
        ("--init runs/x", "say which stage: --autoencoder.init FOLDER"),
        ("--run", "--run takes one folder"),
        ("--resume runs/x", "is a chain and continues by itself"),
        ("--stage1.loop.seed many", "stage1.toml: loop: seed is 'many'"),
    ],
)
def test_what_a_chain_cannot_do_is_refused(words, complaint):
    with pytest.raises(UsageError) as caught:
        run([emoji_recipe("all"), *words.split()])
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ['kind = "chain"', 'kind = "chain"\nstages = []', 'kind = "chain"\nstages = ["a", "a"]', 'kind = "chain"\nx = 1'],
)
def test_a_chain_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "all.toml").write_text(text)
    with pytest.raises(UsageError, match="a chain has stages"):
        run([str(tmp_path / "all.toml")])


def test_dry_run_and_help_show_the_chain(home, capsys):
    assert run(["all.toml", "--dry-run", "--loop.seed", "4"]) == 0
    shown = capsys.readouterr()
    stages = json.loads(shown.out)["stages"]
    assert [(stage["name"], stage["loop"]["seed"]) for stage in stages] == [
        (f"{n}.toml", 4) for n in ("first", "second", "third")
    ]
    assert shown.err.count("8 steps of 8 pictures at 64 px, 16 tokens each: 64 pictures") == 2
    assert "init          runs/first (not there yet)" in shown.err
    assert not Path("runs").exists()
    assert run([emoji_recipe("all"), "--help"]) == 0
    assert "stage3_256.toml" in capsys.readouterr().out


def test_a_chain_stopped_in_its_middle_goes_on_and_ends_as_an_unbroken_one(home, capsys):
    assert run(["all.toml", "--run", "unbroken"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:] == ["unbroken/second/model", "unbroken/third/model"]
    command = [sys.executable, "-m", "pixart", "train", "all.toml", "--run", "broken"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    while not checkpoint.found(Path("broken/second")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 75, process.stderr.read()
    assert Path("broken/first/finished.json").exists() and not Path("broken/second/finished.json").exists()
    stopped_at = int(checkpoint.found(Path("broken/second"))[-1].name.split("-")[1])
    assert 0 < stopped_at < 100
    assert run(["all.toml", "--run", "broken"]) == 0
    said = capsys.readouterr().err
    assert "broken/first is finished" in said and f"continuing broken/second at step {stopped_at} of 100" in said
    for name in ("second", "third"):
        assert weights(Path("broken"), name) == weights(Path("unbroken"), name)


def as_rank(rank: int, port: int, home: Path) -> None:
    os.chdir(home)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.exit(run(["two.toml", "--run", "together", "--loop.device", "cpu"]))


def test_two_processes_train_a_chain_together(home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [PROCESSES.Process(target=as_rank, args=(rank, port, home)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert all(Path("together", name, "finished.json").is_file() for name in ("first", "again"))
    states = [checkpoint.ema_state(Path("together", name)) for name in ("first", "again")]
    assert states[0].keys() == states[1].keys() and not torch.equal(*[s["x_embedder.proj.weight"] for s in states])


def test_a_later_stage_alone_waits_for_the_one_before(home):
    with pytest.raises(PixArtError, match=r"runs/first, to start from, is not there. Train it first"):
        run(["second.toml"])
    assert not Path("runs/second").exists()
