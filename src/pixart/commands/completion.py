"""`pixart completion SHELL`: a script that completes commands and options."""

import sys
from typing import Annotated, Union

import tyro

from pixart.commands.app import App
from pixart.commands.caption import Caption
from pixart.commands.check import Check
from pixart.commands.compare import Compare, Prompts
from pixart.commands.convert import Convert
from pixart.commands.encode import Encode
from pixart.commands.extract import Extract
from pixart.commands.finetune import Finetune
from pixart.commands.generate import Generate
from pixart.commands.info import Info
from pixart.commands.merge import Merge
from pixart.commands.metrics import Metrics
from pixart.commands.models import Models
from pixart.commands.serve import Serve
from pixart.commands.statistics import Statistics
from pixart.commands.verify import Verify
from pixart.config import unknown
from pixart.errors import UsageError
from pixart.training.command import Export

SHELLS = ("bash", "zsh")
USAGE = """usage: pixart completion SHELL

Print a script for bash or zsh that completes commands and options. For bash, once:

  pixart completion bash > ~/.local/share/bash-completion/completions/pixart"""
DATA = {"check": Check, "extract": Extract, "caption": Caption, "statistics": Statistics}
COMMANDS = {
    "generate": Generate,
    "encode": Encode,
    "verify": Verify,
    "app": App,
    "serve": Serve,
    "convert": Convert,
    "merge": Merge,
    "info": Info,
    "models": Models,
    "compare": Compare,
    "prompts": Prompts,
    "metrics": Metrics,
    "finetune": Finetune,
    "export": Export,
}


def completion(arguments: list[str]) -> int:
    """Everything after `pixart completion`; prints the script. Returns the exit code."""
    if arguments in ([], ["-h"], ["--help"]):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    if len(arguments) > 1 or arguments[0] not in SHELLS:
        raise UsageError(unknown("shell", " ".join(arguments), SHELLS))
    commands = _one_of(COMMANDS | {"data": _one_of(DATA)})
    config = (tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff)
    try:
        tyro.cli(commands, prog="pixart", args=["--tyro-print-completion", arguments[0]], config=config)
    except SystemExit as stop:  # which is how tyro ends after it
        return int(stop.code or 0)
    return 0


def _one_of(commands: dict):
    return Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in commands.items())]  # noqa: UP007
