"""The readers on data that nobody thought of: hypothesis makes it up, and seeded fuzzing damages what was good."""

import csv
import io
import json
import random
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from reader_data import COLOURS, colour_of, image, put, read, tar, texts

from pixart.data.dataset import captions_folder, open_dataset
from pixart.data.layouts import rows as manifest_rows
from pixart.data.layouts.layout import as_caption
from pixart.data.pairs import Caption, ImageProblem, InFile, Problem, printable
from pixart.errors import PixArtError
from pixart.images import open_image

pytestmark = pytest.mark.filterwarnings("ignore::Warning:PIL")  # pytest undoes what images.py says

IMAGES = {colour: image(colour) for colour in COLOURS}
bounded = settings(
    max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
captions = st.text(characters, max_size=40)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=12)


@contextmanager
def folder():
    with tempfile.TemporaryDirectory(prefix="pixart-") as path:
        yield Path(path)


def trimmed(text: str) -> str:
    """What the documents promise to do with a caption."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").strip()


def expected(text: str) -> list[str]:
    return [trimmed(text)] if trimmed(text) else []


@bounded
@given(st.dictionaries(names, captions, min_size=1, max_size=5))
def test_sidecars_with_any_names_and_captions(made):
    made = {name: text for name, text in made.items() if not name.startswith(".")}
    assume(made)
    assume(not any(other.startswith(name + ".") for name in made for other in made if other != name))
    colours = dict(zip(made, COLOURS, strict=False))
    with folder() as path:
        for name, text in made.items():
            put(path, {f"{name}.png": IMAGES[colours[name]], f"{name}.txt": text})
        pairs, problems = read(open_dataset(path, layout="sidecars"))
        assert problems == []
        assert {key: texts(pair) for key, pair in pairs.items()} == {f"{n}.png": expected(t) for n, t in made.items()}
        assert {key: colour_of(pair) for key, pair in pairs.items()} == {f"{n}.png": colours[n] for n in made}


junk = st.one_of(
    st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")),
    st.recursive(st.none() | st.integers() | captions, st.lists, max_leaves=4).map(lambda v: json.dumps(v).encode()),
    st.dictionaries(
        st.sampled_from(["file_name", "text", "captions", "width", "x"]), st.none() | st.integers() | captions
    ).map(lambda row: json.dumps(row).encode()),
)


@bounded
@given(
    st.permutations(list(COLOURS)), st.lists(captions, min_size=5, max_size=5), st.lists(junk, max_size=6), st.randoms()
)
def test_jsonl_accounts_for_every_line(colours, written, bad, order):
    rows = {f"{colour}.png": text for colour, text in zip(COLOURS, written, strict=True)}
    good = [json.dumps({"file_name": name, "text": text}).encode() for name, text in rows.items()]
    all_lines = [*good, *bad]
    order.shuffle(all_lines)
    with folder() as path:
        put(path, {f"{colour}.png": data for colour, data in IMAGES.items()})
        put(path, {"a.jsonl": b"\n".join(all_lines)})
        pairs, problems = read(path / "a.jsonl")
    assert {key: texts(pair) for key, pair in pairs.items()} == {name: expected(text) for name, text in rows.items()}
    filled = [number for number, line in enumerate(all_lines, 1) if line.strip()]
    named = {problem.key for problem in problems}
    assert named == {f"a.jsonl:{number}" for number in filled if all_lines[number - 1] not in good}


@bounded
@given(st.lists(captions, min_size=1, max_size=5), st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n"]))
def test_csv_gives_back_what_pythons_own_writer_wrote(written, delimiter, line_end):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
    writer.writerow(["path", "text"])
    rows = dict(zip((f"{colour}.png" for colour in COLOURS), written, strict=False))
    writer.writerows(rows.items())
    with folder() as path:
        put(path, {f"{colour}.png": data for colour, data in IMAGES.items()})
        put(path, {"a.csv": file.getvalue()})
        pairs, problems = read(path / "a.csv")
    assert ({key: texts(pair) for key, pair in pairs.items()}, problems) == (
        {n: expected(t) for n, t in rows.items()},
        [],
    )


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | captions,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(captions, inner, max_size=3),
    max_leaves=8,
)


@bounded
@given(st.lists(st.dictionaries(captions, values, max_size=3), max_size=5), st.integers(0, 40), st.booleans())
def test_a_json_list_in_pieces_is_what_json_says(rows, more, plain):
    """Read in pieces that are hardly longer than the longest entry."""
    dumped = [json.dumps(row, indent=None if plain else 1, ensure_ascii=plain) for row in rows]
    longest = max(map(len, dumped), default=0)
    with folder() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_rows, "MAX_ROW", longest + more)
        put(path, {"a.json": "[" + ",".join(dumped) + "]"})
        found = list(manifest_rows.json_list(path / "a.json", "a.json"))
    assert found == [(f"a.json:{number}", row) for number, row in enumerate(rows)]


member_names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=130)


sample_parts = st.lists(
    st.sampled_from([(name, ending) for name in ("a", "b", "c") for ending in ("png", "txt")]), min_size=1, max_size=8
)


@bounded
@given(st.lists(sample_parts, min_size=1, max_size=3))
def test_a_tar_in_any_order_never_gives_a_caption_to_another_image(shards):
    colours = {"a": "red", "b": "green", "c": "blue"}
    with folder() as path:
        for number, parts in enumerate(shards):
            content = [
                (f"{name}.{ending}", IMAGES[colours[name]] if ending == "png" else colours[name].encode())
                for name, ending in parts
            ]
            put(path, {f"{number}.tar": tar(content)})
        pairs, problems = read(path)
        for key, pair in pairs.items():
            assert colour_of(pair) == colours[key[-1]]
            assert texts(pair) in ([], [colours[key[-1]]])
    named = set(pairs) | {problem.key for problem in problems}
    assert named == {f"{number}.tar/{name}" for number, parts in enumerate(shards) for name, _ in parts}


@bounded
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60), values))
def test_a_caption_is_clean_or_a_problem(value):
    one = as_caption(value, "key")
    if isinstance(one, Problem):
        assert one.kind.startswith("caption-")
        return
    assert isinstance(one, Caption)
    assert one.text == one.text.strip() != ""
    assert not set("\0\r") & set(one.text)
    one.text.encode("utf-8")
    assert as_caption(one.text, "key") == one


@bounded
@given(st.text())
def test_printable_is_one_harmless_line(text):
    shown = printable(text)
    assert all(character.isprintable() or character == "\u200d" for character in shown)
    assert printable(shown) == shown


@bounded
@given(
    st.dictionaries(names, st.none(), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 5), captions), max_size=12),
)
def test_written_captions_find_their_keys_in_any_order(made, written):
    made = [name for name in made if not name.startswith(".")]
    assume(made)
    rows = [(f"{made[n]}.png" if n < len(made) else "stranger.gif", text) for n, text in written]
    with folder() as path:
        put(path, {f"{name}.png": IMAGES["red"] for name in made})
        put(
            captions_folder(path),
            {"model.jsonl": "".join(json.dumps({"key": k, "caption": t}) + "\n" for k, t in rows)},
        )
        pairs, _ = read(open_dataset(path, layout="images"))
    for key, pair in pairs.items():
        assert texts(pair) == list(dict.fromkeys(one for k, text in rows if k == key for one in expected(text)))


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with a few bytes changed, a piece cut out, doubled or moved, or the end missing."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(changed))
        size = chance.choice((1, 3, 512, 1024))
        match chance.randrange(5):
            case 0:
                changed[at] = chance.randrange(256)
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = changed[at : at + size]
            case 3:
                changed[at : at + size] = chance.randbytes(size)
            case 4:
                del changed[at:]
        if not changed:
            return b""
    return bytes(changed)


def check_read(path: Path) -> tuple[int, int]:
    """Read a damaged data set: each result is whole, and in a tar no caption is on another image.

    In a manifest a changed name may well be that of another image.
    """
    pairs, problems = read(path)
    for pair in pairs.values():
        try:
            colour = colour_of(pair)
        except ImageProblem:
            continue
        for text in texts(pair):
            assert text not in COLOURS or text == colour or isinstance(pair.image, InFile)
    for problem in problems:
        assert problem.kind
        assert problem.reason.endswith(".")
        assert printable(problem.key + problem.reason) == problem.key + problem.reason
    return len(pairs), len(problems)


def test_fuzzed_tars_give_pairs_and_problems_and_nothing_else(tmp_path):
    chance = random.Random(7)
    content = [
        member
        for colour in COLOURS
        for member in (
            (f"{colour}.png", IMAGES[colour]),
            (f"{colour}.txt", colour.encode()),
            (f"{colour}.json", json.dumps({"caption": colour, "width": 4}).encode()),
        )
    ]
    shards = [tar(content, format) for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    shards.append(tar([("d" * 120 + "/" + name, data) for name, data in content], tarfile.PAX_FORMAT))
    pairs = problems = 0
    for _ in range(300):
        put(tmp_path, {"a.tar": damaged(chance.choice(shards), chance)})
        found = check_read(tmp_path / "a.tar")
        pairs, problems = pairs + found[0], problems + found[1]
    assert pairs > 300  # the damage was not so great that nothing was tested
    assert problems > 150


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_fuzzed_manifests_give_pairs_and_problems_and_nothing_else(tmp_path, name):
    chance = random.Random(11)
    put(tmp_path, {f"{colour}.png": data for colour, data in IMAGES.items()})
    rows = [{"path": f"{colour}.png", "text": colour, "width": 4} for colour in COLOURS]
    good = {
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "a.csv": "path,text,width\n" + "".join(f'{c}.png,"{c}",4\n' for c in COLOURS),
        "a.json": json.dumps(rows),
    }[name].encode()
    pairs = problems = refused = 0
    for _ in range(200):
        put(tmp_path, {name: damaged(good, chance)})
        try:
            found = check_read(tmp_path / name)
        except PixArtError as error:
            assert name == "a.csv", error  # without its first line a table has no columns
            refused += 1
            continue
        pairs, problems = pairs + found[0], problems + found[1]
    assert pairs > 200
    assert problems > 60
    assert refused < 100


def test_fuzzed_images_open_or_are_refused():
    chance = random.Random(13)
    noise = chance.randbytes(12 * 12 * 3)
    made = []
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        file = io.BytesIO()
        Image.frombytes("RGB", (12, 12), noise).save(file, format)
        made.append(file.getvalue())
    opened = refused = 0
    for _ in range(500):
        try:
            image = open_image(damaged(chance.choice(made), chance), max_pixels=10**6).image
            assert image.mode == "RGB"
            opened += 1
        except ImageProblem as problem:
            assert printable(problem.reason) == problem.reason
            refused += 1
    assert min(opened, refused) > 50
