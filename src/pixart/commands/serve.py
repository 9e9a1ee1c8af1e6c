"""`pixart serve`: models behind the APIs of OpenAI and A1111."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from pixart.config import shown
from pixart.errors import UsageError
from pixart.runtime.memory import PLAIN, Memory
from pixart.server.limits import Limits


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
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Where to listen."""
    port: Annotated[int, arg(metavar="N")] = 8000
    """Port to listen on; 0 takes a free one."""
    api_key_file: Annotated[Path | None, shown("FILE", "PIXART_API_KEY")] = None
    """A file with API keys, one a line, as name:key. Each key has a fair share of the queue and of the device."""
    allowed_host: Annotated[
        tuple[str, ...], UseAppendAction, arg(metavar="NAME", help_behavior_hint="(repeatable)")
    ] = ()
    """Further names by which clients reach this server, as behind a proxy."""
    root_path: Annotated[str, shown("PATH", "none")] = ""
    """The path that a proxy takes away before it hands a request on."""
    engine: Annotated[str, arg(metavar="NAME")] = "auto"
    """onnx, torch, or auto."""
    dtype: Annotated[str, arg(metavar="NAME")] = "auto"
    """float32, int8 (onnx), bfloat16 or float16 (torch), or auto."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """cpu, with torch cuda or mps, or auto."""
    memory: Annotated[Memory, arg(name="")] = PLAIN
    limits: Annotated[Limits, arg(name="")] = field(default_factory=Limits)
    no_metadata: bool = False
    """Send images without settings in them; they cannot be generated again from the file."""
    log_prompts: bool = False
    """Write prompts into the log."""


def serve(options: Serve) -> int:
    """Serve until SIGTERM or Ctrl-C; the address goes to stdout."""
    if not 0 <= options.port <= 65535:
        raise UsageError(f"The port must be from 0 to 65535, not {options.port}.")
    import fastapi  # noqa: F401  so that a missing extra is named before anything is loaded

    from pixart.server.access import LOOPBACK, address_of, listen, names_of
    from pixart.server.guard import Access, read_keys
    from pixart.server.run import run
    from pixart.server.service import Service, Source, open_model

    keys = read_keys(options.api_key_file, os.environ.pop("PIXART_API_KEY", None))
    if options.host not in LOOPBACK and not keys:
        raise UsageError(
            f"At {options.host} others can reach this server, so it needs an API key: give a file with one "
            "(--api-key-file) or set PIXART_API_KEY; or leave --host out."
        )
    how = {name: getattr(options, name) for name in ("engine", "dtype", "device", "memory", "loras")}
    models = []
    for fast in (False, True)[: 2 if options.fast else 1]:
        models += [open_model(Source(model, fast=fast, **how)) for model in options.models or (None,)]
    names = [model.name for model in models]
    if double := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"Two models have the name {double[0]}; rename a folder.")
    listening = listen(options.host, options.port)
    for model in models:
        print(f"{model.name}: {model.runtime.line}", file=sys.stderr)
    print(address_of(options.host, listening), flush=True)
    service = Service(models, options.limits, len(keys), metadata=not options.no_metadata, prompts=options.log_prompts)
    access = Access(keys, names_of(options.host, options.allowed_host))
    run(service, access, listening, options.root_path)
    return 0
