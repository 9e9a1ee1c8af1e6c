"""Our solvers, step by step against Diffusers' schedulers, and the properties that callers rely on."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    SASolverScheduler,
)

from pixart.diffusion.guidance import guide, guided
from pixart.diffusion.noise import initial_noise, noise_stream
from pixart.diffusion.schedule import check_config, make_schedule, read_scheduler
from pixart.diffusion.solvers import SAMPLERS, DpmSolver, dpm_solver, euler, find_sampler, schedule_for, solve
from pixart.errors import PixArtError

FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
EPS = {"prediction_type": "epsilon", "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}


def fake_denoiser(x_t, timestep):
    """A made-up network: smooth, bounded, dependent on x_t and on the timestep; operators only."""
    return x_t * (0.3 + timestep / 2000) - x_t * x_t * x_t / (10 + x_t * x_t) + timestep / 3000


def stock_steps(config: dict, solver_order: int, steps: int, noise: torch.Tensor) -> list[torch.Tensor]:
    scheduler = DPMSolverMultistepScheduler(**config, solver_order=solver_order)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    x_t, trail = noise, []
    for timestep in scheduler.timesteps:
        x_t = scheduler.step(fake_denoiser(x_t, int(timestep)), timestep, x_t, return_dict=False)[0]
        trail.append(x_t)
    return trail


CASES = [
    FLOW,
    {**FLOW, "flow_shift": 3.0},
    EPS,
    {**EPS, "timestep_spacing": "leading", "steps_offset": 1},
    {**EPS, "timestep_spacing": "trailing"},
    {**EPS, "beta_schedule": "scaled_linear", "final_sigmas_type": "sigma_min"},
    {**EPS, "final_sigmas_type": "sigma_min", "lower_order_final": False},
]


@pytest.mark.parametrize("steps", [1, 2, 7, 14, 15, 20])
@pytest.mark.parametrize("config", CASES)
@pytest.mark.parametrize(("solver", "solver_order"), [(dpm_solver, 2), (euler, 1)])
def test_every_step_equals_diffusers(config, solver, solver_order, steps):
    noise = torch.from_numpy(initial_noise(5, (4, 6, 6)))
    trail = stock_steps(config, solver_order, steps, noise)
    ours = list(solver(fake_denoiser, noise, make_schedule(config, steps)))
    assert [step.index for step in ours] == list(range(steps))
    for theirs, step in zip(trail, ours, strict=True):
        assert torch.isfinite(step.x_t).all()
        torch.testing.assert_close(step.x_t, theirs, rtol=2e-5, atol=2e-5)


def test_order_two_differs_from_order_one():
    noise = initial_noise(5, (4, 6, 6))
    schedule = make_schedule(FLOW, 10)
    second, first = [list(solver(fake_denoiser, noise, schedule))[-1].x_t for solver in (dpm_solver, euler)]
    assert np.abs(second - first).max() > 1e-3


@pytest.mark.parametrize("solver", [dpm_solver, euler])
def test_numpy_and_torch_agree_and_nothing_changes_in_place(solver):
    noise = initial_noise(5, (4, 6, 6))
    kept = noise.copy()
    schedule = make_schedule(FLOW, 6)
    arrays = list(solver(fake_denoiser, noise, schedule))
    tensors = list(solver(fake_denoiser, torch.from_numpy(noise), schedule))
    assert np.array_equal(noise, kept)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert array.x_t.dtype == np.float32
        assert tensor.x_t.dtype == torch.float32
        np.testing.assert_allclose(array.x_t, tensor.x_t.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [dpm_solver, euler])
def test_the_true_velocity_leads_to_the_image(solver):
    noise, picture = initial_noise(1, (2, 4, 4)), initial_noise(2, (2, 4, 4))
    schedule = make_schedule(FLOW, 8)
    start = schedule.sigmas[0] * noise + schedule.alphas[0] * picture
    end = list(solver(lambda x_t, timestep: noise - picture, start, schedule))[-1]
    np.testing.assert_allclose(end.x_t, picture, atol=1e-5)


def test_a_solver_is_the_state_of_one_image():
    """Two of them, taken in turn, do not disturb each other, and each knows where it is."""
    schedule = make_schedule(FLOW, 5)
    noises = [initial_noise(seed, (1, 4, 6, 6)) for seed in (1, 2)]
    alone = [list(dpm_solver(fake_denoiser, noise, schedule))[-1].x_t for noise in noises]
    solvers, x_t = [DpmSolver(schedule) for _ in noises], list(noises)
    for _ in range(5):
        for number, solver in enumerate(solvers):
            x_t[number] = solver.step(x_t[number], fake_denoiser(x_t[number], solver.timestep)).x_t
    assert all(solver.done for solver in solvers)
    assert all(np.array_equal(*pair) for pair in zip(x_t, alone, strict=True))


def test_flow_schedule_starts_at_sigma_0999():
    schedule = make_schedule(FLOW, 20)
    assert schedule.timesteps[0] == 999
    assert abs(schedule.sigmas[0] - 0.999) < 1e-7
    assert schedule.sigmas[-1] == 0.0


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name"),
        ({"prediction_type": "v_prediction"}, "prediction_type"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas"),
        ({"thresholding": True}, "thresholding"),
        ({"solver_order": 3}, "solver_order"),
        ({"use_flow_sigmas": False}, "use_flow_sigmas"),
        ({"lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        ({"lambda_min_clipped": None}, "lambda_min_clipped"),
        ({"num_train_timesteps": "x"}, "num_train_timesteps"),
        ({"num_train_timesteps": 0}, "num_train_timesteps"),
        ({"steps_offset": None}, "steps_offset"),
        ({"steps_offset": 900}, "steps_offset"),
        ({"flow_shift": None}, "flow_shift"),
        ({"flow_shift": 0}, "flow_shift"),
        ({"flow_shift": float("nan")}, "flow_shift"),
        ({"beta_start": 0.0}, "beta_start"),
        ({"beta_end": "0.02"}, "beta_end"),
        ({"beta_end": 0.99}, "beta_end"),
        ({"lower_order_final": "no"}, "lower_order_final"),
    ],
)
def test_a_schedule_that_we_do_not_have_is_named(change, word):
    good = {**DPMSolverMultistepScheduler(**FLOW).config, "_class_name": "DPMSolverMultistepScheduler"}
    check_config(good, "scheduler_config.json")
    with pytest.raises(PixArtError, match=word):
        check_config({**good, **change}, "scheduler_config.json")


@pytest.mark.parametrize("steps", [1, 2, 20, 249, 500])
@pytest.mark.parametrize(
    "change",
    [
        {**FLOW, "flow_shift": 0.01},
        {**FLOW, "flow_shift": 100},
        *(
            {**EPS, "beta_start": start, "beta_end": end, "timestep_spacing": spacing, "steps_offset": offset, **last}
            for start, end in ((1e-6, 1e-6), (0.05, 0.05), (1e-6, 0.05))
            for spacing, offset in (("linspace", 0), ("leading", 1), ("leading", 0), ("trailing", 0))
            for last in ({}, {"final_sigmas_type": "sigma_min", "lower_order_final": False})
        ),
    ],
)
def test_every_schedule_that_is_let_through_can_be_sampled(change, steps):
    config = {"_class_name": "DPMSolverMultistepScheduler", **change}
    check_config(config, "scheduler_config.json")
    schedule = make_schedule(config, steps)
    *_, last = dpm_solver(lambda x_t, timestep: 0 * x_t, initial_noise(0, (1, 2, 2)), schedule)
    assert last.index == steps - 1
    assert not np.isnan(last.x_t).any()


def test_noise_is_one_stream_per_seed():
    assert np.array_equal(initial_noise(7, (8, 4, 4)), initial_noise(7, (8, 4, 4)))
    assert not np.array_equal(initial_noise(7, (8, 4, 4)), initial_noise(8, (8, 4, 4)))
    # The first values of seed 7 for all time: a change here changes every picture anyone has drawn.
    first = [-0.5023735761642456, 0.5068453550338745, 2.019348621368408]
    assert initial_noise(7, (1, 1, 3)).ravel().tolist() == first
    assert initial_noise(7, (1, 2, 2)).dtype == np.float32


def test_guidance():
    conditional, null = initial_noise(1, (2, 2, 2)), initial_noise(2, (2, 2, 2))
    np.testing.assert_allclose(guide(conditional, null, 1.0), conditional, atol=1e-6)
    assert np.array_equal(guide(conditional, null, 0.0), null)
    np.testing.assert_allclose(guide(conditional, null, 4.5), 4.5 * conditional - 3.5 * null, atol=1e-5)


def network(x_t, timestep):
    """A made-up network that also predicts a variance: smooth, bounded; operators only."""
    eps = x_t * (0.3 + timestep / 2000) - x_t * x_t * x_t / (10 + x_t * x_t) + timestep / 3000
    return torch.cat([eps, (x_t * 0.7) / (1 + x_t * x_t)], dim=1)


def stock(name: str, steps: int):
    """Diffusers' scheduler for the same thing, with its timesteps set."""
    scheduler = {
        "dpm-solver-karras": lambda: DPMSolverMultistepScheduler(**EPS, use_karras_sigmas=True),
        "euler-ancestral": lambda: EulerAncestralDiscreteScheduler(**EPS),
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
        *(("dpm-solver-karras", steps) for steps in (1, 2, 10, 20)),
        *(("euler-ancestral", steps) for steps in (2, 10, 25)),
        # Divisors of 1000: for others Diffusers' step size is not the distance of its timesteps.
        *(("ddim", steps) for steps in (1, 8, 50)),
        *(("ddpm", steps) for steps in (2, 11, 100)),
        *(("lcm", steps) for steps in (1, 2, 4, 8)),
    ],
)
def test_every_step_of_the_other_samplers_equals_diffusers(name, steps):
    scheduler = stock(name, steps)
    start = torch.from_numpy(initial_noise(5, (4, 6, 6)))[None]
    x_t, generator, trail = start, torch.Generator().manual_seed(9), []
    for index, timestep in enumerate(scheduler.timesteps):
        # Diffusers' Euler schedulers keep x_t / alpha.
        scale = [(float(sigma) ** 2 + 1) ** 0.5 for sigma in scheduler.sigmas] if name == "euler-ancestral" else None
        prediction = network(x_t, float(timestep))
        prediction = prediction if name == "ddpm" else prediction[:, :4]
        extra = {} if name == "ddim" else {"generator": generator}
        if scale:
            x_t = scheduler.step(prediction, timestep, x_t * scale[index], return_dict=False, **extra)[0]
            x_t = x_t / scale[index + 1]
        else:
            x_t = scheduler.step(prediction, timestep, x_t, return_dict=False, **extra)[0]
        trail.append(x_t)
    again = torch.Generator().manual_seed(9)
    ours = list(
        solve(
            SAMPLERS[name].solver,
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
        ("dpm-solver-karras", (1, 7, 20)),
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
    *_, last = solve(
        SAMPLERS["ddpm"].solver,
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


@pytest.mark.parametrize("clip", [True, False])
def test_the_one_step_of_a_dmd_model_is_that_of_stock_diffusers(clip):
    """As its PixArt pipeline takes it: x_0 of the scheduler's step at timestep 400, from pure noise."""
    scheduler = DDPMScheduler(**EPS, clip_sample=clip)
    config, suited = read_scheduler({**scheduler.config, "_class_name": "DDPMScheduler"}, "scheduler_config.json")
    start = torch.from_numpy(initial_noise(5, (4, 6, 6)))[None]
    prediction = network(start, 400)[:, :4]
    theirs = scheduler.step(prediction, 400, start).pred_original_sample
    (step,) = solve(SAMPLERS["dmd"].solver, lambda x_t, t: prediction, start, schedule_for("dmd", config, 1))
    torch.testing.assert_close(step.x_t, theirs, rtol=2e-5, atol=2e-5)
    assert suited == {"sampler": "ddpm"}


@pytest.mark.parametrize("config", [EPS, FLOW])
def test_ancestral_steps_keep_the_noise_level(config):
    """Told the true noise and image, each x_t has the deviation that the schedule says; the last is the image."""
    rng = np.random.default_rng(0)
    picture = np.float32(0.5) * np.ones((1, 4, 64, 64), np.float32)
    schedule = schedule_for("euler-ancestral", config, 8)
    x_t = schedule.alphas[0] * picture + schedule.sigmas[0] * initial_noise(1, picture.shape)

    def denoise(x_t, timestep):
        at = schedule.timesteps.index(timestep)
        eps = (x_t - schedule.alphas[at] * picture) / schedule.sigmas[at]
        return eps if config is EPS else eps - picture

    for step in solve(
        SAMPLERS["euler-ancestral"].solver,
        denoise,
        x_t,
        schedule,
        lambda: rng.standard_normal(picture.shape, np.float32),
    ):
        assert step.x_t.std() == pytest.approx(schedule.sigmas[step.index + 1], abs=0.03)
    np.testing.assert_allclose(step.x_t, picture, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("DPM++ 2M Karras", "dpm-solver-karras"),
        ("dpmpp_2m", "dpm-solver"),
        ("DPMSolverMultistepScheduler", "dpm-solver"),
        ("Euler a", "euler-ancestral"),
        ("euler_ancestral", "euler-ancestral"),
        ("EulerAncestralDiscreteScheduler", "euler-ancestral"),
        ("EulerDiscreteScheduler", "euler"),
        ("SASolverScheduler", "sa-solver"),
        ("LCM", "lcm"),
    ],
)
def test_samplers_by_the_names_of_others(name, ours):
    assert find_sampler(name) == ours
