"""Serving the page: with a guard before Gradio, and nothing fetched from or handed to anywhere else."""

import os
import re
import secrets
import shutil
import socket
import tempfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from pixart.errors import PixArtError, UsageError, reason_of
from pixart.files import read_bytes
from pixart.server.access import LOOPBACK, Listening

LARGEST_UPLOAD = "32mb"
MAX_SESSIONS = 100  # visitors, about 0.2 MB each, of whom Gradio knows which run their page shows
# Paths that are answered as `pixart serve` answers them, with --api.
OF_PROGRAMS = re.compile(r"/(v1|sdapi)/.*|/(livez|readyz|health|metrics|openapi\.json)")
MAX_WAITING = 64  # clicks of all visitors together


def forget_gradio_settings() -> list[str]:
    """Take GRADIO_ variables out of the environment, before Gradio is imported; returns which were there.

    They serve other files, publish the page, watch sources, send statistics: none of it is for this page.
    """
    names = sorted(name for name in os.environ if name.startswith("GRADIO_"))
    for name in names:
        del os.environ[name]
    return names


def check_access(host: str, share: bool, password: str | None) -> None:
    """UsageError where others could reach the page, and there is no password."""
    option = "--share" if share else "--host"
    if (share or (host not in LOOPBACK and "SPACE_ID" not in os.environ)) and password is None:
        raise UsageError(
            f"With {option} others can reach the page, so it needs a password: give a file with one (--password-file) "
            f"or set PIXART_PASSWORD; or leave {option} out."
        )


def serve(
    studio,
    listening: socket.socket,
    where: Listening,
    password: str | None = None,
    *,
    share: bool = False,
    keys: dict[bytes, str] | None = None,
) -> None:
    """Serve the page of a Studio until a signal ends it, which is then raised as it would have been.

    Args:
        listening: the socket of `where`.
        password: asked for by HTTP Basic authentication, with any user name; needed where others can reach the page.
        share: open an address of Gradio's relay, too, and print it.
        keys: of the programs that the studio's service answers.

    Raises:
        PixArtError: the relay cannot be reached.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = "1000000000"  # else a table of all events after every event
    uploads = os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(tempfile.mkdtemp(prefix="pixart-app-"))
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from pixart.studio.guard import Access, Guard
    from pixart.studio.page import HERE, Page, content, theme

    page = Page(studio).blocks
    gr.set_static_paths([studio.runs.folder])  # shown as they lie there, without copies
    page.state_session_capacity = MAX_SESSIONS
    page.queue(default_concurrency_limit=8, max_size=MAX_WAITING)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="",
        server_name=where.host,
        footer_links=["settings"],
        run_history=False,
        allowed_paths=[],
        blocked_paths=[],
        show_error=True,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        root_path=where.root_path or None,
        theme=theme(),
        css_paths=HERE / "page.css",
        head=f"<script>{content('page.js')}</script>",
    )
    space = "SPACE_ID" in os.environ
    shared = _share(where, listening) if share else ""
    named = {*where.allowed_host, os.environ.get("SPACE_HOST", "") if space else "", shared} - {""}
    names = replace(
        replace(where, allowed_host=tuple(named)).names(), proxied=frozenset(name.lower() for name in named)
    )
    guard = Guard(app, studio, Access(names, password, space))
    api = None
    if studio.service is not None:
        from pixart.server.app import create_app
        from pixart.server.guard import Access as ApiAccess

        api = create_app(studio.service, ApiAccess(keys or {}, names), lambda error: None)

    async def application(scope, receive, send) -> None:
        of_programs = api is not None and scope["type"] == "http" and OF_PROGRAMS.fullmatch(scope["path"])
        await (api if of_programs else guard)(scope, receive, send)

    config = uvicorn.Config(
        application, log_level="warning", ws="none", timeout_graceful_shutdown=3, proxy_headers=False
    )
    try:
        uvicorn.Server(config).run([listening])
    finally:
        shutil.rmtree(uploads, ignore_errors=True)


def _share(where: Listening, listening: socket.socket) -> str:
    """Open a tunnel to Gradio's relay and print its address; returns its host. It ends with the process."""
    from gradio.networking import setup_tunnel

    host = where.host if where.host not in ("0.0.0.0", "::") else "127.0.0.1"
    try:
        address = setup_tunnel(host, listening.getsockname()[1], secrets.token_urlsafe(32), None, None)
    except Exception as error:  # whatever the network, the relay's program or its download end in
        raise PixArtError(
            f"Gradio's relay cannot be used ({reason_of(error)}); leave --share out, or put a tunnel of your own in "
            "front, with --allowed-host."
        ) from None
    print(address, flush=True)
    return urlsplit(address).hostname or ""


def read_password(file: Path | None) -> str | None:
    """From the file, else from PIXART_PASSWORD, which is then taken out of the environment."""
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
