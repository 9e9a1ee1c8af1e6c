"""What int8 costs in quality: the same held-out captions and seeds drawn in fp32 and in int8.

    python benchmarks/int8_loss.py --data runs/emoji [--count 64] [--seed 1000] [--out FOLDER]

Prints how far the pictures are apart (PSNR between the two drawings) and how many drawings of each are nearest to
their own true picture (see held_out_grid.py). With --out a sheet is written: above fp32, below int8.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from held_out_grid import choose, open_picture
from PIL import Image

import pixart
from pixart.data.imagefolder import read_split
from pixart.evaluation.nearest import nearest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of `pixart data emoji`")
    parser.add_argument("--model", type=Path, help="model folder with graphs (the one in the package)")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chosen = choose(read_split(options.data / "test_cells"), options.count, options.seed)
    true = [open_picture(record, options.size) for record in chosen]
    drawn = {}
    for dtype in ("float32", "int8"):
        pipe = pixart.Pipeline.from_pretrained(options.model, engine="onnx", dtype=dtype)
        size = {"width": options.size, "height": options.size}
        drawn[dtype] = [pipe(r.text, seed=options.seed + i, **size).images[0] for i, r in enumerate(chosen)]
    pairs = zip(drawn["float32"], drawn["int8"], strict=True)
    psnr = sorted(between(np.asarray(first), np.asarray(second)) for first, second in pairs)
    own = {
        dtype: sum(int(at) == i for i, at in enumerate(nearest(pictures, true))) for dtype, pictures in drawn.items()
    }
    print(
        json.dumps(
            {
                "count": options.count,
                "seed": options.seed,
                "psnr_db": {"lowest": psnr[0], "median": psnr[len(psnr) // 2], "highest": psnr[-1]},
                "own_is_nearest": own,
            },
            indent=1,
        )
    )
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        sheet = Image.new("RGB", (128 * options.count, 256))
        for row, pictures in enumerate(drawn.values()):
            for i, picture in enumerate(pictures):
                sheet.paste(picture.resize((128, 128), Image.Resampling.LANCZOS), (128 * i, 128 * row))
        sheet.save(options.out / "int8.png")


def between(first: np.ndarray, second: np.ndarray) -> float:
    """PSNR in dB of one uint8 picture against another."""
    error = (first.astype(float) - second.astype(float)) ** 2
    return round(float(10 * np.log10(255**2 / max(error.mean(), 1e-9))), 1)


if __name__ == "__main__":
    main()
