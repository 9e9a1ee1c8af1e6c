"""npm packages as data: fetched by name with the user's own npm, unpacked, never installed or run."""

import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pixart.errors import PixArtError
from pixart.files import read_json


@dataclass(frozen=True)
class Package:
    """An unpacked npm package. `licence` is an SPDX name; `source` is what records carry: name@version."""

    name: str
    version: str
    licence: str
    folder: Path

    @property
    def source(self) -> str:
        return f"{self.name}@{self.version}"

    def read_json(self, path: str):
        """The parsed JSON file at `path` in the package. Raises PixArtError when it is missing or no JSON."""
        return read_json(self.folder / path)


def fetch(name: str, folder: Path, packages: Path | None, report: Callable[[str], None]) -> Package:
    """Unpacks npm package `name` under `folder`, from a tarball in `packages` if given, else through `npm pack`."""
    if packages is not None:
        tarball = _find_tarball(name, packages)
    else:
        report(f"npm pack {name}")
        tarball = _npm_pack(name, folder)
    return _unpack(name, tarball, folder / _plain_name(name))


def _plain_name(name: str) -> str:
    """`npm pack` calls the tarball of @scope/name scope-name-1.2.3.tgz."""
    return name.lstrip("@").replace("/", "-")


def _find_tarball(name: str, packages: Path) -> Path:
    pattern = re.compile(re.escape(_plain_name(name)) + r"-(\d+)\.(\d+)\.(\d+).*\.tgz")
    found = [(tuple(map(int, m.groups())), p) for p in packages.glob("*.tgz") if (m := pattern.fullmatch(p.name))]
    if not found:
        raise PixArtError(f"No tarball of {name} in {packages}; run npm pack {name} in that folder.")
    return max(found)[1]


def _npm_pack(name: str, folder: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise PixArtError(f"npm, which fetches {name}, was not found; install Node.js, or pass a folder of tarballs.")
    done = subprocess.run(
        [npm, "pack", name, "--loglevel=error", "--pack-destination", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.split()
    if done.returncode != 0 or not lines:
        # npm names the cause first, after a line with an error code; its last line only names its log.
        causes = [line for line in done.stderr.splitlines() if line.strip() and " code " not in line]
        raise PixArtError(f"npm could not fetch {name}: {causes[0] if causes else f'exit code {done.returncode}'}")
    return folder / lines[-1]


def _unpack(name: str, tarball: Path, folder: Path) -> Package:
    try:
        with tarfile.open(tarball) as archive:
            archive.extractall(folder, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise PixArtError(f"{tarball} cannot be unpacked ({error}); fetch it again with npm pack {name}.") from None
    root = folder / "package"
    manifest = Package(name, "unknown version", "", root).read_json("package.json")
    if manifest.get("name") != name:
        raise PixArtError(f"{tarball} holds {manifest.get('name')}, not {name}; give the right tarball.")
    licence = str(manifest.get("license", "unknown"))
    if (root / "info.json").exists():  # Iconify sets: the licence of the images, not of the packaging
        info = Package(name, manifest["version"], "", root).read_json("info.json")
        licence = info.get("license", {}).get("spdx", licence)
    return Package(name, manifest["version"], licence, root)
