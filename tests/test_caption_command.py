"""`pixart data caption` as a user meets it: a data set goes in, captions stand beside it, and readers find them."""

import json
import random
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from tiny_llava import write_tiny_llava

from pixart.cli import main
from pixart.data.dataset import captions_folder, open_dataset
from pixart.data.pairs import Pair


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> str:
    return str(write_tiny_llava(tmp_path_factory.mktemp("llava") / "tiny-llava"))


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = random.Random(5)
    for number in range(10):
        size = (20 + number, 24)
        image = Image.frombytes("RGB", (4, 4), draw.randbytes(48)).resize(size)
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"the old caption of {number}")
    return folder


def captions_of(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Key -> source -> captions, as the readers give them."""
    found: dict[str, dict[str, list[str]]] = {}
    for pair in open_dataset(folder).pairs():
        if isinstance(pair, Pair):
            for caption in pair.captions:
                found.setdefault(pair.key, {}).setdefault(caption.source, []).append(caption.text)
    return found


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_captions_stand_beside_the_data_set_and_its_readers_find_them(photos, llava, capsys):
    before = {path.name: path.read_bytes() for path in photos.iterdir()}
    arguments = ["data", "caption", str(photos), "--model", llava, "--max-new-tokens", "8", "--batch-size", "4"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    written = Path(said.out.strip())
    assert written == captions_folder(photos) / "tiny-llava.jsonl"
    rows = lines_of(written)
    assert [row["key"] for row in rows] == [f"{n}.png" for n in range(10)]
    assert len({row["caption"] for row in rows}) >= 5  # the images were looked at
    found = captions_of(photos)
    for row in rows:
        assert found[row["key"]]["original"] == [f"the old caption of {row['key'][0]}"]
        assert found[row["key"]].get("tiny-llava", [None]) == [row["caption"]]
    # Another source of the same images stands beside the first; the first stays as it was.
    assert main(["data", "caption", str(photos), "--template", "{caption}, photo"]) == 0
    assert captions_of(photos)["3.png"]["template"] == ["the old caption of 3, photo"]
    assert lines_of(written) == rows
    assert {path.name: path.read_bytes() for path in photos.iterdir() if path.is_file()} == before


def test_stopped_and_run_again_it_writes_what_one_run_writes(photos, llava, capsys):
    sampled = ["--temperature", "1", "--seed", "4", "--max-new-tokens", "6", "--hint"]
    arguments = ["data", "caption", str(photos), "--model", llava, *sampled, "--batch-size", "3"]
    assert main([*arguments, "--source", "whole"]) == 0
    whole = (captions_folder(photos) / "whole.jsonl").read_text().replace('"whole"', '"parts"')
    assert main([*arguments, "--source", "parts", "--limit", "4"]) == 0
    parts = captions_folder(photos) / "parts.jsonl"
    parts.write_bytes(parts.read_bytes()[:-30])  # as a kill leaves it
    capsys.readouterr()
    assert main([*arguments, "--source", "parts", "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["images"], account["captioned_before"]) == (10, 3)
    assert parts.read_text() == whole
    assert main([*arguments, "--source", "parts", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["captions"] == 0
    assert parts.read_text() == whole


def test_bad_images_are_named_and_above_one_in_a_hundred_the_command_fails(photos, llava, capsys):
    (photos / "3.png").write_bytes((photos / "3.png").read_bytes()[:50])
    arguments = ["data", "caption", str(photos), "--model", llava, "--max-new-tokens", "4"]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "3.png" in said and "Traceback" not in said
    assert [row["key"] for row in lines_of(captions_folder(photos) / "tiny-llava.jsonl")] == [
        f"{n}.png" for n in range(10) if n != 3
    ]
    assert main([*arguments, "--allow-dropped", "0.1", "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert (account["captioned_before"], account["unreadable"]) == (9, 1)
    Image.new("RGB", (20, 20), "red").save(photos / "3.png")
    assert main(arguments) == 0
    assert lines_of(captions_folder(photos) / "tiny-llava.jsonl")[-1]["key"] == "3.png"


def test_tar_shards_are_captioned_too(photos, llava, tmp_path):
    shard = tmp_path / "00000.tar"
    with tarfile.open(shard, "w") as archive:
        for number in range(10):
            for ending in ("png", "txt"):
                archive.add(photos / f"{number}.{ending}", f"{number}.{ending}")
    arguments = ["--model", llava, "--max-new-tokens", "6"]
    assert main(["data", "caption", str(shard), *arguments]) == 0
    assert main(["data", "caption", str(photos), *arguments]) == 0
    of_shard, of_folder = (lines_of(captions_folder(path) / "tiny-llava.jsonl") for path in (shard, photos))
    assert [row["caption"] for row in of_shard] == [row["caption"] for row in of_folder]
    assert sum("tiny-llava" in sources for sources in captions_of(shard).values()) >= 8


def test_bad_input_is_one_sentence_and_writes_nothing(photos, llava, tmp_path, capsys):
    empty, wordless = tmp_path / "empty", tmp_path / "wordless"
    empty.mkdir()
    (empty / "notes.md").write_text("no images here")
    wordless.mkdir()
    (wordless / "config.json").write_text('{"model_type": "bert"}')
    model = ["--model", llava]
    for code, arguments in (
        (2, [str(photos)]),
        (2, [str(photos), *model, "--template", "a {label}"]),
        (2, [str(photos), *model, "--batch-size", "0"]),
        (2, [str(photos), *model, "--allow-dropped", "3"]),
        (2, [str(photos), *model, "--temperature", "-1"]),
        (2, [str(photos), *model, "--source", "a/b"]),
        (2, [str(photos), "--template", "a photo"]),
        (2, [str(tmp_path / "nowhere"), *model]),
        (2, [str(empty), *model]),
        (1, [str(photos), "--model", str(wordless)]),
        (1, [str(photos), "--model", str(tmp_path / "no-model")]),
        (1, [str(photos), "--template", "a photo of {label}"]),
    ):
        assert main(["data", "caption", *arguments]) == code, arguments
        said = capsys.readouterr()
        last = said.err.strip().splitlines()[-1]
        assert last.startswith("pixart: ") and last.endswith(".") and said.out == "", arguments
        assert "Traceback" not in said.err
    assert captions_of(photos)["0.png"] == {"original": ["the old caption of 0"]}
