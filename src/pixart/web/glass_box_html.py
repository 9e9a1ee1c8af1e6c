"""The HTML of the glass box. Pictures stand in it as text; every word that came from outside is escaped here."""

import base64
import html
import json
from pathlib import Path

import numpy as np

from pixart.web.glass_box_work import Looked

HERE = Path(__file__).parent
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


def said_html(sentence: str) -> str:
    return f'<p class="gb-said">{html.escape(sentence)}</p>'


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.095 else f"{100 * share:.1f}%"
