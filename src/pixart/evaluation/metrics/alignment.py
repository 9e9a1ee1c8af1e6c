"""CLIPScore: how well images fit their prompts, by a CLIP model of transformers.

Not by torchmetrics, whose CLIPScore takes models of a few names only and breaks with transformers 5.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pixart.errors import PixArtError, reason_of
from pixart.files import file_hash

AT_ONCE = 16
CLIP = "openai/clip-vit-large-patch14"


class Clip:
    """A CLIP folder of transformers, or a hub id that is in the cache."""

    def __init__(self, source: str | Path, device: str = "cpu"):
        """Load it. Raises PixArtError where it is not there or damaged; says how to get it."""
        from transformers import CLIPModel, CLIPProcessor
        from transformers.utils import cached_file

        try:
            model, info = CLIPModel.from_pretrained(source, local_files_only=True, output_loading_info=True)
            if info["missing_keys"]:
                raise ValueError(f"it lacks {sorted(info['missing_keys'])[0]}")
            self.processor = CLIPProcessor.from_pretrained(source, local_files_only=True)
            folder = Path(cached_file(source, "config.json", local_files_only=True)).parent
        except Exception as error:  # a damaged folder can fail anywhere inside the library
            raise PixArtError(
                f"CLIP cannot be loaded from {source} ({reason_of(error)}); get it with: hf download {CLIP}, or give "
                "its folder."
            ) from error
        self.model = model.to(device).eval()
        files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
        self.sha256 = hashlib.sha256("".join(map(file_hash, files)).encode()).hexdigest()

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """The score of each image with its own prompt, (N,), 0 to 100: the cosine of CLIP's two vectors, cut at 0.

        Times 100, as torchmetrics has it; Hessel et al. (arXiv 2104.08718), equation 1, multiply by 2.5 instead.
        """
        import torch

        longest = self.model.config.text_config.max_position_embeddings
        options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": longest}
        found = [np.zeros(0)]
        for start in range(0, len(images), AT_ONCE):
            part, words = images[start : start + AT_ONCE], list(prompts[start : start + AT_ONCE])
            given = self.processor(text=words, images=part, **options).to(self.model.device)
            with torch.inference_mode():
                out = self.model(**given)
                found.append(torch.cosine_similarity(out.image_embeds, out.text_embeds).clamp(min=0).cpu().numpy())
        return 100 * np.concatenate(found)
