"""Listening, and the end: uvicorn with a time limit for headers, one line of JSON for each event, a graceful stop."""

import asyncio
import json
import logging
import signal
import socket
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pixart.errors import PixArtError
from pixart.server.app import create_app
from pixart.server.guard import Access
from pixart.server.service import Service


class Protocol(H11Protocol):
    """Closes a connection where the headers of a request do not come in time, which uvicorn keeps for ever."""

    seconds = 30.0
    due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.due is not None:
            self.due.cancel()

    def _watch(self) -> None:
        """Start the clock where the headers of a request are to come, stop it where they have."""
        if self.conn.their_state is h11.IDLE:
            self.due = self.due or self.loop.call_later(self.seconds, self.transport.close)
        elif self.due is not None:
            self.due.cancel()
            self.due = None


class JsonLines(logging.Formatter):
    """One JSON object for each record; those of the guard are JSON already."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        content = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)), "level": record.levelname}
        try:
            content |= json.loads(message)
        except ValueError:
            content["message"] = message
        if record.exc_info:
            content["traceback"] = self.formatException(record.exc_info)
        return json.dumps(content)


def run(service: Service, access: Access, listening: socket.socket, root_path: str = "") -> None:
    """Serve until SIGTERM or Ctrl-C; then take no more requests, and end those that are there.

    Raises:
        PixArtError: a model could not be loaded.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    failures: list[PixArtError] = []

    def fail(error: PixArtError) -> None:
        failures.append(error)
        server.should_exit = True

    Protocol.seconds = float(service.limits.body_seconds)
    config = uvicorn.Config(
        create_app(service, access, fail),
        http=Protocol,
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        root_path=root_path,
        limit_concurrency=service.limits.max_connections,
        timeout_graceful_shutdown=service.limits.drain_seconds,
    )
    server = uvicorn.Server(config)
    # uvicorn raises the signal again when it is done; a requested end is no failure.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    asyncio.run(server.serve(sockets=[listening]))
    if failures:
        raise failures[0]
