"""Caption the pictures of a data set: batch by batch into a file that survives a kill, and an account of it all."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pixart.captions.captioner import Captioner
from pixart.data.caption_batch import Uncaptioned, caption_batch
from pixart.data.caption_file import CaptionFile
from pixart.data.dataset import Dataset
from pixart.data.pairs import METADATA, ORIGINAL, Pair, Problem
from pixart.errors import PixArtError

# Makes the rows of each batch (`caption_batch`), in their order.
Answers = Callable[[Iterator[list[Uncaptioned]]], Iterator[list[dict]]]
EXAMPLES = 20  # pictures named on the terminal; the file in failed-captions/ names all


@dataclass
class Account:
    """What became of the pictures. `captioned_before` were found done; `dropped` names some of those that were lost.

    `pictures` counts all that the data set has (or --limit took), `captions` the lines that this run wrote.
    """

    path: Path
    pictures: int = 0
    captioned_before: int = 0
    captions: int = 0
    refused: int = 0
    empty: int = 0
    openings: int = 0
    cut: int = 0
    unreadable: int = 0
    failed: int = 0
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def dropped(self) -> int:
        """Pictures without an answer: not readable, or no captioner could be brought to answer."""
        return self.unreadable + self.failed

    def take(self, rows: list[dict]) -> None:
        for row in rows:
            match row.get("rejected"):
                case None:
                    self.captions += 1
                    self.openings += "opening" in row
                    self.cut += "cut" in row
                case "refusal":
                    self.refused += 1
                case "empty":
                    self.empty += 1
                case "unreadable":
                    self.lose(row["key"], row["error"])
                case _:
                    self.failed += 1
                    self._name(row["key"], row["error"])

    def lose(self, key: str, reason: str) -> None:
        self.unreadable += 1
        self._name(key, reason)

    def _name(self, key: str, reason: str) -> None:
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{key}: {reason.rstrip('.')}")


def caption_dataset(
    dataset: Dataset,
    captioner: Captioner,
    file: CaptionFile,
    *,
    batch_size: int,
    openings: str = "strip",
    limit: int | None = None,
    progress: Callable[[Account], None] = lambda account: None,
) -> Account:
    """Caption what has no caption in `file` yet. Run again after a stop, it goes on where it was.

    Raises PixArtError where nothing can be captioned: the disk is full, or the captioner fails at every picture.
    """

    def answers(batches: Iterator[list[Uncaptioned]]) -> Iterator[list[dict]]:
        return (caption_batch(captioner, batch, openings=openings) for batch in batches)

    return caption_by(
        answers, dataset, file, looks=captioner.looks, batch_size=batch_size, limit=limit, progress=progress
    )


def caption_by(
    answers: Answers,
    dataset: Dataset,
    file: CaptionFile,
    *,
    looks: bool,
    batch_size: int,
    limit: int | None = None,
    progress: Callable[[Account], None] = lambda account: None,
) -> Account:
    """`caption_dataset`, with batches made into rows by `answers`, in this process or elsewhere.

    `looks`: whether pictures are read, or only what is known about them.
    """
    started = time.monotonic()
    account = Account(file.path)
    for rows in answers(_batches(_wanted(dataset, file, account, limit, looks), batch_size)):
        file.add(rows)
        account.take(rows)
        account.seconds = time.monotonic() - started
        progress(account)
        _stop_if_nothing_works(account)
    account.seconds = time.monotonic() - started
    return account


def _stop_if_nothing_works(account: Account) -> None:
    """A million pictures are not tried with a captioner that failed at the first eight."""
    if account.failed >= 8 and not account.captions + account.refused + account.empty:
        raise PixArtError(f"None of the first {account.failed} pictures could be captioned ({account.examples[-1]}).")


def _wanted(
    dataset: Dataset, file: CaptionFile, account: Account, limit: int | None, looks: bool
) -> Iterator[Uncaptioned]:
    for pair in itertools.islice(_pictures(dataset), limit):
        account.pictures += 1
        if isinstance(pair, Problem):
            account.lose(pair.key, pair.reason)
        elif pair.key in file:
            account.captioned_before += 1
        else:
            yield uncaptioned(pair, looks)


def _pictures(dataset: Dataset) -> Iterator[Pair | Problem]:
    """Pairs, and problems of pictures; a captioner is there for those of captions."""
    return (found for found in dataset.pairs() if isinstance(found, Pair) or not found.kind.startswith("caption"))


def uncaptioned(pair: Pair, looks: bool = True) -> Uncaptioned:
    """A pair as `caption_batch` takes it. The hint is what the data set came with, never another captioner's words."""
    known = [caption.text for caption in pair.captions if caption.source in (ORIGINAL, METADATA)]
    caption = known[0] if known else None
    facts = {**pair.extra, "label": pair.label, "caption": caption, "key": pair.key}
    return Uncaptioned(pair.key, pair.image if looks else None, caption, facts)


def _batches(items: Iterator[Uncaptioned], size: int) -> Iterator[list[Uncaptioned]]:
    while batch := list(itertools.islice(items, size)):
        yield batch
