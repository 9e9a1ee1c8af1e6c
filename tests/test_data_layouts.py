"""Every layout that people have is recognised, named and read, and each caption belongs to its own image."""

import json
import pickle

import pytest
from reader_data import colour_of, image, jsonl, kinds, put, read, tar, texts
from tiny_data import write_tiny_data

from pixart.data.dataset import captions_folder, open_dataset
from pixart.data.pairs import InTable, InTar, read_bytes
from pixart.errors import PixArtError, UsageError

THREE = ("red", "green", "blue")


def images(folder: str = "", ending: str = ".png") -> dict[str, bytes]:
    return {f"{folder}{colour}{ending}": image(colour) for colour in THREE}


def check_three(pairs) -> None:
    """Three pairs, each with the caption "a <colour> square" that its image shows."""
    assert len(pairs) == 3
    for pair in pairs.values():
        assert texts(pair) == [f"a {colour_of(pair)} square"]
        assert [caption.source for caption in pair.captions] == ["original"]


def write_parquet(path, columns: dict, metadata: dict | None = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pa.table(columns)
    if metadata is not None:
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": metadata}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, row_group_size=2)


def write_table(path, rows: list[dict]) -> None:
    """Rows as the ending of `path` says."""
    if path.suffix == ".jsonl":
        path.write_text(jsonl(rows))
    elif path.suffix == ".parquet":
        write_parquet(path, {name: [row[name] for row in rows] for name in rows[0]})
    else:
        sign = "\t" if path.suffix == ".tsv" else ","
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("\r\n".join(sign.join(map(str, line)) for line in lines))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_imagefolder(tmp_path, kind):
    put(tmp_path, images("train/"))
    rows = [{"file_name": f"{colour}.png", "text": f"a {colour} square", "width": 4, "style": "x"} for colour in THREE]
    write_table(tmp_path / "train" / f"metadata.{kind}", rows)
    for path, prefix in ((tmp_path, "train/"), (tmp_path / "train", "")):
        dataset = open_dataset(path)
        pairs, problems = read(dataset)
        check_three(pairs)
        assert (dataset.found.name, list(pairs), problems) == ("imagefolder", [f"{prefix}{c}.png" for c in THREE], [])
        assert {(pair.width, pair.extra["style"]) for pair in pairs.values()} == {(4, "x")}
        assert dataset.count_hint() in (2, 3)  # a CSV without a last line end


def test_images_that_no_row_names_are_counted(tmp_path):
    put(tmp_path, {**images(), "metadata.jsonl": jsonl([{"file_name": "red.png", "text": "a red square"}])})
    dataset = open_dataset(tmp_path)
    assert list(read(dataset)[0]) == ["red.png"]
    assert dataset.notes == ["images that no row names: 2, such as blue.png"]


def test_the_emoji_data_set_with_its_splits(tmp_path):
    pairs, problems = read(open_dataset(write_tiny_data(tmp_path)))
    assert problems == []
    assert len(pairs) == 19
    pair = pairs["train/red-circle-flat.png"]
    assert texts(pair) == ["red circle, flat", "a red circle in flat style", "flat picture of a red circle on white"]
    assert {caption.source for caption in pair.captions} == {"original"}
    assert pair.extra["style"] == "flat"
    assert pair.extra["skin_tone"] is None
    assert colour_of(pair) == "white"
    assert sum(key.startswith("test_cells/") for key in pairs) == 3


def test_sidecars_in_both_spellings_and_deep_folders(tmp_path):
    put(tmp_path, images("deep/er/"))
    put(tmp_path, {"deep/er/red.txt": "a red square\r\n", "deep/er/green.CAPTION": "a green square"})
    put(tmp_path, {"deep/er/blue.png.txt": "\ufeffa blue square\n"})
    dataset = open_dataset(tmp_path)
    pairs, problems = read(dataset)
    check_three(pairs)
    assert (dataset.found.name, problems) == ("sidecars", [])
    assert list(pairs) == ["deep/er/blue.png", "deep/er/green.png", "deep/er/red.png"]


def test_an_image_with_txt_and_caption_has_both(tmp_path):
    put(tmp_path, {"a.png": image(), "a.caption": "tags, red", "a.txt": "a red square\nin two lines"})
    assert texts(read(tmp_path)[0]["a.png"]) == ["a red square\nin two lines", "tags, red"]


def test_kohyas_folders_of_repeats(tmp_path):
    put(tmp_path, images("10_sks dog/"))
    put(tmp_path, {"10_sks dog/red.txt": "a red square", "2_cat/x.jpg": image("black", format="JPEG")})
    pairs, problems = read(tmp_path)
    assert problems == []
    assert {key: (pair.repeats, texts(pair)) for key, pair in pairs.items() if "green" not in key} == {
        "10_sks dog/red.png": (10, ["a red square"]),
        "10_sks dog/blue.png": (10, ["sks dog"]),
        "2_cat/x.jpg": (2, ["cat"]),
    }


def test_numbered_class_folders_and_repeats_look_alike_and_must_be_chosen(tmp_path):
    put(tmp_path, {"1_cat/a.png": image("red"), "2_dog/b.png": image("green")})
    with pytest.raises(UsageError, match=r"class-folders.*sidecars"):
        open_dataset(tmp_path)
    assert read(open_dataset(tmp_path, layout="class-folders"))[0]["1_cat/a.png"].label == "1_cat"
    assert read(open_dataset(tmp_path, layout="sidecars"))[0]["2_dog/b.png"].repeats == 2


def test_images_without_captions_are_pairs_that_say_so(tmp_path):
    put(tmp_path, images())
    dataset = open_dataset(tmp_path)
    pairs, problems = read(dataset)
    assert (dataset.found.name, len(pairs), problems) == ("images", 3, [])
    assert {(pair.captions, pair.caption_problem.kind) for pair in pairs.values()} == {((), "caption-missing")}


@pytest.mark.parametrize("split", ["", "train/"])
def test_class_folders(tmp_path, split):
    put(tmp_path, {f"{split}n01/{n}.JPEG": image("red", format="JPEG") for n in (1, 2)})
    put(tmp_path, {f"{split}n02/deeper/1.JPEG": image("green", format="JPEG")})
    dataset = open_dataset(tmp_path)
    pairs, problems = read(dataset)
    assert (dataset.found.name, problems) == ("class-folders", [])
    assert {colour_of(pair): pair.label for pair in pairs.values()} == {"red": "n01", "green": "n02"}
    put(tmp_path, {f"{split}above.png": image()})
    assert kinds(read(dataset)[1]) == {f"{split}above.png": "no-class"}


def sample(colour: str, name: str) -> list[tuple[str, bytes]]:
    about = {"caption": f"a {colour} square", "status": "success", "width": 4, "height": 4, "url": "http://x"}
    return [
        (f"{name}.jpg", image(colour, format="JPEG")),
        (f"{name}.txt", f"a {colour} square".encode()),
        (f"{name}.json", json.dumps(about).encode()),
    ]


def test_tar_shards_of_img2dataset(tmp_path):
    put(tmp_path, {"00000.tar": tar(sample("red", "000") + sample("green", "001"))})
    put(tmp_path, {"00001.tar": tar(sample("blue", "000"))})
    put(tmp_path, {f"0000{n}_stats.json": json.dumps({"successes": 2 - n}) for n in (0, 1)})
    write_parquet(tmp_path / "00000.parquet", {"url": ["http://x"], "caption": ["a red square"]})
    dataset = open_dataset(tmp_path)
    pairs, problems = read(dataset)
    check_three(pairs)
    assert (dataset.found.name, dataset.count_hint(), problems) == ("tar", 3, [])
    assert list(pairs) == ["00000.tar/000", "00000.tar/001", "00001.tar/000"]
    assert pairs["00000.tar/001"].height == 4
    assert isinstance(pairs["00000.tar/001"].image, InTar)
    check_three(read(tmp_path / "{00000..00001}.tar")[0])
    assert list(read(tmp_path / "00001.tar")[0]) == ["00001.tar/000"]
    with pytest.raises(UsageError, match=r"00002\.tar"):
        open_dataset(tmp_path / "{00000..00002}.tar")


def test_a_tar_with_labels_and_names_with_dots(tmp_path):
    put(tmp_path, {"a.tar": tar([("x/1.0.png", image()), ("x/1.0.cls", b"7\n"), ("x/1.seg.npy", b"...")])})
    dataset = open_dataset(tmp_path)
    pairs, _ = read(dataset)
    assert (pairs["a.tar/x/1.0"].label, pairs["a.tar/x/1.0"].captions) == ("7", ())
    assert dataset.notes == ["members that are not read, ending in .npy: 1, such as a.tar/x/1.seg.npy"]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_with_paths(tmp_path, kind):
    put(tmp_path, images("images/"))
    table = tmp_path / f"captions.{kind}"
    write_table(table, [{"Image_Path": f"images/{colour}.png", "Caption": f"a {colour} square"} for colour in THREE])
    for path in (tmp_path, table):
        dataset = open_dataset(path)
        pairs, problems = read(dataset)
        check_three(pairs)
        assert (dataset.found.name, problems, list(pairs)) == ("table", [], [f"images/{c}.png" for c in THREE])


def test_quoted_cells_and_semicolons(tmp_path):
    put(tmp_path, {**images(), "t.csv": 'file;text\nred.png;"a ""red"" square;\nreally"\nblue.png;blue\n'})
    pairs, problems = read(tmp_path / "t.csv")
    assert problems == []
    assert texts(pairs["red.png"]) == ['a "red" square;\nreally']
    assert texts(pairs["blue.png"]) == ["blue"]


def test_between_tabs_a_quotation_mark_is_a_character(tmp_path):
    cells = {
        "red": '"OPEN" on a door', "green": 'a 5" nail', "blue": '"never closed', "white": 'ends in "',
        "black": '"a ""red"" square, quoted as a whole"',
    }  # fmt: skip
    table = "file_name\ttext\n" + "".join(f"{name}.png\t{cell}\n" for name, cell in cells.items())
    put(tmp_path, {**{f"{name}.png": image() for name in cells}, "metadata.tsv": table})
    pairs, problems = read(tmp_path)
    assert problems == []
    found = {name: texts(pairs[f"{name}.png"])[0] for name in cells}
    assert found == cells | {"black": 'a "red" square, quoted as a whole'}


def test_columns_of_other_names_and_images_elsewhere(tmp_path):
    put(tmp_path, {**images("far/away/"), "lists/t.csv": "bild,wort,text\nred.png,a red square,x\n"})
    with pytest.raises(UsageError, match="--image-column"):
        open_dataset(tmp_path / "lists" / "t.csv")
    options = {"image_column": "bild", "caption_column": "wort"}
    pairs, problems = read(open_dataset(tmp_path / "lists" / "t.csv", **options))
    assert (pairs, [problem.kind for problem in problems]) == ({}, ["missing"])
    pairs, problems = read(open_dataset(tmp_path / "lists" / "t.csv", **options, image_root=tmp_path / "far/away"))
    assert (texts(pairs["red.png"]), problems) == (["a red square"], [])
    with pytest.raises(UsageError, match="worte"):
        open_dataset(tmp_path / "lists" / "t.csv", image_column="bild", caption_column="worte")


def test_rows_that_follow_each_other_share_an_image(tmp_path):
    rows = [{"file_name": name, "text": text} for name, text in (("red.png", "one"), ("red.png", "two"))]
    put(tmp_path, {**images(), "metadata.jsonl": jsonl(rows)})
    pairs, problems = read(tmp_path)
    assert (texts(pairs["red.png"]), problems) == (["one", "two"], [])


@pytest.mark.parametrize("struct", [True, False])
def test_parquet_with_images_in_it(tmp_path, struct):
    held = [{"bytes": image(colour), "path": f"{colour}.png"} if struct else image(colour) for colour in THREE]
    captions = [f"a {colour} square" for colour in THREE]
    columns = {"image": held, "text": captions, "label": [0, 1, None], "weight": [0.5, 1.0, 2.0]}
    write_parquet(tmp_path / "some.parquet", columns)
    pairs, problems = read(tmp_path / "some.parquet")
    check_three(pairs)
    assert (list(pairs), problems) == ([f"some.parquet:{n}" for n in range(3)], [])
    assert [pair.label for pair in pairs.values()] == ["0", "1", None]
    assert [pair.extra["weight"] for pair in pairs.values()] == [0.5, 1.0, 2.0]
    assert pairs["some.parquet:2"].image == InTable(str(tmp_path / "some.parquet"), 1, 0, "image", str(tmp_path))


FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["zero", "one", "two"]}}


def test_hugging_face_folder_of_parquet_shards(tmp_path):
    for n, colour in enumerate(THREE):
        held = {"image": [{"bytes": image(colour), "path": None}], "text": [f"a {colour} square"], "label": [n]}
        write_parquet(tmp_path / "data" / f"train-0000{n}-of-00003.parquet", held, FEATURES)
    put(tmp_path, {"README.md": "---\nlicense: mit\n---\n", "emoji.py": "raise SystemExit('this must not run')"})
    dataset = open_dataset(tmp_path)
    pairs, problems = read(dataset)
    check_three(pairs)
    assert (dataset.found.name, dataset.count_hint(), problems) == ("huggingface", 3, [])
    assert [pair.label for pair in pairs.values()] == ["zero", "one", "two"]


@pytest.mark.parametrize("split", ["", "train"])
def test_what_save_to_disk_wrote(tmp_path, split):
    """As `datasets.Dataset.save_to_disk` (datasets 5.2) writes it."""
    import pyarrow as pa

    folder, names = tmp_path / split, ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    state = {"_data_files": [{"filename": name} for name in names]}
    put(folder, {"dataset_info.json": "{}", "state.json": json.dumps(state), "cache-12ab.arrow": b"not read"})
    for n, colours in enumerate((THREE[:2], THREE[2:])):
        held = {
            "image": [{"bytes": image(colour), "path": None} for colour in colours],
            "text": [f"a {colour} square" for colour in colours],
            "label": [n] * len(colours),
        }
        made = pa.table(held).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})
        with pa.OSFile(str(folder / names[n]), "wb") as file, pa.ipc.new_stream(file, made.schema) as writer:
            writer.write_table(made, max_chunksize=1)
    if split:
        put(tmp_path, {"dataset_dict.json": '{"splits": ["train"]}'})
    dataset = open_dataset(tmp_path)
    pairs, problems = read(dataset)
    check_three(pairs)
    assert (dataset.found.name, dataset.count_hint(), problems) == ("huggingface", 3, [])
    assert [pair.label for pair in pairs.values()] == ["zero", "zero", "one"]
    (folder / names[1]).unlink()
    assert [(problem.kind, problem.lost) for problem in read(tmp_path)[1]] == [("missing", None)]


def test_pixarts_sam_layout(tmp_path):
    put(tmp_path, {f"images/sa_{n}.jpg": image(c, format="JPEG") for n, c in enumerate(THREE)})
    put(tmp_path, {f"captions/sa_{n}.txt": f"a {c} square" for n, c in enumerate(THREE)})
    put(tmp_path, {"partition/part0.txt": "sa_1\nsa_0\n", "partition/part1.txt": "sa_2\nsa_0\n../../secret\nsa_9\n"})
    put(tmp_path, {"img_vae_feature/train_vae_256/noflip/sa_0.npy": b"", "caption_feature_wmask/sa_0.npz": b""})
    dataset = open_dataset(tmp_path)
    pairs, problems = read(dataset)
    check_three(pairs)
    assert dataset.found.name == "sam"
    assert list(pairs) == ["images/sa_1.jpg", "images/sa_0.jpg", "images/sa_2.jpg"]
    assert [(p.key, p.kind) for p in problems] == [
        ("partition/part1.txt:2", "duplicate-row"),
        ("partition/part1.txt:3", "path"),
        ("partition/part1.txt:4", "missing"),
    ]


@pytest.mark.parametrize("place", ["InternData/InternImgs", "InternImgs", "InternData/images", "InternData"])
@pytest.mark.parametrize("partition", ["partition", "partition_filter"])
def test_pixarts_interndata_layout(tmp_path, place, partition):
    put(tmp_path / place, images("one/"))
    size = {"width": 4, "height": 4, "ratio": 1.0}
    rows = [{"path": f"one/{c}.png", "prompt": f"a {c} square", **size, "sharegpt4v": f"long {c} " * 99} for c in THREE]
    del rows[0]["sharegpt4v"]
    put(tmp_path / "InternData", {f"{partition}/data_info.json": json.dumps(rows)})
    dataset = open_dataset(tmp_path / "InternData")
    pairs, problems = read(dataset)
    assert (dataset.found.name, problems, len(pairs)) == ("interndata", [], 3)
    for pair in pairs.values():
        assert texts(pair)[0] == f"a {colour_of(pair)} square"
    sources = [[caption.source for caption in pair.captions] for pair in pairs.values()]
    assert sources == [["original"], *2 * [["original", "sharegpt4v"]]]


def test_a_json_list_by_itself(tmp_path):
    rows = [{"path": f"{c}.png", "prompt": f"a {c} square"} for c in THREE]
    check_three(read(put(tmp_path, {**images(), "list.json": json.dumps(rows)}) / "list.json")[0])


def test_two_layouts_in_one_folder_must_be_chosen(tmp_path):
    rows = jsonl([{"file_name": "a.png", "text": "from the manifest"}])
    put(tmp_path, {"a.png": image(), "a.txt": "from the side", "metadata.jsonl": rows})
    with pytest.raises(UsageError, match=r"imagefolder.*sidecars"):
        open_dataset(tmp_path)
    assert texts(read(open_dataset(tmp_path, layout="imagefolder"))[0]["a.png"]) == ["from the manifest"]
    assert texts(read(open_dataset(tmp_path, layout="sidecars"))[0]["a.png"]) == ["from the side"]
    for layout in ("tar", "tars", "sam", "huggingface"):
        with pytest.raises(UsageError, match=layout):
            open_dataset(tmp_path, layout=layout)
    put(tmp_path, {"metadata.csv": "file_name,text\na.png,x\n"})
    with pytest.raises(UsageError, match=r"metadata\.csv and metadata\.jsonl"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nothing/readme.md", "hello"),
        ("x.zip", b"PK"),
        ("x.tar.gz", b""),
        ("x.png", image()),
        ("shards/0.tar.gz", b""),
        ("urls.csv", "url,text\nhttp://x/y.png,a\n"),
        ("bad.parquet", b"PAR1 not really"),
        ("twice.csv", "file,text,text\na,b,c\n"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, name, content):
    put(tmp_path, {name: content})
    path = tmp_path / name
    with pytest.raises(PixArtError):
        open_dataset(path.parent if "/" in name else path)


def test_captions_written_later_join_those_that_were_there(tmp_path):
    put(tmp_path, {**images(), "red.txt": "a red square"})
    assert captions_folder(tmp_path) == tmp_path / ".pixart" / "captions"
    lines = [
        {"key": "green.png", "caption": "green, second"},
        {"key": "red.png", "caption": "a square in red"},
        {"key": "green.png", "caption": "green, third", "hint": "x"},
        {"key": "blue.png", "caption": None, "refused": "I cannot"},
        {"key": "gone.png", "caption": "no one"},
        {"key": "red.png", "caption": "  "},
    ]
    put(captions_folder(tmp_path), {"llava.jsonl": jsonl(lines) + '{"key": "blue.pn', "blip.jsonl": jsonl(lines[1:2])})
    dataset = pickle.loads(pickle.dumps(open_dataset(tmp_path)))
    pairs, problems = read(dataset)
    assert [(c.text, c.source) for c in pairs["red.png"].captions] == [
        ("a red square", "original"),
        ("a square in red", "blip"),
        ("a square in red", "llava"),
    ]
    assert texts(pairs["green.png"]) == ["green, second", "green, third"]
    assert pairs["blue.png"].captions == ()
    assert [(p.key, p.kind) for p in problems] == [
        ("captions/llava.jsonl:6", "caption-empty"),
        ("captions/llava.jsonl:7", "caption-row"),
    ]
    assert [note for note in dataset.notes if "llava" in note and "gone.png" in note]
    assert captions_folder(tmp_path / "a.csv") == tmp_path / "a.csv.pixart" / "captions"


def test_bytes_of_a_location(tmp_path):
    data = image("blue")
    put(tmp_path, {"a.tar": tar([("a.png", data)])})
    place = read(tmp_path / "a.tar")[0]["a.tar/a"].image
    assert read_bytes(place) == data
    in_the_cloud = InTar(f"local://{place.path}", place.offset, place.length, place.member)
    assert read_bytes(in_the_cloud) == data


def test_folders_are_looked_into_deeply_and_all_of_them(tmp_path):
    for number in range(70):
        put(tmp_path / "tars", {f"part{number}/0.tar": tar([("a.png", image())])})
        put(tmp_path / "splits", {f"{number}/a.png": image(), f"{number}/metadata.jsonl": '{"file_name": "a.png"}'})
    put(tmp_path / "deep", {"a/b/c/d/e.png": image(), "a/b/c/d/e.txt": "a red square"})
    assert len(read(tmp_path / "tars")[0]) == 70
    assert len(read(tmp_path / "splits")[0]) == 70
    assert texts(read(tmp_path / "deep")[0]["a/b/c/d/e.png"]) == ["a red square"]
