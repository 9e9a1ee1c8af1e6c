"""Past one machine: the networks and their engines in replicas of a Ray Serve deployment, the application here.

This process takes the requests, with all that stands before them, and holds each until its images are there. Ray Serve
does not send again what a replica had when it died, so this process does: with the same seeds, so that the images are
the same. As many replicas as the load needs run, between two numbers; each batches by denoising step, as one process.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

from pixart.checkpoints.adapters import Lora
from pixart.diffusion.solvers import Step
from pixart.errors import PixArtError, shown
from pixart.pipeline.engine import DeadlinePassed, InternalError, Job, Room, as_sentence
from pixart.pipeline.pipeline import Generated
from pixart.pipeline.request import Request
from pixart.server.limits import Replicas
from pixart.server.models import Here, Model, Observe, Previews, Source, open_model

ATTEMPTS = 3  # how often a request is begun, since it may be what ends the replicas
AGAIN = "The process that generated this ended on its way, so it was begun again."
MOST_MESSAGE = 500  # characters of what Ray says


@dataclass
class Order:
    """A request as it goes to a replica."""

    model: str
    request: Request
    owner: str
    loras: list[tuple[str, float]]
    previews: frozenset[int]


@dataclass
class News:
    """What a replica reports of a request since it last did."""

    position: int
    work_done: float
    tokens: int
    notices: list[str]
    previews: list[Any]
    images: dict[int, Generated]
    observed: list[tuple[str, float, int]]  # of the replica, for the metrics
    error: PixArtError | None = None


class Replica:
    """What Ray Serve runs: all models and one engine."""

    def __init__(self, sources: dict[str, Source]):
        self.observed: list[tuple[str, float, int]] = []
        models = [open_model(source, name) for name, source in sources.items()]
        room = Room(most_jobs=2**31)  # the application counts them
        self.here = Here(models, room, lambda *stage: self.observed.append(stage))
        self.failure: PixArtError | None = None

    async def reconfigure(self, stamps: str) -> None:
        """Load what is not loaded, or has changed; Ray Serve calls it at the start and when it gets a new value."""
        self.failure = None
        try:
            await self.here.load(changed_only=True)
        except PixArtError as error:
            if any(model.made is None for model in self.here.models.values()):
                raise
            self.failure = error  # what it has goes on

    async def made(self) -> dict[str, dict[str, Any]]:
        """What makes the images of each model. Raises PixArtError where the last change could not be loaded."""
        if self.failure is not None:
            raise self.failure
        return {name: model.made for name, model in self.here.models.items()}

    async def generate(self, order: Order) -> AsyncIterator[News]:
        """News of a request until it is over; ended by its caller, it ends within one step."""
        loop, wake, looks = asyncio.get_running_loop(), asyncio.Event(), []
        model = self.here.models[order.model]
        loras = tuple(replace(model.loras[name], strength=strength) for name, strength in order.loras)

        def on_step(index: int, step: Step) -> None:
            if step.index + 1 in order.previews:
                looks.append(model.pipeline.preview(order.request, step))
            loop.call_soon_threadsafe(wake.set)

        job = self.here.engine.submit(model.pipeline, order.request, owner=order.owner, on_step=on_step, loras=loras)
        job.future.add_done_callback(lambda _: loop.call_soon_threadsafe(wake.set))
        sent: set[int] = set()
        try:
            over = False
            while not over:
                await wake.wait()
                wake.clear()
                over = job.over
                images = {index: image for index, image in list(job.images.items()) if index not in sent}
                sent |= set(images)
                observed = self.observed[:]
                news = News(
                    job.position, job.work_done, job.tokens, job.notices, looks[:], images, observed,
                    job.future.exception() if over and not job.future.cancelled() else None,
                )  # fmt: skip
                del looks[: len(news.previews)], self.observed[: len(observed)]
                yield news
        finally:
            job.future.cancel()


class OnRay:
    """The replicas as a backend, on the Ray that this process has joined; `name` is that of the deployment."""

    def __init__(self, name: str, replicas: Replicas, models: list[Model], room: Room, observe: Observe):
        self.models = {model.name: model for model in models}
        self.name, self.replicas, self.room, self.observe = name, replicas, room, observe
        self._handle: Any = None
        self._jobs: dict[Job, asyncio.Task] = {}
        self._measured = time.monotonic()
        self._loading = asyncio.Lock()
        self._stamps: dict[str, tuple] = {}

    async def load(self, *, changed_only: bool = False) -> list[str]:
        async with self._loading:
            sources = {name: model.source for name, model in self.models.items()}
            fresh = {name: await asyncio.to_thread(open_model, source, name) for name, source in sources.items()}
            stamps = {name: model.stamp for name, model in fresh.items()}
            loras = [sorted(lora.source for lora in model.loras.values()) for model in fresh.values()]
            try:
                self._handle = await asyncio.to_thread(self._deploy, sources, repr((stamps, loras)))
                made = await self._handle.made.remote()
            except PixArtError as error:  # as Ray raises it: both its own kind and ours
                raise PixArtError(str(error.cause)) from None
            except Exception as error:  # Ray's are of many kinds
                raise PixArtError(f"Ray has no replica ready: {shown(str(error), MOST_MESSAGE)}") from None
            loaded = [name for name in fresh if not changed_only or self._stamps.get(name) != stamps[name]]
            self.models = {name: replace(model, made=made[name]) for name, model in fresh.items()}
            self._stamps = stamps
        return loaded

    def _deploy(self, sources: dict[str, Source], stamps: str) -> Any:
        """Start the replicas, or have those that run load what has changed."""
        from ray import serve

        how = self.replicas
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it writes lines of another format
        serve.start(proxy_location="Disabled")
        deployment = serve.deployment(Replica).options(
            name="replica",
            user_config=stamps,
            ray_actor_options={"num_cpus": how.cpus_per_replica, "num_gpus": how.gpus_per_replica},
            autoscaling_config={
                "min_replicas": how.min_replicas,
                "max_replicas": how.max_replicas,
                "target_ongoing_requests": how.requests_per_replica,
            },
            max_ongoing_requests=max(how.requests_per_replica, self.room.most_jobs),
        )
        return serve.run(deployment.bind(sources), name=self.name, route_prefix=None)

    def submit(
        self,
        model: Model,
        request: Request,
        *,
        owner: str,
        deadline: float,
        loras: tuple[Lora, ...],
        previews: Previews | None,
    ) -> Job:
        job = Job(None, request, owner, deadline=deadline, loras=loras)
        self.room.check(job, self.live)
        names = [
            (name, lora.strength) for lora in loras for name, mine in model.loras.items() if mine.source == lora.source
        ]
        shown = frozenset() if previews is None or model.source.memory.staged else previews.steps
        order = Order(model.name, request, owner, names, shown)
        if not self._jobs:
            self._measured = time.monotonic()
        loop = asyncio.get_running_loop()
        task = self._jobs[job] = loop.create_task(self._carry(job, order, previews or Previews()))
        task.add_done_callback(lambda _: self._jobs.pop(job, None))
        job.future.add_done_callback(lambda _: loop.call_soon_threadsafe(task.cancel))
        return job

    async def _carry(self, job: Job, order: Order, previews: Previews) -> None:
        """Have a job done, by another replica if need be."""
        error: BaseException | None = None
        try:
            async with asyncio.timeout(max(0.0, job.deadline - time.monotonic())):
                await self._attempts(job, order, previews)
            images = [job.images[index] for index in range(job.count)]
        except TimeoutError:
            seconds = job.deadline - job.submitted
            error = DeadlinePassed(f"This was not done within {seconds:.0f} s, the limit for a request.")
        except Exception as other:
            error = other
        if job.over:
            return
        if error is None:
            job.future.set_result(images)
        else:
            job.future.set_exception(as_sentence(error))

    async def _attempts(self, job: Job, order: Order, previews: Previews) -> None:
        from ray.exceptions import RayError, RayTaskError

        for attempt in range(1, ATTEMPTS + 1):
            stream = self._handle.options(stream=True).generate.remote(order)
            try:
                async for news in stream:
                    self._take(job, news, previews)
                return
            except RayTaskError:
                raise
            except RayError as error:  # the replica has died, or its machine
                if attempt == ATTEMPTS:
                    raise InternalError(
                        f"The processes that generated this ended {ATTEMPTS} times ({type(error).__name__})."
                    ) from None
                job.restarts, job.work_done, job.position = attempt, 0.0, 0
                job.images.clear()
                await asyncio.sleep(1)  # by then Ray knows it
            finally:
                stream.cancel()

    def _take(self, job: Job, news: News, previews: Previews) -> None:
        now = time.monotonic()
        job.started = job.started or now
        self.room.measure(max(0.0, news.work_done - job.work_done), now - self._measured)
        self._measured = now
        job.position, job.work_done, job.tokens = news.position, news.work_done, news.tokens
        job.notices = news.notices + [AGAIN] * bool(job.restarts)
        job.images |= news.images
        for stage in news.observed:
            self.observe(*stage)
        for image in news.previews:
            if image is not None:
                previews.add(image)
        if news.error is not None:
            raise news.error

    @property
    def live(self) -> list[Job]:
        return [job for job in self._jobs if not job.over]

    def close(self) -> None:
        """End the replicas; the cluster too, if it was started here."""
        import ray
        from ray import serve

        for job in self.live:
            job.future.cancel()
        with contextlib.suppress(Exception):  # it may have gone before
            serve.delete(self.name)
        ray.shutdown()
