"""The three services behind one interface. Each loads its library when it is opened."""

import time
from pathlib import Path
from typing import Any, Protocol

Pictures = list[tuple[Path, str]]  # file and caption
Rows = list[list[Any]]  # of a table; a Path is a picture file


class Service(Protocol):
    """What a service must do; any of it may raise, hang or be slow."""

    def figures(self, step: int, figures: dict[str, float]) -> None: ...

    def pictures(self, step: int, name: str, pictures: Pictures) -> None: ...

    def table(self, step: int, name: str, columns: list[str], rows: Rows) -> None: ...

    def call(self, step: int, entry: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


def open_service(opening: dict[str, Any]) -> Service:
    """`opening` is what `Tracker` sends first: service, run, name, id, project, offline, settings."""
    match opening["service"]:
        case "wandb":
            return Wandb(opening)
        case "trackio":
            return Trackio(opening)
        case "tensorboard":
            return TensorBoard(opening)
        case other:
            raise ValueError(f"there is no tracker {other!r}")


class Wandb:
    """Weights & Biases. Its files go into the run folder, where `wandb sync` finds them if the network was away."""

    def __init__(self, opening: dict[str, Any]):
        import wandb

        self.wandb = wandb
        self.workflow: list[dict[str, Any]] = []
        settings = wandb.Settings(console="off", silent=True, disable_code=True, disable_git=True, init_timeout=60)
        self.run = wandb.init(
            project=opening["project"],
            name=opening["name"],
            id=opening["id"],
            resume="allow",
            dir=opening["run"],
            config=opening["settings"],
            mode="offline" if opening["offline"] else None,  # None: what WANDB_MODE says, else online
            settings=settings,
        )
        # Our step, not a count of records: a run that was killed takes some steps again, with the same numbers.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def figures(self, step: int, figures: dict[str, float]) -> None:
        self.run.log({"step": step, **figures})

    def pictures(self, step: int, name: str, pictures: Pictures) -> None:
        self.run.log({"step": step, name: [self.wandb.Image(str(path), caption=text) for path, text in pictures]})

    def table(self, step: int, name: str, columns: list[str], rows: Rows) -> None:
        cells = [[self.wandb.Image(str(cell)) if isinstance(cell, Path) else cell for cell in row] for row in rows]
        self.run.log({"step": step, name: self.wandb.Table(columns=columns, data=cells, allow_mixed_types=True)})

    def call(self, step: int, entry: dict[str, Any]) -> None:
        self.workflow.append(entry)
        self.run.config.update({"workflow": self.workflow}, allow_val_change=True)

    def finish(self) -> None:
        self.run.finish()


class Trackio:
    """trackio, local: `trackio show --project pixart` shows it."""

    def __init__(self, opening: dict[str, Any]):
        import trackio

        self.trackio = trackio
        self.run = trackio.init(
            project=opening["project"],
            name=opening["name"],
            config=opening["settings"],
            resume="allow",
            embed=False,
            auto_log_cpu=False,
        )

    def figures(self, step: int, figures: dict[str, float]) -> None:
        self.run.log(figures, step=step)

    def pictures(self, step: int, name: str, pictures: Pictures) -> None:
        # It knows single pictures only, so each gets a name of its own.
        images = {
            f"{name}/{number}": self.trackio.Image(str(path), caption=text)
            for number, (path, text) in enumerate(pictures)
        }
        self.run.log(images, step=step)

    def table(self, step: int, name: str, columns: list[str], rows: Rows) -> None:
        cells = [[self.trackio.Image(str(cell)) if isinstance(cell, Path) else cell for cell in row] for row in rows]
        self.run.log({name: self.trackio.Table(columns=columns, data=cells)}, step=step)

    def call(self, step: int, entry: dict[str, Any]) -> None:
        # Its configuration is fixed when a run begins; what comes later stands among the records.
        self.run.log({"workflow": entry}, step=step)

    def finish(self) -> None:
        self.run.finish()


class TensorBoard:
    """Event files in `tensorboard/` of the run folder, written without torch: `tensorboard --logdir runs`."""

    def __init__(self, opening: dict[str, Any]):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.event, self.summary = event_pb2, summary_pb2
        self.writer = EventFileWriter(str(Path(opening["run"]) / "tensorboard"))
        self.begun = False

    def figures(self, step: int, figures: dict[str, float]) -> None:
        values = [self.summary.Summary.Value(tag=name, simple_value=figure) for name, figure in figures.items()]
        self._add(step, values)

    def pictures(self, step: int, name: str, pictures: Pictures) -> None:
        from PIL import Image

        values = []
        for number, (path, _) in enumerate(pictures):
            with Image.open(path) as image:
                width, height = image.size
            image = self.summary.Summary.Image(
                encoded_image_string=path.read_bytes(), width=width, height=height, colorspace=3
            )
            values.append(self.summary.Summary.Value(tag=f"{name}/{number}", image=image))
        self._add(step, values)

    def table(self, step: int, name: str, columns: list[str], rows: Rows) -> None:
        raise ValueError("TensorBoard has no tables")

    def call(self, step: int, entry: dict[str, Any]) -> None:
        raise ValueError("TensorBoard takes no configuration")

    def finish(self) -> None:
        self.writer.close()

    def _add(self, step: int, values: list) -> None:
        if not self.begun:  # of a continued run: what an earlier file holds from this step on is taken again
            start = self.event.SessionLog(status=self.event.SessionLog.START)
            self.writer.add_event(self.event.Event(session_log=start, step=step, wall_time=time.time()))
            self.begun = True
        summary = self.summary.Summary(value=values)
        self.writer.add_event(self.event.Event(summary=summary, step=step, wall_time=time.time()))
