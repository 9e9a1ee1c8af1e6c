"""Data sets in the cloud: tar shards and Parquet files at any place that fsspec knows, read where they are needed.

Shards are listed here, and fetched by the workers to find keys, captions and places; the images are read one by one.
"""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from pixart.data.dataset import open_dataset
from pixart.data.layouts.layout import Columns
from pixart.data.on_ray.session import Cluster
from pixart.data.pairs import Pair, Problem
from pixart.data.storage import Folder
from pixart.data.written_captions import WrittenCaptions
from pixart.errors import PixArtError, UsageError

ENDINGS = (".tar", ".parquet")


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
    is_pattern = any(sign in root for sign in "*?[")
    try:
        found = filesystem.glob(root) if is_pattern else filesystem.find(root)
    except (OSError, ValueError) as error:
        raise PixArtError(f"{url} cannot be listed: {error}.") from None
    shards = sorted(path for path in found if path.lower().endswith(ENDINGS))
    if not shards:
        raise UsageError(
            f"There are no .tar or .parquet shards at {url}; in the cloud only these are read. Copy other layouts to "
            "this machine."
        )
    if is_pattern or root in shards:  # names start from the folder
        root = re.split(r"[*?\[]", root)[0].rpartition("/")[0]
    named = tuple((filesystem.unstrip_protocol(path), path[len(root) :].lstrip("/")) for path in shards)
    return CloudDataset(url, named, cluster, columns)


@dataclass(frozen=True)
class ListShard:
    """The pairs of one shard, with their places in the cloud."""

    columns: Columns

    def __call__(self, shard: tuple[str, str]) -> list[Pair | Problem]:
        url, name = shard
        parent = name.rpartition("/")[0]
        with tempfile.TemporaryDirectory(prefix="pixart-cloud-") as folder:
            local = Path(folder) / name.rpartition("/")[2]
            filesystem, path = Folder(url).filesystem()
            try:
                filesystem.get_file(path, str(local))
            except OSError as error:
                raise PixArtError(f"{url} cannot be read: {error}.") from None
            columns = {"image_column": self.columns.image, "caption_column": self.columns.caption}
            return [_there(one, url, f"{parent}/" if parent else "") for one in open_dataset(local, **columns).pairs()]

    def given_up(self, shard: tuple[str, str]) -> list[Pair | Problem]:
        raise PixArtError(f"The process that lists {shard[0]} was ended each time, perhaps for want of memory.")


def _there(one: Pair | Problem, url: str, parent: str) -> Pair | Problem:
    if isinstance(one, Problem):
        return replace(one, key=parent + one.key)
    problem = one.caption_problem and replace(one.caption_problem, key=parent + one.key)
    return replace(one, key=parent + one.key, image=replace(one.image, path=url), caption_problem=problem)
