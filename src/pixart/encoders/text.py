"""The frozen text encoder: words to token states, each text padded by its own length and never by its neighbours'."""

from dataclasses import dataclass
from pathlib import Path

from pixart.encoders.tokenizer import MAX_TOKENS, Tokenizer
from pixart.errors import PixArtError

TEXT_ENCODERS = ("BertModel", "T5EncoderModel")  # the classes of transformers that model_index.json may name


@dataclass(frozen=True)
class EncodedText:
    """Token states (1, L, T) float32 and their mask (1, L) bool, L a multiple of 16; `cut` is the text left out."""

    states: "torch.Tensor"  # noqa: F821  torch takes seconds to import
    mask: "torch.Tensor"  # noqa: F821
    cut: str


class TextEncoder:
    """A text encoder and its tokenizer, from two folders in Hugging Face layout. Holds no state between calls."""

    def __init__(
        self,
        encoder_folder: Path,
        tokenizer_folder: Path,
        class_name: str,
        max_tokens: int = MAX_TOKENS,
        *,
        dtype: str = "float32",
        eight_bit: bool = False,
    ):
        """Load from disk only; with `eight_bit` the linear layers' weights are int8, and `dtype` is that of the rest.

        Raises:
            PixArtError: the folder does not hold what it should; names it.
        """
        import torch
        import transformers

        if class_name not in TEXT_ENCODERS:
            raise PixArtError(f"{encoder_folder} is a {class_name}; pixart reads {' and '.join(TEXT_ENCODERS)}.")
        kind = getattr(transformers, class_name)
        try:
            if eight_bit:
                from pixart.encoders.eight_bit import load_eight_bit

                model, missing = load_eight_bit(kind, encoder_folder, getattr(torch, dtype))
            else:
                model, info = kind.from_pretrained(
                    encoder_folder,
                    dtype=getattr(torch, dtype),
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                )
                missing = info["missing_keys"]
        except Exception as error:  # a damaged folder can fail anywhere inside the library
            raise PixArtError(f"The text encoder in {encoder_folder} cannot be loaded: {_first_line(error)}") from error
        # The pooler is not used; anything else missing would have been filled with random numbers.
        missing = sorted(key for key in missing if not key.startswith("pooler."))
        if missing:
            raise PixArtError(f"The text encoder in {encoder_folder} lacks weights, among them {missing[0]}.")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = Tokenizer(tokenizer_folder, encoder_folder, max_tokens)
        self.max_tokens = self.tokenizer.max_tokens

    def encode(self, text: str) -> EncodedText:
        """Encode one text, lower-cased and stripped as the stock pipeline does, cut at `max_tokens`."""
        import torch

        ids, mask, cut = self.tokenizer.padded(text)
        device = self.model.device
        tokens, mask = torch.tensor([ids], device=device), torch.tensor([mask], device=device)
        with torch.inference_mode():
            states = self.model(input_ids=tokens, attention_mask=mask)[0]
        return EncodedText(states.float(), mask.bool(), cut)

    def tokenize(self, text: str) -> tuple[list[int], str]:
        """Token ids with the special tokens, at most `max_tokens`, and the words that did not fit."""
        return self.tokenizer.tokenize(text)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
