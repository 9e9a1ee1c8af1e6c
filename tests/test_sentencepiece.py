"""`spiece.model`, the published folders' only tokenizer: the same tokens as SentencePiece's own library gives."""

import json

import pytest

from pixart.encoders.tokenizer import Tokenizer
from pixart.errors import PixArtError

SENTENCES = [
    "a red fox, in the style of a woodcut",
    "three apples on a wooden table, 3D, soft light",
    "An astronaut riding a green horse; photo, 35 mm",
    "der Bär über dem Fluß, naïve façade, 日本の猫",
    "portrait of an old sailor with a blue hat and a pipe",
    "a house by the sea at night under the full moon",
]
TRICKY = [
    "",
    " ",
    "a",
    "  a  red   fox ",
    "a red fox",
    "ａ ｒｅｄ ﬁsh ① ½ …",
    "tab\tand\nline\r\nend",
    "zero\u200bwidth\u00a0space\ufeff",
    "👩‍🚀 🦊🦊 unknown ☃ signs",
    "Ünïcödé e\u0301 vs é",
    "▁▁ < / s > pad",
    "日本 日本猫 猫",
    "x" * 300,
    "\0 nul \x7f",
]


def train_sentencepiece(folder) -> None:
    """Write a `spiece.model` with T5's options, trained on the spot by the library."""
    import sentencepiece

    folder.mkdir(exist_ok=True)
    with open(folder / "spiece.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 20),
            model_writer=file,
            vocab_size=78,
            model_type="unigram",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spiece")
    train_sentencepiece(folder)
    return folder


@pytest.fixture(scope="module")
def library(trained):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(trained / "spiece.model"))


@pytest.mark.parametrize("text", SENTENCES + TRICKY)
def test_texts_become_the_tokens_of_the_library(trained, library, tokenizer, text):
    assert tokenizer.tokenize(text)[0] == [*library.encode(text), 1]


@pytest.fixture(scope="module")
def tokenizer(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return Tokenizer(trained, folder, max_tokens=1000)


def test_a_folder_with_spiece_model_only_is_read_and_long_texts_are_cut(trained, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    tokenizer = Tokenizer(trained, tmp_path, max_tokens=12)
    ids, cut = tokenizer.tokenize("a red fox and three apples on a wooden table by the sea")
    assert len(ids) == 12 and ids[-1] == 1
    assert cut and "a red fox and three apples on a wooden table by the sea".endswith(cut)


def test_other_files_are_named(trained, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    complete = (trained / "spiece.model").read_bytes()
    for content in (complete[: len(complete) // 2], b"", b"\xff" * 50, b"not a model at all", b'{"a": 1}'):
        (tmp_path / "spiece.model").write_bytes(content)
        with pytest.raises(PixArtError, match=str(tmp_path)):
            Tokenizer(tmp_path, tmp_path)
