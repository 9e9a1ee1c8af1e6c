"""Captions from a vision-language model: LLaVA and every other image-text-to-text model of transformers.

PixArt-α, section 2.4: LLaVA gets "Describe this image and its style in a very detailed manner" with every image."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pixart.checkpoints.hub import resolve
from pixart.data.captioner import Caption, Item
from pixart.errors import PixArtError, UsageError, reason_of
from pixart.files import read_json_object
from pixart.runtime.device import Device, Precision, choose_device, choose_precision, find_devices
from pixart.weights import weight_files

if TYPE_CHECKING:
    import torch


QUESTION = "Describe this image and its style in a very detailed manner"
HINT = 'Given the caption of this image "{caption}", {question}'
LONGEST_HINT = 1000


@dataclass
class VisionLanguageCaptioner:
    """Gives a model every image of a batch at once. Until `load`, which takes the memory of the model, it is settings.

    `model` is a folder or a hub id. `temperature` 0 takes the likeliest token (greedy); above 0 it samples, from
    `seed`. `source` names these captions beside others; left out, it is the model's name.
    """

    model: str
    question: str = QUESTION
    hint: bool = False
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 8
    dtype: str = "auto"
    device: str = "auto"
    source: str = ""
    looks: ClassVar[bool] = True
    network: Any = field(default=None, init=False, repr=False, compare=False)
    processor: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise UsageError("The question is empty; leave --question out for the paper's.")
        limits = {"max_new_tokens": (1, 100_000), "temperature": (0, 10), "top_p": (1e-6, 1)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise UsageError(f"{name} is {getattr(self, name)}; give {least:g} to {most:,}.")
        self.source = self.source or source_name(self.model)

    def about(self) -> dict[str, object]:
        """All that these captions depend on but device and dtype, which only round; without what changes nothing."""
        about: dict[str, object] = {
            "source": self.source,
            "model": self.model,
            "question": HINT.replace("{question}", _lower_first(self.question)) if self.hint else self.question,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.temperature > 0:
            about |= {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        return about

    def load(self) -> None:
        """Raises PixArtError for a model that is not there, incomplete, or of another kind; UsageError for a device."""
        if self.network is not None:
            return
        self.network, self.processor = _load(self.model, self.dtype, self.device)
        tokenizer = self.processor.tokenizer
        # The answer begins where the longest question ends, so shorter ones are filled up on their left.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    def caption(self, items: Sequence[Item]) -> list[Caption]:
        import torch

        inputs = self.processor(
            images=[[item.image] for item in items],  # nested: flat, some processors take them for one text's
            text=[self.prompt(item) for item in items],
            padding=True,
            return_tensors="pt",
        ).to(self.network.device, dtype=self.network.dtype)
        with torch.inference_mode():
            output = self.network.generate(**inputs, **self._decoding([item.key for item in items]))
        new = output if self.network.config.is_encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        return [Caption(text.strip(), cut=self._is_cut(tokens)) for text, tokens in zip(texts, new, strict=True)]

    def prompt(self, item: Item) -> str:
        """The text that the model gets with an image, in the form in which it was trained."""
        image_token = getattr(self.processor, "image_token", None) or "<image>"
        question, hint = self.question, ""
        if self.hint and item.caption:  # a caption that holds "<image>" or "</s>" would be read as what it must not say
            hint = item.caption[:LONGEST_HINT]
            for token in sorted({image_token, *self.processor.tokenizer.all_special_tokens}, key=len, reverse=True):
                hint = hint.replace(token, " ")
            hint = " ".join(hint.replace('"', "'").split())
        if hint:
            question = HINT.format(caption=hint, question=_lower_first(question))
        if getattr(self.processor, "chat_template", None):
            chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
            return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        if self.network.config.model_type == "llava":  # LLaVA-1.5
            return f"USER: {image_token}\n{question} ASSISTANT:"
        return f"{image_token}\n{question}"

    def _decoding(self, keys: list[str]) -> dict[str, object]:
        """Arguments of `generate`; they override what the model's own generation_config.json says."""
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        decoding: dict[str, object] = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "num_beams": 1}
        decoding |= dict.fromkeys(("temperature", "top_p", "top_k"))
        decoding["pad_token_id"] = self.processor.tokenizer.pad_token_id
        if self.temperature > 0:
            warpers = TemperatureLogitsWarper(self.temperature), TopPLogitsWarper(self.top_p)
            decoding["logits_processor"] = LogitsProcessorList([*warpers, GumbelNoise(self.seed, keys)])
        return decoding

    def _is_cut(self, tokens: "torch.Tensor") -> bool:
        """Whether the answer reached the limit without an end. `tokens` is (T,)."""
        if len(tokens) < self.max_new_tokens:
            return False
        ends = self.network.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return not any((tokens == end).any() for end in ends if end is not None)


class GumbelNoise:
    """A logits processor after which the largest score is a sample (the Gumbel-max trick), one stream per image.

    A stream is named by (seed, key). `generate` with `do_sample=True` samples all rows from one stream: there,
    an image's caption depends on its neighbours, and a run that was killed and continued writes other captions.
    """

    def __init__(self, seed: int, keys: Sequence[str]):
        import torch

        self.streams = []
        for key in keys:
            digest = hashlib.sha256(f"{seed}\n{key}".encode("utf-8", "surrogatepass")).digest()
            # Of a seed, torch uses 63 bits.
            self.streams.append(torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1))

    def __call__(self, input_ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        """`scores` (B, vocabulary) of any float type -> scores of the same shape in float32, with the noise."""
        import torch

        noise = [torch.empty(scores.shape[-1]).exponential_(generator=stream) for stream in self.streams]
        return scores.float() - torch.stack(noise).log().to(scores.device)


def source_name(model: str) -> str:
    """The last part of a path or hub id, as a file name: 'llava-hf/llava-1.5-7b-hf' is 'llava-1.5-7b-hf'."""
    name = re.sub(r"[^\w.-]+", "-", Path(model).resolve().name if Path(model).exists() else model.rpartition("/")[2])
    return name.strip("-.") or "captions"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _load(name: str, dtype: str, device_name: str) -> tuple[Any, Any]:
    """(network in evaluation mode, processor). Safetensors only, no code from the model's folder."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # read when it is imported
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    device = choose_device(find_devices(), device_name)
    precision = choose_precision(device, dtype)
    folder = resolve(name, "captioner")
    if not folder.exists():
        raise PixArtError(f"There is no model folder {name}; give a folder, or a hub id such as owner/name.")
    read_json_object(folder / "config.json")  # both for a clearer sentence than that of the library
    weight_files(folder, "model.safetensors")
    safe = {"trust_remote_code": False, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(folder, **safe)
        processor = AutoProcessor.from_pretrained(folder, **safe)
        network, loading = AutoModelForImageTextToText.from_pretrained(
            folder,
            use_safetensors=True,
            dtype=getattr(torch, precision.storage if dtype != "auto" else _computable(config, device, precision)),
            output_loading_info=True,
            **safe,
        )
    except ModuleNotFoundError:  # cli says which library this kind of model needs besides
        raise
    except Exception as error:  # what a damaged file makes the libraries raise is anybody's guess
        raise PixArtError(f"{name} cannot be loaded as an image-text-to-text model: {reason_of(error)}.") from None
    # transformers fills what is missing with random numbers, and then the captions would be noise.
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise PixArtError(f"{name} is incomplete: it lacks {len(missing)} of its weights, such as {missing[0]}.")
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise PixArtError(f"{name} has no processor for images with text, or its processor_config.json is missing.")
    where = f"cuda:{device.index}" if device.type == "cuda" else device.type
    return network.eval().to(where), processor


def _computable(config: Any, device: Device, precision: Precision) -> str:
    """The dtype in which the model is stored, or, where the device does not compute in that, one in which it does."""
    stored = str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")
    if stored == "float32" or (stored == "float16" and device.type != "cpu" and device.float16):
        return stored
    return precision.arithmetic
