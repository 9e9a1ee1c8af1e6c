"""`pixart data check`: what it finds in a data set with everything wrong, and how it says it."""

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pixart.cli import main
from pixart.data.check.duplicates import MAX_BITS, Fingerprint, Fingerprints, fingerprint, perceptual_hash

HOSTILE = "<img src=x onerror=alert(1)>"


def photo(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """A cloudy image with coarse and fine parts that no other seed gives, nor anything near it."""
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
    """Sidecar captions and one of everything that can be wrong; 12 of the 21 images can be trained on."""
    folder.mkdir()

    def put(name: str, image: Image.Image, caption: str | None = "a caption", **options) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        image.save(folder / name, **options)
        if caption is not None:
            (folder / name).with_suffix(".txt").write_text(caption)

    for number in range(3):
        put(f"good{number}.png", photo(number), f"image number {number}")
    put("copies/one.png", photo(10))
    put("copies/two.bmp", photo(10))
    put("near.jpg", photo(10).resize((90, 90)), quality=85)
    put("wide.png", photo(11, 200, 100))
    put("strip.png", photo(12, 900, 64))
    put("small.png", photo(13, 20, 20))
    put("none.png", photo(14), None)
    put("empty.png", photo(15), "  \n")
    put("long.png", photo(16), " ".join(f"word{i}" for i in range(100)) + f" THE END {HOSTILE}")
    see_through = photo(17).convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize((64, 64)))
    put("alpha.png", see_through)
    put(f"{HOSTILE}.jpg", photo(18).convert("CMYK"), f"{HOSTILE} </li></body>")
    exif = Image.Exif()
    exif[0x0112] = 6
    put("turned.jpg", photo(19, 96, 64), exif=exif)
    put("good3.png", photo(20))
    file = io.BytesIO()
    photo(21).save(file, "PNG")
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
    firsts = {kind: by_kind[kind]["examples"][0] for kind in expected}
    assert firsts["caption-missing"]["key"] == "none.png" and "word99" not in firsts["caption-cut"]["key"]
    assert (firsts["duplicate"]["key"], firsts["duplicate"]["same_as"]) == ("copies/two.bmp", "copies/one.png")
    assert {firsts["near-duplicate"]["key"], firsts["near-duplicate"]["same_as"]} == {"copies/one.png", "near.jpg"}
    levels = {kind: finding["level"] for kind, finding in by_kind.items()}
    assert levels["truncated"] == levels["caption-missing"] == levels["narrow"] == "dropped"
    assert levels["duplicate"] == levels["caption-cut"] == "attention" and levels["alpha"] == "note"
    assert str(messy) in by_kind["caption-missing"]["fix"] and "lie.png" in by_kind["format"]["fix"]
    # cut, zero, lie, bomb, strip, none, empty, and the folder called .png where the reader tells of it
    assert report["kept"] == 13
    assert sum(report["dropped"].values()) == report["rows"] - report["kept"]
    turned = [bucket for bucket in report["buckets"] if bucket["height"] > bucket["width"]]
    assert sum(bucket["images"] for bucket in turned) == 1  # the one that EXIF turns upright
    assert sum(bucket["images"] for bucket in report["buckets"]) == report["kept"]
    assert report["captions"]["original"]["captions"] == 18 and report["captions"]["original"]["cut"] == 1


def test_what_it_says_will_be_dropped_is_what_extraction_drops(messy, tiny_model, tmp_path, capsys):
    from pixart.data.features import open_features

    report = checked(capsys, messy, "--base-size", "64", "--model", tiny_model)
    options = ["--base-size", "64", "--model", str(tiny_model), "--allow-dropped", "1"]
    assert main(["data", "extract", str(messy), str(tmp_path / "features"), *options]) == 0
    store = open_features(tmp_path / "features")
    assert len(store) == report["kept"]
    assert store.manifest.skipped == report["dropped"]
    written = sum(path.stat().st_size for path in (tmp_path / "features").glob("*/*.safetensors"))
    assert 0.8 * written < report["feature_bytes"] < written


def test_the_page_and_the_terminal_hold_the_same_findings_and_escape_what_they_show(messy, tmp_path, capsys):
    target = tmp_path / "report.html"
    assert main(["data", "check", str(messy), "--base-size", "64", "--html", str(target)]) == 0
    printed = capsys.readouterr().out
    text = target.read_text(encoding="utf-8")
    page = BeautifulSoup(text, "html.parser")
    assert page.find_all(["script", "link", "iframe", "object", "embed", "base"]) == []
    images = page.find_all("img")
    assert len(images) > 15
    for tag in page.find_all(True):
        assert not [name for name in tag.attrs if name.startswith("on") or name in ("href", "srcset", "action")]
    for image in images:
        assert image["src"].startswith("data:image/jpeg;base64,")
    assert re.findall(r"url\(|@import|https?://|src=(?!\"data:)", re.sub(r"&lt;.*?&gt;", "", text)) == []
    assert "default-src 'none'" in page.find("meta", attrs={"http-equiv": "Content-Security-Policy"})["content"]
    words = page.get_text(" ")
    assert HOSTILE in words and any(f"({HOSTILE}.jpg)" in image.get("alt") for image in images)
    for part in ("13 (6", "bomb", "near-duplicate", "none.png", f"pixart data caption {messy}"):
        assert part in words and part in printed
    assert page.find(class_="shape") and page.find("rect", class_="over")
    assert not list(tmp_path.glob(".*"))  # nothing half-written is left


def test_the_list_names_every_finding(messy, tmp_path, capsys):
    target = tmp_path / "findings.jsonl"
    report = checked(capsys, messy, "--base-size", "64", "--list", target)
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    wanted = {f["kind"]: f["count"] for f in report["findings"] if f["level"] != "note"}
    assert {kind: sum(line["kind"] == kind for line in lines) for kind in wanted} == wanted
    double = next(line for line in lines if line["kind"] == "duplicate")
    assert (double["key"], double["same_as"]) == ("copies/two.bmp", "copies/one.png")
    assert Path(double["path"]) == messy / "copies" / "two.bmp"


def test_strict_fails_for_findings_and_only_then(messy, tmp_path, capsys):
    assert main(["data", "check", str(messy), "--base-size", "64", "--strict"]) == 1
    clean = tmp_path / "clean"
    clean.mkdir()
    for number in range(3):
        photo(number).save(clean / f"{number}.png")
        (clean / f"{number}.txt").write_text(f"number {number}")
    assert main(["data", "check", str(clean), "--base-size", "64", "--strict"]) == 0


def test_a_sample_is_a_share_and_the_same_images_each_time(messy, capsys):
    first, again, none = (checked(capsys, messy, "--base-size", "64", "--sample", x) for x in ("0.5", "0.5", "0"))
    assert first == again and 3 <= first["opened"] <= 17 and first["pairs"] == 20
    assert first["kept"] == round((20 - 2) * first["kept"] / 18) and 0 < first["kept"] <= 18
    assert (none["opened"], none["buckets"], counts(none)["caption-cut"], none["kept"]) == (0, [], 1, 18)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--sample", "1.5"],
        ["--base-size", "100"],
        ["--base-size", "100000"],
        ["--max-tokens", "1"],
        ["--html", "no/such/folder/page.html"],
    ],
)
def test_options_that_cannot_be_are_refused_in_one_sentence(messy, arguments, capsys):
    assert main(["data", "check", str(messy), *arguments]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_path_with_nothing_in_it_is_an_error(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "nothing")]) == 2
    (tmp_path / "empty").mkdir()
    assert main(["data", "check", str(tmp_path / "empty")]) == 2
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


@given(st.lists(st.tuples(st.integers(0, 9), st.lists(st.integers(0, 63), max_size=4), st.booleans()), max_size=30))
def test_near_duplicates_are_those_that_comparing_all_pairs_finds(rows):
    rng = np.random.default_rng(0)
    centres = rng.integers(2**64, size=10, dtype=np.uint64)
    looks, colours = [], [40 if dark else 220 for _, _, dark in rows]
    table = Fingerprints()
    for row, (centre, flips, _) in enumerate(rows):
        look = int(centres[centre])
        for bit in flips:
            look ^= 1 << bit
        looks.append(look)
        table.add(3 * row, Fingerprint(row, look, bytes([colours[row], 128, 128] * 16)))
    # Connected components over all pairs, the slow way.
    group = list(range(len(rows)))
    for a in range(len(rows)):
        for b in range(a):
            near = (looks[a] ^ looks[b]).bit_count() <= MAX_BITS
            if near and colours[a] == colours[b] and group[a] != group[b]:
                old, new = max(group[a], group[b]), min(group[a], group[b])
                group = [new if g == old else g for g in group]
    assert table.duplicates() == ({}, {3 * row: 3 * first for row, first in enumerate(group) if row != first})


def test_exact_duplicates_point_to_the_first_of_them():
    table = Fingerprints()
    for row, pixels in enumerate((7, 8, 7, 9, 7)):
        table.add(10 * row, Fingerprint(pixels, 2**row - 1 << 40, bytes(range(48))))
    assert table.duplicates()[0] == {20: 0, 40: 0}


def test_a_fingerprint_survives_resizing_and_saving_again():
    file = io.BytesIO()
    photo(5, 200, 160).resize((110, 88)).save(file, "JPEG", quality=70)
    original, again = fingerprint(photo(5, 200, 160)), fingerprint(Image.open(file))
    assert (original.look ^ again.look).bit_count() <= MAX_BITS and original.pixels != again.pixels
    assert perceptual_hash(np.full((32, 32), 200)) == 0  # an image of one colour, whichever


def test_losses_and_examples_of_a_large_data_set_are_counted_without_being_kept(tmp_path, capsys):
    rows = [{"file_name": f"{n}.png", "text": "a fox"} for n in range(3000)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    photo(0).save(tmp_path / "0.png")
    report = checked(capsys, tmp_path, "--base-size", "64")
    assert (report["rows"], report["kept"], report["dropped"]) == (3000, 1, {"missing": 2999})
    assert len(report["findings"][0]["examples"]) == 8
