"""How well images fit their prompts, by networks that others trained: CLIPScore, and HPSv2's human preference.

HPSv2 (arXiv 2306.09341) is CLIP ViT-H/14, fine-tuned on people's choices; its score is the cosine of CLIP's. So both
are read by the same code; the official HPS_v2*.pt has the tensor names of open_clip.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixart.errors import PixArtError

AT_ONCE = 16
CLIP = "openai/clip-vit-large-patch14"
HPS_FILE = "https://huggingface.co/xswu/HPSv2/resolve/main/HPS_v2.1_compressed.pt"
HPS_CONFIG = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # its processor and the sizes of its network
# Names of open_clip's tensors -> those of transformers, in the order in which they are replaced.
RENAMED = (
    ("transformer.resblocks.", "encoder.layers."),
    ("ln_1.", "layer_norm1."),
    ("ln_2.", "layer_norm2."),
    ("attn.out_proj.", "self_attn.out_proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
    ("ln_final.", "final_layer_norm."),
    ("ln_pre.", "pre_layrnorm."),
    ("ln_post.", "post_layernorm."),
    ("token_embedding.", "embeddings.token_embedding."),
    ("positional_embedding", "embeddings.position_embedding.weight"),
    ("class_embedding", "embeddings.class_embedding"),
    ("conv1.", "embeddings.patch_embedding."),
)


@dataclass(frozen=True)
class Clip:
    """A CLIP model of transformers, loaded, with its tokenizer and how its images are normalised."""

    model: Any
    tokenizer: Any
    mean: np.ndarray
    std: np.ndarray
    path: Path  # of the folder or file of its weights

    def cosines(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """The cosine of each image with its own prompt, (N,), -1 to 1."""
        import torch

        found = [np.zeros(0)]
        for start in range(0, len(images), AT_ONCE):
            part = np.stack([self.prepared(image) for image in images[start : start + AT_ONCE]])
            words = self.tokenizer(
                list(prompts[start : start + AT_ONCE]),
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
            )
            with torch.inference_mode():
                given = words.to(self.model.device), torch.from_numpy(part).to(self.model.device)
                out = self.model(**given[0], pixel_values=given[1])
                found.append(torch.cosine_similarity(out.image_embeds, out.text_embeds).cpu().numpy())
        return np.concatenate(found)

    def prepared(self, image: Image.Image) -> np.ndarray:
        """(3, S, S) float32: the shorter side brought to S by PIL's bicubic filter, the middle, normalised.

        By hand, since the processors of transformers want torchvision.
        """
        size = self.model.config.vision_config.image_size
        rgb = image.convert("RGB")
        scale = size / min(rgb.size)
        rgb = rgb.resize([max(size, int(side * scale)) for side in rgb.size], Image.Resampling.BICUBIC)
        left, top = ((side - size) // 2 for side in rgb.size)
        pixels = np.asarray(rgb.crop((left, top, left + size, top + size)), np.float32) / 255
        return ((pixels - self.mean) / self.std).transpose(2, 0, 1)


def clip_scores(clip: Clip, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
    """CLIPScore of each image, (N,), 0 to 100: the cosine, cut at 0, times 100 as torchmetrics has it.

    Hessel et al. (arXiv 2104.08718), equation 1, multiply by 2.5 instead.
    """
    return 100 * np.maximum(clip.cosines(images, prompts), 0)


def hps_scores(clip: Clip, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
    """HPSv2 of each image, (N,), as the official code prints it times 100."""
    return 100 * clip.cosines(images, prompts)


def open_clip(source: str | Path = CLIP, device: str = "cpu") -> Clip:
    """A CLIP folder of transformers, or a hub id that is in the cache. PixArtError says how to get it."""
    from transformers import CLIPModel

    try:
        model, info = CLIPModel.from_pretrained(source, local_files_only=True, output_loading_info=True)
        if info["missing_keys"]:
            raise ValueError(f"it lacks {sorted(info['missing_keys'])[0]}")
        return _with_parts(model, source, device)
    except Exception as error:  # a damaged folder can fail anywhere inside the library
        raise PixArtError(
            f"CLIP cannot be loaded from {source} ({_reason(error)}); get it with: hf download {CLIP}, or give its "
            "folder."
        ) from error


def open_hps(weights: Path, config: str | Path = HPS_CONFIG, device: str = "cpu") -> Clip:
    """HPSv2 from the official file; sizes, tokenizer and image settings from `config`, a CLIP folder or hub id.

    A folder of transformers with HPSv2's weights is read as it is. Raises PixArtError where a file is missing.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    if weights.is_dir():
        return open_clip(weights, device)
    if not weights.is_file():
        raise PixArtError(f"HPSv2 needs its weights, and {weights} is not there; get {HPS_FILE}")
    try:
        model = CLIPModel(CLIPConfig.from_pretrained(config, local_files_only=True))
        clip = _with_parts(model, config, device, weights)
    except Exception as error:
        raise PixArtError(
            f"HPSv2 needs the sizes and the tokenizer of {config}; get them with: hf download {HPS_CONFIG} "
            "--include '*.json' '*.txt', or give a folder with --hps-config."
        ) from error
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        missing, strange = model.load_state_dict(from_open_clip(state.get("state_dict", state)), strict=False)
        if lost := [name for name in (*missing, *strange) if not name.endswith("position_ids")]:
            raise ValueError(f"{lost[0]} does not fit")
    except Exception as error:
        raise PixArtError(f"{weights} is not HPSv2 of the sizes in {config}: {_reason(error)}") from error
    return clip


def from_open_clip(state: dict[str, Any]) -> dict[str, Any]:
    """Tensors of a CLIP by open_clip's names -> by those of transformers.

    Both keep the same numbers; open_clip has query, key and value in one matrix and multiplies from the other side
    with the two projections.
    """
    whole = {"logit_scale": "logit_scale", "text_projection": "text_projection.weight"}
    whole["visual.proj"] = "visual_projection.weight"
    found = {}
    for name, value in state.items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        ours = name.removeprefix("visual.")
        for theirs, replacement in RENAMED:
            ours = ours.replace(theirs, replacement)
        if name in whole:
            found[whole[name]] = value.T if value.ndim == 2 else value
        elif "attn.in_proj_" in ours:
            for letter, piece in zip("qkv", value.chunk(3), strict=True):
                found[f"{tower}.{ours.replace('attn.in_proj_', f'self_attn.{letter}_proj.')}"] = piece
        else:
            found[f"{tower}.{ours}"] = value
    return {name: value.contiguous().float() for name, value in found.items()}


def _with_parts(model: Any, source: str | Path, device: str, weights: Path | None = None) -> Clip:
    """The model with the tokenizer and image settings (preprocessor_config.json) of a folder or hub id."""
    from transformers import CLIPTokenizer
    from transformers.utils import cached_file

    path = Path(cached_file(source, "preprocessor_config.json", local_files_only=True))
    settings = json.loads(path.read_text(encoding="utf-8"))
    mean, std = (np.float32(settings[name]) for name in ("image_mean", "image_std"))
    tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    return Clip(model.to(device).eval().requires_grad_(False), tokenizer, mean, std, weights or path.parent)


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
