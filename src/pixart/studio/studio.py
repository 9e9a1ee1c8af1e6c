"""What all visitors of the page share: the model, the worker that uses it, the outputs folder."""

import asyncio
import sys
import threading
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pixart.checkpoints.styles import known_styles
from pixart.errors import PixArtError, shown
from pixart.extras import missing_extra
from pixart.pipeline.prompts import apply_style, check_text
from pixart.studio.models import Choice, Models
from pixart.studio.runs import Runs

LOOK_EVERY = 0.05  # seconds between two looks at a running job
MOST_UNHEARD = 3.0  # seconds that a job goes on while its page does not listen


class Stopped(Exception):
    """Raised inside a job whose page no longer wants it."""


class Studio:
    """One per server.

    Gradio's queue gives the turns: events with `concurrency_id` run one at a time. The worker is one thread, so that
    the last step of a job that was cancelled and the next job do not meet either.
    """

    concurrency_id = "model"

    def __init__(self, choice: Choice, outputs: Path, *, metadata: bool = True):
        """Check the model's folder and make the outputs folder; loads no network. Raises PixArtError."""
        self.models = Models(choice)
        self.runs = Runs(outputs)
        self.metadata = metadata
        self.worker = ThreadPoolExecutor(1, "pixart-model")
        self.listening: Counter[str] = Counter()  # sessions of pages that read their events; the guard counts them
        self.tracker: Any = None  # a GenerationTracker while one is switched on

    async def follow(
        self, run: Callable[[threading.Event], Any], view: Callable[[], list], session: str | None
    ) -> AsyncIterator[list]:
        """Call `run` in the worker and give what `view` returns as it changes; what `run` throws ends this job only.

        When the page no longer wants it (the event was cancelled, or the page has gone), the event that `run` got is
        set, and it should soon raise Stopped.

        Raises:
            PixArtError: the job failed; in one sentence.
        """
        stop = threading.Event()
        future = self.worker.submit(run, stop)
        unheard, before = 0.0, None
        try:
            while not future.done():
                await asyncio.sleep(LOOK_EVERY)
                unheard = 0.0 if self.listening[str(session)] else unheard + LOOK_EVERY
                if unheard > MOST_UNHEARD:
                    return
                # Nothing is sent to who does not listen: Gradio would keep it.
                if not unheard and (now := view()) != before:
                    yield now
                    before = now
            yield view()
            if error := future.exception():
                raise PixArtError(sentence_for(error))
        finally:
            stop.set()
            future.cancel()

    def tokens(self, prompt: str, style: str | None) -> tuple[int, int, str] | None:
        """Tokens of a prompt in its style, how many the model reads, and the words beyond; None before it is loaded.

        Raises:
            UsageError: it is no text.
        """
        check_text(prompt, "prompt")
        loaded = self.models.loaded
        if loaded is None:
            return None
        styles = known_styles(loaded.pipeline.folder.styles)
        text = apply_style(prompt, "", styles.get(style or ""))[0].lower().strip()
        _, cut = loaded.tokenizer.tokenize(text)
        return len(loaded.tokenizer.tokenizer.encode(text).ids), loaded.tokenizer.max_tokens, cut

    def track(self, tool: str | None) -> None:
        """Log every run from now on to "wandb" or "trackio"; None ends it."""
        before, self.tracker = self.tracker, None
        if before is not None:
            before.close()
        if tool is not None:
            from pixart.tracking.generations import GenerationTracker

            self.tracker = GenerationTracker(tool, self.runs.folder)

    def close(self) -> None:
        self.worker.shutdown(wait=True, cancel_futures=True)
        self.track(None)


def sentence_for(error: BaseException) -> str:
    """What a person may be told of anything that a job has thrown, a library's panic too (no Exception)."""
    if isinstance(error, PixArtError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and (missing := missing_extra(error)):
        return str(missing)
    if isinstance(error, MemoryError):
        return "There is not enough memory for this; make smaller images, or choose another way to use memory."
    traceback.print_exception(error, file=sys.stderr)
    try:
        text = shown(str(error), 300)
    except BaseException:  # its text may fail to be made
        text = ""
    return f"This failed inside pixart ({type(error).__name__}: {text})."
