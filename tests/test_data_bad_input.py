"""Bad data: each thing is skipped by name or refused clearly, and no caption lands on another image."""

import io
import json
import os
import socket
import tarfile
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from reader_data import COLOURS, colour_of, image, jsonl, kinds, put, read, tar, texts

from pixart.data.dataset import open_dataset
from pixart.data.layouts.tars import members
from pixart.data.pairs import ImageProblem, InFile, InTable, InTar, printable, read_bytes
from pixart.errors import PixArtError, UsageError

ROW = {"file_name": "red.png", "text": "a red square"}


def manifest(tmp_path, text: bytes | str, name: str = "metadata.jsonl"):
    """What comes of a manifest beside red.png, green.png and blue.png."""
    put(tmp_path / "data", {f"{colour}.png": image(colour) for colour in ("red", "green", "blue")})
    put(tmp_path / "data", {name: text})
    put(tmp_path, {"secret.png": image("black")})
    return read(tmp_path / "data" / name)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"{not json", "row"),
        (b'{"file_name": "green.png", "text": "tex', "row"),
        (b"[1, 2]", "row"),
        (b"null", "row"),
        (b'{"file_name": "green.png", "file_name": "red.png", "text": "x"}', "row"),
        (b"[" * 100_000, "row"),
        (b'{"file_name": "green.png"\0, "text": "x"}', "row"),
        (b'{"file_name": "' + b"x" * 5_000_000 + b'"}', "row"),
        (b'{"text": "a green square"}', "no-image"),
        (b'{"file_name": "", "text": "x"}', "no-image"),
        (b'{"file_name": null, "text": "x"}', "no-image"),
        (b'{"file_name": 7, "text": "x"}', "no-image"),
        (b'{"file_name": ["green.png"], "text": "x"}', "no-image"),
        (b'{"file_name": "gone.png", "text": "x"}', "missing"),
        (b'{"file_name": "green.png/deeper.png", "text": "x"}', "missing"),
        (b'{"file_name": "../secret.png", "text": "x"}', "path"),
        (b'{"file_name": "..\\\\secret.png", "text": "x"}', "path"),
        (b'{"file_name": "a/../../secret.png", "text": "x"}', "path"),
        (b'{"file_name": "/etc/passwd", "text": "x"}', "path"),
        (b'{"file_name": ".", "text": "x"}', "path"),
        (b'{"file_name": "green.png\\u0000.txt", "text": "x"}', "path"),
        (b'{"file_name": "\\ud800.png", "text": "x"}', "path"),
        (b'{"file_name": "https://x.org/y.png", "text": "x"}', "url"),
        (b'{"url": "https://x.org/y.png", "text": "x"}', "url"),
        (b'{"file_name": "' + b"x" * 300 + b'", "text": "x"}', "unreadable"),
        (b'{"file_name": "red.png", "text": "a red square"}', "duplicate-row"),
        (b'{"file_name": "./red.png", "text": "a red square"}', "duplicate-row"),
    ],
)
def test_a_bad_line_in_the_middle_is_named_by_its_number(tmp_path, line, kind):
    last = b'{"file_name": "blue.png", "text": "a blue square"}'
    pairs, problems = manifest(
        tmp_path, b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n" + line + b"\r\n\r\n" + last
    )
    assert {key: texts(pair) for key, pair in pairs.items()} == {
        "red.png": ["a red square"],
        "blue.png": ["a blue square"],
    }
    assert kinds(problems) == {"metadata.jsonl:2": kind}
    assert printable(problems[0].reason) == problems[0].reason


def test_bytes_that_are_not_utf8_cost_the_caption_and_not_the_image(tmp_path):
    for name, text in (
        ("metadata.jsonl", b'{"file_name": "red.png", "text": "\xe9"}\n{"file_name": "blue.png", "text": "b"}'),
        ("metadata.csv", b"file_name,text\nred.png,\xe9\nblue.png,b\n"),
        ("list.json", b'[{"path": "red.png", "text": "\xe9"}, {"path": "blue.png", "text": "b"}]'),
    ):
        pairs, problems = manifest(tmp_path, text, name)
        assert (texts(pairs["red.png"]), texts(pairs["blue.png"]), problems) == ([], ["b"], [])
        assert pairs["red.png"].caption_problem.kind == "caption-encoding"
        (tmp_path / "data" / name).unlink()


def test_a_repeated_row_further_on_does_not_replace_the_first(tmp_path):
    rows = [ROW, {"file_name": "blue.png", "text": "a blue square"}, {**ROW, "text": "something else"}]
    pairs, problems = manifest(tmp_path, jsonl(rows))
    assert texts(pairs["red.png"]) == ["a red square"]
    assert kinds(problems) == {"metadata.jsonl:3": "duplicate-row"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (None, "caption-missing"),
        ("", "caption-empty"),
        (" \r\n\t", "caption-empty"),
        ("\ufeff", "caption-empty"),
        ("a\0b", "caption-nul"),
        ("half \ud800 pair", "caption-encoding"),
        ("x" * 1_000_000, "caption-long"),
        (17, "caption-type"),
        ({"en": "a red square"}, "caption-type"),
    ],
)
def test_a_bad_caption_leaves_the_image_and_says_why(tmp_path, text, kind):
    pairs, problems = manifest(tmp_path, jsonl([{"file_name": "red.png", "text": text}]))
    assert (pairs["red.png"].captions, problems) == ((), [])
    assert (pairs["red.png"].caption_problem.key, pairs["red.png"].caption_problem.kind) == ("red.png", kind)
    listed, _ = manifest(tmp_path, jsonl([{"file_name": "red.png", "captions": ["good", text]}]))
    assert texts(listed["red.png"]) == ["good"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "caption-empty"),
        (b" \r\n", "caption-empty"),
        ("a café".encode("latin-1"), "caption-encoding"),
        (b"\xff\xfea\x00 ", "caption-encoding"),
        ("a red square".encode("utf-16-le"), "caption-nul"),
        (b"x" * 60_000, "caption-long"),
        (b"x" * 2_000_000, "caption-long"),
    ],
)
def test_a_bad_caption_file_leaves_the_image_and_says_why(tmp_path, data, kind):
    put(tmp_path, {"red.png": image(), "red.txt": data, "green.png": image("green"), "green.txt": "a green square"})
    pairs, problems = read(tmp_path)
    assert (pairs["red.png"].captions, pairs["red.png"].caption_problem.kind, problems) == ((), kind, [])
    assert texts(pairs["green.png"]) == ["a green square"]


def test_csv_rows_that_cannot_be_read_are_all_counted(tmp_path):
    lines = [
        "file_name,text",
        "red.png,a red square",
        "green.png,one,too many",
        "green.png",
        'green.png,"never closed',
        "blue.png,swallowed",
        'blue.png,"x"',
        "green.png,caf\udce9",
        "blue.png,a blue square",
    ]
    pairs, problems = manifest(tmp_path, "\n".join(lines).encode("utf-8", "surrogateescape"), "metadata.csv")
    assert {key: texts(pair) for key, pair in pairs.items()} == {
        "red.png": ["a red square"], "green.png": [], "blue.png": ["a blue square"],
    }  # fmt: skip
    assert pairs["green.png"].caption_problem.kind == "caption-encoding"
    assert kinds(problems) == {f"metadata.csv:{number}": "row" for number in (3, 4, 5, 6, 7)}


def test_a_csv_quote_that_stays_open_to_the_end_loses_no_row_unseen(tmp_path):
    lines = ["file_name,text", "red.png,a red square", 'green.png,"open'] + ["blue.png,x"] * 5_000
    pairs, problems = manifest(tmp_path, "\n".join(lines), "metadata.csv")
    assert texts(pairs["red.png"]) == ["a red square"]
    assert len(pairs) + len(problems) in (5_002, 5_003)
    assert "metadata.csv:3" in kinds(problems)


def test_a_json_list_that_breaks_off_says_where(tmp_path):
    first = json.dumps({"path": "red.png", "prompt": "a red square"})
    for rest, kind in (
        (', {"path": "blue.pn', "row"),
        (", 7]", "row"),
        (f" {first}]", "row"),
        (", {" + '"a":[' * 50_000, "row"),
        (', {"path": "\xff"}]', "path"),
        ("", "row"),
    ):
        pairs, problems = manifest(tmp_path, f"[{first}{rest}".encode("latin-1"), "list.json")
        assert texts(pairs["red.png"]) == ["a red square"]
        assert [(problem.key, problem.kind) for problem in problems] == [("list.json:1", kind)], rest
    for whole in ("", "{}", "7", "x"):
        assert kinds(manifest(tmp_path, whole, "list.json")[1]) == {"list.json:0": "row"}
    assert manifest(tmp_path, " [ ] ", "list.json") == ({}, [])


def test_what_only_looks_like_an_image_file_is_named(tmp_path):
    put(
        tmp_path,
        {"good.png": image(), "good.txt": "a red square", "folder.png/inside.jpg": image("blue", format="JPEG")},
    )
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "good2.txt")
    put(tmp_path, {"good2.png": image("green"), "drawing.svg": "<svg/>", "empty.png": b"", "x.npz": b""})
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "linked.png").symlink_to("good2.png")
    if os.path.exists("/dev/zero"):
        (tmp_path / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(os.path.relpath(tmp_path / "socket.png"))
    dataset = open_dataset(tmp_path)
    pairs, problems = read(dataset)
    assert set(pairs) == {"good.png", "good2.png", "linked.png", "empty.png", "folder.png/inside.jpg"}
    assert kinds(problems) == {
        "pipe.png": "not-a-file", "socket.png": "not-a-file", "zero.png": "not-a-file",
        "loop.png": "unreadable", "broken.png": "unreadable", "round": "link", "drawing.svg": "format",
    }  # fmt: skip
    assert pairs["good2.png"].caption_problem.kind == "caption-missing"  # its .txt is a pipe
    assert [note for note in dataset.notes if "x.npz" in note]
    assert refused(pairs["empty.png"].image) == "empty"


def test_linked_folders_outside_are_read_once(tmp_path):
    put(tmp_path / "far", {"a.png": image(), "back.md": ""})
    (tmp_path / "far" / "self").symlink_to(tmp_path / "far")
    put(tmp_path / "data", {"b.png": image("green")})
    for name in ("one", "two"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "far")
    (tmp_path / "data" / "up").symlink_to("/")
    pairs, problems = read(tmp_path / "data")
    assert set(pairs) == {"b.png", "one/a.png"}
    assert kinds(problems) == {"one/self": "link", "two": "link", "up": "link"}


def refused(place) -> str:
    """The kind of problem that reading it meets."""
    with pytest.raises(ImageProblem) as caught:
        read_bytes(place)
    return caught.value.kind


def test_the_place_of_an_image_may_change_before_it_is_read(tmp_path):
    path = tmp_path / "a.png"
    where = InFile(str(path))
    assert refused(where) == "missing"
    os.mkfifo(path)
    assert refused(where) == "not-a-file"
    path.unlink()
    path.mkdir()
    assert refused(where) == "not-a-file"
    archive = str(put(tmp_path, {"a.tar": b"x" * 100}) / "a.tar")
    assert refused(InTar(archive, 50, 70, "a.png")) == "truncated"
    assert refused(InTar(archive, 0, 2**40, "a.png")) == "too-large"
    assert refused(InTar(f"local://{archive}.gone", 0, 9, "a.png")) == "missing"
    assert refused(InTable(archive, 0, 0, "image")) == "unreadable"
    assert refused(InTable(str(tmp_path / "gone.parquet"), 0, 0, "image")) == "missing"
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(2**40)
    assert refused(InFile(str(tmp_path / "huge.png"))) == "too-large"


@pytest.mark.parametrize(
    "name",
    [
        "line\nbreak",
        'quo"te',
        "it's",
        "🦊 fox",
        "\x1b[31mred",
        "a" * 250,
        " space ",
        "tab\t",
        "-rf",
        "x\u202egnp",
        "%2e%2e",
    ],
)
def test_odd_file_names_keep_their_captions(tmp_path, name):
    put(tmp_path / "side", {f"{name}.png": image("green"), f"{name}.txt": "a green square", "b.png": image()})
    pairs, problems = read(tmp_path / "side")
    assert (texts(pairs[f"{name}.png"]), problems) == (["a green square"], [])
    assert printable(f"{name}.png").isprintable() or name == "🦊 fox"
    put(tmp_path / "side", {"list.jsonl": jsonl([{"file_name": f"{name}.png", "text": "listed"}])})
    assert texts(read(tmp_path / "side" / "list.jsonl")[0][f"{name}.png"]) == ["listed"]
    put(tmp_path, {"a.tar": tar([(f"{name}.png", image("green")), (f"{name}.txt", b"a green square")])})
    packed, _ = read(tmp_path / "a.tar")
    assert [(texts(pair), colour_of(pair)) for pair in packed.values()] == [(["a green square"], "green")]


def test_names_that_are_not_utf8_are_named(tmp_path):
    put(tmp_path, {"a.png": image(), "a.txt": "a red square"})
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(image("blue"))
    pairs, problems = read(tmp_path)
    assert list(pairs) == ["a.png"]
    assert kinds(problems) == {"\\udcff.png": "name-encoding"}
    put(tmp_path, {"a.tar": tar([("a.png", image())]).replace(b"a.png", b"\xff.png", 1)})
    assert [problem.kind for problem in members(tmp_path / "a.tar", "a.tar")] == ["damaged-tar"]  # its check sum


def test_one_caption_file_for_two_images_is_given_to_neither(tmp_path):
    put(tmp_path, {"a.png": image("red"), "a.jpg": image("blue", format="JPEG"), "a.txt": "a red square"})
    put(tmp_path, {"b.png": image("red"), "b.webp": image("blue", format="WEBP"), "c.png": image(), "c.txt": "c"})
    pairs, problems = read(tmp_path)
    assert set(pairs) == {"b.png", "b.webp", "c.png"}
    assert kinds(problems) == {"a.png": "same-stem", "a.jpg": "same-stem"}
    put(tmp_path, {"a.png.txt": "a red square", "a.jpg.txt": "a blue square"})
    (tmp_path / "a.txt").unlink()
    pairs, problems = read(tmp_path)
    assert (texts(pairs["a.png"]), texts(pairs["a.jpg"]), problems) == (["a red square"], ["a blue square"], [])


def test_what_may_not_be_read_is_named():
    with tempfile.TemporaryDirectory() as place:
        path = put(Path(place), {"a.png": image(), "b.png": image("green"), "b.txt": "x", "deep/c.png": image()})
        locked = [path / name for name in ("a.png", "b.txt", "deep")]
        for one in locked:
            one.chmod(0)
        path.chmod(0o755)
        root = os.geteuid() == 0  # whom nothing is forbidden
        try:
            if root:
                os.seteuid(65534)
            pairs, problems = read(path)
            assert kinds(problems) == {"deep": "unreadable"}
            assert pairs["b.png"].caption_problem.kind == "caption-unreadable"
            assert refused(pairs["a.png"].image) == "unreadable"
            for name in ("deep", "a.png"):
                with pytest.raises(PixArtError):
                    open_dataset(path / name)
        finally:
            if root:
                os.seteuid(0)
            for one in locked:
                one.chmod(0o700)


def test_special_files_are_no_data_sets(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "empty").mkdir()
    for name in ("a.tar", "loop", "nul\0l", "x" * 300, "empty", "gone"):
        with pytest.raises(UsageError):
            open_dataset(tmp_path / name)


def good(name: str, colour: str) -> list[tuple[str, bytes]]:
    return [(f"{name}.png", image(colour)), (f"{name}.txt", f"a {colour} square".encode())]


def test_bad_members_of_a_tar_are_named_and_the_good_ones_read(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:

        def add(name: str, content: bytes = b"", **about) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in about.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content))

        for name, content in good("one", "red"):
            add(name, content)
        add("../../escape.png", image("black"))
        add("/etc/absolute.png", image("black"))
        add("link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("hard.png", type=tarfile.LNKTYPE, linkname="one.png")
        add("pipe.png", type=tarfile.FIFOTYPE)
        add("device.png", type=tarfile.CHRTYPE)
        add("folder", type=tarfile.DIRTYPE)
        add("alone.txt", b"no image")
        add("quiet.png", image("blue"))
        add("double.png", image("blue"))
        add("double.jpg", image("green", format="JPEG"))
        add("vector.svg", b"<svg/>")
        for name, content in good("two", "green"):
            add("./sub/" + name, content)
        add("one.png", image("blue"))
        add("failed.jpg", image("blue", format="JPEG"))
        add("failed.json", b'{"status": "failed_to_resize", "error_message": "\\u001b too big"}')
        add("odd.jpg", image("blue", format="JPEG"))
        add("odd.json", b'{"caption": "x", "caption": "y"}')
    put(tmp_path, {"a.tar": file.getvalue()})
    pairs, problems = read(tmp_path / "a.tar")
    assert {key: (texts(pair), colour_of(pair)) for key, pair in pairs.items()} == {
        "a.tar/one": (["a red square"], "red"),
        "a.tar/quiet": ([], "blue"),
        "a.tar/sub/two": (["a green square"], "green"),
    }
    assert pairs["a.tar/quiet"].caption_problem.kind == "caption-missing"
    assert kinds(problems) == {
        "a.tar/../../escape.png": "path", "a.tar//etc/absolute.png": "path", "a.tar/link.png": "not-a-file",
        "a.tar/hard.png": "not-a-file", "a.tar/pipe.png": "not-a-file", "a.tar/device.png": "not-a-file",
        "a.tar/alone": "no-image", "a.tar/double": "several-images", "a.tar/vector": "format",
        "a.tar/one": "duplicate-sample", "a.tar/failed": "download-failed", "a.tar/odd": "row",
    }  # fmt: skip


def test_a_tar_that_is_cut_off_gives_what_is_whole(tmp_path):
    whole = tar(good("one", "red") + good("two", "green"))
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        ends = {member.name: member.offset_data + member.size for member in archive}
        start = archive.getmember("two.png").offset_data
    for end in range(0, len(whole), 37):
        put(tmp_path, {"a.tar": whole[:end]})
        pairs, problems = read(tmp_path / "a.tar")
        expected = [name for name in ("one", "two") if ends[f"{name}.png"] <= end]
        assert list(pairs) == [f"a.tar/{name}" for name in expected], end
        for key, pair in pairs.items():
            assert texts(pair) in ([], [f"a {colour_of(pair)} square"]), end
            assert colour_of(pair) == {"a.tar/one": "red", "a.tar/two": "green"}[key]
        assert len(problems) <= 2
        if end < ends["two.txt"]:
            assert problems, end
    assert start < len(whole)


def test_a_sample_over_two_shards_is_reported_and_not_mixed(tmp_path):
    red, blue, green = good("one", "red"), good("two", "blue"), good("three", "green")
    put(
        tmp_path, {"0.tar": tar([*red, blue[0]]), "1.tar": tar([blue[1], *green]), "2.tar": tar(good("three", "black"))}
    )
    pairs, problems = read(tmp_path)
    assert {key: (texts(pair), colour_of(pair)) for key, pair in pairs.items()} == {
        "0.tar/one": (["a red square"], "red"),
        "0.tar/two": ([], "blue"),
        "1.tar/three": (["a green square"], "green"),
        "2.tar/three": (["a black square"], "black"),
    }
    assert pairs["0.tar/two"].caption_problem.kind == "caption-missing"
    assert kinds(problems) == {"1.tar/two": "no-image"}


def test_the_files_of_a_sample_may_lie_far_from_each_other(tmp_path):
    colours = [*COLOURS]
    images = [(f"{colour}.png", image(colour)) for colour in colours]
    captions = [(f"{colour}.txt", f"a {colour} square".encode()) for colour in reversed(colours)]
    pairs, problems = read(put(tmp_path, {"a.tar": tar(images + captions)}) / "a.tar")
    assert [texts(pair) for pair in pairs.values()] == [[f"a {colour_of(pair)} square"] for pair in pairs.values()]
    assert (list(pairs), problems) == ([f"a.tar/{colour}" for colour in colours], [])


def test_headers_that_claim_too_much_are_not_believed(tmp_path):
    whole = tar(good("one", "red"))
    for claim in (b"x", b"L", b"0"):
        info = tarfile.TarInfo("big")
        info.type = claim
        info.size = 8 * 1024**3 - 1
        put(tmp_path, {"a.tar": whole[: whole.rindex(b"square") // 512 * 512 + 512] + info.tobuf(tarfile.USTAR_FORMAT)})
        pairs, problems = read(tmp_path / "a.tar")
        assert texts(pairs["a.tar/one"]) == ["a red square"]
        assert kinds(problems) == {"a.tar": "damaged-tar"}
    long = tarfile.TarInfo("x" * 200_000 + ".png")
    put(tmp_path, {"a.tar": long.tobuf(tarfile.PAX_FORMAT) + whole})
    assert kinds(read(tmp_path / "a.tar")[1]) == {"a.tar": "damaged-tar"}
    put(tmp_path, {"a.tar": whole + whole})
    pairs, problems = read(tmp_path / "a.tar")
    assert (list(pairs), kinds(problems)) == (["a.tar/one"], {"a.tar": "after-end"})
    put(tmp_path, {"a.tar": b"not a tar file at all" * 100})
    assert kinds(read(tmp_path / "a.tar")[1]) == {"a.tar": "damaged-tar"}


def test_a_loss_of_unknown_size_stops_training_on_pixels(tmp_path):
    from pixart.data.image_rows import ImageRows

    whole = tar(good("one", "red"))
    put(tmp_path, {"a.tar": whole + whole})
    with pytest.raises(PixArtError):
        ImageRows(tmp_path, allow_dropped=0.9)
    assert ImageRows(tmp_path, allow_dropped=1).keys(np.arange(1)) == ["a.tar/one"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_a_long_manifest_is_never_held_whole(tmp_path, kind):
    put(tmp_path, {"red.png": image()})
    row = {"path": "gone.png", "text": "x" * 2500}
    with open(tmp_path / f"list.{kind}", "w") as file:
        lines = 8_000 if kind == "json" else 4_000
        if kind == "csv":
            file.write("path,text\n" + f"gone.png,{'x' * 2500}\n" * lines)
        elif kind == "jsonl":
            file.write((json.dumps(row) + "\n") * lines)
        else:
            file.write("[" + ",\n".join([json.dumps(row)] * lines) + "]")
    size = (tmp_path / f"list.{kind}").stat().st_size
    assert size > 10_000_000
    dataset = open_dataset(tmp_path / f"list.{kind}")
    tracemalloc.start()
    count = sum(one.kind == "missing" for one in dataset.pairs())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == lines
    assert peak < size / 2


def test_a_damaged_row_group_loses_its_rows_by_name(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    colours = ["red", "green", "blue", "black"]
    held = {"image": [image(colour) for colour in colours], "text": [f"a {colour} square" for colour in colours]}
    pq.write_table(pa.table(held), tmp_path / "a.parquet", row_group_size=2, compression="none", use_dictionary=False)
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    at = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(1).data_page_offset
    data[at : at + 30] = b"\xff" * 30
    (tmp_path / "a.parquet").write_bytes(data)
    pairs, problems = read(tmp_path / "a.parquet")
    assert {key: (texts(pair), colour_of(pair)) for key, pair in pairs.items()} == {
        "a.parquet:2": (["a blue square"], "blue"),
        "a.parquet:3": (["a black square"], "black"),
    }
    assert kinds(problems) == {"a.parquet:0": "row", "a.parquet:1": "row"}


def test_a_table_may_lack_images_and_captions(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = [{"bytes": image(), "path": None}, {"bytes": None, "path": "x.png"}, None, {"bytes": b"", "path": None}]
    pq.write_table(pa.table({"image": kept, "text": ["a red square", None, " ", "b"]}), tmp_path / "a.parquet")
    pairs, problems = read(tmp_path / "a.parquet")
    assert problems == []
    assert [pair.caption_problem and pair.caption_problem.kind for pair in pairs.values()] == [
        None, "caption-missing", "caption-empty", None,
    ]  # fmt: skip
    assert colour_of(pairs["a.parquet:0"]) == "red"
    for row in (1, 2, 3):
        assert refused(pairs[f"a.parquet:{row}"].image) in ("missing", "empty")


def test_a_manifest_that_vanishes_is_an_error(tmp_path):
    put(tmp_path, {"red.png": image(), "metadata.jsonl": jsonl([ROW])})
    dataset = open_dataset(tmp_path)
    (tmp_path / "metadata.jsonl").unlink()
    with pytest.raises(PixArtError):
        list(dataset.pairs())
