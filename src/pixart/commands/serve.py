"""`pixart serve`: models behind the APIs of OpenAI and A1111."""

import os
import socket
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from pixart.config import shown
from pixart.errors import UsageError
from pixart.runtime.memory import AUTO, PLAIN, Computing, Memory
from pixart.server.access import LOOPBACK, Listening
from pixart.server.limits import Limits, Replicas

HERE = Listening(port=8000)


@dataclass
class Serve:
    """Serve images over HTTP: OpenAI's images API at /v1, and A1111's at /sdapi/v1. docs/server.md shows clients.

    On this machine no API key is needed; for any other address there must be one.
    """

    models: Positional[
        Annotated[tuple[str, ...], arg(metavar="MODEL", help_behavior_hint="(default: the package's)")]
    ] = ()
    """Model folders in the layout of Diffusers, or ids on the Hugging Face Hub. A request chooses by `model`; the first
    is the default."""
    fast: bool = False
    """Serve the few-step transformers of these models too, as NAME-fast."""
    loras: Annotated[Path | None, shown("FOLDER", "none")] = None
    """A folder of adapters, each a safetensors file or a folder as PEFT writes it; a request names them."""
    listening: Annotated[Listening, arg(name="")] = HERE
    api_key_file: Annotated[Path | None, shown("FILE", "PIXART_API_KEY")] = None
    """A file with API keys, one a line, as name:key. Each key has a fair share of the queue and of the device."""
    computing: Annotated[Computing, arg(name="")] = AUTO
    memory: Annotated[Memory, arg(name="")] = PLAIN
    limits: Annotated[Limits, arg(name="")] = field(default_factory=Limits)
    replicas: Annotated[Replicas, arg(name="")] = field(default_factory=Replicas)
    no_metadata: bool = False
    """Send images without settings in them; they cannot be generated again from the file."""
    log_prompts: bool = False
    """Write prompts into the log."""


def serve(options: Serve) -> int:
    """Serve until SIGTERM or Ctrl-C; the address goes to stdout."""
    import fastapi  # noqa: F401  so that a missing extra is named before anything is loaded

    from pixart.data.on_ray import connect
    from pixart.server.guard import Access, read_keys
    from pixart.server.models import Here, Source, open_model
    from pixart.server.on_ray import OnRay
    from pixart.server.run import run
    from pixart.server.service import Service

    host = options.listening.host
    keys = read_keys(options.api_key_file, os.environ.pop("PIXART_API_KEY", None))
    if host not in LOOPBACK and not keys:
        raise UsageError(
            f"At {host} others can reach this server, so it needs an API key: give a file with one "
            "(--api-key-file) or set PIXART_API_KEY; or leave --host out."
        )
    models = []
    for fast in (False, True)[: 2 if options.fast else 1]:
        models += [
            open_model(Source(model, fast, options.computing, options.memory, options.loras))
            for model in options.models or (None,)
        ]
    names = [model.name for model in models]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"Two models have the name {double[0]}; rename a folder.")
    if options.replicas.ray is not None:
        connect(options.replicas.ray)
        import ray.serve  # noqa: F401  for the same reason
    listening = options.listening.listen()
    for model in models:
        print(f"{model.name}: {model.runtime.line}", file=sys.stderr)
    print(options.listening.address(listening), flush=True)
    generates = Here
    if options.replicas.ray is not None:
        name = f"pixart-{socket.gethostname()}-{listening.getsockname()[1]}"
        generates = partial(OnRay, name, options.replicas)
    shown = {"metadata": not options.no_metadata, "prompts": options.log_prompts}
    service = Service(models, options.limits, len(keys), generates=generates, **shown)
    run(service, Access(keys, options.listening.names()), listening, options.listening.root_path)
    return 0
