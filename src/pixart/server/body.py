"""The body of a request, with limits."""

import asyncio
import contextlib
import time
from typing import Any

from starlette.exceptions import HTTPException

DRAINED, DRAIN_SECONDS = 2**26, 2.0  # bytes of a refused body that are read on, and for how long


class TooMuch(HTTPException):
    """A body is too long, or takes too long."""


class Body:
    """The body of a request, with limits: it may say no length, or never end."""

    def __init__(self, receive: Any, most: int, seconds: float):
        self.wrapped, self.most, self.seconds = receive, most, seconds
        self.ends = time.monotonic() + seconds
        self.read, self.complete = 0, False

    async def receive(self) -> dict:
        if self.complete:
            return await self.wrapped()  # waits for the client to leave
        try:
            event = await asyncio.wait_for(self.wrapped(), max(0.001, self.ends - time.monotonic()))
        except TimeoutError:
            raise TooMuch(408, f"The request did not come within {self.seconds:g} s.") from None
        self.read += len(event.get("body", b""))
        self.complete = not event.get("more_body", False)
        if self.read > self.most:
            raise TooMuch(413, f"This request is too large; at most {self.most:,} bytes are read.")
        return event

    async def drain(self) -> None:
        """Read on for a moment after a refusal, since a client that is still sending would not see it."""
        self.most, self.ends = self.read + DRAINED, time.monotonic() + DRAIN_SECONDS
        with contextlib.suppress(TooMuch):
            while not self.complete:
                await self.receive()
