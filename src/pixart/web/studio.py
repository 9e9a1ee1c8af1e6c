"""What all tabs that have the page open share: the model, the queue to it, the outputs folder."""

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pixart.checkpoints.styles import known_styles
from pixart.pipeline.pipeline import Generated, Pipeline
from pixart.pipeline.prompts import apply_style, check_text
from pixart.web.drawing import Drawing, View
from pixart.web.form import Form
from pixart.web.grid import Grid
from pixart.web.models import Choice, Models
from pixart.web.runs import Runs
from pixart.web.work_queue import Job, WorkQueue

T = TypeVar("T")
DOUBLE_CLICK = 0.8  # seconds within which the same form again is the same click
RELOAD_SECONDS = 20  # within which a page that is loaded again finds its last drawing
MAX_TABS = 1000  # tabs whose stream is remembered


class Studio:
    """One per server. Every method may be called from any thread."""

    concurrency_id = "pixart-drawing"

    def __init__(self, choice: Choice, outputs: Path, *, metadata: bool = True):
        """Check the model's folder and make the outputs folder; loads no network. Raises PixArtError."""
        self.models = Models(choice)
        self.runs = Runs(outputs)
        self.metadata = metadata
        self.queue = WorkQueue()
        self.tracker: Any = None  # a pixart.tracking.generations.GenerationTracker while one is switched on
        self.tracking_said = ""  # what went wrong with it last
        self._lock = threading.Lock()
        self._last: dict[str, tuple[Any, float, Job]] = {}  # tab -> its last form, when, and its job
        self._streams: dict[str, int] = {}  # tab -> number of its newest stream
        self._sessions: dict[str, str] = {}  # open connection of a page -> its tab

    def warm_up(self) -> Job:
        """Load the model in the drawing thread, so that the first click need not wait for it."""
        return self.queue.submit(lambda job: self.models.require(), owner="", title="Loading the model")

    def pipeline(self) -> Pipeline:
        """The loaded model, loaded now if it is not yet."""
        return self.alone(lambda: self.models.require().pipeline)

    def alone(self, work: Callable[[], T]) -> T:
        """Do `work` in the drawing thread, in its turn; returns or raises what it does."""
        return self.queue.alone(work)

    def draw(self, tab: str, form: Form) -> Job:
        """Put the drawing of a form into the queue. Clicking twice counts once. Raises UsageError."""
        with self._lock:
            last = self._last.get(tab)
            if last and last[0] == form and time.monotonic() - last[1] < DOUBLE_CLICK:
                return last[2]
            drawing = Drawing(
                self.models,
                self.runs,
                form.requests,
                asdict(form),
                on_done=self._track,
                metadata=self.metadata,
            )
            job = self.queue.submit(drawing, owner=tab, title=form.prompt[:80])
            now = time.monotonic()
            self._last = {name: one for name, one in self._last.items() if now - one[1] < DOUBLE_CLICK}
            self._last[tab] = (form, now, job)
        return job

    def draw_grid(self, tab: str, grid: Grid) -> Job:
        """Put the cells of a grid into the queue, as one drawing."""
        drawing = Drawing(
            self.models,
            self.runs,
            grid.requests,
            grid.record(),
            labels=grid.labels,
            columns=grid.columns,
            on_done=self._track,
            metadata=self.metadata,
        )
        return self.queue.submit(drawing, owner=tab, title=grid.form.prompt[:80])

    def swap(self, tab: str, choice: Choice) -> Job:
        """Load another model when the drawings that wait already are done."""
        return self.queue.submit(lambda job: self.models.load(choice), owner=tab, title="Loading a model")

    def shown(self, tab: str) -> tuple[Job | None, View | None, int]:
        """What a tab looks at: its drawing that runs, else the next one, else its last; and how many more wait."""
        jobs = [job for job in self.queue.jobs_of(tab) if isinstance(job.work, Drawing)]
        live = [job for job in jobs if not job.over.is_set()]
        job = live[0] if live else (jobs[-1] if jobs else None)
        return job, (job.work.view if job else None), max(0, len(live) - 1)

    def arrive(self, session: str | None, tab: str) -> None:
        """A page is opened, or loaded again under a new session; only strings of our own length are remembered."""
        with self._lock:
            self._sessions[str(session)[:64]] = tab[:64]
            while len(self._sessions) > 10 * MAX_TABS:
                self._sessions.pop(next(iter(self._sessions)))

    def leave(self, session: str | None) -> None:
        """A page is closed. What it drew is forgotten a little later, unless it was only loaded again."""

        def forget() -> None:
            with self._lock:
                back = tab in self._sessions.values()
            if not back:
                self.queue.leave(tab)

        with self._lock:
            tab = self._sessions.pop(str(session)[:64], "")
        if tab:
            timer = threading.Timer(RELOAD_SECONDS, forget)
            timer.daemon = True
            timer.start()

    def new_stream(self, tab: str) -> int:
        """Number of a stream that shows a tab its drawings; the tab's earlier ones end."""
        with self._lock:
            number = self._streams.get(tab, 0) + 1
            self._streams.pop(tab, None)
            self._streams[tab] = number
            while len(self._streams) > MAX_TABS:
                self._streams.pop(next(iter(self._streams)))
        return number

    def is_newest_stream(self, tab: str, number: int) -> bool:
        return self._streams.get(tab) == number

    def tokens(self, prompt: str, style: str | None) -> tuple[int, int, str]:
        """Tokens of a prompt in its style, how many the model reads, and the words beyond. Raises UsageError."""
        check_text(prompt, "prompt")
        tokenizer, folder = self.models.tokenizer, self.models.folder
        text = apply_style(prompt, "", known_styles(folder.styles).get(style or ""))[0].lower().strip()
        _, cut = tokenizer.tokenize(text)
        return len(tokenizer.tokenizer.encode(text).ids), tokenizer.max_tokens, cut

    def switch_tracking(self, tool: str | None) -> None:
        """Log every run from now on to "wandb" or "trackio"; None ends it."""
        with self._lock:
            before, self.tracker = self.tracker, None
        if before is not None:
            before.close()
        if tool is not None:
            from pixart.tracking.generations import GenerationTracker

            self.tracking_said = ""
            self.tracker = GenerationTracker(tool, self.runs.folder, report=self._tracking_failed)

    def close(self) -> None:
        self.queue.close()
        self.switch_tracking(None)

    def _track(self, pictures: list[Generated], seconds: float, folder: Path) -> None:
        if self.tracker is not None:
            self.tracker.log(pictures, seconds)

    def _tracking_failed(self, line: str) -> None:
        self.tracking_said = line
        print(line, file=sys.stderr, flush=True)
