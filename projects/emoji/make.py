"""How the shipped model was made, from npm packages to a judged model folder.

`python projects/emoji/make.py all` runs every stage; `All.run` below is the table of contents.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from pixart import cli
from pixart.config import run_command, shown
from pixart.errors import UsageError
from pixart.files import write_json
from pixart.quiet import quiet_libraries

HERE = Path(__file__).parent
DATA = Path("runs/emoji")
JUDGE = Path("runs/emoji-judge")
RECIPES = HERE / "recipes"


@dataclass
class Data:
    """Build the emoji data set: fetches freely licensed emoji from npm by package name, renders and captions them."""

    dest: Annotated[Path, arg(metavar="DEST")]
    """Folder to build; the recipes look in runs/emoji."""
    size: Annotated[int, arg(metavar="PIXELS")] = 256
    """Width and height of the images."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides which images are for validation."""
    packages: Annotated[Path | None, shown("FOLDER", "fetch with npm")] = None
    """A folder of npm packages fetched before."""

    def run(self) -> int:
        from emojis.build import build

        build(self.dest, size=self.size, seed=self.seed, packages=self.packages, report=_report)
        return 0


@dataclass
class Recolour:
    """Add a split to the data set: training images recoloured, with captions that name the colour.

    Validation images stay out of it. Recipes train on it by sampling.extra_splits.
    """

    data: Annotated[Path, arg(metavar="DATA")]
    """Folder of make.py data."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Decides which image gets which colour."""
    copies: Annotated[int, arg(metavar="N")] = 1
    """How many colours an image gets at most, besides its own."""

    def run(self) -> int:
        from emojis.recoloured_split import build

        build(self.data, seed=self.seed, copies=self.copies, report=_report)
        return 0


@dataclass
class Judge:
    """Train a judge on the data set, with what evaluations compare with; or continue."""

    data: Annotated[Path, arg(metavar="DATA")]
    """Folder of make.py data."""
    run_folder: Annotated[Path, arg(metavar="FOLDER", name="run")] = JUDGE
    """Run folder; the judge is in its folder judge."""
    steps: Annotated[tuple[int, int], arg(metavar="N N")] = (2600, 800)
    """Steps on images of 64 px, then of 128 px."""
    batch_size: Annotated[int, arg(metavar="N")] = 256
    """Images in a batch."""

    def run(self) -> int:
        from emojis.judge import open_judge
        from emojis.reference import build, save
        from emojis.train_judge import train_judge
        from pixart.training.batches import Phase

        if min(*self.steps, self.batch_size) < 1:
            raise UsageError(f"--steps {self.steps} and --batch-size {self.batch_size} must be at least 1.")
        phases = tuple(Phase(n, self.batch_size, size=size) for n, size in zip(self.steps, (64, 128), strict=True))
        folder = train_judge(self.data, self.run_folder, phases=phases)
        save(build(self.data, open_judge(folder), _report), folder)
        print(folder)
        return 0


@dataclass
class Evaluate:
    """Generate validation captions and judge the images, beside real images and the trivial answer.

    The judge was trained on the training split only and is no part of any model. Images are kept, so a run that was
    stopped goes on.
    """

    model: Annotated[Positional[str | None], shown("MODEL", "the model in the package")] = None
    """Model folder, or the name of a model on the Hugging Face Hub."""
    fast: bool = False
    """Evaluate the folder's few-step model."""
    composition: bool = False
    """Instead, ask for what the data never shows together, such as a blue apple, and measure what of it is right."""
    num: Annotated[int | None, shown("N", "512; with --composition 200")] = None
    """How many captions, half of known concepts in an unseen style, half of unseen concepts."""
    seed: Annotated[int, arg(metavar="N")] = 0
    """Chooses the captions; image k has the seed N + k."""
    steps: Annotated[int | None, shown("N", "the model's")] = None
    """Number of denoising steps."""
    guidance_scale: Annotated[float | None, shown("X", "the model's")] = None
    """Scale of classifier-free guidance."""
    sampler: Annotated[str | None, shown("NAME", "the model's")] = None
    """As in pixart generate."""
    size: Annotated[int | None, shown("PIXELS", "the model's")] = None
    """Width and height of the images."""
    engine: Annotated[str, arg(metavar="NAME")] = "auto"
    """As in pixart generate."""
    dtype: Annotated[str, arg(metavar="NAME")] = "float32"
    """As in pixart generate."""
    judge: Annotated[Path, arg(metavar="FOLDER")] = HERE / "judge"
    """The judge, as make.py judge writes it."""
    data: Annotated[Path | None, shown("FOLDER", "none")] = None
    """With --composition: folder of make.py data, from which the right answers and the trivial ones are made."""
    images: Annotated[Path | None, shown("FOLDER", "runs/evaluate/...")] = None
    """Where the images go and are looked for."""
    output: Annotated[Path | None, shown("FILE.json", "scores-N.json beside the images")] = None
    """File for the report: all metrics, with the protocol that they hold for."""

    def run(self) -> int:
        if self.output is not None and (self.output.is_dir() or self.output.suffix != ".json"):
            raise UsageError(f"--output {self.output}: give the name of a .json file.")
        if self.data is not None and not self.composition:
            raise UsageError("--data goes with --composition; the judge has its true images with it.")
        from emojis import composition, evaluate
        from emojis.judge import open_judge
        from emojis.measures import check_enough
        from emojis.reference import open_reference
        from pixart import Pipeline

        num = self.num if self.num is not None else 200 if self.composition else 512
        check_enough(num)  # before the model is loaded
        judge, reference = open_judge(self.judge), open_reference(self.judge)
        settings = {
            "steps": self.steps, "guidance_scale": self.guidance_scale, "sampler": self.sampler, "width": self.size,
            "height": self.size,
        }  # fmt: skip
        pipeline = Pipeline.from_pretrained(self.model, engine=self.engine, dtype=self.dtype, fast=self.fast)
        given = {"num": num, "seed": self.seed, "settings": settings, "folder": self.images, "report": _report}
        if self.composition:
            result, folder = composition.evaluate(pipeline, judge, reference, data=self.data, **given)
        else:
            result, folder = evaluate.evaluate(pipeline, judge, reference, **given)
        path = self.output or folder / f"{'composition' if self.composition else 'scores'}-{num}.json"
        write_json(path, result)
        how = result["protocol"]
        print(evaluate.table(result))
        print(
            f"\n{num} images of {how['width']} x {how['height']} px, {how['steps']} steps of {how['sampler']}, "
            f"guidance scale {how['guidance_scale']:g}, seeds {self.seed} to {self.seed + num - 1}. "
            "In brackets: 95% intervals."
        )
        print(path)
        return 0


@dataclass
class Compare:
    """Print the reports of earlier evaluations beside each other, and their differences image by image."""

    reports: Positional[tuple[Path, ...]]
    """Files of make.py evaluate, two or more."""
    across: Annotated[str, shown("NAME,...", "none")] = ""
    """Settings that may differ, such as steps."""

    def run(self) -> int:
        from emojis.evaluate import compare

        print(compare(list(self.reports), tuple(name for name in self.across.split(",") if name)))
        return 0


@dataclass
class All:
    """Every stage in turn, into runs/. Stopped anywhere, the same command goes on; days of a CPU."""

    def run(self) -> int:
        if not DATA.exists():
            Data(DATA).run()
        if not (DATA / "train_recoloured").exists():
            Recolour(DATA).run()
        train = partial(_pixart, "train")
        train(str(RECIPES / "autoencoder.toml"))
        for size in (64, 128, 256):
            _pixart(
                "data", "extract", str(DATA / "train"), f"runs/emoji-features-{size}", "--base-size", str(size),
                "--square", "--vae", "runs/emoji-autoencoder/vae", "--label", "subgroup", "style",
            )  # fmt: skip
        for stage in ("stage1", "stage2", "stage3", "decoder", "few_step"):
            train(str(RECIPES / f"{stage}.toml"))
        model = Path("runs/emoji-decoder/model")
        if not (model / "fast").exists():
            _pixart("convert", "runs/emoji-few-step", str(model), "--to", "fast")
        if not (JUDGE / "judge/reference.safetensors").exists():
            Judge(DATA).run()
        Evaluate(str(model), judge=JUDGE / "judge").run()
        Evaluate(str(model), judge=JUDGE / "judge", fast=True).run()
        return Evaluate(str(model), judge=JUDGE / "judge", composition=True, data=DATA).run()


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code, as `pixart` does."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = Data | Recolour | Judge | Evaluate | Compare | All

    def act() -> int:
        with quiet_libraries():
            return run_command(commands, arguments, "python projects/emoji/make.py", lambda command: command.run())

    return cli.guarded(act, "make.py")


def _pixart(*words: str) -> None:
    """A command of the package; a failure ends everything with its exit code."""
    if code := cli.main(list(words)):
        raise SystemExit(code)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
