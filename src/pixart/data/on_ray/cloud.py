"""Data sets in the cloud: tar shards and Parquet files at any place that fsspec knows, read where they are needed.

Shards are listed here, read by the workers for keys, captions and places of pictures, and fetched by a worker once more
when it comes to the pictures themselves.
"""

import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pixart.data.dataset import open_dataset
from pixart.data.on_ray.session import Cluster
from pixart.data.pairs import ImageProblem, Location, Pair, Problem, printable, read_bytes
from pixart.data.storage import Folder, is_url
from pixart.data.written_captions import WrittenCaptions
from pixart.errors import PixArtError, UsageError

ENDINGS = (".tar", ".parquet")
KEPT_SHARDS = 2  # a batch may lie across the end of one and the start of the next


@dataclass(frozen=True)
class Columns:
    """What `open_dataset` is told about every shard."""

    image_column: str | None = None
    caption_column: str | None = None


@dataclass(frozen=True)
class CloudDataset:
    """`shards` are (URL, name relative to `path`). It is read as `Dataset` is, by the workers of a Ray cluster."""

    path: str
    shards: tuple[tuple[str, str], ...]
    cluster: Cluster
    columns: Columns
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> str:
        return f"{len(self.shards):,} shards in the cloud"

    @property
    def captions(self) -> Path:
        """Where the captions written for it are kept: on this machine, in the folder that one works in."""
        return Path.cwd() / f"{self.path.rstrip('/').rsplit('/', 1)[-1]}.pixart" / "captions"

    def pairs(self) -> Iterator[Pair | Problem]:
        """Every pair and problem, in the order of the shards."""
        items = enumerate(self.shards)
        with WrittenCaptions(self.captions) as written:
            yield from written.problems()
            # Without a CPU of their own: these workers wait for the network, and those that encode need the CPUs.
            for found in self.cluster.each(ListShard(self.columns), items, cpus=0):
                for one in found:
                    yield written.merged(one) if isinstance(one, Pair) else one

    def count_hint(self) -> int | None:
        return None


def open_cloud(url: str, cluster: Cluster, columns: Columns) -> CloudDataset:
    """The shards at a URL: of a folder, of a pattern with *, or one. Raises UsageError where there are none."""
    filesystem, root = Folder(url).filesystem()
    try:
        if any(sign in root for sign in "*?["):
            found = filesystem.glob(root)
            root = root.split("*")[0].rsplit("/", 1)[0]
        elif root.endswith(ENDINGS):
            found, root = [root], root.rsplit("/", 1)[0]
        else:
            found = filesystem.find(root)
    except (OSError, ValueError) as error:
        raise PixArtError(f"{url} cannot be listed: {error}.") from None
    shards = sorted(path for path in found if path.lower().endswith(ENDINGS))
    if not shards:
        raise UsageError(
            f"There are no .tar or .parquet shards at {url}; in the cloud only these are read. Copy other layouts to "
            "this machine."
        )
    named = tuple((filesystem.unstrip_protocol(path), path[len(root) :].lstrip("/")) for path in shards)
    return CloudDataset(url, named, cluster, columns)


@dataclass
class Fetched:
    """Files of the cloud on this machine, the last few only. One per process."""

    folder: tempfile.TemporaryDirectory | None = None
    files: OrderedDict[str, Path] = field(default_factory=OrderedDict)

    def path(self, url: str) -> Path:
        """A local copy of the file. Raises FileNotFoundError or OSError."""
        import fsspec

        if url not in self.files:
            self.folder = self.folder or tempfile.TemporaryDirectory(prefix="pixart-cloud-")
            while len(self.files) >= KEPT_SHARDS:
                self.files.popitem(last=False)[1].unlink(missing_ok=True)
            target = Path(self.folder.name) / f"{len(list(Path(self.folder.name).iterdir()))}-{url.rsplit('/', 1)[-1]}"
            filesystem, path = fsspec.core.url_to_fs(url)
            filesystem.get_file(path, str(target))
            self.files[url] = target
        self.files.move_to_end(url)
        return self.files[url]

    def read(self, location: Location) -> bytes:
        """What `read_bytes` gives, also for a place in the cloud."""
        if not is_url(location.path):
            return read_bytes(location)
        try:
            local = self.path(location.path)
        except FileNotFoundError:
            raise ImageProblem("missing", f"{printable(location.path)} is not there.") from None
        return read_bytes(replace(location, path=str(local)))


@dataclass(frozen=True)
class ListShard:
    """The pairs of one shard, with their places in the cloud."""

    columns: Columns

    def __call__(self, shard: tuple[str, str]) -> list[Pair | Problem]:
        import fsspec

        url, name = shard
        parent = name.rpartition("/")[0]
        with tempfile.TemporaryDirectory(prefix="pixart-cloud-") as folder:
            local = Path(folder) / name.rpartition("/")[2]
            filesystem, path = fsspec.core.url_to_fs(url)
            try:
                filesystem.get_file(path, str(local))
            except OSError as error:
                raise PixArtError(f"{url} cannot be read: {error}.") from None
            columns = self.columns
            dataset = open_dataset(local, image_column=columns.image_column, caption_column=columns.caption_column)
            return [self._there(one, url, parent) for one in dataset.pairs()]

    def given_up(self, shard: tuple[str, str]) -> list[Pair | Problem]:
        raise PixArtError(f"The process that lists {shard[0]} was ended each time, perhaps for want of memory.")

    def _there(self, one: Pair | Problem, url: str, parent: str) -> Pair | Problem:
        key = f"{parent}/{one.key}" if parent else one.key
        if isinstance(one, Problem):
            return replace(one, key=key)
        problem = one.caption_problem and replace(one.caption_problem, key=key)
        return replace(one, key=key, image=replace(one.image, path=url), caption_problem=problem)
