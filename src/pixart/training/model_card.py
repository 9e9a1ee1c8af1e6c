"""README.md of a model folder that training has made: how to use it, how it was trained, what that took."""

from pathlib import Path

from pixart.files import write_whole
from pixart.training.recipe import Recipe

HEAD = """---
library_name: diffusers
pipeline_tag: text-to-image
tags: [pixart]
---
# {name}

A PixArt model, trained with pixart. Generate with it:

```sh
pixart generate "a prompt" --model {folder}
```

```python
from diffusers import PixArtAlphaPipeline

PixArtAlphaPipeline.from_pretrained("{folder}")("a prompt")
```

## Training

"""


def write_card(folder: Path, task: str, recipe: Recipe, metrics: dict[str, float], hours: float, device: str) -> None:
    """Write README.md into a finished run's model folder. `metrics` are the last ones on images not trained on."""
    rows = "".join(f"| {p.steps:,} | {p.batch_size:,} | {p.features or p.size} |\n" for p in recipe.phases)
    found = "".join(f"- {name.replace('_', ' ')}: {value:.4g}\n" for name, value in metrics.items())
    text = (
        HEAD.format(name=recipe.output.name, folder=folder.name)
        + f"Task: {task}. It took {hours:.2f} hours on {device}.\n\n"
        + f"| Steps | Batch | Data |\n| --- | --- | --- |\n{rows}"
        + (f"\nOn images that were not trained on:\n\n{found}" if found else "")
    )
    write_whole(folder / "README.md", text)
