"""`pixart models`: the released models, what suits each, and what of them is on this machine."""

import json
from dataclasses import asdict, dataclass

HEADS = ("model", "family", "pixels", "parameters", "tokens", "sampler", "steps", "guidance", "licence", "here")


@dataclass
class Models:
    """List the released models that pixart knows, with their sizes, defaults and licences, and what is in the cache.

    The name of each goes after --model. The network is not asked.
    """

    json: bool = False
    """Print one JSON object per model instead of a table."""


def list_models(options: Models) -> int:
    """Run `pixart models`; prints a line per model."""
    from pixart.checkpoints.hub import cached_models
    from pixart.checkpoints.known import KNOWN
    from pixart.diffusion.solvers import SAMPLERS

    cached, rows = cached_models(), []
    for known in KNOWN:
        suited, here = SAMPLERS[known.sampler], cached.get(known.name, 0)
        defaults = {"steps": suited.steps, "guidance_scale": suited.guidance_scale}
        if options.json:
            print(json.dumps(asdict(known) | {"tokens": known.tokens, **defaults, "bytes_in_the_cache": here}))
            continue
        facts = (known.family, known.size, f"{known.parameters} M", known.tokens, known.sampler, suited.steps)
        guidance = "none" if suited.guidance_scale == 1 else f"{suited.guidance_scale:g}"
        licence = known.licence or "see its card"
        rows.append((known.name, *facts, guidance, licence, f"{here / 1e9:.1f} GB" if here else "no"))
    widths = [max(len(str(row[column])) for row in (HEADS, *rows)) for column in range(len(HEADS))]
    for row in (HEADS, *rows) if rows else ():
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0
