"""The judge: which caption an image fits, and which style it has. It measures models and is part of none.

An image and a caption become vectors of length 1 in one space, as in CLIP (arXiv 2103.00020, section 2.3), at the size
that a data set of 18,000 images can carry: a small residual network on 128-px images, and a perceptron over
the frozen text encoder's mean token state. A second head names the style.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.nn import functional

import pixart
from pixart.errors import PixArtError
from pixart.pixels import on_white

SHIPPED = Path(__file__).parent.parent / "judge"
TEXT_MODEL = Path(pixart.__file__).parent / "default_model"  # the text encoder of the shipped model
AT_ONCE = 128  # images or captions
MOST_SHARP = 4.6  # log of 100, the largest scale of the logits, as in CLIP


@dataclass(frozen=True)
class JudgeConfig:
    """Widths of the image network's levels (multiples of 8), each at half the side of the one before it.

    Each level has `depth` blocks. `style_weight` weighs naming the style against finding the caption, `zoom` and
    `shift` (a share of the image's side) say how far images are moved about in training, `label_smoothing` is that of
    naming the style.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    depth: int = 1
    text_width: int = 192
    embedding: int = 128
    style_weight: float = 0.5
    zoom: float = 0.25
    shift: float = 0.1
    label_smoothing: float = 0.05


class _Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut; the first takes `stride`."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, width)
        nn.init.zeros_(self.norm2.weight)  # a block begins as its shortcut
        self.shortcut = nn.Conv2d(before, width, 1, bias=False) if (before, 1) != (width, stride) else nn.Identity()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        short = functional.avg_pool2d(x, self.stride) if self.stride > 1 else x
        return functional.relu(y + self.shortcut(short))


class ImageNetwork(nn.Module):
    """Pixels (B, 3, S, S) in [-1, 1] -> (B, widths[-1]); S a multiple of 2 * 2 ** len(widths)."""

    def __init__(self, config: JudgeConfig):
        super().__init__()
        before = config.widths[0] // 2
        self.stem = nn.Conv2d(3, before, 4, 2, 1)
        blocks = []
        for width in config.widths:
            for number in range(config.depth):
                blocks.append(_Residual(before, width, 1 if number else 2))
                before = width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.blocks(functional.relu(self.stem(pixels.contiguous(memory_format=torch.channels_last))))
        return x.mean(dim=(2, 3))


class TextNetwork(nn.Module):
    """Mean token states (B, T) -> (B, text_width).

    The states are the encoder's, so each already knows of the others: their mean, and a small perceptron beside it,
    learned as much as a layer of attention in a third less time.
    """

    def __init__(self, config: JudgeConfig, text_dim: int):
        super().__init__()
        width = config.text_width
        self.norm = nn.LayerNorm(text_dim)
        self.shortcut = nn.Linear(text_dim, width)
        self.inner = nn.Linear(text_dim, 2 * width)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, text: Tensor) -> Tensor:
        x = self.norm(text)
        return self.shortcut(x) + self.outer(functional.dropout(functional.gelu(self.inner(x)), 0.1, self.training))


class JudgeNetwork(nn.Module):
    """`images` and `captions` give vectors of length 1; their product is how well the two fit, -1 to 1."""

    def __init__(self, config: JudgeConfig, text_dim: int, styles: int):
        super().__init__()
        self.picture_network = ImageNetwork(config)
        self.text_network = TextNetwork(config, text_dim)
        # The mean over an image is a hundredth of what a head expects: without this, the style was hardly learned.
        self.picture_norm = nn.LayerNorm(config.widths[-1])
        self.picture_head = nn.Linear(config.widths[-1], config.embedding, bias=False)
        self.text_head = nn.Linear(config.text_width, config.embedding, bias=False)
        self.style_head = nn.Linear(config.widths[-1], styles)
        self.log_scale = nn.Parameter(torch.tensor(2.7))  # of the logits; e^2.7 = 15, as in CLIP's first steps

    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, S, S) in [-1, 1] -> vectors (B, embedding) of length 1, and style logits (B, styles)."""
        features = self.picture_norm(self.picture_network(pixels))
        return functional.normalize(self.picture_head(features).float(), dim=1), self.style_head(features).float()

    def captions(self, text: Tensor) -> Tensor:
        """Mean token states (B, T) -> vectors (B, embedding) of length 1."""
        return functional.normalize(self.text_head(self.text_network(text)).float(), dim=1)

    def forward(self, pixels: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, B) of image k for caption j, and style logits (B, styles)."""
        images, styles = self.images(pixels)
        return self.log_scale.clamp(max=MOST_SHARP).exp() * images @ self.captions(text).T, styles


@dataclass(frozen=True)
class Judge:
    """A trained judge. `size` is the side in pixels at which it looks, `styles` those that it tells apart."""

    network: JudgeNetwork
    size: int
    styles: tuple[str, ...]
    sha256: str

    def images(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, list[str]]:
        """Vectors (N, D) float32 of length 1, and the style that each image is taken for."""
        vectors, styles = [np.zeros((0, self.network.picture_head.out_features), np.float32)], []
        for start in range(0, len(images), AT_ONCE):
            small = np.stack([prepared(image, self.size) for image in images[start : start + AT_ONCE]])
            with torch.inference_mode():
                found, logits = self.network.images(to_unit(torch.from_numpy(small)))
            vectors.append(found.numpy())
            styles += [self.styles[k] for k in logits.argmax(dim=1).tolist()]
        return np.concatenate(vectors), styles

    def captions(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (N, D) float32 of length 1."""
        with torch.inference_mode():
            return self.network.captions(torch.from_numpy(mean_states(texts))).numpy()


def prepared(image: Image.Image, size: int) -> np.ndarray:
    """RGB on white, `size` pixels a side, by PIL's Lanczos filter, for generated and true images: (3, S, S) uint8."""
    return np.asarray(on_white(image).resize((size, size), Image.Resampling.LANCZOS)).transpose(2, 0, 1)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def mean_states(texts: Sequence[str]) -> np.ndarray:
    """The mean token state of each text by the shipped model's text encoder: (N, T) float32."""
    tokenizer, encoder = _text_encoder()
    tokens = [tokenizer(text.lower().strip(), truncation=True, max_length=120)["input_ids"] for text in texts]
    order = sorted(range(len(texts)), key=lambda k: len(tokens[k]))  # texts of like length together, for speed
    means = np.zeros((len(texts), encoder.config.hidden_size), np.float32)
    for start in range(0, len(order), AT_ONCE):
        rows = order[start : start + AT_ONCE]
        batch = tokenizer.pad({"input_ids": [tokens[k] for k in rows]}, return_tensors="pt")
        with torch.inference_mode():
            states = encoder(**batch).last_hidden_state
        weight = batch["attention_mask"][..., None].float()
        means[rows] = ((states * weight).sum(dim=1) / weight.sum(dim=1)).numpy()
    return means


@functools.cache
def _text_encoder():
    from transformers import AutoTokenizer, BertModel

    tokenizer = AutoTokenizer.from_pretrained(TEXT_MODEL / "tokenizer", local_files_only=True)
    return tokenizer, BertModel.from_pretrained(TEXT_MODEL / "text_encoder", local_files_only=True).eval()


def save_judge(folder: Path, network: JudgeNetwork, config: JudgeConfig, **about) -> None:
    """`model.safetensors` in half precision and `config.json` with `size`, `styles`, `text_dim` and the like."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.half().contiguous().cpu() for name, value in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**about, "judge": asdict(config)}, indent=1) + "\n")


def open_judge(folder: Path = SHIPPED) -> Judge:
    """Load a judge that `save_judge` wrote. Raises PixArtError, naming the folder, where it is not whole."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = (folder / "model.safetensors").read_bytes()
        sizes = {key: tuple(value) if isinstance(value, list) else value for key, value in config["judge"].items()}
        network = JudgeNetwork(JudgeConfig(**sizes), config["text_dim"], len(config["styles"]))
        network.load_state_dict({name: value.to(torch.float32) for name, value in load(weights).items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PixArtError(f"The judge in {folder} cannot be loaded ({reason}); train it: make.py judge.") from None
    sha256 = hashlib.sha256(weights).hexdigest()
    return Judge(network.eval().requires_grad_(False), config["size"], tuple(config["styles"]), sha256)
