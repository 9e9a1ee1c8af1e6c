"""The trained judge, read from its folder: pictures and captions in, vectors and styles out. Needs torch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pixart.errors import PixArtError

if TYPE_CHECKING:
    from pixart.encoders.text import TextEncoder

SHIPPED = Path(__file__).parent / "emoji"
TEXT_ENCODER = Path(__file__).parent.parent / "default_model"
AT_ONCE = 128  # pictures or captions


@dataclass(frozen=True)
class OpenedJudge:
    """A judge, loaded. `size` is the side in pixels at which it looks, `styles` those that it tells apart."""

    network: "torch.nn.Module"  # noqa: F821
    text_encoder: "TextEncoder"
    size: int
    styles: tuple[str, ...]
    sha256: str

    def pictures(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, list[str]]:
        """Vectors (N, D) float32 of length 1, and the style that each picture is taken for."""
        import torch

        vectors, styles = [np.zeros((0, self.network.picture_head.out_features), np.float32)], []
        for start in range(0, len(images), AT_ONCE):
            small = np.stack([np.asarray(prepared(image, self.size)) for image in images[start : start + AT_ONCE]])
            pixels = torch.from_numpy(small).permute(0, 3, 1, 2).float() / 127.5 - 1
            with torch.inference_mode():
                found, logits = self.network.pictures(pixels)
            vectors.append(found.numpy())
            styles += [self.styles[k] for k in logits.argmax(dim=1).tolist()]
        return np.concatenate(vectors), styles

    def captions(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (N, D) float32 of length 1."""
        import torch

        from pixart.data.encode import encode_captions

        states, _ = encode_captions(self.text_encoder, texts, precision="fp32")
        vectors = [np.zeros((0, self.network.text_head.out_features), np.float32)]
        for start in range(0, len(states), AT_ONCE):
            part = states[start : start + AT_ONCE]
            length = max(len(text) for text in part)
            text = torch.zeros(len(part), length, part[0].shape[1])
            mask = torch.zeros(len(part), length, dtype=torch.bool)
            for row, state in enumerate(part):
                text[row, : len(state)] = state
                mask[row, : len(state)] = True
            with torch.inference_mode():
                vectors.append(self.network.captions(text, mask).numpy())
        return np.concatenate(vectors)


def prepared(image: Image.Image, size: int) -> Image.Image:
    """RGB on white, `size` pixels a side, by PIL's Lanczos filter: the same for drawn and for true pictures."""
    return on_white(image).resize((size, size), Image.Resampling.LANCZOS)


def on_white(image: Image.Image) -> Image.Image:
    """The picture as RGB; where it is transparent, white shows through."""
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def open_judge(folder: Path | None = None) -> OpenedJudge:
    """Load a judge that `pixart train emoji/judge` wrote; None is the one in the package.

    Raises PixArtError, naming the file, where the folder is not whole.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from pixart.data.encode import load_text_encoder
    from pixart.encoders.judge import Judge, JudgeConfig

    folder = folder or SHIPPED
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = (folder / "model.safetensors").read_bytes()
        sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in config["judge"].items()}
        network = Judge(JudgeConfig(**sizes), config["text_dim"], len(config["styles"]))
        network.load_state_dict({name: value.to(torch.float32) for name, value in load(weights).items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PixArtError(
            f"The judge in {folder} cannot be loaded ({reason}); train it: pixart train emoji/judge"
        ) from None
    return OpenedJudge(
        network=network.eval().requires_grad_(False),
        text_encoder=load_text_encoder(TEXT_ENCODER / "text_encoder", TEXT_ENCODER / "tokenizer"),
        size=config["size"],
        styles=tuple(config["styles"]),
        sha256=hashlib.sha256(weights).hexdigest(),
    )
