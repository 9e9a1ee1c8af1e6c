"""The frozen text encoder: words to token states, each text padded by its own length."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.encoders.text_files import WEIGHTS
from pixart.encoders.tokenizer import MAX_TOKENS, Tokenizer
from pixart.errors import PixArtError, reason_of
from pixart.weights import OnBytes, weight_files

if TYPE_CHECKING:
    import torch

TEXT_ENCODERS = ("BertModel", "T5EncoderModel")  # the classes of transformers that model_index.json may name
AT_ONCE = 64  # texts of one pass over a streamed encoder


@dataclass(frozen=True)
class EncodedText:
    """Token states (1, L, T) float32 and their mask (1, L) bool, L a multiple of 16; `cut` is the text left out."""

    states: "torch.Tensor"
    mask: "torch.Tensor"
    cut: str


class TextEncoder:
    """A text encoder, from a folder in Hugging Face layout or one file, and its tokenizer. No state between calls."""

    def __init__(
        self,
        place: Path,
        tokenizer: Path,
        class_name: str,
        max_tokens: int = MAX_TOKENS,
        *,
        dtype: str = "float32",
        arithmetic: str | None = None,
        device: str = "cpu",
        eight_bit: bool = False,
        streamed: bool = False,
        on_bytes: OnBytes | None = None,
    ):
        """Load from disk only.

        Args:
            place: the text encoder's folder or file; `tokenizer` is a folder.
            max_tokens: of a text, as the transformer was trained.
            dtype: that the weights are kept in.
            arithmetic: dtype of the products; None: as they are kept.
            eight_bit: linear layers' weights are kept as int8, and `dtype` is that of the rest.
            streamed: weights stay in the file, see `pixart.encoders.kept`; `dtype` and `eight_bit` do not count.
            on_bytes: called with the number of bytes that were read since the last call.

        Raises:
            PixArtError: the folder does not hold what it should; names it.
        """
        import torch
        import transformers

        from pixart.encoders.kept import load_kept, read_in_order

        if class_name not in TEXT_ENCODERS:
            raise PixArtError(f"{place} is a {class_name}; pixart reads {' and '.join(TEXT_ENCODERS)}.")
        self.device, self.streamed = torch.device(device), streamed
        try:
            self.model, weights = load_kept(
                getattr(transformers, class_name),
                place,
                weight_files(place, WEIGHTS),
                storage=getattr(torch, dtype),
                arithmetic=getattr(torch, arithmetic or dtype),
                device=self.device,
                eight_bit=eight_bit,
                streamed=streamed,
                on_bytes=on_bytes,
            )
        except PixArtError:
            raise
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a damaged folder can fail anywhere inside the library
            raise PixArtError(f"The text encoder in {place} cannot be loaded: {reason_of(error)}.") from error
        # The pooler is not used.
        missing = [name for name in weights.missing if not name.startswith("pooler.")]
        if missing:
            raise PixArtError(f"The text encoder in {place} lacks weights, among them {missing[0]}.")
        self.on_bytes, self.at_once = on_bytes, AT_ONCE if streamed else 1
        self.file_bytes = read_in_order(self.model, weights, self._count) if streamed else 0
        self.model.requires_grad_(False)
        self.tokenizer = Tokenizer(tokenizer, place, max_tokens)
        self.max_tokens = self.tokenizer.max_tokens

    def encode(self, text: str) -> EncodedText:
        """Encode one text, lower-cased and stripped as the stock pipeline does, cut at `max_tokens`."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[EncodedText]:
        """As `encode`, each text; a streamed encoder reads its file once for 64 of them, others each text alone."""
        starts = range(0, len(texts), self.at_once)
        return [encoded for start in starts for encoded in self._together(texts[start : start + self.at_once])]

    def to(self, device: "torch.device") -> None:
        """Move all weights; not for a streamed encoder."""
        self.model.to(device)
        self.device = device

    def _together(self, texts: Sequence[str]) -> list[EncodedText]:
        import torch

        padded = [self.tokenizer.padded(text) for text in texts]
        longest = max(len(ids) for ids, _mask, _cut in padded)
        tokens, masks = (
            torch.tensor([row[which] + [0] * (longest - len(row[which])) for row in padded], device=self.device)
            for which in (0, 1)
        )
        with torch.inference_mode():
            states = self.model(input_ids=tokens, attention_mask=masks)[0].float()
        return [
            EncodedText(states[row : row + 1, : len(ids)], masks[row : row + 1, : len(ids)].bool(), cut)
            for row, (ids, _mask, cut) in enumerate(padded)
        ]

    def _count(self, size: int) -> None:
        if self.on_bytes:
            self.on_bytes(size)

    def tokenize(self, text: str) -> tuple[list[int], str]:
        """Token ids with the special tokens, at most `max_tokens`, and the words that did not fit."""
        return self.tokenizer.tokenize(text)
