"""The prompts of composition.jsonl: what the data never shows together, such as a blue apple."""

import random
from pathlib import Path

from pixart.errors import UsageError
from pixart.evaluation.prompt_sets import Prompt, read_prompts

FILE = Path(__file__).parent.parent / "composition.jsonl"
CATEGORIES = ("colour", "skin tone")  # those that can be judged: a thing in a colour, a person in a skin tone
SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")


def combinations(num: int | None = None, seed: int = 0) -> list[Prompt]:
    """The prompts that can be judged, in an order by `seed`; the first `num` of them, all if None.

    Raises UsageError where there are not so many.
    """
    prompts = [prompt for prompt in read_prompts(FILE) if prompt.category in CATEGORIES]
    if num is not None and not 1 <= num <= len(prompts):
        raise UsageError(f"The number of images is {num}; {FILE.name} has {len(prompts)} prompts that can be judged.")
    random.Random(seed).shuffle(prompts)
    return prompts[:num]


def things() -> set[str]:
    """The things that are asked for in colours which the data never shows."""
    return {prompt.about["object"] for prompt in read_prompts(FILE) if prompt.category == "colour"}


def toned_caption(prompt: Prompt, tone: str) -> str:
    """The short caption of a person in a skin tone, as the data has it."""
    return f"{prompt.about['object']} with {tone} skin tone, {prompt.about['style']}"
