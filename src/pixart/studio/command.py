"""`pixart app`: the studio, a web page for generating images on this machine."""

import signal
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart.config import run_command
from pixart.runtime.memory import AUTO, PLAIN, Computing, Memory
from pixart.server.access import Listening

HERE = Listening(port=7860)


@dataclass
class App:
    """Open a web page for generating images, on this machine. Ctrl-C ends it."""

    model: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(default: the model in the package)")] = None
    """A model folder, or organisation/name on the Hub. Another can be chosen on the page."""
    fast: bool = False
    """Use the model's few-step transformer: guidance is in its weights."""
    outputs: Annotated[Path, arg(metavar="FOLDER")] = Path("outputs")
    """Where the images are saved, each run in a folder of its own. Files in it can be fetched through the page."""
    listening: Annotated[Listening, arg(name="")] = HERE
    password_file: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: PIXART_PASSWORD)")] = None
    """A file with a password, which the browser then asks for, with any user name."""
    computing: Annotated[Computing, arg(name="")] = AUTO
    memory: Annotated[Memory, arg(name="")] = PLAIN
    no_metadata: bool = False
    """Write images without settings in them; they cannot be generated again from the file."""
    open: bool = False
    """Open the page in the browser."""


def run(arguments: list[str]) -> int:
    """Serve until Ctrl-C; the address goes to stdout."""
    return run_command(App, arguments, "pixart app", _run)


def _run(options: App) -> int:
    from pixart.studio.serve import check_access, forget_gradio_settings, read_password, serve

    password = read_password(options.password_file)
    check_access(options.listening.host, password)
    if ignored := forget_gradio_settings():
        print(f"Ignored: {', '.join(ignored)}; see docs/app.md, Safety.", file=sys.stderr, flush=True)
    import gradio  # noqa: F401  so that a missing extra is said before anything is loaded

    from pixart.pipeline.networks import choose_runtime
    from pixart.studio.models import Choice
    from pixart.studio.studio import Studio

    how = options.computing
    choice = Choice(options.model, how.engine, how.dtype, options.memory, how.device, options.fast)
    studio = Studio(choice, options.outputs, metadata=not options.no_metadata)
    choose_runtime(studio.models.folder, how.engine, how.dtype, options.memory, how.device)
    listening = options.listening.listen()
    studio.worker.submit(studio.models.require)  # so that the first click need not wait for it
    address = options.listening.address(listening) + "/"  # whoever asks before the page is built waits a moment
    print(address, flush=True)
    print(f"Images go to {studio.runs.folder}. Ctrl-C ends it.", file=sys.stderr, flush=True)
    if options.open:
        webbrowser.open(address)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that nothing is left behind
    try:
        serve(studio, listening, options.listening, password)
    finally:
        studio.close()
    return 0
