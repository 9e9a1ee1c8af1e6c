"""`spiece.model`, the published folders' only tokenizer: the same tokens as SentencePiece's own library gives."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixart.encoders.sentencepiece_file import read_sentencepiece
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
def test_texts_become_the_tokens_of_the_library(trained, library, text):
    assert read_sentencepiece(trained / "spiece.model").encode(text).ids == [*library.encode(text), 1]


@given(text=st.text(max_size=40))
def test_any_text_becomes_the_tokens_of_the_library(trained, library, text):
    assert read_sentencepiece(trained / "spiece.model").encode(text).ids == [*library.encode(text), 1]


def test_a_folder_with_spiece_model_only_is_read_and_long_texts_are_cut(trained, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    tokenizer = Tokenizer(trained, tmp_path, max_tokens=12)
    ids, cut = tokenizer.tokenize("a red fox and three apples on a wooden table by the sea")
    assert len(ids) == 12 and ids[-1] == 1
    assert cut and "a red fox and three apples on a wooden table by the sea".endswith(cut)


def test_other_files_are_named(trained, tmp_path):
    path = tmp_path / "spiece.model"
    whole = (trained / "spiece.model").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\xff" * 50, b"not a model at all", b'{"a": 1}'):
        path.write_bytes(content)
        with pytest.raises(PixArtError, match=r"spiece\.model is no SentencePiece model, or damaged"):
            read_sentencepiece(path)
    shutil.copyfile(trained / "spiece.model", path)
    assert read_sentencepiece(path).get_vocab_size() == 78
