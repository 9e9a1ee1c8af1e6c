"""What stands before Gradio: who may ask, from which page, for which paths, and how much they may send."""

import base64
import binascii
import hmac
import os
import re
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pixart.web.runs import NAME, Runs

# The browser itself then refuses to ask any other host for anything, whatever stands in the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
LARGEST_BODY = 24_000_000  # bytes of one request that is no upload: a prompt of 10 MB is answered, not a flood
LARGEST_UPLOAD = 34_000_000  # bytes of the body of one upload
# Uploads of one client and of all: how many, how many bytes, and within how many seconds.
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
TYPES = {".png": "image/png", ".zip": "application/zip"}


@dataclass(frozen=True)
class Access:
    """Who may use the page.

    Attributes:
        hosts: names and addresses that a Host header may have, at any port (a tunnel has another).
        foreign: those of them that a proxy may put pages of other ports and schemes behind.
        own_address: whether the address that a connection came in at is one of the hosts, too.
        password: asked for if not None.
        in_space: shown in a frame of the Hugging Face Hub.
    """

    hosts: frozenset[str]
    foreign: frozenset[str] = frozenset()
    own_address: bool = False
    password: str | None = None
    in_space: bool = False


class _TooLarge(Exception):
    pass


class Guard:
    """An ASGI application around Gradio's. It has the first word on every request, preflights too."""

    def __init__(self, app, runs: Runs, temporary: Path, access: Access):
        self.app, self.runs, self.access = app, runs, access
        self.temporary = Path(os.path.realpath(temporary))
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
            await _answer(send_with_policy, *refusal)
            return
        if (asked := FILE.fullmatch(scope["path"])) is not None:
            await self._send_file(asked.group(1), scope, receive, send_with_policy)
            return
        try:
            await self.app(scope, self._limited(scope, receive), send_with_policy)
        except _TooLarge:
            if not answered:
                await _answer(send_with_policy, 413, b"This request is too large.")

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
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        host = hosts[0].decode("latin-1").lower() if len(hosts) == 1 else ""
        if not self._is_host(_name_of(f"//{host}"), scope):
            return 403, b"This address is not one that the page is served at; --allowed-host NAME allows another."
        for origin in headers.get(b"origin", []):
            if not self._is_origin(origin.decode("latin-1").lower(), host):
                return 403, b"Pages of other addresses may not use this one."
        site, mode = (headers.get(name, [b""])[0] for name in (b"sec-fetch-site", b"sec-fetch-mode"))
        if site in (b"cross-site", b"same-site") and (mode != b"navigate" or scope["method"] not in ("GET", "HEAD")):
            return 403, b"Pages of other addresses may not use this one."
        if self.access.password is not None and not self._knows(headers.get(b"authorization", [b""])[0]):
            return 401, b"This page has a password.", [(b"www-authenticate", b'Basic realm="pixart", charset="UTF-8"')]
        path = scope["path"]
        if not (ROUTES.fullmatch(path) or FILE.fullmatch(path)) or ".." in path.split("/"):
            return 403, b"Only files of this page are served."
        length = headers.get(b"content-length", [b"0"])[0]
        upload = path.rstrip("/").endswith("/upload")
        if not length.isdigit() or int(length) > (LARGEST_UPLOAD if upload else LARGEST_BODY):
            return 413, b"This request is too large."
        if upload and scope["method"] == "POST" and not self._may_upload(scope):
            return 429, b"Too much was uploaded within a short time; try again later.", [(b"retry-after", b"60")]
        return None

    def _is_host(self, name: str | None, scope) -> bool:
        if not name:
            return False
        served = {scope["server"][0].lower()} if self.access.own_address and scope.get("server") else set()
        return name in self.access.hosts or name in served

    def _is_origin(self, origin: str, host: str) -> bool:
        """The same host and port as the request's; behind a named proxy, the name."""
        try:
            parts = urlsplit(origin)
            port = parts.port
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}":
            return False
        if parts.hostname in self.access.foreign:
            return True
        default = {"http": ":80", "https": ":443"}[parts.scheme]
        named = host if re.search(r":\d+$", host) else host + default
        return named == (parts.netloc if port is not None else parts.netloc + default)

    def _knows(self, header: bytes) -> bool:
        kind, _, value = header.partition(b" ")
        try:
            given = base64.b64decode(value, validate=True).partition(b":")[2] if kind.lower() == b"basic" else b""
        except binascii.Error:
            given = b""
        return hmac.compare_digest(given, self.access.password.encode("utf-8"))

    def _may_upload(self, scope) -> bool:
        now = time.monotonic()
        client = scope["client"][0] if scope.get("client") else ""
        while self.uploads and now - self.uploads[0][0] > UPLOADS_OF_ALL[2]:
            self.uploads.popleft()
        for (most, most_bytes, seconds), whose in ((UPLOADS_OF_ONE, client), (UPLOADS_OF_ALL, None)):
            sizes = [size for at, who, size in self.uploads if now - at < seconds and whose in (None, who)]
            if len(sizes) >= most or sum(sizes) > most_bytes:
                return False
        self.uploads.append((now, client, 0))
        return True

    def _limited(self, scope, receive):
        """`receive`, which counts: a body that says no length may not be endless."""
        upload = scope["path"].rstrip("/").endswith("/upload")
        client = scope["client"][0] if scope.get("client") else ""
        most, read = (LARGEST_UPLOAD if upload else LARGEST_BODY), 0

        async def counted():
            nonlocal read
            event = await receive()
            size = len(event.get("body", b""))
            read += size
            if upload and size:
                self._add(client, size)
            if read > most:
                raise _TooLarge
            return event

        return counted

    def _add(self, client: str, size: int) -> None:
        """Count bytes to the client's newest upload."""
        for number in range(len(self.uploads) - 1, -1, -1):
            at, who, before = self.uploads[number]
            if who == client:
                self.uploads[number] = (at, who, before + size)
                return

    async def _send_file(self, asked: str, scope, receive, send) -> None:
        from starlette.responses import FileResponse

        path = self._allowed(asked) if scope["method"] in ("GET", "HEAD") else None
        if path is None:
            await _answer(send, 403, b"Only images of runs and their archives are served.")
            return
        await FileResponse(path, media_type=TYPES[path.suffix], filename=path.name, content_disposition_type="inline")(
            scope, receive, send
        )

    def _allowed(self, asked: str) -> Path | None:
        """The file that is asked for, if it is an image of a run, or the archive of one, and lies where it seems to."""
        if "\0" in asked:
            return None
        path = Path(os.path.abspath(asked))
        if os.path.realpath(path) != str(path) or not path.is_file() or path.suffix not in TYPES:
            return None
        if path.suffix == ".zip":
            return path if path.is_relative_to(self.temporary) and NAME.fullmatch(path.stem) else None
        if path.parent.parent != self.runs.folder:
            return None
        run = self.runs.get(path.parent.name)
        return path if run is not None and path.name in [image["file"] for image in run.pictures] else None


def _name_of(url: str) -> str | None:
    """The host of an address without its port; None for what is none."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises for what is no port
    except ValueError:
        return None
    return parts.hostname if parts.username is None and not (parts.path or parts.query or parts.fragment) else None


async def _answer(send, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*plain, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
