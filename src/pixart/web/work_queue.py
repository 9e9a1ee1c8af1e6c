"""One thread that does everything heavy, in turn: drawings, loading a model, looking into it.

So two people never share a step, memory is that of one drawing, and a waiting person has a position to be told.
"""

import itertools
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from pixart.errors import PixArtError, UsageError, shown

MAX_WAITING = 64  # jobs of all people together
MAX_WAITING_OF_ONE = 16
# Finished jobs that are remembered for a page that reloads: the last one of each person; of all together so many, for
# so long, and so many bytes.
MAX_KEPT = 64
KEPT_SECONDS = 600
MAX_KEPT_BYTES = 32 * 2**20


class Cancelled(Exception):
    """Raised inside a job, at its next step, after somebody asked to stop it."""


class Job:
    """One piece of work: `state` goes from waiting over running to done, failed or cancelled, once.

    Attributes:
        owner: the tab that asked for it.
        title: what a person may be told about it.
        result: what `work` returned.
        error: one sentence for a person, when it failed.
    """

    def __init__(self, work: Callable[["Job"], Any], *, owner: str, title: str):
        self.work, self.owner, self.title = work, owner, title
        self.state = "waiting"
        self.result: Any = None
        self.error = ""
        self.started: float | None = None
        self.seconds = 0.0
        self.ended = 0.0
        self.over = threading.Event()
        self._stop = threading.Event()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def check(self) -> None:
        """To be called between steps; raises Cancelled when somebody asked to stop."""
        if self._stop.is_set():
            raise Cancelled

    def cancel(self) -> None:
        self._stop.set()


class WorkQueue:
    """First come, first served. Every method may be called from any thread."""

    def __init__(self):
        self._waiting: deque[Job] = deque()
        self._jobs: dict[str, deque[Job]] = {}  # of each owner, oldest first
        self._running: Job | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="pixart-drawing", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Job], Any], *, owner: str, title: str) -> Job:
        """Put work at the end of the queue; `work` gets its job, to ask whether to stop.

        Raises:
            UsageError: too much waits already; says how much.
        """
        job = Job(work, owner=owner, title=title)
        with self._wake:
            if self._closed:
                raise PixArtError("The page is closing down.")
            if len(self._waiting) >= MAX_WAITING:
                raise UsageError(f"{MAX_WAITING} drawings are waiting already, the most there can be; try again later.")
            if sum(1 for other in self._waiting if other.owner == owner) >= MAX_WAITING_OF_ONE:
                raise UsageError(f"{MAX_WAITING_OF_ONE} of your drawings are waiting already, the most there can be.")
            self._waiting.append(job)
            self._jobs.setdefault(owner, deque()).append(job)
            self._forget()
            self._wake.notify_all()
        return job

    def alone(self, work: Callable[[], Any], *, title: str = "") -> Any:
        """Do `work` in the thread when its turn comes, and return its result; what it raises is raised here."""
        if threading.current_thread() is self._thread:
            return work()
        raised: list[BaseException] = []

        def run(job: Job) -> Any:
            try:
                return work()
            except BaseException as error:
                raised.append(error)
                raise

        job = self.submit(run, owner="", title=title)
        job.over.wait()
        if raised and isinstance(raised[0], Exception):
            raise raised[0]
        if job.state != "done":
            raise PixArtError(job.error or "The page is closing down.")
        return job.result

    def position(self, job: Job) -> int:
        """0 while it runs or when it is over, 1 if it is next, and so on."""
        with self._wake:
            return next((i for i, other in enumerate(self._waiting, 1) if other is job), 0)

    def jobs_of(self, owner: str) -> list[Job]:
        """The jobs of one owner that wait or run, and the last few that are over; oldest first."""
        with self._wake:
            return list(self._jobs.get(owner, ()))

    def leave(self, owner: str) -> None:
        """Forget what is over of an owner who is gone."""
        with self._wake:
            kept = deque(job for job in self._jobs.pop(owner, ()) if not job.over.is_set())
            if kept:
                self._jobs[owner] = kept

    def _forget(self) -> None:
        """Drop finished jobs over the limits, the oldest first. To be called with the lock held."""
        over = [job for mine in self._jobs.values() for job in mine if job.over.is_set()]
        last = {job.owner: job for job in over}
        kept = sorted(last.values(), key=lambda job: -job.ended)[:MAX_KEPT]
        size, now = 0, time.monotonic()
        keep: set[int] = set()
        for job in kept:
            size += _held_bytes(job)
            if size <= MAX_KEPT_BYTES and now - job.ended < KEPT_SECONDS:
                keep.add(id(job))
        for owner in list(self._jobs):
            mine = deque(job for job in self._jobs[owner] if not job.over.is_set() or id(job) in keep)
            if mine:
                self._jobs[owner] = mine
            else:
                del self._jobs[owner]

    def cancel_all(self, owner: str) -> int:
        """Stop what runs for `owner` at its next step, forget what waits; returns how many those were."""
        with self._wake:
            live = [job for job in self._jobs.get(owner, ()) if not job.over.is_set()]
            for job in live:
                job.cancel()
                if job in self._waiting:
                    self._waiting.remove(job)
                    job.state = "cancelled"
                    job.ended = time.monotonic()
                    job.over.set()
            self._forget()
        return len(live)

    def close(self) -> None:
        """Stop everything and wait for the running step to end."""
        with self._wake:
            self._closed = True
            for job in itertools.chain(self._waiting, [self._running] if self._running else []):
                job.cancel()
            self._wake.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=60)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._closed:
                    self._wake.wait()
                if not self._waiting:
                    return
                job = self._running = self._waiting.popleft()
            try:
                self._do(job)
            except BaseException:  # reporting a failure may fail too; those who wait must hear of it all the same
                job.error = job.error or "This failed inside pixart."
            finally:
                job.seconds = time.monotonic() - job.started
                job.ended = time.monotonic()
                if job.state == "running":
                    job.state = "failed"
                job.over.set()
            with self._wake:
                self._running = None
                if not job.owner or not hasattr(job.work, "view"):  # nobody looks at it again, but those who wait
                    self._jobs[job.owner] = deque(one for one in self._jobs.get(job.owner, ()) if one is not job)
                self._forget()

    def _do(self, job: Job) -> None:
        """Do one job. Whatever it throws, a library's panic too (no Exception), ends this job only."""
        job.started = time.monotonic()
        job.state = "running"
        state = "failed"
        try:
            job.check()
            job.result = job.work(job)
            state = "done"
        except Cancelled:
            state = "cancelled"
        except PixArtError as error:
            job.error = str(error)
        except ModuleNotFoundError as error:
            from pixart.extras import missing_extra

            job.error = str(missing_extra(error) or error)
        except MemoryError:
            job.error = "There is not enough memory for this; make smaller images, or choose a frugal memory mode."
        except BaseException as error:
            job.error = f"This failed inside pixart ({type(error).__name__})."  # its text may fail to be made
            job.error = f"This failed inside pixart ({type(error).__name__}: {shown(str(error), 300)})."
            traceback.print_exc()
        job.state = state


def _held_bytes(job: Job) -> int:
    """About what a finished job holds in memory: its previews and its result, where that is a text."""
    view = getattr(job.work, "view", None)
    previews = sum(len(tile.preview) for tile in view.tiles) if view is not None else 0
    return 10_000 + previews + (len(job.result) if isinstance(job.result, str) else 0)
