"""Prompts to compare and measure models by: the sets of the package, and the files of known benchmarks."""

from pixart.evaluation.prompt_sets.prompts import SETS, Prompt, read_prompts

__all__ = ["SETS", "Prompt", "read_prompts"]
