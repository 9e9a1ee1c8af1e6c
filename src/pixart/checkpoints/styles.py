"""The ten styles that PixArt's demos offer by name, in our own words, for models without styles of their own.

A model folder's `styles.json` says what that model was trained on and comes first. A folder without one (the released
weights) gets these. By name they are taken with every model, with a notice where the model has other styles.
"""

from dataclasses import dataclass
from typing import Any

from pixart.errors import PixArtError


@dataclass(frozen=True)
class Style:
    """A template with the hole `{prompt}`, and words to steer away from."""

    prompt: str
    negative_prompt: str = ""


def read_styles(styles: dict[str, Any], name: str) -> dict[str, Style]:
    """Check the content of a styles.json; raises PixArtError naming the file and the style that is wrong."""
    result = {}
    for key, value in styles.items():
        template = value.get("prompt") if isinstance(value, dict) else None
        negative = value.get("negative_prompt", "") if isinstance(value, dict) else None
        if not isinstance(template, str) or "{prompt}" not in template or not isinstance(negative, str):
            raise PixArtError(f'{name}: the style "{key}" needs a "prompt" text with {{prompt}} in it.')
        result[key] = Style(template, negative)
    return result


GENERAL_STYLES = {
    "Cinematic": Style(
        "{prompt}, frame of a feature film, shallow depth of field, anamorphic lens, soft grain, moody light",
        "drawing, cartoon, flat light, snapshot, washed out",
    ),
    "Photographic": Style(
        "photo of {prompt}, 35 mm, natural light, sharp focus, fine detail",
        "drawing, painting, rendering, cartoon, blurred",
    ),
    "Anime": Style(
        "{prompt}, anime, clean line art, cel shading, bright colours, expressive",
        "photo, realistic skin, rendering, dull colours",
    ),
    "Manga": Style(
        "{prompt}, manga page, black ink, screentone, strong contrast, dynamic lines",
        "colour, photo, rendering, smudged",
    ),
    "Digital Art": Style(
        "{prompt}, digital painting, rich colours, clear shapes, carefully lit, highly detailed",
        "photo, grainy, rough sketch",
    ),
    "Pixel art": Style(
        "{prompt}, pixel art, 16-bit game sprite, few colours, crisp square pixels",
        "smooth gradients, photo, blurred, antialiased",
    ),
    "Fantasy art": Style(
        "{prompt}, fantasy illustration, otherworldly, glowing light, grand scenery, painted in detail",
        "photo, modern, plain, everyday",
    ),
    "Neonpunk": Style(
        "{prompt}, neon-lit city at night, cyberpunk, magenta and cyan glow, wet reflections, haze",
        "daylight, pastel, rural, vintage",
    ),
    "3D Model": Style(
        "{prompt}, 3D model, physically based rendering, studio light, smooth shading, ambient occlusion",
        "flat, sketch, photo, hand drawn",
    ),
}


def known_styles(own: dict[str, Style]) -> dict[str, Style]:
    """Every style that a request may name: the model's own, then the general ones under names still free."""
    return own | {name: style for name, style in GENERAL_STYLES.items() if name not in own}


def style_notice(style: str | None, own: dict[str, Style]) -> str | None:
    """A notice for a style that the model was not trained on; None if there is nothing to say."""
    if style is None or style in own:
        return None
    return f'"{style}" is a general style; this model was trained on its own: {", ".join(own)}.'
