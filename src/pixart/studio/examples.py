"""Prompts to begin with, which the loaded model can really generate: chosen by looking at its images of them."""

from pathlib import Path

from pixart.checkpoints.model_folder import DEFAULT_MODEL, ModelFolder

IMAGES = Path(__file__).parent / "example_images"  # of SHIPPED, as `pixart generate` makes them, at 192 pixels
# The shipped model knows single objects, faces and signs on white, in its own styles: (prompt, style, seed).
SHIPPED = [
    ("a red apple", "3D", 7),
    ("a clock", "Noto", 3),
    ("a green heart", "glossy", 1),
    ("a smiling face with sunglasses", "3D", 1),
    ("a smiling face with heart eyes", "3D", 2),
    ("a strawberry", "3D", 2),
]
# What the released models were shown for: photographs, paintings, things that do not exist.
GENERAL = [
    ("a small cactus with a happy face in a desert", "No style", 0),
    ("an astronaut reading a newspaper in a laundromat", "Photographic", 0),
    ("a lighthouse on a cliff in a storm, waves breaking", "Cinematic", 0),
    ("a fox made of folded paper among paper trees", "No style", 0),
    ("a market street at night after the rain", "Neonpunk", 0),
    ("a teapot shaped like a snail", "3D Model", 0),
]


def examples_for(folder: ModelFolder) -> list[tuple[str, str, int]]:
    """(prompt, style, seed) for this model; for a model with styles of its own, things in these."""
    if folder.path == DEFAULT_MODEL:
        return SHIPPED
    if not set(folder.styles) - {style for _, style, _ in GENERAL} or "Cinematic" in folder.styles:
        return GENERAL
    styles = list(folder.styles)
    return [(prompt, styles[i % len(styles)], seed) for i, (prompt, _, seed) in enumerate(SHIPPED)]


def example_images(folder: ModelFolder) -> list[bytes]:
    """WebP files of what `examples_for` names, for the shipped model; of other models there are none."""
    shipped = folder.path == DEFAULT_MODEL and not folder.fast
    return [(IMAGES / f"{index}.webp").read_bytes() for index in range(len(SHIPPED))] if shipped else []
