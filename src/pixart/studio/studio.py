"""What all visitors of the page share: the model, the engine that generates with it, the outputs folder."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from pixart.checkpoints.styles import known_styles
from pixart.pipeline.engine import Engine, Job, as_sentence
from pixart.pipeline.prompts import apply_style, check_text
from pixart.studio.models import Choice, Loaded, Models
from pixart.studio.runs import Runs

LOOK_EVERY = 0.05  # seconds between two looks at a running job
MOST_UNHEARD = 3.0  # seconds that a job goes on while its page does not listen


class Studio:
    """One per server. Requests of all visitors, and of programs with `pixart app --api`, are jobs of one `engine`.

    The worker, one thread, loads models and submits jobs, so that no job is submitted while a model is swapped.
    """

    def __init__(
        self,
        choice: Choice,
        outputs: Path,
        *,
        metadata: bool = True,
        loras: Path | None = None,
        tracker: Any = None,
        service: Any = None,
    ):
        """Check the model's folder and make the outputs folder; loads no network. Raises PixArtError.

        Args:
            loras: a folder of adapters.
            tracker: a GenerationTracker, which every run is logged to.
            service: a `pixart.server.service.Service`; programs then get the page's model, in the same queue.
        """
        self.models = Models(choice, loras)
        self.runs = Runs(outputs)
        self.metadata = metadata
        self.service, self.tracker = service, tracker
        self.engine = service.backend.engine if service is not None else Engine()
        self.worker = ThreadPoolExecutor(1, "pixart-model")
        self.listening: Counter[str] = Counter()  # sessions of pages that read their events; the guard counts them

    async def follow(
        self, submit: Callable[[], Job], view: Callable[[], list], session: str | None
    ) -> AsyncIterator[list]:
        """Call `submit` in the worker and give what `view` returns as it changes, until the job is over.

        Closing this iterator (the event was cancelled) cancels the job, as does a page that does not listen any more.

        Raises:
            PixArtError: the job failed; in one sentence.
        """
        submitted = self.worker.submit(submit)
        try:
            before = view()
            yield before
            job = await self.result_of(submitted)
            unheard = 0.0
            while not job.over and unheard < MOST_UNHEARD:
                await asyncio.sleep(LOOK_EVERY)
                unheard = 0.0 if self.listening[str(session)] else unheard + LOOK_EVERY
                # Nothing is sent to who does not listen: Gradio would keep it.
                if not unheard and (now := view()) != before:
                    yield now
                    before = now
            if not job.over or job.future.cancelled():
                return
            if error := job.future.exception():
                raise error
        finally:
            submitted.cancel()
            submitted.add_done_callback(_cancel_job)  # at once, or when a model that is being loaded is there

    def require(self) -> Loaded:
        """The loaded model, from then on for programs, too; loads it if it is not yet. To be called in the worker."""
        loaded, models = self.models.require(), self.models
        if self.service is not None:
            from pixart.server.models import Model, Source

            name, source, pipeline = models.folder.name, Source(loras=models.lora_folder), loaded.pipeline
            runtime, made = loaded.runtime, pipeline.provenance
            self.service.backend.models = {
                name: Model(name, source, models.folder, runtime, models.loras, made, pipeline)
            }
        return loaded

    async def load(self, choice: Choice) -> None:
        """Swap the model, after the images before it. Raises PixArtError."""

        def swap() -> None:
            if self.service is not None:  # programs are to try again; else there might always be images before it
                self.service.backend.models = {
                    name: replace(model, made=None, pipeline=None) for name, model in self.service.models.items()
                }
            try:
                while self.engine.live:
                    time.sleep(LOOK_EVERY)
                self.models.load(choice)
            finally:
                if self.service is not None:
                    self.require()

        await self.result_of(self.worker.submit(swap))

    @staticmethod
    async def result_of(future: Future) -> Any:
        """What the worker returned; whatever it threw, a library's panic too, as a PixArtError."""
        await asyncio.wait([asyncio.wrap_future(future)])
        if error := future.exception():
            raise as_sentence(error)
        return future.result()

    def tokens(self, prompt: str, style: str | None) -> tuple[int, int, str, list[str]] | None:
        """Tokens of a prompt in its style, how many the model reads, the words beyond, and those it does not know.

        None before the model is loaded.

        Raises:
            UsageError: it is no text.
        """
        check_text(prompt, "prompt")
        loaded = self.models.loaded
        if loaded is None:
            return None
        styles = known_styles(loaded.pipeline.folder.styles)
        text = apply_style(prompt, "", styles.get(style or ""))[0].lower().strip()
        tokenizer = loaded.tokenizer
        _, cut = tokenizer.tokenize(text)
        return len(tokenizer.tokenizer.encode(text).ids), tokenizer.max_tokens, cut, tokenizer.unknown(text)

    def close(self) -> None:
        self.engine.close()
        self.worker.shutdown(wait=True, cancel_futures=True)
        if self.tracker is not None:
            self.tracker.close()


def _cancel_job(submitted: Future) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().future.cancel()
