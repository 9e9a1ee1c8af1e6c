"""The options by which every command on a data set says how it is laid out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pixart.config import shown
from pixart.data.dataset import Dataset, open_dataset


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

    def open(self, path: Path) -> Dataset:
        """The data set at `path`. Raises UsageError where none is recognised."""
        return open_dataset(
            path,
            layout=self.layout,
            image_column=self.image_column,
            caption_column=self.caption_column,
            image_root=self.image_root,
        )
