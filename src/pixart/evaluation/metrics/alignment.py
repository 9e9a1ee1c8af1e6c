"""How well images fit their prompts, by networks that others trained: CLIPScore, and HPSv2's human preference.

HPSv2 (arXiv 2306.09341) is CLIP ViT-H/14, fine-tuned on people's choices; its score is the cosine of CLIP's. So both
are read by the same code; the official HPS_v2*.pt has the tensor names of open_clip.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pixart.errors import PixArtError

AT_ONCE = 16
CLIP = "openai/clip-vit-large-patch14"
HPS_FILE = "https://huggingface.co/xswu/HPSv2/resolve/main/HPS_v2.1_compressed.pt"
HPS_CONFIG = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # its processor and the sizes of its network


@dataclass(frozen=True)
class Clip:
    """A CLIP model of transformers, loaded, with its tokenizer and how its images are prepared."""

    model: "torch.nn.Module"  # noqa: F821
    tokenizer: "CLIPTokenizer"  # noqa: F821
    size: int  # pixels
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    path: Path  # of the folder

    def cosines(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """The cosine of each image with its own prompt, (N,), -1 to 1."""
        import torch

        found = [np.zeros(0)]
        for start in range(0, len(images), AT_ONCE):
            part = np.stack([self.prepared(p) for p in images[start : start + AT_ONCE]])
            words = self.tokenizer(
                list(prompts[start : start + AT_ONCE]),
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.model.config.text_config.max_position_embeddings,
            )
            with torch.inference_mode():
                out = self.model(
                    input_ids=words.input_ids.to(self.model.device),
                    attention_mask=words.attention_mask.to(self.model.device),
                    pixel_values=torch.from_numpy(part).to(self.model.device),
                )
            a, b = (torch.nn.functional.normalize(part.float(), dim=1) for part in (out.image_embeds, out.text_embeds))
            found.append((a * b).sum(dim=1).cpu().numpy())
        return np.concatenate(found)

    def prepared(self, image: Image.Image) -> np.ndarray:
        """See `prepared`."""
        return prepared(image, self.size, self.mean, self.std)


def prepared(
    image: Image.Image,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    rounding: Callable[[float], int] = math.floor,
) -> np.ndarray:
    """(3, size, size) float32: the shorter side brought to `size` by PIL's bicubic filter, the middle, normalised.

    By hand, since the processors of transformers want torchvision; `rounding` says which pixel the middle begins at.
    """
    rgb = image.convert("RGB")
    scale = size / min(rgb.size)
    wide, high = (max(size, int(side * scale)) for side in rgb.size)
    rgb = rgb.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = rounding((wide - size) / 2), rounding((high - size) / 2)
    pixels = np.asarray(rgb.crop((left, top, left + size, top + size)), np.float32) / 255
    return ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)


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
        return _with_parts(model.to(device), source)
    except Exception as error:  # a damaged folder can fail anywhere inside the library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PixArtError(
            f"CLIP cannot be loaded from {source} ({reason}); get it with: hf download {CLIP}, or give its folder."
        ) from error


def _with_parts(model, source: str | Path) -> Clip:
    """The model with the tokenizer and image settings (preprocessor_config.json) of a folder or hub id."""
    from transformers import CLIPTokenizer
    from transformers.utils import cached_file

    tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=True)
    path = cached_file(source, "preprocessor_config.json", local_files_only=True)
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    size = model.config.vision_config.image_size
    mean, std = tuple(settings["image_mean"]), tuple(settings["image_std"])
    return Clip(model.eval().requires_grad_(False), tokenizer, size, mean, std, Path(path).parent)


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
        clip = _with_parts(model.to(device), config)
    except Exception as error:
        raise PixArtError(
            f"HPSv2 needs the sizes and the tokenizer of {config}; get them with: hf download {HPS_CONFIG} "
            "--include '*.json' '*.txt', or give a folder with --hps-config."
        ) from error
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        missing, strange = model.load_state_dict(from_open_clip(state.get("state_dict", state)), strict=False)
        lost = [name for name in missing if not name.endswith("position_ids")]
        if lost or strange:
            raise ValueError(f"{(lost or strange)[0]} does not fit")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PixArtError(f"{weights} is not HPSv2 of the sizes in {config}: {reason}") from error
    return clip


def from_open_clip(state: dict) -> dict:
    """Tensors of a CLIP by open_clip's names -> by those of transformers.

    Both keep the same numbers; open_clip has query, key and value in one matrix and multiplies from the other side
    with the two projections.
    """
    found = {"logit_scale": state["logit_scale"]}
    found["text_model.embeddings.token_embedding.weight"] = state["token_embedding.weight"]
    found["text_model.embeddings.position_embedding.weight"] = state["positional_embedding"]
    found["vision_model.embeddings.class_embedding"] = state["visual.class_embedding"]
    found["vision_model.embeddings.position_embedding.weight"] = state["visual.positional_embedding"]
    found["vision_model.embeddings.patch_embedding.weight"] = state["visual.conv1.weight"]
    found["text_projection.weight"] = state["text_projection"].T
    found["visual_projection.weight"] = state["visual.proj"].T
    norms = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for name, value in state.items():
        stem, _, kind = name.rpartition(".")
        if stem in norms:
            found[f"{norms[stem]}.{kind}"] = value
        if "resblocks." not in name:
            continue
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        layer, part = name.split("resblocks.")[1].split(".", 1)
        where = f"{tower}.encoder.layers.{layer}"
        if part.startswith("attn.in_proj_"):
            kind = part.removeprefix("attn.in_proj_")
            for letter, piece in zip("qkv", value.chunk(3), strict=True):
                found[f"{where}.self_attn.{letter}_proj.{kind}"] = piece
        else:
            stem, _, kind = part.rpartition(".")
            found[f"{where}.{parts[stem]}.{kind}"] = value
    return {name: value.contiguous().float() for name, value in found.items()}
