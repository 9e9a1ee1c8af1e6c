"""The HTML of the glass box. Pictures stand in it as text; every word that came from outside is escaped here."""

import base64
import functools
import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from pixart.web.glass_box_work import Looked, data_uri

HERE = Path(__file__).parent
STAGES = HERE / "stages"
NO_TORCH = "Word maps need torch, which is not installed: pip install 'pixart[torch]'. The steps are shown without it."


def looked_html(looked: Looked) -> str:
    """A drawing with its words, its slider and its maps; glass_box.js brings it to life."""
    settings, last = looked.settings, len(looked.frames) - 1
    pictures = "".join(
        f'<img class="gb-frame" src="{frame.picture}" alt="{html.escape(frame.label)}"{" hidden" if i < last else ""}>'
        for i, frame in enumerate(looked.frames)
    )
    words = "".join(
        f'<button type="button" class="gb-word" data-word="{i}" aria-pressed="false">{html.escape(word[:60])}'
        f"<small>{_percent(share)}</small></button>"
        for i, (word, share) in enumerate(zip(looked.words, looked.shares, strict=True))
    )
    if words:
        words = f'<div class="gb-words" role="group" aria-label="Words of the prompt">{words}</div>'
    line = (
        f"seed {settings['seed']} · {settings['steps']} steps of {settings['sampler']} · guidance "
        f"{settings['guidance_scale']:g} · {settings['width']} × {settings['height']} · {settings['model']}"
    )
    return (
        f'<div class="gb" data-box="{html.escape(_data(looked))}">{words}<div class="gb-stage">{pictures}'
        '<canvas class="gb-map" hidden></canvas></div><p class="gb-legend" role="status"></p>'
        '<div class="gb-steps"><button type="button" class="gb-play" aria-label="Play the steps">▶</button>'
        f'<input class="gb-slider" type="range" min="0" max="{last}" value="{last}" step="1" '
        'aria-label="Denoising step"></div><p class="gb-label"></p>'
        f'<p class="gb-line">{html.escape(line)}</p>{"".join(map(said_html, looked.notices))}</div>'
    )


def _data(looked: Looked) -> str:
    """What the script needs: labels, and the maps of all frames and words one after the other, a byte a place."""
    maps = [frame.maps for frame in looked.frames if frame.maps is not None and len(frame.maps)]
    return json.dumps(
        {
            "labels": [frame.label for frame in looked.frames],
            "words": list(looked.words),
            "grid": list(maps[0].shape[1:]) if maps else [],
            "maps": base64.b64encode(np.stack(maps).tobytes()).decode() if maps else "",
            "lows": [[round(float(low), 4) for low in frame.lows] for frame in looked.frames],
            "highs": [[round(float(high), 4) for high in frame.highs] for frame in looked.frames],
            "rest": _percent(looked.rest),
        }
    )


@functools.cache
def shipped_strip() -> str:
    """What the three stages behind the shipped model taught it, from the pictures in the package."""
    strip = json.loads((STAGES / "strip.json").read_text(encoding="utf-8"))
    rows = []
    for row in strip["rows"]:
        uris = [
            "data:image/webp;base64," + base64.b64encode((STAGES / name).read_bytes()).decode() for name in row["files"]
        ]
        small = f"{row['size']} px, {row['checkpoint']:,} steps"
        rows.append(_row(row["title"], small, row["asked"], uris, row["said"]))
    how = (
        f"Each column is one thing, each row the end of a run, every picture from the noise of seed {strip['seed']} in "
        f"{strip['steps']} steps, guidance {strip['guidance_scale']:g}. The runs kept no earlier moments."
    )
    return f'<div class="gb-strip">{"".join(rows)}<p class="gb-line">{html.escape(how)}</p></div>'


def run_strip(rows: list[Any]) -> str:
    """What a run draws: `StripRow`s, the last of them drawn just now."""
    made = []
    for i, row in enumerate(rows):
        when = "drawn now, by the averaged weights" if i == len(rows) - 1 else "drawn while it trained"
        uris = [data_uri(image) for image in row.images]
        made.append(_row(f"Step {row.step:,}", f"{row.size} px, {when}", row.asked, uris, ""))
    return f'<div class="gb-strip">{"".join(made)}</div>'


def said_html(sentence: str) -> str:
    return f'<p class="gb-said">{html.escape(sentence)}</p>'


def _row(title: str, small: str, asked: Any, uris: list[str], said: str) -> str:
    cells = "".join(
        f'<figure><img src="{uri}" alt="{html.escape(name[:200])}" loading="lazy"><figcaption>'
        f"{html.escape(name[:60])}</figcaption></figure>"
        for name, uri in zip(asked, uris, strict=True)
    )
    said = f"<p>{html.escape(said)}</p>" if said else ""
    return (
        f'<section class="gb-row"><h4>{html.escape(title)} <small>{html.escape(small)}</small></h4>'
        f'<div class="gb-cells">{cells}</div>{said}</section>'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.095 else f"{100 * share:.1f}%"
