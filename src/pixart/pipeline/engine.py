"""Continuous batching: requests join and leave between denoising steps, and one thread owns the networks.

    engine = Engine()
    job = engine.submit(pipeline, request)
    images = job.future.result()

Every step is one pass over as many images as the device takes, of one pipeline, one choice of adapters and one size;
they may be of different requests, at different positions, with different guidance. Which images these are is decided
before each step:

- Owners (API keys, browser tabs) get equal shares of the work, counted in pixels x steps.
- Among the requests of one owner, the one that would end first under equal sharing goes first (weighted fair queueing,
  Demers, Keshav and Shenker 1989). So a request of 4 steps passes those of 50, and none waits for ever.

A request that fails is tried alone, so that it fails alone. The thread outlives whatever a library throws.
"""

import contextlib
import heapq
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from pixart.checkpoints.adapters import Lora
from pixart.diffusion.solvers import Step
from pixart.errors import PixArtError, shown
from pixart.extras import missing_extra
from pixart.pipeline.core import State
from pixart.pipeline.pipeline import Generated, Pipeline
from pixart.pipeline.request import Request

logger = logging.getLogger(__name__)
MOST_KINDS = 256  # pipelines and sizes whose batch size is remembered
SWITCHES = 0.2  # of the time, at most, that changing adapters may take
SPEED_HALF_LIFE = 10.0  # seconds, of the measured speed


class QueueFull(PixArtError):
    """There is no room for this request now; `seconds` from now there may be."""

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


class DeadlinePassed(PixArtError):
    """A request was not done in its time."""


class InternalError(PixArtError):
    """What should not happen: a fault of ours or of a library."""


def work_of(request: Request) -> float:
    """The cost of a request: pixels x steps of all its images, in millions."""
    steps = (request.steps - request.first_step) * request.num_images * len(request.prompts)
    return _pixels(request) * steps + (work_of(request.enlarged) if request.upscale > 1 else 0.0)


@dataclass(eq=False)
class Job:
    """A request on its way. `future` gets its images; cancelling `future` ends it within one step.

    A callback of `future` should not hold the job: in a circle, both would stay in memory until Python looks for such.

    Attributes:
        on_step, on_image: called in the engine's thread with the index of the image, after each of its steps and when
            it is done. What they raise ends this job only.
        loras: adapters to generate with, which `check_loras` has read.
        deadline: on the clock of `time.monotonic`.
        notices: sentences that a person should read, from its first step on.
        states: of its images, from its first step on.
        tokens: of its texts, as the model reads them.
        position: of its images, the one that has come least far, in denoising steps.
        restarts: how often it was begun again since the process that it ran in ended.
    """

    pipeline: Pipeline | None  # None where another process has it
    request: Request
    owner: str = ""
    on_step: Callable[[int, Step], None] | None = None
    on_image: Callable[[int, Generated], None] | None = None
    deadline: float = math.inf
    loras: tuple[Lora, ...] = ()
    future: "Future[list[Generated]]" = field(default_factory=Future)
    notices: list[str] = field(default_factory=list)
    states: list[State] | None = None
    images: dict[int, Generated] = field(default_factory=dict)
    tokens: int = 0
    position: int = 0
    restarts: int = 0
    work_done: float = 0.0
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    turn: float = 0.0  # in weighted fair queueing, its virtual finish time

    @property
    def count(self) -> int:
        """How many images it is for."""
        return len(self.request.prompts) * self.request.num_images

    @property
    def over(self) -> bool:
        return self.future.done()

    @property
    def work_left(self) -> float:
        return max(0.0, work_of(self.request) - self.work_done)

    @property
    def waiting_images(self) -> list[int]:
        """The images that need a step."""
        return [i for i in range(self.count) if self.states is None or not self.states[i].done]

    def pass_of(self, index: int) -> Request:
        """The request whose steps an image is at: the second pass is a larger one."""
        return self.request if self.states is None else self.states[index].request

    def kind(self, index: int) -> tuple[Pipeline, tuple[Lora, ...], int, int]:
        """Images of one kind can share a step."""
        now = self.pass_of(index)
        return self.pipeline, self.loras, now.image_height, now.image_width

    @property
    def is_staged(self) -> bool:
        """Its networks take turns in memory, so it has them for itself, and decodes at the end."""
        return self.pipeline.networks.memory.staged


@dataclass
class Room:
    """How much may wait and run together, and the measured speed, which says when there is room again.

    Attributes:
        most_jobs, most_work: that wait and run together; `work_of` says what work is.
        most_of_one: jobs of one owner; None: as many as `most_jobs`.
        speed: work per second, None before the first step.
    """

    most_jobs: int = 64
    most_work: float = math.inf
    most_of_one: int | None = None
    speed: float | None = None

    def check(self, job: Job, live: list[Job]) -> None:
        """Raises QueueFull where there is no room for a job beside those that wait and run."""
        mine = [other for other in live if other.owner == job.owner]
        left = sum(other.work_left for other in live)
        over = left + work_of(job.request) - self.most_work
        if len(live) >= self.most_jobs or (over > 0 and live):
            # Room for it comes when a job of average size has ended, or the work over the limit is done.
            seconds = self.seconds_for(max(left / len(live), over if over < math.inf else 0.0))
            raise QueueFull(f"The queue is full: {len(live)} requests wait or run.", seconds)
        if len(mine) >= (self.most_of_one or self.most_jobs):
            seconds = self.seconds_for(left / len(live))
            raise QueueFull(f"{len(mine)} of your requests wait or run, the most there may be of one key.", seconds)

    def seconds_for(self, work: float) -> float:
        """How long so much work takes at the measured speed; a second where none was measured yet."""
        return work / self.speed if self.speed else 1.0

    def measure(self, work: float, seconds: float) -> None:
        now = work / max(seconds, 1e-6)
        fresh = 1 - 0.5 ** (seconds / SPEED_HALF_LIFE)
        self.speed = now if self.speed is None else (1 - fresh) * self.speed + fresh * now


class Engine:
    """Runs jobs. `submit` may be called from any thread.

    Args:
        most_jobs, most_work, most_of_one: see `Room`.
        observe: called in the engine's thread after each "encode", "denoise" and "decode", with its seconds and how
            many images it was for.
    """

    def __init__(
        self,
        *,
        most_jobs: int = 64,
        most_work: float = math.inf,
        most_of_one: int | None = None,
        observe: Callable[[str, float, int], None] | None = None,
    ):
        self.room = Room(most_jobs, most_work, most_of_one)
        self.observe = observe or (lambda stage, seconds, count: None)
        self._jobs: list[Job] = []
        self._clock = 0.0  # virtual time: the work that each job got under equal sharing
        self._served: dict[str, float] = {}  # the work that each owner with jobs got
        self._rows: dict[tuple, int] = {}  # of one pass, by kind
        self._most_images: dict[tuple, int] = {}  # of one pass, by kind, where memory ran out
        self._stay_until = 0.0  # with the adapters that are in use
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pixart-engine", daemon=True)
        self._thread.start()

    def submit(
        self,
        pipeline: Pipeline,
        request: Request,
        *,
        owner: str = "",
        on_step: Callable[[int, Step], None] | None = None,
        on_image: Callable[[int, Generated], None] | None = None,
        deadline: float = math.inf,
        loras: tuple[Lora, ...] = (),
    ) -> Job:
        """Put a request in the queue. Raises QueueFull where there is no room for it."""
        job = Job(pipeline, request, owner, on_step, on_image, deadline, loras)
        with self._wake:
            if self._closed:
                raise QueueFull("This server is shutting down.", 60.0)
            live = [other for other in self._jobs if not other.over]
            self.room.check(job, live)
            active = {other.owner for other in live}
            # Who was away gets no credit for it, and who has gone need not be remembered.
            floor = min((self._served[name] for name in active), default=0.0)
            self._served = {name: got for name, got in self._served.items() if name in active or got > floor}
            self._served[owner] = max(self._served.get(owner, floor), floor)
            job.turn = self._clock + work_of(request)
            self._jobs.append(job)
            self._wake.notify_all()
        return job

    @property
    def live(self) -> list[Job]:
        """The jobs that wait or run, in the order in which they came."""
        with self._wake:
            return [job for job in self._jobs if not job.over]

    def close(self) -> None:
        """Cancel all jobs and end after the running step."""
        with self._wake:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._wake.notify_all()
        self._thread.join(timeout=60)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._jobs = [job for job in self._jobs if not job.over]
                self._wake.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
            try:
                self._round()
            except BaseException as error:  # a fault of this file; those who wait must hear of it
                for job in self.live:
                    self._fail(job, error)

    def _round(self) -> None:
        """One step of one batch."""
        began = time.monotonic()
        jobs = self.live
        for job in jobs:
            if began > job.deadline:
                seconds = job.deadline - job.submitted
                self._fail(job, DeadlinePassed(f"This was not done within {seconds:.0f} s, the limit for a request."))
        jobs = [job for job in jobs if not job.over]
        batch = self._pick(jobs)
        if batch and batch[0][0].loras != batch[0][0].pipeline.loras:
            self._attempt(batch[0][0], self._switch, batch[0][0])
            batch = batch if not batch[0][0].over else []
        for job in dict.fromkeys(job for job, _ in batch):
            if job.states is None:
                self._attempt(job, self._start, job)
        batch = [(job, index) for job, index in batch if not job.over]
        if not batch:
            return
        work = [_pixels(job.pass_of(index)) for job, index in batch]
        self._step(batch)
        with self._wake:
            self._clock += sum(work) / len(jobs)
            for (job, _), done in zip(batch, work, strict=True):
                self._served[job.owner] += done
                job.work_done += done
        for job in dict.fromkeys(job for job, _ in batch):
            job.position = min(state.solver.position for state in job.states)
            for index, state in enumerate(job.states):
                ready = not job.waiting_images if job.is_staged else state.done
                if ready and index not in job.images and not job.over:
                    self._attempt(job, self._finish, job, index)
        self.room.measure(sum(work), time.monotonic() - began)

    def _pick(self, jobs: list[Job]) -> list[tuple[Job, int]]:
        """The images of the next step, the one that sets its kind first."""
        if time.monotonic() < self._stay_until:
            jobs = [job for job in jobs if job.loras == job.pipeline.loras] or jobs
        busy = {job.pipeline: job for job in jobs if job.is_staged and job.states is not None}
        queues: dict[str, deque[tuple[Job, int]]] = {}
        for job in sorted(jobs, key=lambda job: job.turn):
            if busy.get(job.pipeline, job) is job:
                queues.setdefault(job.owner, deque()).extend((job, index) for index in job.waiting_images)
        owners = [(self._served[owner], owner) for owner in queues]
        heapq.heapify(owners)
        batch: list[tuple[Job, int]] = []
        rows = 0
        while owners:
            served, owner = heapq.heappop(owners)
            queue = queues[owner]
            while queue and batch and not self._fits(batch, rows, *queue[0]):
                queue.popleft()
            if queue:
                job, index = queue.popleft()
                batch.append((job, index))
                rows += _rows(job)
                heapq.heappush(owners, (served + _pixels(job.pass_of(index)), owner))
        return batch

    def _fits(self, batch: list[tuple[Job, int]], rows: int, job: Job, index: int) -> bool:
        first, kind = batch[0], job.kind(index)
        if kind != first[0].kind(first[1]) or (job.is_staged and job is not first[0]):
            return False
        if kind not in self._rows:
            if len(self._rows) >= MOST_KINDS:
                self._rows.clear()
            pipeline, _, height, width = kind
            self._rows[kind] = pipeline.networks.images_at_once(1, height, width)
        return len(batch) < self._most_images.get(kind, math.inf) and rows + _rows(job) <= self._rows[kind]

    def _switch(self, job: Job) -> None:
        """Change the adapters of a pipeline; with graphs it takes a while, so that it is not done after every step."""
        began = time.monotonic()
        job.pipeline.use(job.loras)
        ended = time.monotonic()
        self._stay_until = ended + (ended - began) * (1 / SWITCHES - 1)

    def _start(self, job: Job) -> None:
        began = job.started = time.monotonic()
        job.states = job.pipeline.begin(job.request, job.notices.append)
        texts = {id(state.conditioning): state.conditioning.text for state in job.states}
        job.tokens = sum(int(text.mask.sum()) for text in texts.values())
        self.observe("encode", time.monotonic() - began, job.count)

    def _step(self, batch: list[tuple[Job, int]]) -> None:
        """A step of all; where it fails, of each alone."""
        kind, core = batch[0][0].kind(batch[0][1]), batch[0][0].pipeline.core
        states = [job.states[index] for job, index in batch]
        before = [state.solver.position for state in states]
        began = time.monotonic()
        try:
            steps = core.step(states)
        except BaseException as error:
            if len(batch) == 1:
                self._fail(batch[0][0], error)
                return
            for image, state, position in zip(batch, states, before, strict=True):
                if state.solver.position == position and not image[0].over:
                    self._step([image])
            return
        finally:
            if core.most_images is not None:  # memory ran out; at another size it need not
                self._most_images[kind] = core.most_images
                core.most_images = None
        self.observe("denoise", time.monotonic() - began, len(batch))
        for (job, index), step in zip(batch, steps, strict=True):
            if job.on_step is not None and not job.over:
                self._attempt(job, job.on_step, index, step)

    def _finish(self, job: Job, index: int) -> None:
        began = time.monotonic()
        image = job.pipeline.finish(job.request, job.states[index])
        self.observe("decode", time.monotonic() - began, 1)
        if isinstance(image, State):  # a second pass
            job.states[index] = image
            return
        job.images[index] = image
        if job.on_image is not None:
            job.on_image(index, image)
        if len(job.images) == job.count:
            with contextlib.suppress(InvalidStateError):  # cancelled at this very moment
                job.future.set_result([job.images[i] for i in range(job.count)])

    def _attempt(self, job: Job, act: Callable[..., None], *arguments: Any) -> None:
        """Do something for one job; whatever it throws, a library's panic too (no Exception), ends this job only."""
        try:
            act(*arguments)
        except BaseException as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):  # cancelled before
            job.future.set_exception(as_sentence(error))


def as_sentence(error: BaseException) -> PixArtError:
    """What was thrown, as one sentence for a person; what should not happen is logged with its traceback."""
    if isinstance(error, PixArtError):
        return error
    if isinstance(error, ModuleNotFoundError) and (missing := missing_extra(error)):
        return missing
    if isinstance(error, MemoryError):
        return InternalError("There is not enough memory for this; generate smaller images.")
    name = type(error).__name__
    logger.error("unexpected %s", name, exc_info=error)
    try:
        return InternalError(f"This failed inside pixart ({name}: {shown(str(error), 300)}).")
    except BaseException:  # its text may fail to be made
        return InternalError(f"This failed inside pixart ({name}).")


def _pixels(request: Request) -> float:
    return request.image_height * request.image_width / 1e6


def _rows(job: Job) -> int:
    return 1 if job.request.guidance_scale == 1.0 else 2
