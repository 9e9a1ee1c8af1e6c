"""The bill: arithmetic against torch's own counts, and a plan against what a run takes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_data import emoji_recipe
from torch.utils.flop_counter import FlopCounterMode

from pixart.errors import UsageError
from pixart.model.dit import DiT, DiTConfig
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training import recipe as recipes
from pixart.training.planning.flops import forward_flops, training_flops, training_memory
from pixart.training.planning.hardware import GPUS, Hardware, grid_intensity, named
from pixart.training.planning.paper_costs import PUBLISHED, STAGES, TEXT_TOKENS, V100_PER_A100, XL
from pixart.training.planning.plan import Work, bill
from pixart.training.planning.plan_command import _print_plan, run

SIZES = [
    (PixArtConfig(width=64, depth=3, num_heads=4, text_dim=32), 8, 16),
    (PixArtConfig(width=48, depth=2, num_heads=4, text_dim=32, mlp_ratio=2, in_channels=4, out_channels=8), 16, 7),
    (PixArtConfig(width=48, depth=2, num_heads=4, text_dim=32, sample_size=128, micro_conditions=True), 8, 7),
    (XL, 32, TEXT_TOKENS),
    (DiTConfig(class_counts=(5, 3), width=64, depth=3, num_heads=4), 8, 0),
]


def network_and_inputs(config, side: int, tokens: int, count: int = 1):
    """A network and its inputs, on torch's default device."""
    x_t, timestep = torch.randn(count, config.in_channels, side, side), torch.full((count,), 500.0)
    if isinstance(config, DiTConfig):
        return DiT(config), (x_t, timestep, torch.zeros(count, len(config.class_counts), dtype=torch.int64))
    text, mask = torch.randn(count, tokens, config.text_dim), torch.ones(count, tokens, dtype=torch.bool)
    return PixArt(config), (x_t, timestep, text, mask, torch.tensor([[256.0, 256.0, 1.0]]).expand(count, 3))


@pytest.mark.parametrize(("config", "side", "tokens"), SIZES)
def test_forward_flops_are_exactly_what_torch_counts(config, side, tokens):
    with torch.device("meta"):
        network, inputs = network_and_inputs(config, side, tokens)
        with FlopCounterMode(display=False) as counter:
            network(*inputs)
    assert forward_flops(config, side, tokens) == counter.get_total_flops()


@pytest.mark.parametrize(("config", "side", "tokens"), SIZES)
def test_training_flops_are_what_torch_counts_to_a_hundredth(config, side, tokens):
    """The difference: no gradient for the network's own inputs."""
    with torch.device("meta"):
        network, inputs = network_and_inputs(config, side, tokens)
        with FlopCounterMode(display=False) as counter:
            network(*inputs).sum().backward()
    assert training_flops(config, side, tokens) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_computing_activations_again_costs_one_more_forward_pass():
    config = SIZES[0][0]
    assert training_flops(config, 8, 16, again=True) == 4 * forward_flops(config, 8, 16)


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("kind", ["text", "class"])
def test_activations_are_what_autograd_keeps_to_a_tenth(kind, bf16):
    sizes = {"width": 128, "depth": 4, "num_heads": 4}
    config = PixArtConfig(**sizes, text_dim=64) if kind == "text" else DiTConfig(class_counts=(5,), **sizes)
    network, inputs = network_and_inputs(config, 16, 16, count=8)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", enabled=bf16):
        network(*inputs)
    parameters = sum(p.numel() for p in network.parameters())
    memory = training_memory(parameters, config, 16, 8, 16, bf16=bf16, fused_attention=False)
    assert memory.activations == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.1)


PEAK = """
import torch
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.training.ema import Ema
from pixart.training.optimizers.optimizer import Optimizer, OptimizerConfig
sizes = dict(width=256, depth=8, num_heads=4, text_dim=384)
def steps(config, count, side):
    model = PixArt(config); ema = Ema(model, decay=0.9); optimizer = Optimizer(model, OptimizerConfig())
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            text = torch.randn(count, 32, 384), torch.ones(count, 32, dtype=torch.bool)
            loss = model(torch.randn(count, 8, side, side), torch.full((count,), 500.0), *text).float().square().mean()
        optimizer.zero_grad(); loss.backward(); optimizer.step(1e-3); ema.update(model, step)
steps(PixArtConfig(width=64, depth=1, num_heads=2, text_dim=384), 1, 4)  # all libraries and kernels are loaded
before = int(open("/proc/self/statm").read().split()[1]) * 4096  # now, not the peak of importing
steps(PixArtConfig(**sizes), 16, 16)
# Not getrusage: its peak starts at that of the process that started this one.
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak) * 1024 - before)
"""


def test_predicted_memory_is_the_measured_peak_to_fifteen_per_cent():
    """A network like the shipped one, 16 pictures of 128 px: the growth of the process at its peak."""
    # Freed memory goes back at once; by default glibc keeps up to 30% more than is in use.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=environment)
    config = PixArtConfig(width=256, depth=8, num_heads=4, text_dim=384)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in PixArt(config).parameters())
    predicted = training_memory(parameters, config, 16, 16, 32, fused_attention=False).total
    assert predicted == pytest.approx(int(done.stdout), rel=0.15)


def test_a_bill_is_arithmetic():
    work = Work(256, 1000, 100, flops_per_image=10**12, state_bytes=10**9, image_bytes=10**8, operations=100)
    machine = Hardware("x", 100e12, 0.5, 8e9, 500, 2.0, "made up", launch=0.0)
    cost = bill(work, machine, grid=400)
    assert cost.hours == pytest.approx(100_000 * 1e12 / 50e12 / 3600)
    assert cost.kwh == pytest.approx(cost.hours * 0.5) and cost.usd == pytest.approx(cost.hours * 2)
    assert cost.co2_kg == pytest.approx(cost.kwh * 0.4)
    assert (cost.images, cost.flops, cost.memory) == (100_000, 10**17, 11 * 10**9)
    slow = bill(work, Hardware("x", 100e12, 0.5, 8e9, 500, 2.0, "made up", launch=0.1), grid=400)
    assert slow.hours * 3600 == pytest.approx(1000 * 100 * 0.1)  # a step waits for its 100 operations to start
    both = cost + slow
    assert both.hours == cost.hours + slow.hours and both.memory == cost.memory and both.images == 200_000


def test_the_papers_own_figures_agree_with_each_other():
    """What is published twice must be the same here: days of stages against totals, and the ratios that it names."""
    by_name = {row.name: row for row in PUBLISHED}
    v100 = sum(stage.v100_days for stage in STAGES)
    assert v100 == 1656 and v100 / V100_PER_A100 == pytest.approx(753, abs=0.5)
    assert by_name["PixArt-α (v1)"].days / by_name["SD v1.5"].days == pytest.approx(0.108)
    assert by_name["PixArt-α (v2, v3)"].days / by_name["SD v1.5"].days == pytest.approx(0.12, abs=0.001)
    assert by_name["PixArt-α (v1)"].thousand_usd / by_name["RAPHAEL"].thousand_usd == pytest.approx(0.0085, abs=1e-4)
    with torch.device("meta"):
        assert sum(p.numel() for p in PixArt(XL).parameters()) == pytest.approx(0.6e9, rel=0.02)


def test_our_estimate_of_the_paper_is_within_a_quarter():
    """At the utilisation assumed for a V100, all stages together; the 1024-px stage by itself is far off."""
    v100 = named("v100")
    ours = sum(stage.flops for stage in STAGES) / (86_400 * v100.peak * v100.utilisation)
    assert 0.75 < ours / 1656 < 1.25
    assert all(0.15 < stage.implied_utilisation(v100) < 0.3 for stage in STAGES[:-1])


TINY = [
    "--model.width", "32", "--model.depth", "2", "--model.num-heads", "2", "--run", "nowhere",
]  # fmt: skip


def test_a_plan_measures_this_machine_and_prices_the_named(capsys):
    assert run([emoji_recipe("stage3"), "--json", "--grid-intensity", "france", "--price", "3", *TINY]) == 0
    plan = json.loads(capsys.readouterr().out)["stages"][0]
    assert plan["network"].startswith("PixArt with 0.1 M") and plan["steps"] == 1900 and plan["images"] == 46_400
    assert set(plan["hardware"]) == {"this", *(gpu.name for gpu in GPUS)}
    assert [measured["size"] for measured in plan["measured"]] == [128, 256]
    for cost in plan["hardware"].values():
        assert cost["flops"] == plan["flops"] and cost["hours"] > 0 and cost["fits"]
        assert cost["usd"] == pytest.approx(3 * cost["hours"]) and cost["co2_kg"] == pytest.approx(cost["kwh"] * 0.056)


def test_a_plan_as_text_names_its_assumptions(capsys):
    assert run([emoji_recipe("stage1"), "--hardware=h100", "--utilisation=0.2", "--count", "8", *TINY]) == 0
    shown = capsys.readouterr().out
    for part in ("stage1.toml: DiT", "h100", "hours / 8", "989 TFLOP/s x 0.20 (assumed)", "481 g CO2 per kWh"):
        assert part in shown
    assert "v100" not in shown and "measured here" not in shown


def test_a_plan_says_when_the_machine_was_busy_with_other_programs(capsys):
    assert run([emoji_recipe("stage1"), "--hardware", "this", "--json", *TINY]) == 0
    (plan,) = json.loads(capsys.readouterr().out)["stages"]
    assert all(0 <= measured["waited"] < 1 for measured in plan["measured"])
    for waited, said in ((0.1, False), (0.9, True)):
        plan["measured"] = [{**measured, "waited": waited} for measured in plan["measured"]]
        _print_plan(plan, 1)
        assert ("for 90% of that time other programs, or a quota, kept" in capsys.readouterr().out) == said


def test_a_chain_is_added_up(capsys):
    assert run([emoji_recipe("all"), "--hardware", "a100", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["recipe"] for stage in stages] == recipes.chain(emoji_recipe("all"))
    assert run([emoji_recipe("all"), "--hardware", "a100"]) == 0
    assert f"all.toml: {sum(stage['images'] for stage in stages):,} pictures" in capsys.readouterr().out


def test_the_paper_is_compared_with_our_own_estimate(capsys):
    assert run(["paper/all", "--hardware", "v100"]) == 0
    shown = capsys.readouterr().out
    for row in PUBLISHED:
        assert f"{row.name:18}" in shown and f"{row.thousand_usd * 1000:,.0f}" in shown
    for stage in STAGES:
        assert stage.name in shown
    assert "published 753" in shown and "-16%" in shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["paper/stage9"], "No recipe"),
        (["nothing/all"], "No recipe"),
        ([emoji_recipe("stage1"), "--hardware", "h1000"], "No hardware 'h1000'"),
        ([emoji_recipe("stage1"), "--price", "dear"], "--price 'dear' must be a number"),
        ([emoji_recipe("stage1"), "--price", "nan"], "must be a number"),
        ([emoji_recipe("stage1"), "--utilisation", "35"], "from 0.001 to 1"),
        ([emoji_recipe("stage1"), "--grid-intensity", "mars"], "--grid-intensity 'mars'"),
        ([emoji_recipe("stage1"), "--count"], "--count needs a value"),
    ],
)
def test_bad_requests_are_one_sentence(arguments, says):
    with pytest.raises(UsageError, match=says):
        run(arguments)


def test_help_and_the_command_line(capsys):
    from pixart.cli import main

    assert main(["plan", "--help"]) == 0
    assert "--grid-intensity" in capsys.readouterr().out
    assert main(["plan"]) == 2
    assert main(["plan", emoji_recipe("stage1"), "--hardware", "abacus"]) == 2
    assert "No hardware 'abacus'" in capsys.readouterr().err
    assert grid_intensity("france") == 56 and grid_intensity("12.5") == 12.5
