"""The strip of the page's glass box: what the runs behind the shipped model draw of six things, stage by stage.

    python benchmarks/stages_strip.py [--runs runs] [--out src/pixart/web/stages]

Every picture starts from the noise of seed 1, which was not chosen. Stage 1 knows classes and no text, so it is asked
for the class that each prompt's thing is in, and for the same style. A run keeps its last two checkpoints only, so
there is one moment of each stage: its end.
"""

import argparse
import json
from pathlib import Path

from pixart.training.strip import draw_checkpoint

SEED, STEPS, SCALE = 1, 20, 4.5
ASKED = (
    ("a red apple, 3D", "fruit", "3D"),
    ("an owl, flat", "birds", "flat"),
    ("a guitar, glossy", "musical instruments", "glossy"),
    ("a house, Noto", "buildings", "Noto"),
    ("a smiling face with sunglasses, 3D", "with glasses", "3D"),
    ("a green heart, Twemoji", "hearts", "Twemoji"),
)
ROWS = (
    (
        "emoji-stage1",
        "Stage 1: what pictures look like",
        "It was told a class and a style, no words: there is one thing in the middle of a white ground, with colours "
        "and shading that fit the class.",
    ),
    (
        "emoji-stage2",
        "Stage 2: which words mean what",
        "The same network, with text to read: red and green are there, a heart is a heart, drawn with 16 tokens.",
    ),
    (
        "emoji-stage3",
        "Stage 3, first run: more tokens",
        "Sixteen times as many tokens, after few steps: edges are crisp, and layouts are worse than before.",
    ),
    (
        "emoji-stage3-256",
        "Stage 3, last run: the shipped model",
        "It trained at higher noise levels, where a large picture is decided: layouts are back, fine detail is not.",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("src/pixart/web/stages"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    prompts, classes = tuple(asked[0] for asked in ASKED), tuple(asked[1:] for asked in ASKED)
    rows = []
    for name, title, said in ROWS:
        asked = classes if name == "emoji-stage1" else prompts
        row = draw_checkpoint(arguments.runs / name, asked, seed=SEED, steps=STEPS, guidance_scale=SCALE)
        files = [f"{name}-{number}.webp" for number in range(len(row.images))]
        for file, image in zip(files, row.images, strict=True):
            # The small ones are kept bit by bit; at 256 px that would be most of the 300 kB that all may have.
            image.save(arguments.out / file, lossless=row.size <= 64, quality=88, method=6)
        about = {"title": title, "said": said, "run": name, "checkpoint": row.step, "size": row.size}
        rows.append({**about, "asked": row.asked, "files": files})
        print(title, row.step, flush=True)
    strip = {"made_by": "benchmarks/stages_strip.py", "seed": SEED, "steps": STEPS, "guidance_scale": SCALE}
    text = json.dumps({**strip, "sampler": "dpm-solver", "weights": "moving average", "rows": rows}, indent=1)
    (arguments.out / "strip.json").write_text(text + "\n")
    print(sum(path.stat().st_size for path in arguments.out.iterdir()), "bytes in", arguments.out)


if __name__ == "__main__":
    main()
