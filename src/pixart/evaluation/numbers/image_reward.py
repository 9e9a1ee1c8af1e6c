"""ImageReward (arXiv 2304.05977): how people would like a picture for its prompt, by the published checkpoint.

A picture goes through BLIP's vision transformer, the prompt through BLIP's BERT, which looks at the picture in every
layer; a head on the first token gives the score. The networks are transformers' BLIP classes; sizes come from the
checkpoint's tensors, whose names are those of THUDM/ImageReward (ImageReward/ImageReward.py, models/BLIP).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixart.errors import PixArtError
from pixart.evaluation.numbers.alignment import AT_ONCE, prepared

FILE = "https://huggingface.co/THUDM/ImageReward/resolve/main/ImageReward.pt"
# Of the scores on the authors' validation set: what is printed has mean 0 and deviation 1 there.
MEAN, STD = 0.16717362830052426, 1.0333394966054072
TOKENS = 35
HEAD_WIDTH = 64  # of attention, in both networks; no tensor tells it
PIXEL_MEAN, PIXEL_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HEAD = ("layers.0", "layers.2", "layers.4", "layers.6", "layers.7")  # linear; there is dropout between, nothing else

# Names of the vision transformer, theirs -> transformers', in the order in which they are replaced.
_RENAMED = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.qkv.", ".self_attn.qkv."),
)


@dataclass(frozen=True)
class ImageReward:
    """The loaded networks (`vision`, `text`), the head's weights and biases, and the tokenizer."""

    vision: Any
    text: Any
    head: list[tuple[Any, Any]]
    tokenizer: Any
    size: int  # pixels

    def scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """The score of each picture for its own prompt, (N,); higher is better, most lie between -2 and 2."""
        import torch

        found = [np.zeros(0)]
        for start in range(0, len(pictures), AT_ONCE):
            part = [prepared(p, self.size, PIXEL_MEAN, PIXEL_STD, round) for p in pictures[start : start + AT_ONCE]]
            read = self.tokenizer.encode_batch(list(prompts[start : start + AT_ONCE]))
            with torch.inference_mode():
                seen = self.vision(pixel_values=torch.from_numpy(np.stack(part))).last_hidden_state
                x = self.text(
                    input_ids=torch.tensor([text.ids for text in read]),
                    attention_mask=torch.tensor([text.attention_mask for text in read]),
                    encoder_hidden_states=seen,
                    encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long),
                ).last_hidden_state[:, 0]
                for weight, bias in self.head:
                    x = torch.nn.functional.linear(x, weight, bias)
                found.append(((x[:, 0] - MEAN) / STD).double().numpy())
        return np.concatenate(found)


def open_image_reward(path: Path) -> ImageReward:
    """The published ImageReward.pt. Raises PixArtError where it is missing or something else."""
    import torch

    if not path.is_file():
        raise PixArtError(f"ImageReward needs its weights, and {path} is not there; get {FILE}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        tensors = {name: tensor.float() for name, tensor in state.items() if torch.is_tensor(tensor)}
        vision, text = _vision(_under("blip.visual_encoder.", tensors)), _text(_under("blip.text_encoder.", tensors))
        head = [(tensors[f"mlp.{name}.weight"], tensors[f"mlp.{name}.bias"]) for name in HEAD]
    except Exception as error:  # a damaged file can fail anywhere inside the library
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PixArtError(f"{path} is not ImageReward's checkpoint ({reason}); get {FILE}") from error
    return ImageReward(vision, text, head, tokenizer(), vision.config.image_size)


def tokenizer() -> Any:
    """That of bert-base-uncased, whose words the package's own text encoder has too; to 35 tokens, padded."""
    from tokenizers import Tokenizer

    from pixart.checkpoints.model_folder import DEFAULT_MODEL

    found = Tokenizer.from_file(str(DEFAULT_MODEL / "tokenizer" / "tokenizer.json"))
    found.enable_truncation(TOKENS)
    found.enable_padding(length=TOKENS)
    return found


def _vision(tensors: dict[str, Any]) -> Any:
    from transformers import BlipVisionConfig, BlipVisionModel

    _, positions, width = tensors["pos_embed"].shape
    patch = tensors["patch_embed.proj.weight"].shape[-1]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_layers(tensors, "blocks."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    renamed = {}
    for name, tensor in tensors.items():
        for theirs, ours in _RENAMED:
            name = name.replace(theirs, ours)
        renamed[name.replace("norm.", "post_layernorm.") if name.startswith("norm.") else name] = tensor
    return _filled(BlipVisionModel(config), renamed)


def _text(tensors: dict[str, Any]) -> Any:
    from transformers import BlipTextConfig, BlipTextModel

    words, width = tensors["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=tensors["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=tensors["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=_layers(tensors, "encoder.layer."),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=tensors["embeddings.position_embeddings.weight"].shape[0],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # gives it the layers that look at the picture; it is called as an encoder
    )
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    return _filled(BlipTextModel(config, add_pooling_layer=False), kept)


def _filled(model: Any, tensors: dict[str, Any]) -> Any:
    missing, strange = model.load_state_dict(tensors, strict=False)
    lost = [name for name in missing if not name.endswith("position_ids")]
    if lost or strange:
        raise ValueError(f"{(lost or strange)[0]} {'is missing' if lost else 'is unknown'}")
    return model.eval().requires_grad_(False)


def _under(start: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _layers(tensors: dict[str, Any], start: str) -> int:
    return 1 + max(int(name.removeprefix(start).split(".")[0]) for name in tensors if name.startswith(start))
