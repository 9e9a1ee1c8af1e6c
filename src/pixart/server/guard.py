"""What stands before the application: who may send requests, from where, and how much. An ASGI middleware."""

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from pixart.errors import UsageError, shown
from pixart.files import read_bytes
from pixart.server.access import Names, basic_password
from pixart.server.body import Body, TooMuch
from pixart.server.limits import PLAIN_BODY, Limits
from pixart.server.metrics import Metrics

logger = logging.getLogger("pixart.server")
MOST_HEADERS = 2**16  # bytes of all headers
LEAST_KEY = 16  # characters; shorter ones can be guessed
# Without a key: health, and images by their unguessable addresses. Everything else needs one, also what is not there.
OPEN = ("/livez", "/readyz", "/health")
OPEN_IMAGE = re.compile(r"/v1/images/[\w-]{43}/content")
IMAGE_PATHS = ("/v1/images/edits", "/sdapi/v1/img2img", "/sdapi/v1/png-info")


@dataclass(frozen=True)
class Access:
    """Who may send requests.

    Attributes:
        keys: SHA-256 of each API key -> its name; empty: no key is needed.
        names: by which the server is reached.
    """

    keys: dict[bytes, str]
    names: Names

    def owner(self, header: str) -> str | None:
        """The name of the key in an Authorization header (Bearer, or the password of Basic), or None."""
        scheme, _, given = header.partition(" ")
        given = given if scheme.lower() == "bearer" else basic_password(header)
        if given is None:
            return None
        digest, found = hashlib.sha256(given.strip().encode()).digest(), None
        for key, name in self.keys.items():  # all of them, so that time says nothing
            if hmac.compare_digest(digest, key):
                found = name
        return found


def read_keys(file: Path | None, single: str | None) -> dict[bytes, str]:
    """API keys from a file, `name:key` or `key` a line, and one from the environment.

    Raises:
        UsageError: a key is too short to be safe, or there twice.
    """
    lines = [] if single is None else [f"default:{single}"]
    if file is not None:
        try:
            lines += read_bytes(file, 1 << 20).decode().splitlines()
        except UnicodeDecodeError:
            raise UsageError(f"{file} is not UTF-8 text.") from None
    keys: dict[bytes, str] = {}
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, _, key = line.strip().rpartition(":")
        name = name.strip() or f"key-{len(keys) + 1}"
        if len(key) < LEAST_KEY:
            raise UsageError(f'The API key "{shown(name)}" has {len(key)} characters; {LEAST_KEY} are the least.')
        digest = hashlib.sha256(key.encode()).digest()
        if digest in keys or name in keys.values():
            raise UsageError(f'The API key "{shown(name)}" is there twice.')
        keys[digest] = name
    if file is not None and not keys:
        raise UsageError(f"There is no API key in {file}; write one a line, as name:key.")
    return keys


def error_response(
    path: str, status: int, message: str, param: str | None = None, code: str = "", headers: dict | None = None
) -> Response:
    """OpenAI's error object; on A1111's paths with its `detail` too."""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(status)
    kind = kind or ("server_error" if status >= 500 else "invalid_request_error")
    content: dict[str, Any] = {"error": {"message": message, "type": kind, "param": param, "code": code or None}}
    if "/sdapi/" in path:
        content["detail"] = message
    return JSONResponse(content, status, headers)


class Guard:
    """Wraps the application. Sets `scope["state"]["owner"]`, the name of the key; logs and counts every request."""

    def __init__(self, app: Any, access: Access, limits: Limits, metrics: Metrics):
        self.app, self.access, self.limits, self.metrics = app, access, limits, metrics
        self.large = 0  # requests with images, whose bodies are in memory

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, request_id, status = time.monotonic(), uuid.uuid4().hex, 0
        state = scope.setdefault("state", {})
        state |= {"owner": "", "request_id": request_id, "began": began, "notes": {}}

        path = scope["path"].removeprefix(scope.get("root_path", ""))
        body = Body(receive, self._most_bytes(path), self.limits.body_seconds)

        async def counted_send(event: dict) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = event["status"]
                extra = [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]
                if not body.complete:
                    extra.append((b"connection", b"close"))
                event["headers"] = [*event["headers"], *extra]
            elif not event.get("more_body") and not body.complete and status != 408:
                await send(event | {"more_body": True})
                await body.drain()
                event = {"type": "http.response.body"}
            # Of a client that does not read its response.
            await asyncio.wait_for(send(event), self.limits.request_seconds)

        large = path in IMAGE_PATHS
        self.large += large
        refusal = self._refusal(scope, path, state)
        try:
            await (refusal or self.app)(scope, body.receive, counted_send)
        except TooMuch as error:  # of a body that nobody was to read
            await error_response(path, error.status_code, error.detail)(scope, receive, counted_send)
        finally:
            self.large -= large
            # The pattern of the path: an image's own path is what lets somebody fetch it.
            endpoint = getattr(scope.get("route"), "path", "") if refusal is None else ""
            seconds = time.monotonic() - began
            self.metrics.requests.labels(endpoint, status or 499).inc()
            self.metrics.duration.labels(endpoint).observe(seconds)
            line = {"event": "request", "id": request_id, "key": state["owner"], "method": shown(scope["method"], 10)}
            line |= {"path": endpoint or shown(path), "status": status or 499, "seconds": round(seconds, 4)}
            quiet = path in OPEN  # probes come every few seconds
            logger.log(logging.DEBUG if quiet else logging.INFO, json.dumps(line | state["notes"]))

    def _refusal(self, scope: dict, path: str, state: dict) -> Response | None:
        """The response to what is refused before anything is read of its body."""

        def refuse(status: int, message: str, code: str, headers: dict | None = None) -> Response:
            self.metrics.rejected.labels(code).inc()
            return error_response(path, status, message, None, code, headers)

        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADERS:
            return refuse(431, f"The headers are too large; at most {MOST_HEADERS:,} bytes are read.", "headers")
        headers = Headers(scope=scope)
        if not self.access.names.knows_host(scope):
            return refuse(403, "This server is not known by that host name; its --allowed-host allows another.", "host")
        if self.access.names.refuses_page(scope):
            return refuse(403, "Pages of other addresses may not use this server.", "origin")
        if self.access.keys and path not in OPEN and not OPEN_IMAGE.fullmatch(path):
            given = headers.getlist("authorization")
            owner = self.access.owner(given[0]) if len(given) == 1 else None
            if owner is None:
                message = "An API key is needed, as in: Authorization: Bearer KEY"
                return refuse(401, message, "invalid_api_key", {"www-authenticate": "Bearer"})
            state["owner"] = owner
        if headers.getlist("content-encoding") not in ([], ["identity"]):
            return refuse(415, "Compressed requests are not read; send it without Content-Encoding.", "encoding")
        if path in IMAGE_PATHS and self.large > self.limits.max_queue:
            return refuse(429, "Too many images are being sent; try again.", "queue_full", {"retry-after": "5"})
        length = headers.get("content-length", "0")
        most = self._most_bytes(path)
        if not length.isdecimal() or len(length) > 15 or int(length) > most:
            return refuse(413, f"This request is too large; at most {most:,} bytes are read.", "too_large")
        return None

    def _most_bytes(self, path: str) -> int:
        return self.limits.max_body if path in IMAGE_PATHS else min(PLAIN_BODY, self.limits.max_body)
