"""The command line. Results go to stdout, everything else to stderr; help must not pay for torch."""

import io
import itertools
import os
import sys
from collections.abc import Callable

from pixart import __version__
from pixart.config import run_command, unknown
from pixart.errors import PixArtError, UsageError
from pixart.quiet import quiet_libraries

HELP = f"""usage: pixart COMMAND ...

pixart {__version__}: PixArt-α and PixArt-Σ, from data to images.

  generate PROMPT     generate images and write them
  encode PROMPT ...   encode prompts into a file, to generate without a text encoder
  verify FILE ...     generate images again from their files, and compare every pixel
  app                 the studio: a web page for generating, on this machine
  serve [MODEL ...]   images over HTTP, by the APIs of OpenAI and A1111
  convert SOURCE      write a model in another form
  merge MODEL DEST    write a model with adapters (LoRA) in its weights
  info SOURCE         describe a model
  models              list the released models, their defaults and licences
  compare MODEL ...   the same prompts by several models, on one page to look at and vote on
  prompts [SET|FILE]  list the prompt sets, or the prompts of one
  metrics FOLDER      FID, KID, precision, recall and CLIPScore of a folder of images
  finetune IMAGES     teach a model a style or a subject from a folder of images
  train RECIPE ...    train a model by a recipe
  export RUN DEST     write a model from any checkpoint and average of a run
  data COMMAND ...    build, check and prepare data sets

pixart COMMAND --help shows what a command takes; pixart --version the version; pixart completion bash (or zsh)
a script that completes commands and options in the shell."""

# What people type for a command elsewhere.
OTHER_NAMES = dict.fromkeys(("gui", "ui", "webui", "web", "studio"), "app")
OTHER_NAMES |= dict.fromkeys(("draw", "txt2img", "img2img", "sample", "image", "create"), "generate")
OTHER_NAMES |= dict.fromkeys(("lora", "dreambooth", "tune"), "finetune") | {"server": "serve", "api": "serve"}

DATA_HELP = """usage: pixart data COMMAND ...

  check PATH          look a data set over: what is broken, double, cut, dropped
  extract PATH DEST   encode images and captions into what training reads
  caption PATH        let a vision-language model caption the images
  statistics PATH     count the nouns of the captions, beside the paper's table

pixart data COMMAND --help shows what a command takes."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _dispatch(arguments))


def guarded(act: Callable[[], int], program: str = "pixart") -> int:
    """Run the command `act`, with one sentence on stderr where it fails; a project's own commands use it too.

    Returns its exit code: that of `act`, else 1 failed, 2 bad usage, 130 stopped by Ctrl-C. `program` begins the
    sentence.
    """
    _print_any_text()
    try:
        code = act()
        sys.stdout.flush()
        return code
    except PixArtError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        from pixart.extras import missing_extra

        sentence = missing_extra(error)
        if sentence is None:
            raise
        print(f"{program}: {sentence}", file=sys.stderr)
        return sentence.exit_code
    except KeyboardInterrupt:
        print(f"{program}: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _close_stdout()  # the reader of our output (`| head`) has left; nothing more can be said to it
        return 1
    except MemoryError:
        print(f"{program}: there is not enough free memory for this.", file=sys.stderr)
        return 1
    except OSError as error:  # no file is written or read without saying which, but a disk can fill up anywhere
        which = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        print(f"{program}: {which}{error.strerror or error}.", file=sys.stderr)
        _close_stdout()
        return 1


def _print_any_text() -> None:
    """Let a terminal or pipe that knows no α, and names of files that are no text, not end a command."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


def _close_stdout() -> None:
    """If stdout takes no more, let Python not say so again as it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    match arguments:
        case ["--version" | "-V" | "version", *_]:
            print(f"pixart {__version__}")
            return 0
        case ["-h" | "--help" | "help", *_]:
            print(HELP)
            return 0
        case []:
            print(HELP, file=sys.stderr)
            return 2
    with quiet_libraries():
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    match arguments:
        case ["generate", *rest]:
            from pixart.commands.generate import EXAMPLES, Generate, generate

            rest = _prompt_first(rest)
            words = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
            if len(words) > 1:
                raise UsageError(f'The prompt is one text, so put it in quotes: pixart generate "{" ".join(words)}"')
            return run_command(Generate, rest, "pixart generate", generate, EXAMPLES)
        case ["verify", *rest]:
            from pixart.commands.verify import Verify, verify

            return run_command(Verify, rest, "pixart verify", verify)
        case ["app", *rest]:
            from pixart.commands.app import run as app

            return app(rest)
        case ["serve", *rest]:
            from pixart.commands.serve import Serve, serve

            return run_command(Serve, rest, "pixart serve", serve)
        case ["convert", *rest]:
            from pixart.commands.convert import Convert, convert

            return run_command(Convert, rest, "pixart convert", convert)
        case ["merge", *rest]:
            from pixart.commands.merge import Merge, merge

            return run_command(Merge, rest, "pixart merge", merge)
        case ["encode", *rest]:
            from pixart.commands.encode import Encode, encode

            return run_command(Encode, rest, "pixart encode", encode)
        case ["info", *rest]:
            from pixart.commands.info import Info, info

            return run_command(Info, rest, "pixart info", info)
        case ["models", *rest]:
            from pixart.commands.models import Models, list_models

            return run_command(Models, rest, "pixart models", list_models)
        case ["compare", *rest]:
            from pixart.commands.compare import Compare, compare

            return run_command(Compare, rest, "pixart compare", compare)
        case ["metrics", *rest]:
            from pixart.commands.metrics import Metrics, metrics

            return run_command(Metrics, rest, "pixart metrics", metrics)
        case ["prompts", *rest]:
            from pixart.commands.compare import Prompts, list_prompts

            return run_command(Prompts, rest, "pixart prompts", list_prompts)
        case ["finetune", *rest]:
            from pixart.commands.finetune import Finetune, finetune

            return run_command(Finetune, rest, "pixart finetune", finetune)
        case ["train", *rest]:
            from pixart.training.command import run

            return run(rest)
        case ["export", *rest]:
            from pixart.training.command import run_export

            return run_export(rest)
        case ["data", "check", *rest]:
            from pixart.commands.check import Check, check

            return run_command(Check, rest, "pixart data check", check)
        case ["data", "caption", *rest]:
            from pixart.commands.caption import Caption, caption

            return run_command(Caption, rest, "pixart data caption", caption)
        case ["data", "extract", *rest]:
            from pixart.commands.extract import Extract, extract

            return run_command(Extract, rest, "pixart data extract", extract)
        case ["data", "statistics", *rest]:
            from pixart.commands.statistics import Statistics, statistics

            return run_command(Statistics, rest, "pixart data statistics", statistics)
        case ["completion", *rest]:
            from pixart.commands.completion import completion

            return completion(rest)
        case ["data", "-h" | "--help"]:
            print(DATA_HELP)
            return 0
        case ["data", *rest]:
            if not rest:
                print(DATA_HELP, file=sys.stderr)
                return 2
            raise UsageError(_unknown("pixart data command", rest[0], DATA_HELP))
        case [name, *_] if name in OTHER_NAMES:
            raise UsageError(f"There is no command {name}; it is called: pixart {OTHER_NAMES[name]}.")
        case [name, *_] if name.startswith("-") or " " in name:
            raise UsageError('A command comes first, as in: pixart generate "a red apple" --size 256x256.')
        case _:
            raise UsageError(_unknown("command", arguments[0], HELP))


def _prompt_first(arguments: list[str]) -> list[str]:
    """`--prompt TEXT` or `-p TEXT`, as other programs have it, as the argument that it is here."""
    for index, word in enumerate(arguments[:-1]):
        if word in ("-p", "--prompt"):
            return [arguments[index + 1], *arguments[:index], *arguments[index + 2 :]]
    return arguments


def _unknown(kind: str, name: str, listing: str) -> str:
    """One sentence for a command that is not in a help text; the commands are the first words of its indented lines."""
    commands = [line.split()[0] for line in listing.splitlines() if line.startswith("  ")]
    return unknown(kind, name, dict.fromkeys(commands))
