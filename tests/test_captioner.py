"""Captions: a real (tiny) LLaVA answers, answers become rows, rows go to a file that survives a kill."""

import io
import json
import os
import resource
import shutil
import signal
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_llava import write_tiny_idefics3, write_tiny_llava

from pixart.data.captioner import Caption, Item, TemplateCaptioner, caption_batch, refusal, split_opening
from pixart.data.pairs import InFile
from pixart.data.vision_language import QUESTION, GumbelNoise, VisionLanguageCaptioner, source_name
from pixart.data.written_captions import CaptionFile, check_source
from pixart.errors import PixArtError, UsageError


@pytest.fixture(scope="session")
def llava(tmp_path_factory) -> Path:
    return write_tiny_llava(tmp_path_factory.mktemp("llava") / "tiny-llava")


@pytest.fixture(scope="session")
def captioner(llava) -> VisionLanguageCaptioner:
    return loaded(llava, max_new_tokens=12)


def loaded(model: Path | str, **settings) -> VisionLanguageCaptioner:
    captioner = VisionLanguageCaptioner(str(model), **settings)
    captioner.load()
    return captioner


def photo(number: int) -> Image.Image:
    random = np.random.default_rng(number)
    low = random.integers(0, 255, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(low).resize((24 + 8 * (number % 3), 24))


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    photo(number).save(file, "PNG")
    return file.getvalue()


def items(count: int = 5) -> list[Item]:
    hints = [None, "a red fox", "", "the house of a man and a woman", 'a "green" <image> apple </s>']
    return [Item(f"{n}.png", image=photo(n), caption=hints[n % 5]) for n in range(count)]


# the model


def test_llava_says_what_the_pipeline_of_transformers_says(llava, captioner):
    from transformers import pipeline

    stock = pipeline("image-text-to-text", model=str(llava), device="cpu")
    found = captioner.caption(items())
    assert len({answer.text for answer in found}) >= 4  # they look at the image
    for one, answer in zip(items(), found, strict=True):
        chat = [
            {"role": "user", "content": [{"type": "image", "image": one.image}, {"type": "text", "text": QUESTION}]}
        ]
        said = stock(text=chat, max_new_tokens=12, do_sample=False, return_full_text=False)[0]["generated_text"]
        assert answer.text == said.strip()


@pytest.mark.parametrize("kind", ["llava", "idefics3"])
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_an_image_gets_the_same_caption_alone_and_among_others(llava, tmp_path, kind, temperature):
    folder = llava if kind == "llava" else write_tiny_idefics3(tmp_path / "idefics3")
    some = loaded(folder, hint=True, max_new_tokens=12, temperature=temperature, top_p=0.9)
    together = some.caption(items())
    assert together == [some.caption([one])[0] for one in items()]
    some.seed += 1
    changed = sum(a != b for a, b in zip(together, some.caption(items()), strict=True))
    assert changed >= 3 if temperature else changed == 0


def test_an_answer_that_met_the_limit_is_marked_as_cut(llava, captioner):
    long = {answer.text: answer.cut for answer in captioner.caption(items(8))}
    assert {True, False} == set(long.values())
    one_word = loaded(llava, max_new_tokens=1)
    assert all(answer.cut and len(answer.text.split()) <= 1 for answer in one_word.caption(items()))


def test_the_type_of_the_numbers_can_be_chosen(llava):
    import torch

    half = loaded(llava, dtype="bfloat16", max_new_tokens=4)
    assert {weight.dtype for weight in half.network.parameters()} == {torch.bfloat16}
    assert all(answer.text for answer in half.caption(items(2)))


def test_the_question_and_the_hint_reach_the_model(llava, tmp_path):
    hinted = loaded(llava, hint=True)
    prompts = [hinted.prompt(one) for one in items()]
    assert prompts[0] == "USER: <image>\nDescribe this image and its style in a very detailed manner ASSISTANT:"
    assert prompts[1] == (
        'USER: <image>\nGiven the caption of this image "a red fox", describe this image and its style in a very '
        "detailed manner ASSISTANT:"
    )
    assert prompts[2] == prompts[0]  # an empty caption is no hint
    assert prompts[4].count("<image>") == 1 and "</s>" not in prompts[4] and "'green'" in prompts[4]
    long = hinted.prompt(Item("k", image=photo(0), caption="fox " * 100_000))
    assert len(long) < 1_300
    bare = loaded(write_tiny_llava(tmp_path / "bare", chat=False), question="Which style")
    assert bare.prompt(items()[1]) == "USER: <image>\nWhich style ASSISTANT:"


def test_tokens_are_sampled_as_often_as_their_probabilities():
    import torch

    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0, -9.0]])
    noise = GumbelNoise(1, ["a"])
    sampled = torch.stack([noise(None, scores).argmax() for _ in range(20_000)])
    shares = torch.bincount(sampled, minlength=5) / len(sampled)
    assert torch.allclose(shares, scores[0].softmax(-1), atol=0.012)


# answers


REFUSALS = """
I'm sorry, but I cannot describe this image.
I’m sorry, I can’t help with that.
Sorry, I am not able to see the picture.
As an AI language model, I do not have eyes.
I cannot identify the people in this image.
I apologize, but there is nothing to describe.
Unfortunately, I don't see any image.
I am unable to view images.
There is no image provided.
It seems that you did not attach an image.
Please provide the image you would like me to describe.
The text is blurry. As an AI model I do not read minds.
""".strip().splitlines()
CAPTIONS = """
A card that says I'm sorry, with a crying bear on it.
I-beam construction site with a crane.
It seems to be a rainy day in a small town.
A man as an aircraft pilot stands beside his plane.
An AI robot shakes hands with a woman.
It appears that there is a dog behind the fence.
Unfortunate cat stuck in a tree, cartoon.
Please do not enter, says the sign on the door.
No image of the moon is as sharp as this photograph.
I see a red fox in deep snow.
""".strip().splitlines()


def test_refusals_are_known_and_captions_are_not_taken_for_them():
    assert [answer for answer in REFUSALS if not refusal(answer)] == []
    assert [answer for answer in CAPTIONS if refusal(answer)] == []


@pytest.mark.parametrize(
    ("said", "opening", "caption"),
    [
        ("The image shows a red apple.", "The image shows", "A red apple."),
        ("This image depicts two men on a boat.", "This image depicts", "Two men on a boat."),
        ("In the image, a dog sits on grass.", "In the image,", "A dog sits on grass."),
        ("In this picture, we can see a bridge.", "In this picture, we can see", "A bridge."),
        ("The picture is a painting of a ship.", "The picture is", "A painting of a ship."),
        ("An image of a cat.", "An image of", "A cat."),
        ("This is a photo of an old car.", "This is a photo of", "An old car."),
        ("Sure! Here is a detailed description of the image: The image features a lamp.", None, "A lamp."),
        ("The image prominently features an owl.", "The image prominently features", "An owl."),
        ("The painting shows a storm.", "", "The painting shows a storm."),
        ("A watercolor painting of a storm.", "", "A watercolor painting of a storm."),
        ("Surely the oldest tree in town.", "", "Surely the oldest tree in town."),
        ("The image shows", "", "The image shows"),
        ("", "", ""),
    ],
)
def test_boilerplate_openings_come_off_and_nothing_else(said, opening, caption):
    found, rest = split_opening(said)
    assert rest == caption
    assert opening is None or found == opening


def test_openings_and_refusals_take_time_that_grows_with_the_text_alone():
    # A pattern that backtracks would need years for these.
    for text in ("as an " * 50_000, "here is a " * 50_000, "sure, " * 50_000, "i'm " + " " * 100_000 + "x"):
        refusal(text)
        split_opening(text)


# batches


@dataclass(frozen=True)
class Parrot:
    """Says what it is told to of each key; fails where told to, also for all that share the batch."""

    answers: dict
    source: str = "parrot"
    looks: bool = True
    batch_size: int = 3

    def about(self):
        return {"source": self.source, "model": "parrot", "question": "?"}

    def caption(self, items):
        said = [self.answers.get(one.key, f"An image called {one.key}.") for one in items]
        for text in said:
            if isinstance(text, Exception):
                raise text
        return [Caption(text) for text in said]


def test_a_batch_gives_every_image_a_row_in_order_whatever_happens_to_it(tmp_path):
    batch = [Item(key, InFile(str(tmp_path / key))) for key in "abcdef"]
    for n, key in enumerate("abcdef"):
        (tmp_path / key).write_bytes(encoded(n)[: 60 if key == "b" else None])
    answers = {"c": "I'm sorry, I can't.", "d": RuntimeError("CUDA out of memory"), "e": "The image shows a tree.\n\n"}
    answers["f"] = " . "
    rows = caption_batch(Parrot(answers), batch)
    assert [row["key"] for row in rows] == list("abcdef")
    assert [row["caption"] for row in rows] == ["An image called a.", None, None, None, "A tree.", None]
    assert [row.get("rejected") for row in rows] == [None, "unreadable", "refusal", "failed", None, "empty"]
    assert rows[3]["error"] == "CUDA out of memory" and rows[2]["answer"] == "I'm sorry, I can't."
    assert rows[4]["opening"] == "The image shows"
    assert all(row["source"] == row["model"] == "parrot" for row in rows)


def test_a_template_fills_in_what_is_known_and_names_what_is_not():
    captioner = TemplateCaptioner("a photo of {label}, {tags}")
    known = Item("a", facts={"label": "fox", "tags": ["red", "wild"], "year": 1999})
    unknown = Item("b", facts={"label": "owl", "tags": None})
    rows = caption_batch(captioner, [known, unknown])
    assert rows[0]["caption"] == "a photo of fox, red, wild"
    assert rows[1]["caption"] is None and "'tags'" in rows[1]["error"]
    for bad in ("a photo", "a {}", "{label.__class__}", "{label[0]}", "{label:>99999}", "{label!r}", "{", "}"):
        with pytest.raises(UsageError):
            TemplateCaptioner(bad)


# the file

ABOUT = Parrot({}).about()


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "captions"


def write_all(folder: Path, *, kill_after: int | None = None, size: int = 3) -> None:
    """Caption 10 images in batches; with `kill_after`, die of SIGKILL after that many batches."""
    keys = [f"p{n:02}" for n in range(10)]
    with CaptionFile(folder, "parrot", ABOUT) as file:
        wanted = [key for key in keys if key not in file]
        for number, start in enumerate(range(0, len(wanted), size)):
            if number == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            file.add({"key": key, "caption": f"{key} ä"} | ABOUT for key in wanted[start : start + size])


def test_killed_and_run_again_it_is_the_same_file(folder):
    write_all(folder / "one")
    expected = (folder / "one" / "parrot.jsonl").read_bytes()
    assert expected.count(b"\n") == 10
    process = get_context("fork").Process(target=write_all, args=(folder / "two",), kwargs={"kill_after": 2})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    write_all(folder / "two")
    assert (folder / "two" / "parrot.jsonl").read_bytes() == expected


def test_cut_at_any_byte_and_run_again_it_is_the_same_file(folder):
    write_all(folder)
    path = folder / "parrot.jsonl"
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        write_all(folder)
        assert path.read_bytes() == whole


def test_what_could_not_be_read_is_tried_again(folder):
    lost = {"key": "a", "caption": None, "rejected": "unreadable", "error": "broken"} | ABOUT
    refused = {"key": "b", "caption": None, "rejected": "refusal", "answer": "I'm sorry"} | ABOUT
    with CaptionFile(folder, "parrot", ABOUT) as file:
        file.add([lost, refused])
    with CaptionFile(folder, "parrot", ABOUT) as file:
        assert "a" not in file and "b" in file
        file.add([{"key": "a", "caption": "fox"} | ABOUT])
    assert [json.loads(line)["key"] for line in (folder / "parrot.jsonl").open()] == ["b", "a"]


def opened(folder: Path, settings: dict) -> None:
    with CaptionFile(folder, "parrot", settings):
        pass


def test_other_settings_are_refused_and_another_writer_too(folder):
    write_all(folder)
    before = (folder / "parrot.jsonl").read_bytes()
    for other in (ABOUT | {"question": "What?"}, ABOUT | {"seed": 1}, {"source": "parrot", "model": "parrot"}):
        with pytest.raises(UsageError):
            opened(folder, other)
    with CaptionFile(folder, "parrot", ABOUT), pytest.raises(PixArtError):
        opened(folder, ABOUT)
    assert (folder / "parrot.jsonl").read_bytes() == before
    for damaged in ("[]", '{"key": 3}', "[" * 200_000, '{"key": "a"}'):
        (folder / "parrot.jsonl").write_text(f"{damaged}\n")
        with pytest.raises(PixArtError):
            opened(folder, ABOUT)
        assert (folder / "parrot.jsonl").read_text() == f"{damaged}\n"


def fill_the_disk(folder: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    try:
        write_all(folder)
    except PixArtError as error:
        os._exit(0 if "parrot.jsonl cannot be written" in str(error) else 3)
    os._exit(4)


def test_a_full_disk_leaves_whole_lines_and_one_sentence(folder):
    process = get_context("fork").Process(target=fill_the_disk, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == 0
    lines = (folder / "parrot.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) in (3, 6) and all(json.loads(line) for line in lines)
    write_all(folder)
    write_all(folder / "whole")
    assert (folder / "parrot.jsonl").read_bytes() == (folder / "whole" / "parrot.jsonl").read_bytes()


# bad models


def without_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def without_a_projector(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "projector" in name or "multi_modal" in name))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def of_its_own_code(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}')
    (folder / "own.py").write_text("raise SystemExit('code of the model ran')")


def endless(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("[" * 200_000), "config.json"),
        (endless, "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 100), "safetensors"),
        (without_a_shard, "model-00002-of-00002.safetensors"),
        (without_a_projector, "projector"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), ""),
        (of_its_own_code, ""),
        (lambda folder: (folder / "processor_config.json").unlink(), ""),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], ""),
    ],
)
def test_a_model_that_is_half_there_is_one_sentence(llava, tmp_path, damage, named):
    folder = shutil.copytree(llava, tmp_path / "model")
    damage(folder)
    with pytest.raises(PixArtError) as refused:
        loaded(folder)
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_a_model_that_is_nowhere_is_one_sentence():
    with pytest.raises(PixArtError):
        loaded("nobody/has-this-model")
    with pytest.raises(PixArtError):
        loaded("./not/here")


def test_settings_that_cannot_be_are_refused():
    for bad in (
        {"question": " "},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"dtype": "int8"},
        {"device": "toaster"},
    ):
        with pytest.raises(UsageError):
            loaded("owner/name", **bad)
    for name in ("../up", "..", ".hidden", "a/b", "a\n", "original"):
        with pytest.raises(UsageError):
            check_source(name)
    check_source("LLaVA_1.5-7b")
    assert source_name("llava-hf/llava-1.5-7b-hf") == "llava-1.5-7b-hf"
    assert VisionLanguageCaptioner("owner/name").about()["source"] == "name"
