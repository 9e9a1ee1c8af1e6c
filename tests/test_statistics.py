"""Counting nouns: the tagger against captions tagged by hand, the counts against plain ones, the command as a user."""

import json
import random
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from pixart.captions.nouns import MEASURED, NounCounts, NounTagger
from pixart.data.pairs import Caption, InFile, Pair, Problem
from pixart.data.statistics import PAPER, count
from pixart.data.statistics_command import run
from pixart.errors import PixArtError, UsageError

TAGGED = Path(__file__).parent / "tagged_captions.txt"


def tagged_by_hand() -> list[list[tuple[str, bool]]]:
    """The captions of the file as lists of (word, whether it is a noun)."""
    captions = []
    for line in TAGGED.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            words = re.findall(r"('s)\b|([^\W_]+(?:-[^\W_]+)*)(_N)?", line)
            captions.append([((genitive or word).lower(), noun == "_N") for genitive, word, noun in words])
    return captions


def test_the_tagger_on_captions_tagged_by_hand_is_as_far_off_as_it_says():
    tagger = NounTagger()
    right = found = there = tokens = 0
    for caption in tagged_by_hand():
        plain = " ".join(word for word, _ in caption).replace(" 's", "'s")
        assert [word for word, _ in tagger.tagged(plain)] == [word for word, _ in caption]
    lines = [line for line in TAGGED.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    for line, by_hand in zip(lines, tagged_by_hand(), strict=True):
        by_tagger = tagger.tagged(line.replace("_N", ""))
        assert [word for word, _ in by_tagger] == [word for word, _ in by_hand], line
        for (_, claimed), (_, true) in zip(by_tagger, by_hand, strict=True):
            right += claimed and true
            found += claimed
            there += true
        tokens += len(by_hand)
    assert tokens >= 300
    assert (tokens, there) == (MEASURED.tokens, MEASURED.nouns)
    assert right / found == pytest.approx(MEASURED.precision, abs=0.0006)
    assert right / there == pytest.approx(MEASURED.recall, abs=0.0006)
    assert found / there - 1 == pytest.approx(MEASURED.excess, abs=0.0006)


def test_strange_captions_are_tagged_like_others():
    tagger = NounTagger()
    assert tagger.nouns("") == tagger.nouns("…!? —") == []
    assert tagger.nouns("A DOG/cat, a_dog's bone & 狗") == ["dog", "cat", "dog", "bone", "狗"]
    assert len(tagger.nouns("dog " * 100_000)) == 5_000  # what is longer than any caption is cut


def test_counts_beyond_the_memory_are_the_same_as_in_it():
    draw = random.Random(0)
    words = [f"w{int(draw.paretovariate(0.6))}" for _ in range(20_000)]
    small, plain = NounCounts(most_words=50), Counter(words)
    for start in range(0, len(words), 7):
        small.add(Counter(words[start : start + 7]))
        assert len(small.counts) <= 57
    assert len(small.runs) > 20
    found = small.summary(most_frequent=5)
    assert found.nouns == len(words) and found.distinct == len(plain)
    assert found.valid == sum(number > 10 for number in plain.values())
    assert list(found.most_frequent.items()) == sorted(plain.items(), key=lambda item: (-item[1], item[0]))[:5]
    assert found.ratio == found.valid / found.distinct


def pair(number: int, captions: dict[str, list[str]]) -> Pair:
    texts = tuple(Caption(text, source) for source, some in captions.items() for text in some)
    return Pair(f"{number}.png", texts, None, InFile("nowhere"))


def test_each_source_is_counted_by_itself_and_several_captions_of_an_image_as_their_mean():
    pairs: list[Pair | Problem] = [Problem("x", "missing", "It is not there.")]
    pairs += [pair(n, {"original": ["a fox"], "llava": ["a fox in a field", "a fox"]}) for n in range(11)]
    pairs += [pair(11, {"original": ["an owl and an apple"]}), pair(12, {})]
    (llava, original), pictures = count(pairs)
    assert pictures == 13
    assert (llava.name, llava.images, llava.captions, llava.nouns) == ("llava", 11, 22, 33)
    assert llava.nouns_per_image == pytest.approx(1.5)
    assert (llava.distinct, llava.valid, llava.most_frequent) == (2, 2, {"fox": 22, "field": 11})
    assert (original.images, original.nouns, original.distinct, original.valid) == (12, 13, 3, 1)
    assert original.ratio == pytest.approx(1 / 3)


def test_two_processes_count_what_one_counts_and_read_only_so_far_ahead():
    read = 0
    lead = []

    def pairs():
        nonlocal read
        for number in range(20 * 25 + 7):
            read += 1
            yield pair(number, {"original": [f"fox {number % 40}", "owl"], "other": ["a red apple"] * (number % 3)})

    alone, pictures = count(pairs(), chunk=25)
    read = 0
    together, again = count(pairs(), workers=2, chunk=25, progress=lambda done: lead.append(read - done))
    assert together == alone and pictures == again == 20 * 25 + 7
    assert max(lead) <= 8 * 25


def test_the_papers_rows_are_those_of_its_table():
    for row, implied in zip(PAPER, (11.25, 11.19, 11.19, 11.2), strict=True):
        assert row.valid / row.distinct == pytest.approx(row.ratio, abs=0.0015)
        assert row.nouns / row.nouns_per_image / 1e6 == pytest.approx(implied, abs=0.02)


@pytest.fixture
def captioned(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a red fox")
    written = folder / ".pixart" / "captions"
    written.mkdir(parents=True)
    rows = [{"key": f"{n}.png", "caption": "A fox in the snow beside a river." if n else None} for n in range(12)]
    (written / "<b>llava.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_command_prints_a_table_and_writes_json_and_both_drawings(captioned, tmp_path, capsys):
    files = [tmp_path / name for name in ("a.json", "a.svg", "a.png")]
    assert run([str(captioned), "--json", str(files[0]), "--plot", str(files[1])]) == 0
    table = capsys.readouterr().out
    assert re.search(r"original +12 +1\.0 +12 +1 +1 +100\.0%", table)
    assert re.search(r"<b>llava +11 +3\.0 +33 +3 +3 +100\.0%", table)
    assert re.search(r"paper: SAM-LLaVA +29\.3 +327\.9M +124K +23K +18\.6%", table)
    assert "tagged by hand" in table and "11 million" in table
    whole = json.loads(files[0].read_text())
    assert [row["name"] for row in whole["sources"]] == ["<b>llava", "original"] and whole["pictures"] == 12
    assert whole["sources"][0]["most_frequent"] == {"fox": 11, "river": 11, "snow": 11}
    assert [row["name"] for row in whole["paper"]] == ["LAION", "LAION-LLaVA", "SAM-LLaVA", "Internal"]
    drawing = ElementTree.fromstring(files[1].read_text())
    said = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<b>llava", "original", "SAM-LLaVA", "29.3", "18.6%"} <= set(said)
    assert run([str(captioned), "--plot", str(files[2])]) == 0
    with Image.open(files[2]) as picture:
        colours = {colour for _, colour in picture.getcolors(100_000)}
    assert (0x1D, 0x6F, 0xB8) in colours and (0x9C, 0xA3, 0xAF) in colours


def test_bad_input_is_one_sentence(captioned, tmp_path):
    for arguments in (
        [str(tmp_path / "nowhere")],
        [str(captioned), "--plot", str(tmp_path / "a.pdf")],
        [str(captioned), "--json", str(tmp_path)],
        [str(captioned), "--json", str(tmp_path / "no" / "a.json")],
        [str(captioned), "--workers", "-1"],
    ):
        with pytest.raises(UsageError) as refused:
            run(arguments)
        assert "\n" not in str(refused.value)
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.new("RGB", (8, 8)).save(bare / "a.png")
    with pytest.raises(PixArtError, match="has no captions"):
        run([str(bare)])
