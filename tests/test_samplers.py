"""The samplers beyond DPM-Solver and Euler: step by step against Diffusers' schedulers, on the same noise."""

import json

import numpy as np
import pytest
import torch
from conftest import write_tiny_model
from diffusers import DDIMScheduler, DDPMScheduler, LCMScheduler, SASolverScheduler

import pixart
from pixart.diffusion.guidance import guided
from pixart.errors import UsageError
from pixart.diffusion.noise import initial_noise, noise_stream
from pixart.diffusion.solvers import SAMPLERS, schedule_for

EPS = {"prediction_type": "epsilon", "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
SMALL = {"width": 64, "height": 64}


def network(x_t, timestep):
    """A made-up network that also predicts a variance: smooth, bounded; operators only."""
    eps = x_t * (0.3 + timestep / 2000) - x_t * x_t * x_t / (10 + x_t * x_t) + timestep / 3000
    return torch.cat([eps, (x_t * 0.7) / (1 + x_t * x_t)], dim=1)


def stock(name: str, steps: int):
    """Diffusers' scheduler for the same thing, with its timesteps set."""
    scheduler = {
        "sa-solver": lambda: SASolverScheduler(**EPS, predictor_order=2, corrector_order=2),
        "ddim": lambda: DDIMScheduler(**EPS, timestep_spacing="trailing", clip_sample=False),
        "ddpm": lambda: DDPMScheduler(
            **EPS, variance_type="learned_range", timestep_spacing="linspace", clip_sample=False
        ),
        "lcm": lambda: LCMScheduler(**EPS, clip_sample=False),
    }[name]()
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        *(("sa-solver", steps) for steps in (1, 2, 3, 10, 25)),
        # Divisors of 1000: for others Diffusers' step size is not the distance of its timesteps.
        *(("ddim", steps) for steps in (1, 8, 50)),
        *(("ddpm", steps) for steps in (2, 11, 100)),
        *(("lcm", steps) for steps in (1, 2, 4, 8)),
    ],
)
def test_every_step_equals_diffusers(name, steps):
    scheduler = stock(name, steps)
    start = torch.from_numpy(initial_noise(5, (4, 6, 6)))[None]
    x_t, generator, trail = start, torch.Generator().manual_seed(9), []
    for timestep in scheduler.timesteps:
        prediction = network(x_t, int(timestep))
        prediction = prediction if name == "ddpm" else prediction[:, :4]
        extra = {} if name == "ddim" else {"generator": generator}
        x_t = scheduler.step(prediction, timestep, x_t, return_dict=False, **extra)[0]
        trail.append(x_t)
    again = torch.Generator().manual_seed(9)
    ours = list(
        SAMPLERS[name].solve(
            network if name == "ddpm" else lambda x_t, timestep: network(x_t, timestep)[:, :4],
            start,
            schedule_for(name, EPS, steps),
            lambda: torch.randn(start.shape, generator=again),
        )
    )
    assert [step.index for step in ours] == list(range(steps))
    for step, theirs in zip(ours, trail, strict=True):
        assert torch.isfinite(step.x_t).all()
        torch.testing.assert_close(step.x_t, theirs, rtol=2e-4, atol=2e-4)


def test_the_timesteps_are_those_of_diffusers():
    for name, counts in (
        ("sa-solver", (1, 5, 25)),
        ("ddim", (1, 7, 50)),
        ("ddpm", (2, 30, 100)),
        ("lcm", (1, 4, 8, 50)),
    ):
        for steps in counts:
            assert list(schedule_for(name, EPS, steps).timesteps) == stock(name, steps).timesteps.tolist()


def test_a_variance_that_is_not_predicted_is_the_posteriors():
    """As DDPMScheduler's fixed_small."""
    scheduler = DDPMScheduler(**EPS, variance_type="fixed_small", timestep_spacing="linspace", clip_sample=False)
    scheduler.set_timesteps(6)
    start = torch.from_numpy(initial_noise(5, (4, 6, 6)))[None]
    x_t, generator = start, torch.Generator().manual_seed(9)
    for timestep in scheduler.timesteps:
        x_t = scheduler.step(network(x_t, int(timestep))[:, :4], timestep, x_t, generator=generator)[0]
    again = torch.Generator().manual_seed(9)
    *_, last = SAMPLERS["ddpm"].solve(
        lambda x_t, timestep: network(x_t, timestep)[:, :4],
        start,
        schedule_for("ddpm", EPS, 6),
        lambda: torch.randn(start.shape, generator=again),
    )
    torch.testing.assert_close(last.x_t, x_t, rtol=2e-4, atol=2e-4)


def test_the_first_draw_of_a_stream_is_the_initial_noise_and_the_next_is_another():
    draw = noise_stream(7, (2, 3, 3))
    first, second = draw(), draw()
    assert np.array_equal(first, initial_noise(7, (2, 3, 3)))
    assert np.abs(first - second).max() > 0.1


@pytest.fixture(scope="module")
def eps_pipe(tmp_path_factory):
    """An eps model with learned variance, with graphs, so that both engines can draw it."""
    from conftest import write_graphs_into

    folder = tmp_path_factory.mktemp("eps") / "model"
    write_tiny_model(folder, eps=True)
    write_graphs_into(folder)
    return {engine: pixart.Pipeline.from_pretrained(folder, engine=engine) for engine in ("torch", "onnx")}


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_every_sampler_draws_the_same_alone_among_others_and_on_both_engines(eps_pipe, sampler):
    steps = 3
    pictures = {}
    for engine, pipe in eps_pipe.items():
        batch = pipe("a red apple", seed=5, num_images=3, sampler=sampler, steps=steps, **SMALL)
        for index, image in enumerate(batch.images):
            alone = pipe("a red apple", seed=5 + index, sampler=sampler, steps=steps, **SMALL).images[0]
            assert image.tobytes() == alone.tobytes()
        pictures[engine] = np.asarray(batch.images[0]).astype(int)
    assert np.abs(pictures["torch"] - pictures["onnx"]).max() <= 2


def test_each_sampler_brings_what_suits_it(eps_pipe):
    pipe = eps_pipe["onnx"]
    for sampler, suited in SAMPLERS.items():
        if suited.steps <= 25:
            settings = pipe("a fox", seed=1, sampler=sampler, **SMALL).settings[0]
            assert (settings["steps"], settings["guidance_scale"]) == (suited.steps, suited.guidance_scale)
    assert SAMPLERS["dpm-solver"].steps == 20
    assert (SAMPLERS["lcm"].steps, SAMPLERS["lcm"].guidance_scale) == (4, 1.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampler": "lcm", "steps": 51}, "steps must be from 1 to 50, not 51"),
        ({"sampler": "ddpm", "steps": 1}, "steps must be from 2 to 500"),
        ({"guidance_interval": (300,)}, "must be two timesteps"),
        ({"guidance_interval": (800, 300)}, "not 800 to 300"),
        ({"guidance_interval": (-1, 300)}, "must be from 0 to 1000, not -1"),
        ({"guidance_rescale": 1.5}, "guidance rescale must be from 0 to 1"),
        ({"guidance_rescale": float("nan")}, "guidance rescale"),
    ],
)
def test_what_does_not_fit_is_refused(eps_pipe, change, words):
    with pytest.raises(UsageError, match=words):
        eps_pipe["onnx"]("a fox", seed=1, **SMALL, **change)


def test_flow_models_are_not_drawn_by_samplers_of_eps_models(tiny_model):
    pipe = pixart.Pipeline.from_pretrained(tiny_model)
    for sampler in ("ddim", "ddpm", "lcm"):
        with pytest.raises(UsageError, match="predicts a velocity; choose one of: dpm-solver, sa-solver, euler"):
            pipe("a fox", seed=1, sampler=sampler, **SMALL)
    for sampler in ("sa-solver", "euler"):
        assert len(pipe("a fox", seed=1, sampler=sampler, steps=3, **SMALL).images) == 1


def test_guidance_outside_its_interval_is_no_guidance(eps_pipe):
    pipe = eps_pipe["onnx"]
    request = {"prompt": "a red apple", "seed": 3, "steps": 4, **SMALL}
    never = pipe(**request, guidance_interval=(0, 0)).images[0].tobytes()
    assert never == pipe(**request, guidance_scale=1.0).images[0].tobytes()
    always = pipe(**request).images[0].tobytes()
    assert always == pipe(**request, guidance_interval=(1, 999)).images[0].tobytes()
    assert pipe(**request, guidance_interval=(400, 800)).images[0].tobytes() not in (never, always)


def test_rescaled_guidance_has_the_deviation_of_the_conditional_prediction():
    """Against Diffusers' rescale_noise_cfg, on numpy and torch; a learned variance is left as it is."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    conditional, null = torch.randn(2, 8, 5, 5), torch.randn(2, 8, 5, 5)
    plain = guided(conditional, null, 4.0, 0.0, 8)
    torch.testing.assert_close(guided(conditional, null, 4.0, 0.7, 8), rescale_noise_cfg(plain, conditional, 0.7))
    both = guided(conditional, null, 4.0, 0.7, 4)
    assert torch.equal(both[:, 4:], conditional[:, 4:])
    np.testing.assert_allclose(
        guided(conditional.numpy(), null.numpy(), 4.0, 0.7, 4), both.numpy(), rtol=1e-5, atol=1e-5
    )


def test_the_settings_name_what_was_used(tiny_model_with_graphs, tmp_path, monkeypatch, capsys):
    from pixart.cli import main

    monkeypatch.chdir(tmp_path)
    words = ["generate", "a fox", "--model", str(tiny_model_with_graphs), "--width", "64", "--height", "64", "--json"]
    words += [
        "--sampler",
        "sa-solver",
        "--steps",
        "2",
        "--guidance-interval",
        "100",
        "900",
        "--guidance-rescale",
        "0.5",
    ]
    assert main(words) == 0
    settings = json.loads(capsys.readouterr().out)
    assert (settings["sampler"], settings["guidance_scale"]) == ("sa-solver", 3.0)
    assert (settings["guidance_interval"], settings["guidance_rescale"]) == ([100, 900], 0.5)
