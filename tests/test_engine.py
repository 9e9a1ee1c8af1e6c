"""The batching engine, on real tiny networks: who shares a pass, who goes first, and that nobody harms another."""

import gc
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixart import Pipeline
from pixart.checkpoints.adapters import Lora
from pixart.errors import PixArtError
from pixart.pipeline.engine import DeadlinePassed, Engine, InternalError, QueueFull
from pixart.pipeline.request import make_request
from pixart.runtime.memory import Memory

WAIT = 60
QUICK = {"seed": 7, "steps": 4, "width": 64, "height": 64}


class Panic(BaseException):
    """As a Rust library's panic arrives in Python: no Exception."""


@pytest.fixture(scope="module")
def loaded(tiny_model_with_graphs):
    return Pipeline.from_pretrained(tiny_model_with_graphs)


class Spy:
    """A pipeline whose passes are written down, and may be made to fail."""

    def __init__(self, loaded: Pipeline, rows: int = 64):
        self.pipeline = Pipeline(loaded.folder, _Networks(loaded.networks, rows))
        self.passes = self.pipeline.networks.passes
        self.engine = Engine()

    def request(self, prompt="a red fox", **changes):
        return make_request(
            self.pipeline.folder, prompt, **{"seed": 7, "steps": 4, "width": 64, "height": 64} | changes
        )

    def submit(self, prompt="a red fox", *, owner="", on_step=None, deadline=float("inf"), **changes):
        request = self.request(prompt, **changes)
        return self.engine.submit(self.pipeline, request, owner=owner, on_step=on_step, deadline=deadline)

    def held(self, **changes):
        """A job whose first step does not end before the function that is returned is called."""
        gate, reached = threading.Event(), threading.Event()

        def hold(index, step):
            reached.set()
            gate.wait(WAIT)

        job = self.submit("a held house", on_step=hold, **changes)
        assert reached.wait(WAIT)
        return job, gate.set

    def alone(self, prompt="a red fox", **changes):
        return [generated.image for generated in self.pipeline.generate(self.request(prompt, **changes))]


class _Networks:
    def __init__(self, real, rows: int):
        self.real, self.rows, self.passes, self.fail = real, rows, [], lambda texts: None

    def __getattr__(self, name):
        return getattr(self.real, name)

    def images_at_once(self, rows, height, width):
        return max(1, self.rows // rows)

    def denoise(self, x_t, timesteps, texts, images):
        self.passes.append(len(x_t))
        self.fail(texts)
        return self.real.denoise(x_t, timesteps, texts, images)


@pytest.fixture
def spy(loaded):
    made = Spy(loaded)
    yield made
    made.engine.close()


@pytest.fixture
def narrow(loaded):
    """Of which one guided image fits a pass."""
    made = Spy(loaded, rows=2)
    yield made
    made.engine.close()


def images(job):
    return [generated.image for generated in job.future.result(WAIT)]


def same(one, other) -> bool:
    error = np.asarray(one, float) - np.asarray(other, float)
    return bool((error**2).mean() < 255**2 / 10**4.5)  # 45 dB


def test_a_request_joins_a_running_batch_and_both_images_are_as_if_alone(spy):
    expected = spy.alone("a red fox", steps=8), spy.alone("a green apple", steps=3, guidance_scale=1.0, seed=9)
    spy.passes.clear()
    later = []

    def join(index, step):
        if step.index == 2:
            later.append(spy.submit("a green apple", steps=3, guidance_scale=1.0, seed=9))

    first = spy.submit("a red fox", steps=8, on_step=join)
    results = images(first), images(later[0])
    assert spy.passes == [1, 1, 1, 2, 2, 2, 1, 1]
    for got, wanted in zip(results, expected, strict=True):
        assert same(got[0], wanted[0])


def test_the_images_of_one_request_come_in_the_order_of_prompts_and_seeds(spy):
    request = spy.request(["a fox", "a house"], num_images=2, steps=2)
    generated = spy.engine.submit(spy.pipeline, request).future.result(WAIT)
    assert [(each.settings["prompt"], each.seed) for each in generated] == [
        ("a fox", 7), ("a fox", 8), ("a house", 7), ("a house", 8)
    ]  # fmt: skip
    assert spy.passes == [4, 4]


def test_an_image_to_start_from_and_a_second_pass_are_steps_like_others(spy):
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    chosen = [{"upscale": 2, "num_images": 2}, {"image": start, "mask": mask}, {"image": start, "strength": 0.5}, {}]
    expected = [spy.alone(**changes) for changes in chosen]
    spy.passes.clear()
    _held, release = spy.held()
    jobs = [spy.submit(**changes) for changes in chosen]
    release()
    for job, images_alone in zip(jobs, expected, strict=True):
        assert all(same(*pair) for pair in zip(images(job), images_alone, strict=True))
    assert images(jobs[0])[0].size == (128, 128)
    steps = {"held": 4, "both passes": 2 * (4 + 1), "mask": 4, "strength": 2, "plain": 4}
    assert sum(spy.passes) == sum(steps.values()) and len(spy.passes) <= 6


def test_sizes_do_not_share_a_pass(spy):
    _held, release = spy.held()
    others = [spy.submit(width=width) for width in (64, 96, 64)]
    release()
    assert [images(job)[0].size for job in others] == [(64, 64), (96, 64), (64, 64)]
    assert sum(spy.passes) == 16 and len(spy.passes) < 16


def test_a_short_request_passes_eight_long_ones_and_these_all_end(narrow):
    held, release = narrow.held(steps=2)
    long = [narrow.submit(steps=50) for _ in range(8)]
    ended = {}
    short = narrow.submit("a black house", steps=4)
    for name, job in [("short", short), *enumerate(long)]:
        job.future.add_done_callback(lambda _, name=name: ended.setdefault(name, len(narrow.passes)))
    release()
    for job in [held, short, *long]:
        images(job)
    # Behind them all, first come, first served, it would have ended after 406 passes.
    assert ended["short"] <= 10
    assert max(ended.values()) == 406


def test_a_stream_of_short_requests_does_not_starve_a_long_one(narrow):
    _held, release = narrow.held(steps=1)
    long = narrow.submit(steps=20)
    ahead = [0]

    def again(job):
        if not long.over and ahead[0] < 200:
            ahead[0] += 1
            narrow.submit("a fox", steps=2).future.add_done_callback(lambda _: again(None))

    for _ in range(3):
        again(None)
    release()
    images(long)
    assert ahead[0] < 100  # 200 if it had waited for them all


def test_requests_with_other_adapters_do_not_share_a_pass_and_these_do_not_change_after_every_step(spy, monkeypatch):
    uses = []

    def use(loras):
        uses.append(loras)
        time.sleep(0.05)
        spy.pipeline.loras = loras

    monkeypatch.setattr(spy.pipeline, "use", use)
    _held, release = spy.held(steps=1)
    one, other = (Lora(Path(name), 1.0, None) for name in ("one", "other"))
    jobs = [
        spy.engine.submit(spy.pipeline, spy.request(steps=6), loras=loras)
        for loras in ((one,), (other,), (one,), (), (one, other))
    ]
    release()
    for job in jobs:
        images(job)
    assert sum(spy.passes) == 1 + 5 * 6 and len(spy.passes) >= 1 + 4 * 6
    assert set(uses) >= {(one,), (other,), (one, other)} and len(uses) <= 8


def test_an_owner_who_floods_leaves_another_one_half(narrow):
    _held, release = narrow.held(owner="flood", steps=1)
    flood = [narrow.submit(owner="flood", steps=10) for _ in range(10)]
    other = narrow.submit("a black house", owner="other", steps=10)
    ended = []
    other.future.add_done_callback(lambda _: ended.append(len(narrow.passes)))
    release()
    images(other)
    assert ended[0] <= 1 + 2 * 10 + 1
    for job in flood:
        images(job)


def test_a_job_that_is_over_leaves_memory_at_once(spy):
    gc.disable()  # which would find circles of references only now and then
    try:
        job = spy.submit()
        images(job)
        gone = weakref.ref(job)
        del job
        for _ in range(2):
            images(spy.submit())
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [RuntimeError("poison"), Panic("poison"), PixArtError("poison")], ids=repr)
def test_a_poisoned_request_fails_alone(spy, error):
    expected = spy.alone("a green apple")
    held, release = spy.held()
    good, bad = spy.submit("a green apple"), spy.submit("a white house")

    def fail(texts):
        if any(text is bad.states[0].conditioning.text for text in texts):
            raise error

    spy.pipeline.networks.fail = fail
    release()
    assert same(images(good)[0], expected[0])
    with pytest.raises(PixArtError, match="poison"):
        bad.future.result(WAIT)
    assert len(images(held)) == len(images(spy.submit())) == 1


@pytest.mark.parametrize("where", ["begin", "finish", "on_step"])
def test_the_thread_outlives_a_panic_anywhere(spy, where, monkeypatch):
    def panic(*arguments):
        raise Panic(where)

    with monkeypatch.context() as patch:
        if where != "on_step":
            patch.setattr(spy.pipeline, where, panic)
        job = spy.submit(on_step=panic if where == "on_step" else None)
        with pytest.raises(InternalError):
            job.future.result(WAIT)
    assert len(images(spy.submit())) == 1


def test_numbers_that_are_not_finite_fail_their_request_only(spy):
    expected = spy.alone("a green apple", steps=2)

    def spoil(index, step):
        bad.states[0].x_t[:] = np.nan

    _held, release = spy.held(steps=2)
    bad = spy.submit(on_step=spoil, steps=2)
    good = spy.submit("a green apple", steps=2)
    release()
    with pytest.raises(PixArtError):
        bad.future.result(WAIT)
    assert same(images(good)[0], expected[0])


def test_cancelling_takes_effect_within_one_step(narrow):
    job, release = narrow.held(steps=50)
    job.future.cancel()
    release()
    images(narrow.submit(steps=1))
    assert narrow.passes == [1, 1]
    waiting, release = narrow.held(steps=2), None
    cancelled = narrow.submit(steps=50)
    cancelled.future.cancel()
    waiting[1]()
    images(waiting[0])
    assert narrow.passes == [1, 1, 1, 1]


def test_when_memory_runs_out_the_batch_is_halved_and_stays_so_at_this_size(spy):
    _held, release = spy.held(steps=1)

    def full(texts):
        if len(texts) > 4:
            raise MemoryError

    spy.pipeline.networks.fail = full
    jobs = [spy.submit(seed=seed, steps=3) for seed in range(8)]
    release()
    expected = spy.alone(seed=5, steps=3)
    assert same(images(jobs[5])[0], expected[0])
    for job in jobs:
        images(job)
    assert 8 in spy.passes and spy.passes.count(8) == 1
    spy.pipeline.networks.fail = lambda texts: None
    spy.passes.clear()
    _held, release = spy.held(steps=1, width=96)
    jobs = [spy.submit(width=96, steps=1) for _ in range(6)]
    release()
    for job in jobs:
        images(job)
    assert 6 in spy.passes


def test_one_image_that_does_not_fit_is_an_error_of_its_request(spy):
    def full(texts):
        raise MemoryError

    spy.pipeline.networks.fail = full
    with pytest.raises(PixArtError):
        spy.submit().future.result(WAIT)


def test_the_queue_is_bounded_in_jobs_work_and_jobs_of_one_owner(loaded):
    spy = Spy(loaded)
    spy.engine.close()
    spy.engine = Engine(most_jobs=3, most_work=64 * 64 * 50 / 1e6, most_of_one=2)
    try:
        held, release = spy.held(owner="a", steps=10)
        spy.submit(owner="a")
        with pytest.raises(QueueFull):
            spy.submit(owner="a")
        with pytest.raises(QueueFull) as too_much:
            spy.submit(owner="b", steps=50)
        assert too_much.value.seconds > 0
        spy.submit(owner="b")
        with pytest.raises(QueueFull):
            spy.submit(owner="c")
        release()
        images(held)
    finally:
        spy.engine.close()
    with pytest.raises(QueueFull):
        spy.submit()


def test_a_deadline_ends_a_job_that_runs_and_one_that_waits(narrow):
    now = time.monotonic()
    job, release = narrow.held(steps=50, deadline=now + 0.01)
    waiting = narrow.submit(steps=50, deadline=now + 0.01)
    time.sleep(0.02)
    release()
    for each in (job, waiting):
        with pytest.raises(DeadlinePassed):
            each.future.result(WAIT)
    assert narrow.passes == [1]


def test_with_networks_that_take_turns_in_memory_requests_do_not_mix(tiny_model):
    memory = Memory(staged=True)
    pipeline = Pipeline.from_pretrained(tiny_model, engine="torch", device="cpu", memory=memory)
    assert pipeline.networks.memory.staged
    engine = Engine()
    try:
        request = make_request(pipeline.folder, "a fox", seed=1, num_images=2, steps=2, width=64, height=64)
        jobs = [engine.submit(pipeline, request) for _ in range(2)]
        alone = Pipeline.from_pretrained(tiny_model, engine="torch", device="cpu").generate(request)
        expected = [generated.image for generated in alone]
        for job in jobs:
            assert all(same(*pair) for pair in zip(images(job), expected, strict=True))
    finally:
        engine.close()
