"""Data sets as people have them: damaged, with dotted names, in every form of table; nothing is lost unsaid.

By the command line, and by the readers' documented interface: `open_dataset`, `Pair`, `Problem`, `read_bytes`,
`open_image`. Every input is made here.
"""

import io
import json
import os
import struct
import tarfile
import unicodedata
import zlib
from pathlib import Path

import pytest
from PIL import Image

from pixart.cli import main
from pixart.data.dataset import open_dataset
from pixart.data.pairs import Pair, read_bytes
from pixart.images import open_image


def image(colour: tuple[int, int, int] = (200, 30, 30), size: int = 64, format: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, format)
    return file.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(word: str, count: int) -> list[tuple[str, bytes]]:
    return [
        part
        for n in range(count)
        for part in (
            (f"{word}{n:05}.jpg", image((n * 5 % 250, 9, len(word) * 9))),
            (f"{word}{n:05}.txt", f"{word} number {n}".encode()),
        )
    ]


def put(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def captions(path: Path) -> dict[str, list[str]]:
    """Captions by the image's name without folder and ending."""
    pairs = [one for one in open_dataset(path).pairs() if isinstance(one, Pair)]
    return {one.key.rpartition("/")[2].removesuffix(".jpg"): [c.text for c in one.captions] for one in pairs}


def checked(capsys, path: Path) -> dict:
    assert main(["data", "check", str(path), "--json", "--base-size", "64"]) == 0
    return json.loads(capsys.readouterr().out)


def extract(model: Path, path: Path, dest: Path, *more: str) -> int:
    options = ["--base-size", "64", "--step", "16", "--model", str(model), "--precision", "float32"]
    return main(["data", "extract", str(path), str(dest), *options, *more])


# What damage loses: the number is right or "unknown", and unknown stops.


def joined(folder: Path) -> None:
    parts = [write_tar(folder.parent / f"{word}.part", samples(word, 20)).read_bytes() for word in ("a", "bb")]
    put(folder, {"0.tar": b"".join(parts)})


def damaged_in_the_middle(folder: Path) -> None:
    path = write_tar(folder / "0.tar", samples("a", 20))
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        data[archive.getmembers()[20].offset] = 0xFF
    path.write_bytes(data)


def cut(folder: Path) -> None:
    path = write_tar(folder / "0.tar", samples("a", 20))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_between_members(folder: Path) -> None:
    path = write_tar(folder / "0.tar", samples("a", 20))
    with tarfile.open(path) as archive:
        path.write_bytes(path.read_bytes()[: archive.getmembers()[20].offset])


def with_a_compressed_shard(folder: Path) -> None:
    write_tar(folder / "0.tar", samples("a", 20))
    put(folder, {"1.tar.gz": b"\x1f\x8b"})


def with_a_shard_that_its_index_names(folder: Path) -> None:
    write_tar(folder / "00000.tar", samples("a", 20))
    put(folder, {"index.json": json.dumps({"wids_version": 1, "shardlist": [{"url": "00001.tar"}]})})


def without_a_parquet_shard(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "data").mkdir(parents=True)
    table = pa.table({"image": [{"bytes": image(), "path": None}] * 20, "text": ["a"] * 20})
    pq.write_table(table, folder / "data" / "train-00000-of-00002.parquet")


def a_manifest_cut_in_a_line(folder: Path) -> None:
    rows = [json.dumps({"file_name": f"{n}.jpg", "text": f"number {n}"}) + "\n" for n in range(20)]
    put(folder, {f"{n}.jpg": image((n, n, n)) for n in range(20)})
    put(folder, {"metadata.jsonl": "".join(rows)[:-160]})


def a_csv_cut_in_a_row(folder: Path) -> None:
    put(folder, {f"{n}.jpg": image((n, n, n)) for n in range(20)})
    put(folder, {"metadata.csv": "file_name,text\n" + "".join(f'{n}.jpg,"number {n}"\n' for n in range(20))[:-9]})


def two_json_lists_in_one_file(folder: Path) -> None:
    put(folder, {f"images/{n}.jpg": image((n, n, n)) for n in range(4)})
    halves = [json.dumps([{"path": f"{n}.jpg", "prompt": f"number {n}"} for n in half]) for half in ((0, 1), (2, 3))]
    put(folder, {"partition/data_info.json": "".join(halves)})


DAMAGED = [
    joined, damaged_in_the_middle, cut, cut_between_members, with_a_compressed_shard, with_a_shard_that_its_index_names,
    without_a_parquet_shard, a_manifest_cut_in_a_line, a_csv_cut_in_a_row, two_json_lists_in_one_file,
]  # fmt: skip


@pytest.mark.parametrize("make", DAMAGED, ids=lambda make: make.__name__)
def test_a_loss_of_unknown_size_is_said_to_be_unknown(tmp_path, capsys, make):
    make(tmp_path / "data")
    report = checked(capsys, tmp_path / "data")
    assert sum(report["lost_unknown"].values()) >= 1
    assert main(["data", "check", str(tmp_path / "data"), "--strict"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("make", DAMAGED, ids=lambda make: make.__name__)
def test_a_loss_of_unknown_size_stops_extraction(tmp_path, tiny_model, capsys, make):
    make(tmp_path / "data")
    assert extract(tiny_model, tmp_path / "data", tmp_path / "out", "--allow-dropped", "0.2") == 1
    assert not (tmp_path / "out" / "features.json").exists()
    assert extract(tiny_model, tmp_path / "data", tmp_path / "out", "--allow-dropped", "1") == 0


def test_a_joined_tar_stops_extraction(tmp_path, tiny_model):
    joined(tmp_path / "data")
    assert extract(tiny_model, tmp_path / "data", tmp_path / "out", "--allow-dropped", "0.2") == 1
    assert not (tmp_path / "out" / "features.json").exists()


def test_many_names_that_agree_up_to_their_first_dot_are_all_kept(tmp_path, capsys):
    names = [f"2024.05.{n:02} garden" for n in range(40)]
    write_tar(
        tmp_path / "data" / "0.tar",
        [
            (f"{name}{end}", image((9, n, 9)) if end == ".jpg" else name.encode())
            for n, name in enumerate(names)
            for end in (".jpg", ".txt")
        ],
    )
    assert captions(tmp_path / "data") == {name: [name] for name in names}
    assert checked(capsys, tmp_path / "data")["kept"] == 40


# Captions: each on its own image, and none lost.


def test_a_caption_never_goes_to_another_image(tmp_path):
    write_tar(tmp_path / "tar" / "0.tar", [("Mr. Fox.jpg", image()), ("Mr. Owl.txt", b"an owl on a branch")])
    assert captions(tmp_path / "tar") == {"0.tar/Mr. Fox".rpartition("/")[2]: []}
    write_tar(
        tmp_path / "both" / "0.tar", [("Mr. Fox.jpg", image()), ("Mr. Fox.txt", b"a fox"), ("Mr. Owl.txt", b"an owl")]
    )
    assert captions(tmp_path / "both") == {"Mr. Fox": ["a fox"]}
    write_tar(tmp_path / "full" / "0.tar", [("a.jpg", image()), ("a.png.txt", b"of another")])
    assert [c for found in captions(tmp_path / "full").values() for c in found] == []


def test_a_mask_beside_an_image_does_not_part_it_from_its_caption(tmp_path):
    parts = [("1.jpg", image()), ("1.mask.png", image(format="PNG")), ("1.seg.npy", b"x"), ("1.txt", b"a fox")]
    write_tar(tmp_path / "0.tar", parts)
    assert captions(tmp_path / "0.tar")["1"] == ["a fox"]


ROWS = {
    "a": {"caption": ["first", "second"]},
    "b": {"captions": ["one", "two"]},
    "c": {"Caption": "capital"},
    "d": {"description": "told"},
    "e": {"prompt": "short", "sharegpt4v": "a dense caption"},
    "f": {"TEXT": "loud", "Captions": ["more", "loud"], "ShareGPT4V": "dense too"},
    "g": {"text": "", "captions": ["behind an empty one"]},
}  # fmt: skip
WANTED = {
    "a": ["first", "second"], "b": ["one", "two"], "c": ["capital"], "d": ["told"], "e": ["short", "a dense caption"],
    "f": ["loud", "more", "dense too"], "g": ["behind an empty one"],
}  # fmt: skip


@pytest.mark.parametrize("layout", ["tar", "jsonl", "interndata", "parquet"])
def test_captions_are_the_same_in_every_layout(tmp_path, layout):
    names = list(ROWS)
    if layout == "tar":
        members = [
            (f"{n}.jpg", image()) if end == "jpg" else (f"{n}.json", json.dumps(ROWS[n]).encode())
            for n in names
            for end in ("jpg", "json")
        ]
        write_tar(tmp_path / "0.tar", members)
    elif layout == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        for n in names:
            columns = {key: [value] for key, value in ROWS[n].items()}
            pq.write_table(pa.table({"image": [image()], **columns}), tmp_path / f"{n}.parquet")
    else:
        put(tmp_path, {f"{n}.jpg": image() for n in names})
        rows = [{"file_name" if layout == "jsonl" else "path": f"{n}.jpg", **ROWS[n]} for n in names]
        lines = "\n".join(map(json.dumps, rows)) if layout == "jsonl" else json.dumps(rows)
        put(tmp_path, {"metadata.jsonl" if layout == "jsonl" else "partition/data_info.json": lines})
    found = {name.removesuffix(".parquet:0"): texts for name, texts in captions(tmp_path).items()}
    assert found == WANTED


@pytest.mark.parametrize("written", ["utf-8-sig", "utf-16"])
def test_caption_files_with_a_byte_order_mark_are_read(tmp_path, written):
    put(tmp_path, {"a.jpg": image(), "a.txt": "ein Fuchs, müde".encode(written)})
    assert captions(tmp_path) == {"a": ["ein Fuchs, müde"]}


def test_latin_1_is_a_problem_and_never_a_guess(tmp_path, capsys):
    put(tmp_path, {"a.jpg": image(), "a.txt": "müde".encode("latin-1"), "b.jpg": image((1, 2, 3)), "b.txt": "b"})
    assert captions(tmp_path) == {"a": [], "b": ["b"]}
    assert checked(capsys, tmp_path)["dropped"] == {"caption-encoding": 1}


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("layout", ["sidecars", "manifest", "tar"])
def test_names_in_two_unicode_forms_are_partners(tmp_path, forms, layout):
    one, other = (unicodedata.normalize(form, "Müsli") for form in forms)
    if layout == "tar":
        write_tar(tmp_path / "0.tar", [(f"{one}.jpg", image()), (f"{other}.txt", b"muesli")])
    elif layout == "sidecars":
        put(tmp_path, {f"{one}.jpg": image(), f"{other}.txt": "muesli"})
    else:
        put(
            tmp_path,
            {f"{one}.jpg": image(), "metadata.jsonl": json.dumps({"file_name": f"{other}.jpg", "text": "muesli"})},
        )
    assert list(captions(tmp_path).values()) == [["muesli"]]


# Images in every form of table.


def columns_of_images() -> dict:
    import pyarrow as pa

    held = [image((n * 90, 9, 9)) for n in range(2)]
    both = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    views = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    longest = max(map(len, held))
    paths = [f"img/{n}.jpg" for n in range(2)]
    return {
        "path only": pa.array([{"bytes": None, "path": path} for path in paths], both),
        "path struct": pa.array([{"path": path} for path in paths]),
        "large": pa.array([{"bytes": data, "path": None} for data in held], views),
        "dictionary": pa.array(held).dictionary_encode(),
        "fixed size": pa.array([data.ljust(longest, b"\0") for data in held], pa.binary(longest)),
        "list of one": pa.array([[{"bytes": data, "path": None}] for data in held], pa.list_(both)),
        "list of bytes": pa.array([list(data) for data in held], pa.list_(pa.uint8())),
        "large_string": pa.array(paths, pa.large_string()),
        "dictionary of paths": pa.array(paths).dictionary_encode(),
        "string_view": pa.array(paths, pa.string_view()),
        "binary_view": pa.array(held, pa.binary_view()),
    }


@pytest.mark.parametrize("stored", ["data/train-00000-of-00001.parquet", "some.parquet"])
@pytest.mark.parametrize("name", columns_of_images())
def test_images_of_every_column_type_are_read(tmp_path, name, stored):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / stored
    put(path.parent, {f"img/{n}.jpg": image((n * 90, 9, 9)) for n in range(2)})
    pq.write_table(pa.table({"image": columns_of_images()[name], "text": ["zero", "one"]}), path)
    pairs = [one for one in open_dataset(tmp_path if "/" in stored else path).pairs() if isinstance(one, Pair)]
    assert [[caption.text for caption in pair.captions] for pair in pairs] == [["zero"], ["one"]]
    reds = [open_image(read_bytes(pair.image)).image.getpixel((0, 0))[0] for pair in pairs]
    assert reds[0] < 20
    assert 70 < reds[1] < 110


def test_a_path_in_a_table_does_not_leave_the_data_set(tmp_path, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    put(tmp_path, {"secret.jpg": image(), "data/img/a.jpg": image((1, 2, 3))})
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    paths = ["../secret.jpg", str(tmp_path / "secret.jpg"), "img/a.jpg"]
    cells = pa.array([{"bytes": None, "path": path} for path in paths], kind)
    pq.write_table(pa.table({"image": cells, "text": ["a", "b", "c"]}), tmp_path / "data" / "t.parquet")
    assert checked(capsys, tmp_path / "data")["dropped"] == {"path": 2}


# Transparent pixels become white, whatever colour they hide.


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, depth: int, colour: int, row: bytes, transparent: bytes, before: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + before + chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


WHITE = (255, 255, 255)
HIDDEN = (4097, 8194, 12291)  # its neighbour has the same high bytes
PALETTE = chunk(b"PLTE", bytes(range(1, 13)))


@pytest.mark.parametrize(
    ("data", "pixels"),
    [
        (png(8, 1, 0, b"\x0f", b"\0\0"), [WHITE] * 8),
        (png(4, 2, 0, b"\x1b", b"\0\1"), [(0,) * 3, WHITE, (170,) * 3, WHITE]),
        (png(2, 4, 0, b"\x83", b"\0\x08"), [WHITE, (51,) * 3]),
        (png(2, 8, 0, b"\x38\x40", b"\0\x38"), [WHITE, (64,) * 3]),
        (png(2, 16, 0, b"\x12\x34\x12\x35", b"\x12\x34"), [WHITE, (18,) * 3]),
        (png(1, 8, 2, b"\x10\x20\x30", struct.pack(">3H", 16, 32, 48)), [WHITE]),
        (
            png(2, 16, 2, struct.pack(">6H", *HIDDEN, 4097, 8194, 12292), struct.pack(">3H", *HIDDEN)),
            [WHITE, (16, 32, 48)],
        ),
        (png(4, 2, 3, b"\x1b", b"\xff\0", PALETTE), [(1, 2, 3), WHITE, (7, 8, 9), (10, 11, 12)]),
    ],
    ids=["grey1", "grey2", "grey4", "grey8", "grey16", "rgb8", "rgb16", "palette2"],
)  # fmt: skip
def test_transparent_pixels_are_white(data, pixels):
    opened = open_image(data)
    assert [opened.image.getpixel((x, 0)) for x in range(opened.image.width)] == pixels
    assert opened.alpha


def test_a_large_colour_profile_does_not_cost_the_image(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 8, 7)).save(file, "PNG", icc_profile=os.urandom(1000) * 3000)
    opened = open_image(file.getvalue())
    assert (opened.image.getpixel((0, 0)), opened.icc) == ((9, 8, 7), True)
