"""Serving the page: on this machine only, with nothing fetched from or handed to anywhere else."""

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from pixart.errors import PixArtError
from pixart.web.runs import NAME
from pixart.web.studio import Studio

# The browser itself then refuses to ask any other host for anything, whatever stands in the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'self'; object-src 'none'; base-uri 'self'; form-action 'self'"
)
LARGEST_UPLOAD = "32mb"
LARGEST_BODY = 24_000_000  # bytes of one request that is no upload: a prompt of 10 MB is answered, not a flood


def serve(studio: Studio, *, host: str, port: int, open_browser: bool = False) -> tuple[Any, str]:
    """Start serving in the background; returns the gr.Blocks (its `close()` ends it) and the address.

    Raises:
        PixArtError: the port is taken, or the host is not this machine's.
    """
    _check_port(host, port)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"  # else a table of all events after every event
    # Uploads and archives: a folder of our own, since everything in it can be fetched by who knows its name.
    os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="pixart-app-")
    import gradio as gr
    from starlette.middleware import Middleware

    from pixart.web.page import build_page, css, head, theme

    page = build_page(studio)
    gr.set_static_paths([studio.runs.folder])  # served as they lie there, without copies
    page.queue(default_concurrency_limit=8, max_size=200)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=open_browser,
        show_error=True,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        max_file_size=LARGEST_UPLOAD,
        theme=theme(),
        css=css(),
        head=head(),
        app_kwargs={"middleware": [Middleware(Guard, outputs=studio.runs.folder)]},
    )
    return page, address


class Guard:
    """Says no to what is no business of the page, and tells browsers to ask no other host for anything.

    Of the outputs folder only runs are served, whatever else lies there; and Gradio's own ways to fetch something
    elsewhere on a visitor's behalf are shut.
    """

    def __init__(self, app, outputs: Path):
        self.app = app
        self.outputs = f"{outputs}/"

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        length = dict(scope["headers"]).get(b"content-length", b"0")
        _, asked, file = path.partition("/file=")
        foreign = "/proxy=" in path or "://" in path
        # As Gradio reads it: relative to where we are, with its dots taken out.
        full = os.path.abspath(file) + "/" if asked and "\0" not in file else ""
        outside_runs = full.startswith(self.outputs) and not _is_of_a_run(full[len(self.outputs) : -1])
        if foreign or outside_runs:
            await _refuse(send, 403, b"Only files of this page are served.")
            return
        if not path.endswith("/upload") and length.isdigit() and int(length) > LARGEST_BODY:
            await _refuse(send, 413, b"This request is too large.")
            return

        # A Space is shown in a frame of the Hub's page.
        own = "frame-ancestors 'self'"
        policy = POLICY.replace(own, f"{own} https://huggingface.co") if "SPACE_ID" in os.environ else POLICY

        async def send_with_policy(event) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [
                    *event["headers"],
                    (b"content-security-policy", policy.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(event)

        await self.app(scope, receive, send_with_policy)


def _is_of_a_run(path: str) -> bool:
    """Whether a path inside the outputs folder is a picture or the record of a run."""
    name, _, file = path.partition("/")
    return bool(NAME.fullmatch(name)) and "/" not in file and file.endswith((".png", ".json"))


async def _refuse(send, status: int, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})


def _check_port(host: str, port: int) -> None:
    """Gradio would look at it too, but says so in a traceback."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PixArtError(f"The page cannot be served at {host}:{port} ({reason}); choose another --port.") from None


def temporary_folder() -> Path:
    """Where uploads and archives lie while the page is served; to be removed afterwards."""
    return Path(os.environ["GRADIO_TEMP_DIR"])
