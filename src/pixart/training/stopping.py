"""SIGINT and SIGTERM while training: the step is finished, a checkpoint is written, and the exit code is 75."""

import signal

from pixart.errors import PixArtError

EXIT_PREEMPTED = 75  # stopped by a signal with a good checkpoint: run the same command again


class Preempted(PixArtError):
    """SIGINT or SIGTERM arrived; the checkpoint is on disk."""

    exit_code = EXIT_PREEMPTED


class StopOnSignal:
    """Turns the first SIGINT or SIGTERM into a request that the loop honours after the step; a second acts at once."""

    def __enter__(self) -> "StopOnSignal":
        self.requested = False
        self.old = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.old[number] = signal.signal(number, self._request)
            except ValueError:  # not in the main thread (a test or a notebook): signals stay with their owner
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def _request(self, *_: object) -> None:
        self.requested = True
        self.__exit__()
