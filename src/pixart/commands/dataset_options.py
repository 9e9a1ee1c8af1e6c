"""Options that several commands on data sets have: how one is laid out, and who works on it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from pixart.config import shown
from pixart.data.dataset import Dataset, open_dataset
from pixart.data.storage import is_url
from pixart.errors import UsageError

if TYPE_CHECKING:
    from pixart.data.on_ray import CloudDataset, Cluster


@dataclass(frozen=True)
class DatasetOptions:
    """How a data set is laid out, where that cannot be found out."""

    layout: Annotated[str | None, shown("NAME", "found out")] = None
    """The data set's layout, where more than one fits."""
    image_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with images or their paths."""
    caption_column: Annotated[str | None, shown("NAME", "found out")] = None
    """The column with captions."""
    image_root: Annotated[Path | None, shown("FOLDER", "the manifest's")] = None
    """Folder that the paths in a manifest start from."""

    def open(self, path: str | Path, cluster: "Cluster | None" = None) -> "Dataset | CloudDataset":
        """The data set at `path`, a file, a folder, or for a cluster shards in the cloud.

        Raises UsageError where none is recognised.
        """
        if is_url(path):
            if cluster is None:
                raise UsageError("Places in the cloud are read on Ray: add --ray local, or a cluster's address.")
            from pixart.data.layouts.layout import Columns
            from pixart.data.on_ray import open_cloud

            return open_cloud(str(path), cluster, Columns(self.image_column, self.caption_column))
        return open_dataset(
            Path(path),
            layout=self.layout,
            image_column=self.image_column,
            caption_column=self.caption_column,
            image_root=self.image_root,
        )


@dataclass(frozen=True)
class RayOptions:
    """Who works on a data set, if it is not this process."""

    ray: Annotated[str | None, shown("ADDRESS", "none")] = None
    """Run on a Ray cluster: its address, auto, or local for one on this machine."""
    workers: Annotated[int | None, shown("N", "one per CPU or share of a GPU")] = None
    """With --ray: workers; what they make does not depend on their number."""
    gpus_per_worker: Annotated[float, arg(metavar="X")] = 0.0
    """With --ray: GPUs that each worker takes; 0.5 puts two on one."""

    def __post_init__(self) -> None:
        if (self.gpus_per_worker or self.workers is not None) and self.ray is None:
            raise UsageError("--workers and --gpus-per-worker go with --ray; --ray local is a cluster on this machine.")

    def start(self) -> "Cluster | None":
        """The cluster, None without --ray. Raises PixArtError where none answers."""
        if self.ray is None:
            return None
        from pixart.data.on_ray import start

        return start(self.ray, workers=self.workers, gpus_per_worker=self.gpus_per_worker)
