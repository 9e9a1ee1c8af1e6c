"""The command line. Results go to stdout, everything else to stderr; help must not pay for torch."""

import io
import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from pixart import __version__
from pixart.config import run_command, unknown
from pixart.errors import PixArtError, UsageError
from pixart.options import parsed, shown
from pixart.quiet import quiet_libraries

HELP = f"""usage: pixart COMMAND ...

PixArt-α {__version__}: text to image, from data to pictures.

  generate PROMPT     generate images and write them
  encode PROMPT ...   encode prompts into a file, to generate without a text encoder
  verify FILE ...     generate images again from their files, and compare every pixel
  app                 a web page for drawing, on this machine
  convert SOURCE      write a model in another form
  info SOURCE         say what a model is
  compare MODEL ...   the same prompts by several models, on one page to look at and vote on
  prompts [SET|FILE]  list the prompt sets, or the prompts of one
  evaluate MODEL      draw held-out captions and judge the drawings, beside real pictures
  metrics DRAWN       FID, KID, precision, recall, CLIPScore, HPSv2, ImageReward of a folder
  layout NAME ...     draw the prompts of GenEval or T2I-CompBench where their scripts look
  train RECIPE        train a model by a recipe
  ema RUN             compare the moving averages of a run, and write the chosen one
  plan RECIPE         what a training needs: memory, hours, energy, money, CO2
  data COMMAND ...    build, check and prepare data sets

pixart COMMAND --help shows what a command takes; pixart --version the version."""

DATA_HELP = """usage: pixart data COMMAND ...

  emoji DEST          build the emoji data set
  recolour DATA       add a split to it: training pictures in other colours, named
  check PATH          look a data set over: what is broken, double, cut, dropped
  extract PATH DEST   encode pictures and captions into what training reads
  caption PATH        let a vision-language model caption the pictures
  statistics PATH     count the nouns of the captions, beside the paper's table

pixart data COMMAND --help shows what a command takes."""


@dataclass
class DataEmoji:
    """Build the emoji data set: fetches freely licensed emoji from npm by package name, draws and captions them."""

    dest: Annotated[Path, arg(metavar="DEST")]
    """Folder to build."""
    size: Annotated[int, arg(metavar="PIXELS")] = 256
    """Width and height of the pictures."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides which pictures are held out."""
    packages: Annotated[Path | None, shown("FOLDER", "fetch with npm")] = None
    """A folder of npm packages fetched before."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 asked wrongly, 130 stopped by Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _print_any_text()
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except PixArtError as error:
        print(f"pixart: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        from pixart.extras import missing_extra

        sentence = missing_extra(error)
        if sentence is None:
            raise
        print(f"pixart: {sentence}", file=sys.stderr)
        return sentence.exit_code
    except KeyboardInterrupt:
        print("pixart: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _close_stdout()  # the reader of our output (`| head`) has left; nothing more can be said to it
        return 1
    except OSError as error:  # no file is written or read without saying which, but a disk can fill up anywhere
        which = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        print(f"pixart: {which}{error.strerror or error}.", file=sys.stderr)
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
        case ["--version", *_]:
            print(f"pixart {__version__}")
            return 0
        case ["-h" | "--help" | "help", *_]:
            print(HELP)
            return 0
        case []:
            print(HELP, file=sys.stderr)
            return 2
        case ["generate", *rest]:
            from pixart.commands.generate import Generate, generate

            words = list(itertools.takewhile(lambda word: not word.startswith("-"), rest))
            if len(words) > 1:
                raise UsageError(f'The prompt is one text, so put it in quotes: pixart generate "{" ".join(words)}"')
            return run_command(Generate, rest, "pixart generate", generate)
        case ["verify", *rest]:
            from pixart.commands.verify import Verify, verify

            with quiet_libraries():
                return run_command(Verify, rest, "pixart verify", verify)
        case ["app", *rest]:
            from pixart.web.command import run as app

            with quiet_libraries():
                return app(rest)
        case ["convert", *rest]:
            from pixart.convert import Convert, convert

            with quiet_libraries():
                return parsed(Convert, rest, "pixart convert", convert)
        case ["encode", *rest]:
            from pixart.commands.encode import Encode, encode

            with quiet_libraries():
                return run_command(Encode, rest, "pixart encode", encode)
        case ["info", *rest]:
            from pixart.info import Info, info

            with quiet_libraries():
                return parsed(Info, rest, "pixart info", info)
        case ["compare", *rest]:
            from pixart.compare import Compare, compare

            with quiet_libraries():
                return parsed(Compare, rest, "pixart compare", compare)
        case ["evaluate", *rest]:
            from pixart.evaluation.command import run

            with quiet_libraries():
                return run(rest)
        case ["metrics" | "layout" as name, *rest]:
            from pixart.evaluation.numbers import command

            with quiet_libraries():
                return command.run_metrics(rest) if name == "metrics" else command.run_layout(rest)
        case ["prompts", *rest]:
            from pixart.compare import Prompts, list_prompts

            return parsed(Prompts, rest, "pixart prompts", list_prompts)
        case ["train", *rest]:
            from pixart.training.command import run

            with quiet_libraries():
                return run(rest)
        case ["ema", *rest]:
            from pixart.training import choose_ema

            with quiet_libraries():
                return parsed(choose_ema.ChooseEma, rest, "pixart ema", choose_ema.run)
        case ["plan", *rest]:
            from pixart.training.planning.plan_command import run

            with quiet_libraries():
                return run(rest)
        case ["data", "emoji", *rest]:
            return parsed(DataEmoji, rest, "pixart data emoji", _data_emoji)
        case ["data", "recolour", *rest]:
            from pixart.data.recolour_split import run

            return run(rest)
        case ["data", "check", *rest]:
            from pixart.data.check.command import run

            with quiet_libraries():
                return run(rest)
        case ["data", "caption", *rest]:
            from pixart.data.caption_command import run as caption

            return caption(rest)
        case ["data", "extract", *rest]:
            from pixart.data.extract_command import run as extract

            with quiet_libraries():
                return extract(rest)
        case ["data", "statistics", *rest]:
            from pixart.data.statistics_command import run as statistics

            return statistics(rest)
        case ["data", "-h" | "--help"]:
            print(DATA_HELP)
            return 0
        case ["data", *rest]:
            if not rest:
                print(DATA_HELP, file=sys.stderr)
                return 2
            raise UsageError(_unknown("pixart data command", rest[0], DATA_HELP))
        case _:
            raise UsageError(_unknown("command", arguments[0], HELP))


def _unknown(kind: str, name: str, listing: str) -> str:
    """One sentence for a command that is not in a help text; the commands are the first words of its indented lines."""
    commands = [line.split()[0] for line in listing.splitlines() if line.startswith("  ")]
    return unknown(kind, name, dict.fromkeys(commands))


def _data_emoji(options: DataEmoji) -> int:
    from pixart.data.emoji import build

    build(
        options.dest,
        size=options.size,
        seed=options.seed,
        packages=options.packages,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return 0
