"""The frozen text encoder: words to token states, each text padded by its own length and never by its neighbours'."""

from dataclasses import dataclass
from pathlib import Path

from pixart.errors import PixArtError

TEXT_ENCODERS = ("BertModel", "T5EncoderModel")  # the classes of transformers that model_index.json may name
MAX_TOKENS = 120  # the official length, and what the stock pipeline cuts at
PAD_TO = 16


@dataclass(frozen=True)
class EncodedText:
    """Token states (1, L, T) float32 and their mask (1, L) bool, L a multiple of 16; `cut` is the text left out."""

    states: "torch.Tensor"  # noqa: F821  torch is imported by those who draw, not by those who ask for help
    mask: "torch.Tensor"  # noqa: F821
    cut: str


class TextEncoder:
    """A text encoder and its tokenizer, from two folders in Hugging Face layout. Holds no state between calls."""

    def __init__(self, encoder_folder: Path, tokenizer_folder: Path, class_name: str):
        """Load from disk only. Raises PixArtError, naming the folder, where it does not hold what it should."""
        import torch
        import transformers

        if class_name not in TEXT_ENCODERS:
            raise PixArtError(f"{encoder_folder} is a {class_name}; pixart reads {' and '.join(TEXT_ENCODERS)}.")
        try:
            model, info = getattr(transformers, class_name).from_pretrained(
                encoder_folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:  # a damaged folder can fail anywhere inside the library
            raise PixArtError(f"The text encoder in {encoder_folder} cannot be loaded: {_first_line(error)}") from error
        # The pooler is not used; anything else missing would have been filled with random numbers.
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if missing:
            raise PixArtError(f"The text encoder in {encoder_folder} lacks weights, among them {missing[0]}.")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = _load_tokenizer(tokenizer_folder)
        # BERT has a table of positions, T5 has none and takes any length.
        self.positions = getattr(model.config, "max_position_embeddings", None) or MAX_TOKENS + PAD_TO
        self.max_tokens = min(MAX_TOKENS, self.positions)

    def encode(self, text: str) -> EncodedText:
        """Encode one text, lower-cased and stripped as the stock pipeline does, cut at `max_tokens`."""
        import torch

        text = text.lower().strip()
        ids, cut = self.tokenize(text)
        padding = min(-len(ids) % PAD_TO, self.positions - len(ids))
        tokens = torch.tensor([ids + [0] * padding])
        mask = torch.tensor([[1] * len(ids) + [0] * padding])
        with torch.inference_mode():
            states = self.model(input_ids=tokens, attention_mask=mask)[0]
        return EncodedText(states.float(), mask.bool(), cut)

    def tokenize(self, text: str) -> tuple[list[int], str]:
        """Token ids with the special tokens, at most `max_tokens`, and the words that did not fit."""
        encoding = self.tokenizer.encode(text)
        if len(encoding.ids) <= self.max_tokens:
            return encoding.ids, ""
        closing = 0  # special tokens at the end (BERT's [SEP], T5's </s>), which stay
        while closing < len(encoding.ids) and encoding.special_tokens_mask[-1 - closing]:
            closing += 1
        first_cut = self.max_tokens - closing
        ids = encoding.ids[:first_cut] + encoding.ids[len(encoding.ids) - closing :]
        start = encoding.offsets[first_cut][0]
        while start > 0 and not text[start - 1].isspace():
            start -= 1  # a word cut in its middle is named whole
        return ids, text[start:].strip()


def _load_tokenizer(folder: Path):
    """A `tokenizers.Tokenizer` that neither cuts nor pads: many stored ones are set to do both."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except Exception as error:  # tokenizers raises bare Exception for a file that it cannot read
        raise PixArtError(f"The tokenizer in {folder} cannot be loaded: {_first_line(error)}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
