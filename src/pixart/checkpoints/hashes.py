"""The name of a weights file: its SHA-256, which is stored beside it, so that nobody reads gigabytes to know it.

`hashes.json` at the root of a model folder holds, by file, the SHA-256 and a sampled hash. The sampled hash reads a
megabyte, and tells whether the stored one still belongs to the file. The Hub's cache names its files by their SHA-256.
A file of neither kind goes by its sampled hash.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from pixart.errors import PixArtError, reason_of
from pixart.files import file_hash, open_regular, read_json_object, write_json
from pixart.weights import weight_files

HASHES = "hashes.json"
PIECES, PIECE = 256, 4096  # of a sampled hash: how many, and bytes of each
SAMPLED = "sampled-"  # before a hash of samples, so that nobody takes it for the SHA-256 of the file
SHA256 = re.compile("[0-9a-f]{64}")


def sampled_hash(path: Path) -> str:
    """SHA-256 of a file's size and of 256 pieces of 4 KiB, evenly spaced, the first and the last bytes among them.

    Any training changes every tensor, so this tells models apart; it is no defence against forgery.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        digest = hashlib.sha256(str(size).encode())
        last = max(size - PIECE, 0)
        for start in dict.fromkeys(last * piece // (PIECES - 1) for piece in range(PIECES)):
            file.seek(start)
            digest.update(file.read(PIECE))
    return SAMPLED + digest.hexdigest()


def weights_hash(folder: Path, name: str = "diffusion_pytorch_model.safetensors") -> str:
    """SHA-256 of the weights of one network: of its file, or of its several files one after another. Reads them."""
    digest = hashlib.sha256()
    for path in weight_files(folder, name):
        with open_regular(path) as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()


def write_hashes(folder: Path) -> None:
    """Hash every safetensors file of a model folder into its `hashes.json`."""
    files = sorted(folder.rglob("*.safetensors"))
    write_json(
        folder / HASHES,
        {
            path.relative_to(folder).as_posix(): {"sha256": file_hash(path), "sampled": sampled_hash(path)}
            for path in files
        },
    )


def hashes_of(folder: Path, files: Iterable[Path], part: str = "transformer") -> dict[str, str]:
    """What to call each weights file of a model, by its name inside the folder; one from elsewhere is that of a `part`.

    Raises:
        PixArtError: `hashes.json` or a weights file cannot be read.
    """
    stored = read_json_object(folder / HASHES) if (folder / HASHES).is_file() else {}
    hashes = {}
    for path in files:
        inside = path.is_relative_to(folder)
        name = path.relative_to(folder).as_posix() if inside else f"{part}/{path.name}"
        entry = stored.get(name) if inside else None
        blob = path.resolve()
        if blob.parent.name == "blobs" and SHA256.fullmatch(blob.name):
            hashes[name] = blob.name
            continue
        try:
            sampled = sampled_hash(path)
        except OSError as error:
            raise PixArtError(f"{path} cannot be read: {reason_of(error)}.") from None
        known = isinstance(entry, dict) and entry.get("sampled") == sampled
        hashes[name] = entry["sha256"] if known and SHA256.fullmatch(str(entry.get("sha256"))) else sampled
    return hashes
