"""`pixart data check`: what it finds in a data set with everything wrong, how it says it, and that it scales."""

import io
import json
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from deadly_look import look_or_die
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixart.buckets import computed_table
from pixart.cli import main
from pixart.data.check.duplicates import MAX_BITS, PictureTable
from pixart.data.check.look import Seen, look_at, look_at_all, perceptual_hash
from pixart.data.check.tally import EXAMPLES, Tally, gather
from pixart.data.check.tokens import TokenCounter
from pixart.data.dataset import Dataset
from pixart.data.pairs import Caption, InFile, Pair, Problem

SHIPPED = Path(__file__).parent.parent / "src" / "pixart" / "default_model"
HOSTILE = "<img src=x onerror=alert(1)>"


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """A cloudy picture with coarse and fine parts that no other seed gives, nor anything near it."""
    rng, layers = np.random.default_rng(seed), []
    for cells, strength in ((3, 0.5), (6, 0.3), (12, 0.2)):
        layer = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers.append(strength * np.asarray(layer.resize((width, height), Image.Resampling.BICUBIC), dtype=float))
    return Image.fromarray(sum(layers).astype(np.uint8))


def bomb() -> bytes:
    """A PNG of a few bytes that claims 65,535 x 65,535 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 65535, 65535, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0" * 99)) + chunk(b"IEND", b"")


def write_messy(folder: Path) -> Path:
    """Sidecar captions and one of everything that can be wrong; 12 of the 21 pictures can be trained on."""
    folder.mkdir()

    def put(name: str, image: Image.Image, caption: str | None = "a caption", **options) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        image.save(folder / name, **options)
        if caption is not None:
            (folder / name).with_suffix(".txt").write_text(caption)

    for number in range(3):
        put(f"good{number}.png", picture(number), f"picture number {number}")
    put("copies/one.png", picture(10))
    put("copies/two.bmp", picture(10))
    put("near.jpg", picture(10).resize((90, 90)), quality=85)
    put("wide.png", picture(11, 200, 100))
    put("strip.png", picture(12, 900, 64))
    put("small.png", picture(13, 20, 20))
    put("none.png", picture(14), None)
    put("empty.png", picture(15), "  \n")
    put("long.png", picture(16), " ".join(f"word{i}" for i in range(100)) + f" THE END {HOSTILE}")
    see_through = picture(17).convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize((64, 64)))
    put("alpha.png", see_through)
    put("print.jpg", picture(18).convert("CMYK"))
    exif = Image.Exif()
    exif[0x0112] = 6
    put("turned.jpg", picture(19, 96, 64), exif=exif)
    put(f"{HOSTILE}.png", picture(20), f"{HOSTILE} </li></body>")
    file = io.BytesIO()
    picture(21).save(file, "PNG")
    for name, data in (
        ("cut.png", file.getvalue()[:2000]),
        ("zero.png", b""),
        ("lie.png", b"<svg/>"),
        ("bomb.png", bomb()),
    ):
        (folder / name).write_bytes(data)
        (folder / name).with_suffix(".txt").write_text("a caption")
    (folder / "folder.png").mkdir()
    return folder


@pytest.fixture(scope="module")
def messy(tmp_path_factory) -> Path:
    """Do not change it."""
    return write_messy(tmp_path_factory.mktemp("data") / "messy")


def checked(capsys, *arguments: str | Path) -> dict:
    assert main(["data", "check", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def counts(report: dict) -> dict[str, int]:
    return {finding["kind"]: finding["count"] for finding in report["findings"]}


def test_it_finds_one_of_everything(messy, capsys):
    report = checked(capsys, messy, "--base-size", "64")
    found = counts(report)
    expected = {
        "truncated": 1, "empty": 1, "bomb": 1, "narrow": 1, "small": 1, "duplicate": 1, "near-duplicate": 1,
        "caption-missing": 1, "caption-empty": 1, "caption-cut": 1, "alpha": 1, "rotated": 1, "converted": 1,
    }  # fmt: skip
    assert {kind: found.get(kind) for kind in expected} == expected
    by_kind = {finding["kind"]: finding for finding in report["findings"]}
    assert by_kind["caption-missing"]["examples"][0]["key"] == "none.png"
    assert [sorted(group) for group in by_kind["near-duplicate"]["groups"]] == [["copies/one.png", "near.jpg"]]
    assert by_kind["duplicate"]["groups"] == [["copies/one.png", "copies/two.bmp"]]
    assert by_kind["caption-cut"]["examples"][0]["cut"].endswith(f"the end {HOSTILE}")
    levels = {kind: finding["level"] for kind, finding in by_kind.items()}
    assert levels["truncated"] == levels["caption-missing"] == levels["narrow"] == "dropped"
    assert levels["duplicate"] == levels["caption-cut"] == "attention" and levels["alpha"] == "note"
    # cut, zero, lie, bomb, strip, none, empty, and the folder called .png where the reader tells of it
    assert report["kept"] == 13
    assert sum(report["dropped"].values()) == report["rows"] - report["kept"]
    turned = [bucket for bucket in report["buckets"] if bucket["height"] > bucket["width"]]
    assert sum(bucket["pictures"] for bucket in turned) == 1  # the one that EXIF turns upright
    assert sum(bucket["pictures"] for bucket in report["buckets"]) == report["kept"]
    assert report["cache"]["pictures"] == report["kept"]


def test_what_it_says_will_be_dropped_is_what_extraction_drops(messy, tiny_model, tmp_path, capsys):
    from pixart.data.features import open_features

    report = checked(capsys, messy, "--base-size", "64", "--model", tiny_model)
    options = ["--base-size", "64", "--model", str(tiny_model), "--allow-dropped", "1"]
    assert main(["data", "extract", str(messy), str(tmp_path / "features"), *options]) == 0
    store = open_features(tmp_path / "features")
    assert len(store) == report["kept"]
    assert store.manifest.skipped == report["dropped"]


def test_measure_runs_the_encoders_of_the_model(messy, tiny_model, capsys):
    stated = checked(capsys, messy, "--base-size", "64")["cache"]
    unknown = checked(capsys, messy, "--base-size", "64", "--model", tiny_model)["cache"]
    measured = checked(capsys, messy, "--base-size", "64", "--model", tiny_model, "--measure")["cache"]
    assert stated["encode_seconds"] > 0 and not stated["measured"]
    assert unknown["encode_seconds"] is None
    assert measured["encode_seconds"] > 0 and measured["measured"]
    assert measured["latent_bytes"] == unknown["latent_bytes"]


def test_the_terminal_report_names_each_with_its_fix(messy, capsys):
    assert main(["data", "check", str(messy), "--base-size", "64"]) == 0
    said = capsys.readouterr().out
    for part in (
        "1 Duplicates", "1 Decompression bombs", "none.png", f"$ pixart data caption {messy}", "Buckets at 64 px",
        f"$ pixart data check {messy} --set-aside {messy}-aside", "cut: ...", "Feature cache",
    ):  # fmt: skip
        assert part in said or part in said.replace("\n", " "), part


def test_the_page_holds_everything_itself_and_escapes_what_it_shows(messy, tmp_path, capsys):
    target = tmp_path / "report.html"
    assert main(["data", "check", str(messy), "--base-size", "64", "--html", str(target)]) == 0
    text = target.read_text(encoding="utf-8")
    page = BeautifulSoup(text, "html.parser")
    assert page.find_all(["script", "link", "iframe", "object", "embed", "base"]) == []
    pictures = page.find_all("img")
    assert len(pictures) > 15
    for tag in page.find_all(True):
        assert not [name for name in tag.attrs if name.startswith("on") or name in ("href", "srcset", "action")]
    for shown in pictures:
        assert shown["src"].startswith("data:image/jpeg;base64,")
    assert re.findall(r"url\(|@import|https?://|src=(?!\"data:)", re.sub(r"&lt;.*?&gt;", "", text)) == []
    assert "default-src 'none'" in page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    said = page.get_text(" ")
    assert HOSTILE in said and any(f"({HOSTILE}.png)" in shown.get("alt") for shown in pictures)
    for part in ("will be dropped", "Decompression bombs", "Buckets at 64 px", "64 × 64", "Feature cache"):
        assert part in said
    assert page.find("del").get_text().endswith(f"the end {HOSTILE}")
    assert page.find("i", class_="off") is not None  # the part of the strip that is cropped away
    assert not list(tmp_path.glob(".*"))  # nothing half-written is left


def test_the_list_names_every_finding(messy, tmp_path, capsys):
    target = tmp_path / "findings.jsonl"
    report = checked(capsys, messy, "--base-size", "64", "--list", target)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    wanted = {
        f["kind"]: f["count"] for f in report["findings"] if f["level"] != "note" and f["kind"] != "caption-common"
    }
    assert {kind: sum(line["kind"] == kind for line in lines) for kind in wanted} == wanted
    double = next(line for line in lines if line["kind"] == "duplicate")
    assert (double["key"], double["same_as"]) == ("copies/two.bmp", "copies/one.png")
    assert Path(double["path"]) == messy / "copies" / "two.bmp"


def test_set_aside_moves_what_cannot_be_used_and_loses_nothing(tmp_path, capsys):
    data, aside = write_messy(tmp_path / "messy"), tmp_path / "aside"
    before = {path.name: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    report = checked(capsys, data, "--base-size", "64", "--set-aside", aside)
    after = {path.name: path.read_bytes() for root in (data, aside) for path in root.rglob("*") if path.is_file()}
    assert after == before
    moved = {str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()}
    gone = {"copies/two.bmp", "cut", "zero", "lie", "bomb", "strip"}
    assert moved == {"copies/two.bmp", *(f"{n}.{e}" for n in gone - {"copies/two.bmp"} for e in ("png", "txt"))} | (
        moved & {"copies/two.txt"}
    )
    assert (data / "copies" / "one.png").exists() and (data / "copies" / "one.txt").exists()
    again = checked(capsys, data, "--base-size", "64")
    assert not counts(again).keys() & {"truncated", "bomb", "narrow", "duplicate", "empty"}
    assert again["kept"] == report["kept"] - 1
    (aside / "cut.png").write_bytes(b"mine")
    (data / "cut.png").write_bytes(before["cut.png"])
    checked(capsys, data, "--base-size", "64", "--set-aside", aside)
    assert (aside / "cut.png").read_bytes() == b"mine" and (data / "cut.png").exists()


def test_strict_fails_for_findings_and_only_then(messy, tmp_path, capsys):
    assert main(["data", "check", str(messy), "--base-size", "64", "--strict"]) == 1
    clean = tmp_path / "clean"
    clean.mkdir()
    for number in range(3):
        picture(number).save(clean / f"{number}.png")
        (clean / f"{number}.txt").write_text(f"number {number}")
    assert main(["data", "check", str(clean), "--base-size", "64", "--strict"]) == 0
    assert "All of them can be trained on" in capsys.readouterr().out


def test_a_sample_opens_so_many_and_the_same_ones_each_time(messy, capsys):
    reports = [checked(capsys, messy, "--base-size", "64", "--sample", "6") for _ in range(2)]
    assert reports[0]["looked_at"] == 6 and reports[0]["pairs"] >= 20
    for report in reports:
        report.pop("seconds")
        report["cache"].pop("read_seconds")
    assert reports[0] == reports[1]
    none = checked(capsys, messy, "--base-size", "64", "--no-images")
    assert none["looked_at"] == 0 and none["cache"] is None and counts(none)["caption-cut"] == 1


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--sample", "0"], "--sample is 0"),
        (["--workers", "0"], "--workers is 0"),
        (["--sample", "3", "--no-images"], "do not go together"),
        (["--base-size", "100"], "100 is none of 16"),
        (["--base-size", "100000"], "at most 4096"),
        (["--max-tokens", "1"], "at least 2"),
        (["--html", "no/such/folder/page.html"], "cannot be written"),
        (["--set-aside", "DATA/aside"], "inside the data set"),
        (["--set-aside", "elsewhere", "--no-images"], "every picture"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(messy, arguments, says, capsys):
    arguments = [argument.replace("DATA", str(messy)) for argument in arguments]
    assert main(["data", "check", str(messy), *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_path_with_nothing_in_it_is_an_error(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "nothing")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty")]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_neither_torch_nor_diffusers_is_loaded(messy, tmp_path):
    page = tmp_path / "page.html"
    code = (
        "import sys; from pixart.cli import main; "
        f"assert main(['data', 'check', {str(messy)!r}, '--base-size', '64', '--html', {str(page)!r}]) == 0; "
        "print([name for name in ('torch', 'diffusers', 'transformers', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_processes_see_what_one_sees(messy):
    files = sorted(path for path in messy.rglob("*.*") if path.suffix != ".txt")
    pairs = [Pair(path.name, (), None, InFile(str(path))) for path in files]
    one, two = (list(look_at_all(pairs, workers)) for workers in (1, 2))
    assert [pair for pair, _ in one] == [pair for pair, _ in two] == pairs
    assert [replace(seen, seconds=0) for _, seen in one] == [replace(seen, seconds=0) for _, seen in two]


def test_a_picture_that_kills_its_process_is_named_and_the_others_are_seen():
    names = [f"deadly{n}" if n in (40, 41) else f"fine{n}" for n in range(70)]
    pairs = [Pair(name, (), None, InFile(name)) for name in names]
    seen = list(look_at_all(pairs, 2, look=look_or_die))
    assert [pair.key for pair, _ in seen] == names
    assert [pair.key for pair, found in seen if found.kind == "crash"] == ["deadly40", "deadly41"]
    assert all(found.reason == pair.key for pair, found in seen if found.kind != "crash")


def seen(look: int, colour: int, pixels: int) -> Seen:
    thumb = bytes([colour, 128, 128] * 64)
    return Seen(width=64, height=64, pixels=pixels.to_bytes(16, "big"), look=look, thumb=thumb)


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 63), max_size=4), st.booleans()), max_size=30))
def test_near_duplicates_are_those_that_comparing_all_pairs_finds(tmp_path_factory, rows):
    rng = np.random.default_rng(0)
    centres = rng.integers(-(2**63), 2**63 - 1, 10, dtype=np.int64)
    looks = []
    for centre, flips, _ in rows:
        bits = np.uint64(centres[centre].astype(np.uint64))
        for bit in flips:
            bits ^= np.uint64(1) << np.uint64(bit)
        looks.append(int(bits.astype(np.int64)))
    colours = [40 if dark else 220 for _, _, dark in rows]
    table = PictureTable(tmp_path_factory.mktemp("table") / "pictures.sqlite")
    for row, (look, colour) in enumerate(zip(looks, colours, strict=True)):
        table.add(row, Pair(f"{row}", (), None, InFile(f"{row}.png")), seen(look, colour, row))
    found = table.near(100)
    table.close()
    # Connected components over all pairs, the slow way.
    group = list(range(len(rows)))
    for a in range(len(rows)):
        for b in range(a):
            near = ((looks[a] ^ looks[b]) & (2**64 - 1)).bit_count() <= MAX_BITS
            if near and colours[a] == colours[b] and group[a] != group[b]:
                old, new = max(group[a], group[b]), min(group[a], group[b])
                group = [new if g == old else g for g in group]
    assert found.pairs == [(row, first) for row, first in enumerate(group) if row != first]
    assert found.count == len(found.pairs) and not found.partly


def test_exact_duplicates_and_where_they_are(tmp_path):
    table = PictureTable(tmp_path / "pictures.sqlite")
    places = [InFile("a\udc80.png"), InFile("b"), InFile("c"), InFile("d"), InFile("e")]
    for row, (place, pixels) in enumerate(zip(places, (7, 8, 7, 9, 7), strict=True)):
        table.add(10 * row, Pair(f"key {row} \x00 é", (), None, place), seen(row * 2**40, 0, pixels))
    count, groups = table.exact(5)
    assert count == 2 and [(group.rows, group.count) for group in groups] == [((0, 20, 40), 3)]
    assert list(table.copies()) == [(20, 0), (40, 0)]
    assert table.find(0) == ("key 0 \x00 é", places[0])
    table.close()


def test_a_look_survives_resizing_and_saving_again(tmp_path):
    original, again = tmp_path / "a.png", tmp_path / "b.jpg"
    picture(5, 200, 160).save(original)
    picture(5, 200, 160).resize((110, 88)).save(again, quality=70)
    looks = [look_at(InFile(str(path))).look for path in (original, again)]
    assert ((looks[0] ^ looks[1]) & (2**64 - 1)).bit_count() <= MAX_BITS
    assert perceptual_hash(np.full((32, 32), 200)) == 0  # a plain picture, whatever its colour


@dataclass(frozen=True)
class Endless(Dataset):
    """`size` pairs out of nowhere; every 5th has no caption, every 50th row is a problem."""

    size: int = 0

    def pairs(self):
        for row in range(self.size):
            if row % 50 == 49:
                yield Problem(f"row {row}", "missing", f"picture {row} is not there.")
            text = "the same for many" if row % 3 == 0 else f"caption number {row} " + "long " * (row % 200)
            captions = () if row % 5 == 4 else (Caption(text, "original"),)
            yield Pair(f"{row}.png", captions, None, InFile(f"/nowhere/{row}.png"))

    def count_hint(self):
        return self.size


def gathered(tmp_path: Path, size: int, sample: int | None) -> tuple[Tally, int]:
    """The tally of an endless data set, and the peak of memory in bytes."""
    counter = TokenCounter(SHIPPED / "tokenizer", SHIPPED / "text_encoder", None)
    tally = Tally(computed_table(64), counter.max_tokens)
    pictures = PictureTable(tmp_path / f"{size}.sqlite")
    tracemalloc.start()
    gather(Endless(Path("endless"), "endless", size=size), tally, counter, pictures, sample=sample, workers=1,
           tick=lambda name, done: None)  # fmt: skip
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pictures.close()
    return tally, peak


def test_memory_does_not_grow_with_the_data_set(tmp_path):
    gathered(tmp_path, 10, 0)  # what is loaded once
    small, large = (gathered(tmp_path, size, 0) for size in (4_000, 12_000))
    assert large[0].pairs == 12_000 and large[0].problems == 240
    assert large[0].dropped == {"missing": 240, "caption-missing": 2400}
    assert all(len(found.items) <= EXAMPLES for found in large[0].examples.values())
    assert large[0].common.most_common(1)[0][0] == "the same for many"
    assert large[1] < small[1] + 500_000
    looked, _ = gathered(tmp_path, 300, 40)
    assert looked.looked == 40 and looked.counts["missing"] == 6 + 40


def test_tokens_are_those_that_the_text_encoder_reads():
    counter = TokenCounter(SHIPPED / "tokenizer", SHIPPED / "text_encoder", 8)
    texts = ["A red apple", "one two three four five six seven EIGHT nine", "", "unbelievably " * 9]
    for text, count in zip(texts, counter.counts(texts), strict=True):
        ids, cut = counter.tokenizer.tokenize(text.lower().strip())
        assert (count > 8) == bool(cut) and min(count, 8) == len(ids)
    assert counter.cut(texts[1]) == "seven eight nine"
