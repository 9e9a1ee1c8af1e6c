"""`pixart app`: the studio, a web page for drawing on this machine."""

import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from pixart.config import run_command
from pixart.errors import UsageError


@dataclass
class App:
    """Open a web page for drawing, on this machine. Ctrl-C ends it."""

    model: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(default: the model in the package)")] = None
    """A model folder, or organisation/name on the Hub. Another can be chosen on the page."""
    fast: bool = False
    """Draw with the model's fast denoiser: a few steps, and guidance is in its weights."""
    outputs: Annotated[Path, arg(metavar="FOLDER")] = Path("outputs")
    """Where the pictures are saved, each run in a folder of its own. Files in it can be fetched through the page."""
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Where to listen. Others can reach any address but the default, so it needs a password."""
    port: Annotated[int, arg(metavar="N")] = 7860
    """Port to listen on."""
    password_file: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: PIXART_PASSWORD)")] = None
    """A file with a password, which the browser then asks for, with any user name."""
    allowed_host: Annotated[
        tuple[str, ...], UseAppendAction, arg(metavar="NAME", help_behavior_hint="(repeatable)")
    ] = ()
    """A further name by which browsers may reach the page, as behind a proxy."""
    root_path: Annotated[str, arg(metavar="PATH", help_behavior_hint="(default: none)")] = ""
    """The path that a proxy takes away before it hands a request on, such as /proxy/7860."""
    engine: Annotated[str, arg(metavar="NAME")] = "auto"
    """onnx, torch, or auto."""
    dtype: Annotated[str, arg(metavar="NAME")] = "auto"
    """float32, int8 (onnx), bfloat16 or float16 (torch), or auto."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """cpu, with torch cuda or mps, or auto."""
    no_metadata: bool = False
    """Write pictures without settings in them. They cannot be drawn again from the file."""
    open: bool = False
    """Open the page in the browser."""


def run(arguments: list[str]) -> int:
    """Serve until Ctrl-C; the address goes to stdout."""
    return run_command(App, arguments, "pixart app", _run)


def _run(options: App) -> int:
    if not 1 <= options.port <= 65535:
        raise UsageError(f"The port must be from 1 to 65535, not {options.port}.")
    from pixart.web.serve import forget_gradio_settings, read_password, serve, temporary_folder

    password = read_password(options.password_file)
    if ignored := forget_gradio_settings():
        print(f"Ignored: {', '.join(ignored)}; see docs/app.md, Safety.", file=sys.stderr, flush=True)
    import gradio  # noqa: F401  so that a missing extra is said before anything is loaded

    from pixart.pipeline.networks import choose_runtime
    from pixart.web.models import Choice
    from pixart.web.studio import Studio

    studio = Studio(
        Choice(options.model, options.engine, options.dtype, device=options.device, fast=options.fast),
        options.outputs,
        metadata=not options.no_metadata,
    )
    choose_runtime(studio.models.folder, options.engine, options.dtype, device=options.device)
    studio.warm_up()
    page, address = serve(
        studio,
        host=options.host,
        port=options.port,
        open_browser=options.open,
        allowed_hosts=options.allowed_host,
        password=password,
        root_path=options.root_path,
    )
    print(address, flush=True)
    print(f"Pictures go to {studio.runs.folder}. Ctrl-C ends it.", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, _stop)
    try:
        while True:
            time.sleep(3600)
    finally:
        page.close()
        studio.close()
        shutil.rmtree(temporary_folder(), ignore_errors=True)


def _stop(number: int, frame) -> None:
    """Told to end: as with Ctrl-C, so that nothing is left behind."""
    raise KeyboardInterrupt
