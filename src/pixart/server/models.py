"""The models that are served, and who generates: the engine of this process, or replicas elsewhere (on_ray.py)."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pixart.checkpoints.adapters import Lora, find_loras
from pixart.checkpoints.model_folder import ModelFolder, open_model_folder
from pixart.diffusion.solvers import Step
from pixart.pipeline.engine import Engine, Job, Room, as_sentence
from pixart.pipeline.networks import Runtime, choose_runtime, load_networks
from pixart.pipeline.pipeline import Pipeline
from pixart.pipeline.request import Request, make_request
from pixart.runtime.memory import AUTO, PLAIN, Computing, Memory

Observe = Callable[[str, float, int], None]


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is computed; as `open_model_folder` and `choose_runtime` take it."""

    model: str | None = None
    fast: bool = False
    computing: Computing = AUTO
    memory: Memory = PLAIN
    loras: Path | None = None  # a folder of adapters


@dataclass(frozen=True)
class Model:
    """A model that is served. `loras` are the adapters that fit it, by name.

    Attributes:
        made: what makes its images, as `Pipeline.provenance`; None until it is loaded.
        pipeline: None until it is loaded, and where replicas have it.
    """

    name: str
    source: Source
    folder: ModelFolder
    runtime: Runtime
    loras: dict[str, Lora] = field(default_factory=dict)
    made: dict[str, Any] | None = None
    pipeline: Pipeline | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def stamp(self) -> tuple:
        """Changes when the files of the weights do."""
        return tuple((path, *_stamp(path)) for path in self.folder.weights)


@dataclass
class Previews:
    """What a request looks like on its way.

    Attributes:
        steps: after which to look at it, from 1.
        show: gets the image as it is then, at its full size, as PIL; maybe called in another thread.
        wanted: whether to look at it after the next step too; only where the engine is in this process.
        newest: the last of them.
    """

    steps: frozenset[int] = frozenset()
    show: Callable[[Any], None] = lambda image: None
    wanted: bool = False
    newest: Any = None

    def add(self, image: Any) -> None:
        self.newest = image
        self.show(image)


class Backend(Protocol):
    """Who has the networks and generates."""

    models: dict[str, Model]
    room: Room

    async def load(self, *, changed_only: bool = False) -> list[str]:
        """Load all models, or those whose files have changed; each serves from then on, the one before until then.

        Raises:
            PixArtError: a model cannot be loaded. The one before goes on.
        """
        ...

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
        """As `Engine.submit`."""
        ...

    @property
    def live(self) -> list[Job]: ...

    def close(self) -> None: ...


class Here:
    """The models and their engine in this process."""

    def __init__(self, models: list[Model], room: Room, observe: Observe):
        self.models = {model.name: model for model in models}
        self.engine = Engine(
            most_jobs=room.most_jobs, most_work=room.most_work, most_of_one=room.most_of_one, observe=observe
        )
        self.room = self.engine.room
        self._stamps = {model.name: model.stamp for model in models}
        self._loading = asyncio.Lock()

    async def load(self, *, changed_only: bool = False) -> list[str]:
        loaded = []
        async with self._loading:
            for name, model in list(self.models.items()):
                fresh = await asyncio.to_thread(open_model, model.source, name)
                if changed_only and model.made is not None and fresh.stamp == self._stamps[name]:
                    self.models[name] = replace(model, loras=fresh.loras)
                    continue
                self.models[name] = await asyncio.to_thread(load_model, fresh)
                self._stamps[name] = fresh.stamp
                loaded.append(name)
        return loaded

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
        def on_step(index: int, step: Step) -> None:
            if previews.wanted or step.index + 1 in previews.steps:
                previews.wanted = False
                if (image := model.pipeline.preview(request, step)) is not None:
                    previews.add(image)

        # A look by the decoder would put a denoiser out of memory with which it takes turns.
        staged = model.pipeline.networks.memory.staged
        return self.engine.submit(
            model.pipeline,
            request,
            owner=owner,
            on_step=None if previews is None or staged else on_step,
            deadline=deadline,
            loras=loras,
        )

    @property
    def live(self) -> list[Job]:
        return self.engine.live

    def close(self) -> None:
        self.engine.close()


def open_model(source: Source, name: str | None = None) -> Model:
    """Check a model's files and the device; loads nothing. Raises as `open_model_folder` and `choose_runtime` do."""
    folder = open_model_folder(source.model, fast=source.fast, text_encoder=source.memory.text_encoder)
    how = source.computing
    runtime = choose_runtime(folder, how.engine, how.dtype, source.memory, how.device, compile=how.compile)
    loras = find_loras(source.loras, folder) if source.loras is not None else {}
    return Model(name or folder.name + ("-fast" if source.fast else ""), source, folder, runtime, loras=loras)


def load_model(model: Model) -> Model:
    """Load its networks and generate one image, so that the first request need not wait for anything.

    Raises:
        PixArtError: it is damaged, or cannot generate here.
    """
    try:
        pipeline = Pipeline(model.folder, load_networks(model.folder, model.runtime))
        steps = None if model.folder.fast else 2
        list(pipeline.generate(make_request(model.folder, "an apple", seed=0, steps=steps)))
    except BaseException as error:
        raise as_sentence(error) from None
    return replace(model, pipeline=pipeline, made=pipeline.provenance, created=int(time.time()))


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size
    except OSError:
        return 0, 0
