"""Serving the page: on this machine only, with nothing fetched from or handed to anywhere else."""

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from pixart.errors import PixArtError
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
        app_kwargs={"middleware": [Middleware(Guard)]},
    )
    return page, address


class Guard:
    """Says no to what Gradio would fetch elsewhere on a visitor's behalf, and tells browsers to stay here."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if "/proxy=" in path or "file=http" in path.lower() or "file/http" in path.lower():
            await _refuse(send, 403, b"Only files of this page are served.")
            return
        if not path.endswith("/upload") and length.isdigit() and int(length) > LARGEST_BODY:
            await _refuse(send, 413, b"This request is too large.")
            return

        async def send_with_policy(event) -> None:
            if event["type"] == "http.response.start":
                event["headers"] = [
                    *event["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(event)

        await self.app(scope, receive, send_with_policy)


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
