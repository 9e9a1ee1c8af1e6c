"""Serving the page: with a guard before Gradio, and nothing fetched from or handed to anywhere else."""

import os
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixart.errors import PixArtError, UsageError
from pixart.web.guard import Access, Guard
from pixart.web.studio import Studio

LARGEST_UPLOAD = "32mb"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass
class Served:
    """A page that is being served in threads of its own."""

    server: Any
    thread: threading.Thread
    blocks: Any

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=5)
        if self.thread.is_alive():  # somebody still looks at a running image
            self.server.force_exit = True
            self.thread.join(timeout=5)
        self.blocks.close(verbose=False)


def forget_gradio_settings() -> list[str]:
    """Take GRADIO_ variables out of the environment, before Gradio is imported; returns which were there.

    They serve other files, publish the page, watch sources, send statistics: none of it is for this page.
    """
    names = sorted(name for name in os.environ if name.startswith("GRADIO_"))
    for name in names:
        del os.environ[name]
    return names


def serve(
    studio: Studio,
    *,
    host: str,
    port: int,
    open_browser: bool = False,
    allowed_hosts: tuple[str, ...] = (),
    password: str | None = None,
    root_path: str = "",
) -> tuple[Served, str]:
    """Start serving in the background; returns what ends it by `close()`, and the address.

    Args:
        allowed_hosts: names, besides the address itself, by which browsers may reach the page.
        password: asked for by HTTP Basic authentication, with any user name; needed where others can reach the page.
        root_path: the path that a proxy takes away before it hands a request on.

    Raises:
        PixArtError: the port is taken, or the host is not this machine's.
        UsageError: others could reach the page, and there is no password.
    """
    space = "SPACE_ID" in os.environ
    if host not in LOOPBACK and password is None and not space:
        raise UsageError(
            f"At {host} others can reach the page, so it needs a password: give a file with one (--password-file) or "
            "set PIXART_PASSWORD; or leave --host out."
        )
    listening = _listen(host, port)
    forget_gradio_settings()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"  # else a table of all events after every event
    # Uploads and archives: a folder of our own.
    os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(tempfile.mkdtemp(prefix="pixart-app-"))
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from pixart.web.page import build_page, css, head, theme

    page = build_page(studio)
    gr.set_static_paths([studio.runs.folder])  # shown as they lie there, without copies
    page.queue(default_concurrency_limit=8, max_size=200)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="",
        server_name=host,
        server_port=port,
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=[],
        show_error=True,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        root_path=root_path or None,
        theme=theme(),
        css=css(),
        head=head(),
    )
    named = {*allowed_hosts, os.environ.get("SPACE_HOST", "") if space else ""} - {""}
    own = {*LOOPBACK, *({host, socket.gethostname()} - {"0.0.0.0", "::"} if host not in LOOPBACK else ())}
    access = Access(
        hosts=frozenset(name.lower().strip("[]") for name in own | named),
        foreign=frozenset(name.lower() for name in named),
        own_address=host not in LOOPBACK,
        password=password,
        in_space=space,
    )
    guard = Guard(app, studio.runs, temporary_folder(), access)
    config = uvicorn.Config(guard, log_level="warning", ws="none", timeout_graceful_shutdown=3, proxy_headers=False)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    thread = threading.Thread(target=server.run, args=([listening],), name="pixart-server", daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise PixArtError(f"The page cannot be served at {host}:{port}.")
        time.sleep(0.01)
    shown = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{port}/"
    if open_browser:
        import webbrowser

        webbrowser.open(address)
    return Served(server, thread, page), address


def read_password(file: Path | None) -> str | None:
    """From the file, else from PIXART_PASSWORD, which is then taken out of the environment."""
    from pixart.files import read_bytes

    given = os.environ.pop("PIXART_PASSWORD", None)
    if file is None:
        if given == "":
            raise UsageError("PIXART_PASSWORD is empty; set it to a password, or leave it unset.")
        return given
    try:
        password = read_bytes(file, 4096).decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError(f"The password in {file} is not UTF-8 text.") from None
    if not password or "\n" in password:
        raise UsageError(f"{file} must hold one line, the password.")
    return password


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: whether the port is free is known before anything is built."""
    try:
        family = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            if sys.platform != "win32":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host.strip("[]"), port))
            listening.listen(2048)
        except BaseException:
            listening.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PixArtError(f"The page cannot be served at {host}:{port} ({reason}); choose another --port.") from None
    return listening


def temporary_folder() -> Path:
    """Where uploads and archives lie while the page is served; to be removed afterwards."""
    return Path(os.environ["GRADIO_TEMP_DIR"])
