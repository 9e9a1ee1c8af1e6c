"""Captions from a vision-language model: LLaVA and every other image-text-to-text model of transformers.

PixArt-α, section 2.4: LLaVA is asked "Describe this image and its style in a very detailed manner" about every picture.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pixart.captions.captioner import Caption, Picture
from pixart.captions.model_files import check_folder
from pixart.captions.word_choice import WordChoice
from pixart.errors import PixArtError, UsageError

QUESTION = "Describe this image and its style in a very detailed manner"
HINT = 'Given the caption of this image "{caption}", {question}'
LONGEST_HINT = 1000
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class VisionLanguageSettings:
    """What a `VisionLanguageCaptioner` is made from; picklable, so that other processes can make the same one.

    `model` is a folder or a hub id. `temperature` 0 takes the likeliest word (greedy); above 0 it draws, from `seed`.
    `source` names these captions beside others; left out, it is the model's name.
    """

    model: str
    question: str = QUESTION
    hint: bool = False
    captions_per_picture: int = 1
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"
    source: str = ""

    def __post_init__(self) -> None:
        def need(ok: bool, sentence: str) -> None:
            if not ok:
                raise UsageError(sentence)

        need(bool(self.question.strip()), "The question is empty; leave --question out to ask the paper's.")
        need(self.max_new_tokens >= 1, f"--max-new-tokens is {self.max_new_tokens}; give 1 or more.")
        need(0 <= self.temperature <= 10, f"--temperature is {self.temperature:g}; give 0 (greedy) to 10.")
        need(0 < self.top_p <= 1, f"--top-p is {self.top_p:g}; give more than 0 and at most 1.")
        need(self.captions_per_picture >= 1, f"--num-captions is {self.captions_per_picture}; give 1 or more.")
        need(
            self.captions_per_picture == 1 or self.temperature > 0,
            f"Greedy captions of one picture are all the same: give --temperature 0.2 or more for "
            f"{self.captions_per_picture} captions per picture.",
        )
        need(self.dtype in DTYPES, f"--dtype is {self.dtype!r}; give one of {', '.join(DTYPES)}.")
        need(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device) is not None, f"There is no device {self.device!r}.")
        if not self.source:
            object.__setattr__(self, "source", source_name(self.model))

    def about(self) -> dict[str, object]:
        """What goes into every row: all that these captions depend on but device and dtype, which only round.

        Settings that change nothing are left out.
        """
        about: dict[str, object] = {
            "source": self.source,
            "model": self.model,
            "question": HINT.replace("{question}", _lower_first(self.question)) if self.hint else self.question,
            "max_new_tokens": self.max_new_tokens,
        }
        if self.temperature > 0:
            about |= {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        if self.captions_per_picture > 1:
            about["num_captions"] = self.captions_per_picture
        return about


def source_name(model: str) -> str:
    """The last part of a path or hub id, as a file name: 'llava-hf/llava-1.5-7b-hf' is 'llava-1.5-7b-hf'."""
    name = re.sub(r"[^\w.-]+", "-", Path(model).resolve().name if Path(model).exists() else model.rpartition("/")[2])
    return name.strip("-.") or "captions"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


class VisionLanguageCaptioner:
    """Asks a model about every picture of a batch at once. Loading it takes the memory of the whole model."""

    looks = True

    def __init__(self, settings: VisionLanguageSettings):
        """Raises PixArtError, with one sentence, for a model that is not there, not whole, or of another kind."""
        self.settings = settings
        self.model, self.processor = _load(settings)
        tokenizer = self.processor.tokenizer
        # The answer begins where the longest question ends, so shorter ones are filled up on their left.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.image_token = getattr(self.processor, "image_token", None) or "<image>"
        # A caption that holds "<image>" or "</s>" would be read as what only the program may say.
        self.reserved = sorted({self.image_token, *tokenizer.all_special_tokens}, key=len, reverse=True)

    def about(self) -> dict[str, object]:
        return self.settings.about()

    def caption(self, pictures: Sequence[Picture]) -> list[list[Caption]]:
        """`captions_per_picture` captions of each picture, in order."""
        import torch

        inputs = self.processor(
            images=[[picture.image] for picture in pictures],  # nested: flat, some processors take them for one text's
            text=[self._prompt(picture) for picture in pictures],
            padding=True,
            return_tensors="pt",
        ).to(self.model.device, dtype=self.model.dtype)
        answers: list[list[Caption]] = [[] for _ in pictures]
        for index in range(self.settings.captions_per_picture):
            with torch.inference_mode():
                output = self.model.generate(**inputs, **self._how([picture.key for picture in pictures], index))
            new = output if self.model.config.is_encoder_decoder else output[:, inputs["input_ids"].shape[1] :]
            texts = self.processor.batch_decode(new, skip_special_tokens=True)
            for answer, text, tokens in zip(answers, texts, new, strict=True):
                answer.append(Caption(text.strip(), index=index, cut=self._is_cut(tokens)))
        return answers

    def _prompt(self, picture: Picture) -> str:
        question = self.settings.question
        hint = self._without_reserved(picture.caption or "") if self.settings.hint else ""
        if hint:
            question = HINT.format(caption=hint, question=_lower_first(question))
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            chat = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        if self.model.config.model_type == "llava":  # the form in which LLaVA-1.5 was trained
            return f"USER: {self.image_token}\n{question} ASSISTANT:"
        return f"{self.image_token}\n{question}"

    def _without_reserved(self, caption: str) -> str:
        text = caption[:LONGEST_HINT]
        for token in self.reserved:
            text = text.replace(token, " ")
        return " ".join(text.replace('"', "'").split())

    def _how(self, keys: list[str], index: int) -> dict[str, object]:
        """Arguments of `generate`; they override what the model's own generation_config.json asks for."""
        settings = self.settings
        how: dict[str, object] = {
            "max_new_tokens": settings.max_new_tokens,
            "do_sample": False,
            "num_beams": 1,
            "temperature": None,
            "top_p": None,
            "top_k": None,
            "pad_token_id": self.processor.tokenizer.pad_token_id,
        }
        if settings.temperature > 0:
            choice = WordChoice(settings.temperature, settings.top_p, seed=settings.seed, keys=keys, index=index)
            how["logits_processor"] = [choice]
        return how

    def _is_cut(self, tokens) -> bool:
        """Did the answer reach the limit without an end? `tokens` is (T,)."""
        if len(tokens) < self.settings.max_new_tokens:
            return False
        ends = self.model.generation_config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends]
        return not any((tokens == end).any() for end in ends if end is not None)


def _load(settings: VisionLanguageSettings):
    """(model in evaluation mode, processor). Safetensors only, no code from the model's folder."""
    name = settings.model
    local = Path(name).exists()
    if local:
        check_folder(Path(name))
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/")):
        raise PixArtError(f"There is no model folder {name}; give a folder, or a hub id such as owner/name.")

    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    options = {"local_files_only": local or os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "on", "yes", "true")}
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        raise PixArtError(_unloadable(name, local, error)) from None
    if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise PixArtError(
            f"{name} is a {config.model_type}, which answers no question about a picture; give an image-text-to-text "
            f"model, such as one of LLaVA."
        )
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device is {device}, but torch sees no such device here; give --device cpu.")
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False, **options)
        model, loading = AutoModelForImageTextToText.from_pretrained(
            name,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=_dtype(settings.dtype, config, device),
            output_loading_info=True,
            **options,
        )
    except ModuleNotFoundError:  # a library that this kind of model needs besides: cli says how to install it
        raise
    except Exception as error:  # what a damaged file makes the libraries raise is anybody's guess
        raise PixArtError(_unloadable(name, local, error)) from None
    # transformers fills what is missing with random numbers, and then the captions would be noise.
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise PixArtError(f"{name} is only half there: it lacks {len(missing)} of its weights, such as {missing[0]}.")
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise PixArtError(
            f"{name} has no processor for pictures with text; its preprocessor_config.json may be missing."
        )
    return model.eval().to(device), processor


def _dtype(wanted: str, config, device: str):
    import torch

    if wanted != "auto":
        return getattr(torch, wanted)
    stored = getattr(config, "dtype", None) or torch.float32
    # Half floats are slow on a CPU, and some of their operations are missing there.
    return torch.bfloat16 if stored == torch.float16 and device == "cpu" else stored


def _unloadable(name: str, local: bool, error: Exception) -> str:
    reason = " ".join(str(error).split("\n")[0].split()).rstrip(".") or type(error).__name__
    if local:
        return f"The model in {name} cannot be loaded: {reason}."
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "on", "yes", "true"):
        return (
            f"{name} is not on this machine, and HF_HUB_OFFLINE says not to fetch it; fetch it first, or give a folder."
        )
    return f"{name} could not be fetched or loaded: {reason}."
