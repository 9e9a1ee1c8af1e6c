"""What stands before Gradio: who may ask, from which page, for which paths, and how much they may send."""

import hmac
import os
import re
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import FileResponse, PlainTextResponse

from pixart.server.access import Names, basic_password
from pixart.server.body import Body, TooMuch
from pixart.studio.studio import Studio

# The browser itself then refuses to ask any other host for anything, whatever stands in the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
LARGEST_BODY = 24_000_000  # bytes of one request that is no upload: a prompt of 10 MB is answered, not a flood
LARGEST_UPLOAD = 34_000_000  # bytes of the body of one upload
BODY_SECONDS = 3600.0  # for one body, over the slowest line
# Uploads of one client and of all: how many, how many bytes, and within how many seconds. One that does not say how
# large it is counts as the largest.
UPLOADS_OF_ONE = (30, 200_000_000, 60)
UPLOADS_OF_ALL = (1000, 2_000_000_000, 3600)
# The routes of Gradio that the page needs. Files are served here, everything else is refused: proxying, streams,
# links to stored states, components' own servers, run history, editing of the source, monitoring.
ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/(static|assets|svelte)/.*"
    r"|/gradio_api/(info|app_id|theme\.css|startup-events|upload|upload_progress|queue/join|queue/data|cancel|reset)/?"
    r"|/gradio_api/(heartbeat|run)/[\w-]+/?|/(gradio_api/)?(login_check|user|token)/?"
)
FILE = re.compile(r"(?:/gradio_api)?/file[=/](.*)", re.DOTALL)


@dataclass(frozen=True)
class Access:
    """Who may use the page.

    Attributes:
        names: by which the page is reached.
        password: asked for if not None.
        in_space: shown in a frame of the Hugging Face Hub.
    """

    names: Names
    password: str | None = None
    in_space: bool = False


class Guard:
    """An ASGI application around Gradio's. It has the first word on every request, preflights too."""

    def __init__(self, app, studio: Studio, access: Access):
        self.app, self.studio, self.access = app, studio, access
        self.uploads: deque[tuple[float, str, int]] = deque()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        answered = False

        async def send_with_policy(event) -> None:
            nonlocal answered
            if event["type"] == "http.response.start":
                answered = True
                # Whoever is refused may go on sending, and nobody listens any more.
                close = [(b"connection", b"close")] if event["status"] >= 400 else []
                event["headers"] = [*event["headers"], *self._headers(), *close]
            await send(event)

        refusal = self._refusal(scope)
        if refusal is not None:
            await PlainTextResponse(refusal[1], refusal[0], *refusal[2:])(scope, receive, send_with_policy)
            return
        if (asked := FILE.fullmatch(scope["path"])) is not None:
            await self._send_file(asked.group(1), scope, receive, send_with_policy)
            return
        # The page reads the events of its session here; when it is closed, so is this request.
        most = LARGEST_UPLOAD if _uploads(scope["path"]) else LARGEST_BODY
        is_data = scope["path"].rstrip("/").endswith("/queue/data")
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0] if is_data else ""
        try:
            self.studio.listening[session] += 1
            await self.app(scope, Body(receive, most, BODY_SECONDS).receive, send_with_policy)
        except TooMuch as error:
            if not answered:
                await PlainTextResponse(error.detail, error.status_code)(scope, receive, send_with_policy)
        finally:
            self.studio.listening[session] -= 1
            if not self.studio.listening[session]:
                del self.studio.listening[session]

    def _headers(self) -> list[tuple[bytes, bytes]]:
        # A Space is shown in a frame of the Hub's page.
        own = "frame-ancestors 'self'"
        policy = POLICY.replace(own, f"{own} https://huggingface.co") if self.access.in_space else POLICY
        return [
            (b"content-security-policy", policy.encode()),
            (b"referrer-policy", b"no-referrer"),
            (b"x-content-type-options", b"nosniff"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]

    def _refusal(self, scope) -> tuple | None:
        """Status, body and further headers of what is refused before anything is read."""
        headers = Headers(scope=scope)
        if not self.access.names.knows_host(scope):
            return 403, "This address is not one that the page is served at; --allowed-host NAME allows another."
        if self.access.names.refuses_page(scope):
            return 403, "Pages of other addresses may not use this one."
        given = basic_password(headers.get("authorization", "")) or ""
        if self.access.password is not None and not hmac.compare_digest(given.encode(), self.access.password.encode()):
            return 401, "This page has a password.", {"www-authenticate": 'Basic realm="pixart", charset="UTF-8"'}
        path = scope["path"]
        if not (ROUTES.fullmatch(path) or FILE.fullmatch(path)) or ".." in path.split("/"):
            return 403, "Only files of this page are served."
        length = headers.get("content-length", "0")
        upload = _uploads(path)
        if not re.fullmatch("[0-9]{1,12}", length) or int(length) > (LARGEST_UPLOAD if upload else LARGEST_BODY):
            return 413, "This request is too large."
        size = int(length) if "content-length" in headers else LARGEST_UPLOAD
        if upload and scope["method"] == "POST" and not self._may_upload(scope, size):
            return 429, "Too much was uploaded within a short time; try again later.", {"retry-after": "60"}
        return None

    def _may_upload(self, scope, size: int) -> bool:
        now = time.monotonic()
        client = scope["client"][0] if scope.get("client") else ""
        while self.uploads and now - self.uploads[0][0] > UPLOADS_OF_ALL[2]:
            self.uploads.popleft()
        for (most, most_bytes, seconds), whose in ((UPLOADS_OF_ONE, client), (UPLOADS_OF_ALL, None)):
            sizes = [other for at, who, other in self.uploads if now - at < seconds and whose in (None, who)]
            if len(sizes) >= most or sum(sizes) + size > most_bytes:
                return False
        self.uploads.append((now, client, size))
        return True

    async def _send_file(self, asked: str, scope, receive, send) -> None:
        path = self._allowed(asked) if scope["method"] in ("GET", "HEAD") else None
        if path is None:
            await PlainTextResponse("Only images of runs are served.", 403)(scope, receive, send)
            return
        response = FileResponse(path, media_type="image/png", filename=path.name, content_disposition_type="inline")
        await response(scope, receive, send)

    def _allowed(self, asked: str) -> Path | None:
        """The file that is asked for, if it is an image of a run and lies where it seems to."""
        if "\0" in asked:
            return None
        path = Path(os.path.abspath(asked))
        if os.path.realpath(path) != str(path) or not path.is_file() or path.parent.parent != self.studio.runs.folder:
            return None
        run = self.studio.runs.get(path.parent.name)
        return path if run is not None and path.name in [image["file"] for image in run.images] else None


def _uploads(path: str) -> bool:
    return path.rstrip("/").endswith("/upload")
