"""Make what `pixart evaluate` judges with, from the data and a trained judge, and say how good the judge is.

    python benchmarks/judge_reference.py --data runs/emoji --judge runs/emoji-judge/judge --out EMPTY_FOLDER

Writes the judge and the reference into --out, and prints the judge's figures on real held-out pictures and on the
trivial answers as a table. `--scales` prints the scales of the plain features instead (evaluation/plain_features.py).
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pixart.data.imagefolder import read_split
from pixart.errors import PixArtError
from pixart.evaluation import plain_features, reference
from pixart.evaluation.judge import open_judge
from pixart.evaluation.score import scores
from pixart.evaluation.table import as_markdown


def scales(data: Path, count: int = 2000) -> list[float]:
    """The mean distance of each part of the plain features between two training pictures, spread over all."""
    records = read_split(data / "train")
    chosen = [records[k] for k in np.linspace(0, len(records) - 1, count).astype(int)]
    rows = [plain_features.parts(Image.open(record.path)) for record in chosen]
    found = []
    for part in zip(*rows, strict=True):
        values = np.stack(part)
        order = np.random.default_rng(0).permutation(count)
        found.append(float(np.linalg.norm(values - values[order], axis=1).mean()))
    return found


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of `pixart data emoji`")
    parser.add_argument("--judge", type=Path, help="folder that `pixart train emoji/judge` wrote")
    parser.add_argument("--out", type=Path, help="folder to write judge and reference into")
    parser.add_argument("--scales", action="store_true")
    arguments = parser.parse_args(words)
    try:
        if arguments.scales:
            print(", ".join(f"{scale:.4g}" for scale in scales(arguments.data)))
            return 0
        judge = open_judge(arguments.judge)
        built = reference.build(arguments.data, judge, lambda line: print(line, file=sys.stderr, flush=True))
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            for name in ("config.json", "model.safetensors"):
                shutil.copyfile(arguments.judge / name, arguments.out / name)
            reference.save(built, arguments.out)
            built = reference.open_reference(arguments.out)
        everyone = list(range(len(built.rows)))
        columns = {
            "real pictures": scores(built.real, everyone, judge, built),
            "nearest caption's picture": scores(built.copies, everyone, judge, built),
        }
        print(as_markdown(columns))
    except PixArtError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
