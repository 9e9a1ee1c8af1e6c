"""What the glass box computes: a drawing with all its steps and word maps, and what a run draws by now. No Gradio."""

import base64
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from pixart.pipeline.attention_maps import AttentionMaps, attention_maps, torch_networks
from pixart.pipeline.pipeline import Pipeline
from pixart.pipeline.request import Request
from pixart.pipeline.trace import Trace, decode_steps, trace

MOST_STEPS = 24  # of a longer drawing so many are shown, evenly chosen
MOST_WORDS = 40  # that have a button
FINEST = 32  # rows or columns of a map that the page is sent


class Eyes:
    """The networks that look, each kept for as long as the pipeline that drew."""

    def __init__(self):
        self._open: WeakKeyDictionary[Pipeline, Any] = WeakKeyDictionary()

    def of(self, pipeline: Pipeline) -> Any:
        if pipeline not in self._open:
            self._open[pipeline] = torch_networks(pipeline)
        return self._open[pipeline]


@dataclass(frozen=True)
class Frame:
    """One position of the slider: a picture as a data URI, what to call it, and the words' maps at that step.

    Attributes:
        maps: (W, rows, columns) uint8, each word's from its lowest to its highest share; None without torch.
        lows, highs: those shares, (W,).
    """

    picture: str
    label: str
    maps: np.ndarray | None
    lows: np.ndarray
    highs: np.ndarray


@dataclass(frozen=True)
class Looked:
    """All that the page shows of one drawing; the last frame is the finished picture with the mean of all steps.

    `shares` is each word's part of all attention, `rest` that of the text's start and end and of punctuation.
    """

    settings: dict[str, Any]
    frames: tuple[Frame, ...]
    words: tuple[str, ...]
    shares: np.ndarray
    rest: float
    notices: tuple[str, ...]


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def look_inside(
    pipeline: Pipeline, request: Request, eyes: Eyes | None, tell: Callable[[str], None] = lambda said: None
) -> Looked:
    """Draw the one picture of a request and look into it; without `eyes` there are no word maps.

    `tell` is told what is being done, before every step; it may raise to stop.
    """
    notices: list[str] = []
    steps = request.steps
    drawn = trace(
        pipeline, request, on_step=lambda _, step: tell(f"Drawing: step {step.index + 1} of {steps}"),
        on_notice=notices.append,
    )  # fmt: skip
    seen = None
    if eyes is not None:
        tell("Loading the network that looks")
        seen = attention_maps(
            eyes.of(pipeline), drawn, on_step=lambda step: tell(f"Reading along: step {step + 1} of {steps}")
        )
    count = len(drawn.timesteps)
    chosen = [round(i * (count - 1) / (min(count, MOST_STEPS) - 1 or 1)) for i in range(min(count, MOST_STEPS))]
    frames = []
    for number, step in enumerate(chosen):
        tell(f"Decoding: {number + 1} of {len(chosen)}")
        (image,) = decode_steps(pipeline, drawn.x_0[step : step + 1])
        label = f"Step {step + 1} of {count}, timestep {drawn.timesteps[step]}: what it believes the picture to be"
        frames.append(_frame(image, label, None if seen is None else seen.shares[step]))
    mean = None if seen is None else seen.shares.mean(axis=0)
    frames.append(
        _frame(drawn.generated.image, "The finished picture; maps are the mean of all steps", mean, exact=True)
    )
    return _looked(drawn, seen, tuple(frames), tuple(notices))


def _looked(drawn: Trace, seen: AttentionMaps | None, frames: tuple[Frame, ...], notices: tuple[str, ...]) -> Looked:
    words = () if seen is None else seen.words
    if len(words) > MOST_WORDS:
        notices = (*notices, f"The first {MOST_WORDS} of the {len(words)} words are shown.")
    return Looked(
        settings=drawn.generated.settings,
        frames=frames,
        words=words[:MOST_WORDS],
        shares=np.zeros(0) if seen is None else seen.shares.mean(axis=(0, 2, 3))[:MOST_WORDS],
        rest=1.0 if seen is None else float(seen.rest.mean()),
        notices=notices,
    )


def _frame(image, label: str, shares: np.ndarray | None, exact: bool = False) -> Frame:
    picture = data_uri(image, exact)
    if shares is None:
        return Frame(picture, label, None, np.zeros(0), np.zeros(0))
    shares = np.stack([_coarse(share) for share in shares[:MOST_WORDS]]) if len(shares) else shares
    lows, highs = shares.min(axis=(1, 2)), shares.max(axis=(1, 2))
    span = np.maximum(highs - lows, 1e-9)[:, None, None]
    return Frame(picture, label, ((shares - lows[:, None, None]) / span * 255).astype(np.uint8), lows, highs)


def _coarse(share: np.ndarray) -> np.ndarray:
    """A map of at most FINEST rows and columns, by means."""
    if max(share.shape) <= FINEST:
        return share
    from PIL import Image

    factor = FINEST / max(share.shape)
    size = (max(1, round(share.shape[1] * factor)), max(1, round(share.shape[0] * factor)))
    return np.asarray(Image.fromarray(share).resize(size, Image.Resampling.BOX))


def data_uri(image, exact: bool = False) -> str:
    """A picture as text in the page itself, so that no file is served; `exact` keeps every pixel."""
    file = io.BytesIO()
    image.save(file, format="PNG" if exact else "JPEG", quality=88)
    kind = "png" if exact else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
