"""Images in the folders that two benchmarks' own scripts read: GenEval and T2I-CompBench."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pixart.config import shortened
from pixart.errors import UsageError

LAYOUTS = {"geneval": 4, "t2i-compbench": 10}  # images for a prompt, as in the two papers
LONGEST = 200  # bytes of a file name's prompt; most systems take 255 with number and ending


def places(layout: str, dest: Path, prompts: Sequence[str], images: int) -> Iterator[tuple[int, int, Path]]:
    """(prompt, image of it, file) for every image. Raises UsageError for prompts that cannot be file names.

    geneval: DEST/00000/samples/0000.png (evaluation/evaluate_images.py of djghosh13/geneval). t2i-compbench:
    DEST/samples/PROMPT_000000.png, its number counting over all images (Karine-Huang/T2I-CompBench, README).
    """
    if layout == "t2i-compbench":
        wrong = next((p for p in prompts if "/" in p or "\0" in p or len(p.encode()) > LONGEST or not p.strip()), None)
        if wrong is not None:
            raise UsageError(f'T2I-CompBench has the prompt as file name, which "{shortened(wrong)}" cannot be.')
    for number in range(len(prompts)):
        for image in range(images):
            if layout == "geneval":
                yield number, image, dest / f"{number:05}" / "samples" / f"{image:04}.png"
            else:
                yield number, image, dest / "samples" / f"{prompts[number]}_{number * images + image:06}.png"
