"""`pixart app`: the studio, a web page for generating images on this machine."""

import os
import signal
import sys
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart.config import run_command, shown
from pixart.errors import UsageError
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
    loras: Annotated[Path | None, shown("FOLDER", "none")] = None
    """A folder of adapters to choose from, each a safetensors file or a folder as PEFT writes it."""
    listening: Annotated[Listening, arg(name="")] = HERE
    password_file: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: PIXART_PASSWORD)")] = None
    """A file with a password, which the browser then asks for, with any user name."""
    share: bool = False
    """Give the page an address of Gradio's relay, too, for everyone with the password; needs the network."""
    api: bool = False
    """Answer programs, too: the APIs of pixart serve, with the page's model and in one queue with it. A key that they
    need stands in PIXART_API_KEY."""
    computing: Annotated[Computing, arg(name="")] = AUTO
    memory: Annotated[Memory, arg(name="")] = PLAIN
    no_metadata: bool = False
    """Write images without settings in them; they cannot be generated again from the file."""
    track: Annotated[str | None, shown("TOOL", "none")] = None
    """Record the images in wandb or trackio: configuration, texts, seeds, time."""
    open: bool = False
    """Open the page in the browser."""


def run(arguments: list[str]) -> int:
    """Serve until Ctrl-C; the address goes to stdout."""
    return run_command(App, arguments, "pixart app", _run)


def _run(options: App) -> int:
    from pixart.studio.serve import check_access, forget_gradio_settings, read_password, serve

    password = read_password(options.password_file)
    check_access(options.listening.host, options.share, password)
    if ignored := forget_gradio_settings():
        print(f"Ignored: {', '.join(ignored)}; see docs/app.md, Safety.", file=sys.stderr, flush=True)
    import gradio  # noqa: F401  so that a missing extra is said before anything is loaded

    from pixart.pipeline.networks import choose_runtime
    from pixart.studio.models import Choice
    from pixart.studio.studio import Studio
    from pixart.tracking.generations import GenerationTracker

    how = options.computing
    choice = Choice(options.model, how.engine, how.dtype, options.memory, how.device, how.compile, options.fast)
    service, keys = _programs(options, password) if options.api else (None, {})
    studio = Studio(
        choice, options.outputs, metadata=not options.no_metadata, loras=options.loras, service=service,
        tracker=GenerationTracker(options.track, options.outputs) if options.track else None,
    )  # fmt: skip
    choose_runtime(studio.models.folder, how.engine, how.dtype, options.memory, how.device, compile=how.compile)
    listening = options.listening.listen()
    studio.worker.submit(studio.require)  # so that the first click need not wait for it
    address = options.listening.address(listening) + "/"  # whoever asks before the page is built waits a moment
    print(address, flush=True)
    print(f"Images go to {studio.runs.folder}. Ctrl-C ends it.", file=sys.stderr, flush=True)
    if options.open:
        webbrowser.open(address)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that nothing is left behind
    try:
        serve(studio, listening, options.listening, password, share=options.share, keys=keys)
    finally:
        studio.close()
    return 0


def _programs(options: App, password: str | None) -> tuple:
    """The service of `pixart serve` and the keys to it."""
    from pixart.server.guard import read_keys
    from pixart.server.limits import Limits
    from pixart.server.models import Source, open_model
    from pixart.server.service import Service

    keys = read_keys(None, os.environ.pop("PIXART_API_KEY", None))
    if password is not None and not keys:
        raise UsageError("With a password for the page, programs need a key, too: set PIXART_API_KEY to one.")
    model = open_model(Source(options.model, options.fast, options.computing, options.memory, options.loras))
    return Service([model], Limits(), len(keys), metadata=not options.no_metadata), keys
