"""How fast cached features are read: pixart's folder, Hugging Face datasets (Arrow) and webdataset (tar).

    pip install datasets webdataset
    python benchmarks/features.py --rows 8000 --folder /tmp/features-benchmark

The same random rows are written in the three ways: at 256 px the moments (2 x 4 x 32 x 32 fp16, 16 KiB) and one caption
of 8 to 40 tokens of width 384 in fp16. Read are whole batches of 64, as tensors: rows in random order, as training
wants them, and in the order of the files, which is all that tar shards can do (webdataset shuffles in a buffer). Cold:
the files' pages are dropped from the page cache first (posix_fadvise), as any user may. One process, one thread.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch

BATCH = 64
WIDTH = 384
LATENT = (4, 32, 32)


def rows(count: int):
    """The features of row after row: mean, std and text states."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        mean, std = rng.standard_normal((2, *LATENT), dtype=np.float32).astype(np.float16)
        yield mean, std, rng.standard_normal((rng.integers(8, 41), WIDTH), dtype=np.float32).astype(np.float16)


def write_pixart(folder: Path, count: int) -> None:
    from pixart.data.feature_shards import Origin
    from pixart.data.feature_writer import About, BatchRecord, FeatureRow, write_batch, write_manifest, write_null_text

    from pixart.data.storage import Folder

    place, origin = Folder(str(folder)), Origin("v", "t", "k", {"base_size": 256})
    records, waiting = [], []
    for i, (mean, std, states) in enumerate(rows(count)):
        moments = torch.from_numpy(mean), torch.from_numpy(std)
        waiting.append(FeatureRow(f"{i:07d}", moments, ((0, torch.from_numpy(states)),), 0, (256, 256)))
        if len(waiting) == 1024 or i == count - 1:
            record = BatchRecord(len(records), len(waiting), str(len(records)), "")
            records.append(write_batch(place, record, {"256x256": waiting}, origin))
            waiting = []
    about = About(origin, "random", caption_sources=("original",), text_dim=WIDTH)
    write_manifest(place, records, about, write_null_text(place, torch.zeros(2, WIDTH)))


def write_datasets(folder: Path, count: int) -> None:
    """As one would store them: arrays of a fixed shape as such, the states as a list of vectors."""
    from datasets import Array2D, Array3D, Dataset, Features, Value

    features = Features(
        {
            "mean": Array3D(LATENT, "float16"),
            "std": Array3D(LATENT, "float16"),
            "text": Array2D((None, WIDTH), "float16"),
            "key": Value("string"),
        }
    )

    def generate():
        for i, (mean, std, states) in enumerate(rows(count)):
            yield {"mean": mean, "std": std, "text": states, "key": f"{i:07d}"}

    made = Dataset.from_generator(generate, features=features, cache_dir=str(folder / "cache"), writer_batch_size=256)
    made.save_to_disk(folder / "arrow")


def write_datasets_bytes(folder: Path, count: int) -> None:
    """The quickest that Arrow can do: raw bytes, which the reader turns into arrays itself."""
    from datasets import Dataset, Features, Value

    features = Features({name: Value("binary") for name in ("mean", "std", "text")} | {"key": Value("string")})

    def generate():
        for i, (mean, std, states) in enumerate(rows(count)):
            yield {"mean": mean.tobytes(), "std": std.tobytes(), "text": states.tobytes(), "key": f"{i:07d}"}

    made = Dataset.from_generator(generate, features=features, cache_dir=str(folder / "cache"), writer_batch_size=256)
    made.save_to_disk(folder / "arrow")


def write_webdataset(folder: Path, count: int) -> None:
    import webdataset

    folder.mkdir(parents=True)
    with webdataset.ShardWriter(f"file:{folder}/%05d.tar", maxcount=1024, verbose=0) as writer:
        for i, (mean, std, states) in enumerate(rows(count)):
            writer.write({"__key__": f"{i:07d}", "mean.npy": mean, "std.npy": std, "text.npy": states})


def read_pixart(folder: Path, order: np.ndarray):
    from pixart.data.feature_shards import open_features

    features = open_features(folder)
    for start in range(0, len(order), BATCH):
        batch = features.read("256x256", order[start : start + BATCH])
        yield batch.mean, batch.std, batch.text, batch.text_mask


def batched(mean: list, std: list, text: list):
    from pixart.data.feature_shards import pad

    return torch.stack(mean), torch.stack(std), *pad(text)


def read_datasets(folder: Path, order: np.ndarray):
    from datasets import load_from_disk

    stored = load_from_disk(folder / "arrow").with_format("torch", dtype=torch.float16)
    for start in range(0, len(order), BATCH):
        part = stored[order[start : start + BATCH]]
        yield batched(list(part["mean"]), list(part["std"]), list(part["text"]))


def read_datasets_bytes(folder: Path, order: np.ndarray):
    from datasets import load_from_disk

    def array(data: bytes, *shape: int) -> torch.Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.float16).view(shape)

    stored = load_from_disk(folder / "arrow")
    for start in range(0, len(order), BATCH):
        part = stored[order[start : start + BATCH]]
        yield batched(
            [array(data, *LATENT) for data in part["mean"]],
            [array(data, *LATENT) for data in part["std"]],
            [array(data, -1, WIDTH) for data in part["text"]],
        )


def read_webdataset(folder: Path, order: np.ndarray):
    import webdataset

    shards = sorted(str(path) for path in folder.glob("*.tar"))
    stream = webdataset.WebDataset([f"file:{path}" for path in shards], shardshuffle=False).decode()
    mean, std, text = [], [], []
    for sample in stream:
        mean.append(torch.from_numpy(sample["mean.npy"]))
        std.append(torch.from_numpy(sample["std.npy"]))
        text.append(torch.from_numpy(sample["text.npy"]))
        if len(mean) == BATCH:
            yield batched(mean, std, text)
            mean, std, text = [], [], []
    if mean:
        yield batched(mean, std, text)


WAYS = {
    "pixart": (write_pixart, read_pixart, True),
    "datasets, arrays": (write_datasets, read_datasets, True),
    "datasets, bytes": (write_datasets_bytes, read_datasets_bytes, True),
    "webdataset": (write_webdataset, read_webdataset, False),
}


def drop(folder: Path) -> None:
    """Take the files' pages out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(read, folder: Path, order: np.ndarray) -> float:
    """Rows per second, opening included; every number is touched."""
    started, count = time.perf_counter(), 0
    for mean, std, text, mask in read(folder, order):
        count += len(mean)
        assert mean.shape[1:] == std.shape[1:] == LATENT and text.shape[:2] == mask.shape
    assert count == len(order), count
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the features, about 50 KB a row in all")
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write-only", action="store_true", help="write what is not there yet, and measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (write, _, _) in WAYS.items():
        folder = options.folder / f"{name.replace(', ', '-')}-{options.rows}"
        if not folder.exists():
            write(folder, options.rows)
    os.sync()  # pages that are not yet on the disk cannot be dropped
    if options.write_only:
        return
    orders = {
        "in order": np.arange(options.rows),
        "at random": np.random.default_rng(1).permutation(options.rows),
    }
    speeds: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.runs):  # the ways take turns, so that what disturbs one disturbs all
        for name, (_, read, random_access) in WAYS.items():
            folder = options.folder / f"{name.replace(', ', '-')}-{options.rows}"
            for kind, order in orders.items():
                if kind == "at random" and not random_access:
                    continue
                for state in ("cold", "warm"):
                    if state == "cold":
                        drop(folder)
                    speeds.setdefault(name, {}).setdefault(f"{kind}, {state}", []).append(timed(read, folder, order))
    import datasets
    import webdataset

    versions = {"torch": torch.__version__, "datasets": datasets.__version__, "webdataset": webdataset.__version__}
    print(json.dumps({"python": platform.python_version(), **versions, "rows": options.rows, "runs": options.runs}))
    for name, kinds in speeds.items():
        for kind, values in kinds.items():
            ours = statistics.median(speeds["pixart"][kind])
            middle = statistics.median(values)
            print(
                f"{name:18} {kind:16} {middle:9,.0f} rows/s ({min(values):,.0f} to {max(values):,.0f})  "
                f"pixart is {ours / middle:.1f} times as fast"
            )


if __name__ == "__main__":
    main()
