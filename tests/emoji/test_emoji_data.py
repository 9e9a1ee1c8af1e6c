"""The emoji data set from tiny npm tarballs made here: seven icon sets of a few hand-written drawings each."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_emoji_captions import cleaned_twice

from emojis import build, near_duplicates, npm, split
from emojis.records import SPLITS, read_split
from pixart.errors import PixArtError, UsageError

SHAPES = {
    "red-apple": '<circle cx="16" cy="18" r="12" fill="{red}"/><path d="M16 8v-6l6 2z" fill="green"/>',
    "teacher": '<circle cx="16" cy="10" r="7" fill="gold"/><path d="M4 30v-12h24v12z" fill="{red}"/>',
    "teacher-medium-skin-tone": '<circle cx="16" cy="9" r="7" fill="tan"/><path d="M4 30v-12h24v12z" fill="{red}"/>',
    "flag-france": '<path d="M2 8h9v16h-9z" fill="blue"/><path d="M20 8h9v16h-9z" fill="{red}"/>',
    "keycap-hash": '<rect x="4" y="4" width="24" height="24" rx="4" fill="{red}"/>',
    "pointing-left": '<rect x="1" y="4" width="12" height="24" fill="{red}"/>',
    "owl": '<ellipse cx="16" cy="16" rx="9" ry="14" fill="{red}"/>',
}
CHARS = {
    "1f34e": "red-apple", "1f9d1-200d-1f3eb": "teacher", "1f9d1-1f3fd-200d-1f3eb": "teacher-medium-skin-tone",
    "1f1eb-1f1f7": "flag-france", "23-20e3": "keycap-hash", "1f448": "pointing-left", "1f989": "owl",
}  # fmt: skip
NAMES = [
    {"label": "red apple", "hexcode": "1F34E", "tags": ["fruit", "food"], "group": 4, "subgroup": 42, "order": 1},
    {"label": "teacher", "hexcode": "1F9D1-200D-1F3EB", "tags": ["professor"], "group": 1, "subgroup": 25, "order": 2,
     "skins": [{"label": "teacher: medium skin tone", "hexcode": "1F9D1-1F3FD-200D-1F3EB", "tone": 3, "order": 3}]},
    {"label": "flag: France", "hexcode": "1F1EB-1F1F7", "tags": ["FR", "flag"], "group": 9, "subgroup": 98, "order": 4},
    {"label": "keycap: #", "hexcode": "0023-FE0F-20E3", "tags": ["keycap"], "group": 8, "subgroup": 94, "order": 5},
    {"label": "pointing left", "hexcode": "1F448", "tags": ["hand"], "group": 1, "subgroup": 25, "order": 6},
    {"label": "pointing right", "hexcode": "1F449", "tags": ["hand"], "group": 1, "subgroup": 25, "order": 7},
    {"label": "owl", "hexcode": "1F989", "tags": ["bird"], "group": 3, "subgroup": 35, "order": 8},
]  # fmt: skip
GROUPS = {1: "people", 3: "animals", 4: "food", 8: "symbols", 9: "flags"}
SUBGROUPS = {25: "roles & careers", 35: "birds", 42: "fruit", 94: "keys", 98: "country flags"}
MESSAGES = {
    "groups": [{"order": order, "message": message} for order, message in GROUPS.items()],
    "subgroups": [{"order": order, "message": message} for order, message in SUBGROUPS.items()],
}
REDS = {"fluent-emoji": "#e01010", "fluent-emoji-flat": "#ff6040", "fluent-emoji-high-contrast": "currentColor",
        "noto": "#a00030", "twemoji": "#d06080", "fxemoji": "#802020"}  # fmt: skip


def tarball(folder: Path, name: str, files: dict[str, bytes], version: str = "1.0.0") -> None:
    manifest = {"name": name, "version": version, "license": "MIT"}
    with tarfile.open(folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz", "w:gz") as archive:
        for path, content in {"package.json": json.dumps(manifest).encode(), **files}.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def icon_set(folder: Path, name: str, icons: dict, chars: dict, aliases: dict | None = None) -> None:
    sets = {"prefix": name, "icons": icons, "aliases": aliases or {}, "width": 32, "height": 32}
    info = {"license": {"spdx": "Apache-2.0"}}
    files = {"icons.json": sets, "chars.json": chars, "info.json": info}
    tarball(folder, f"@iconify-json/{name}", {path: json.dumps(value).encode() for path, value in files.items()})


def webp(colour: tuple[int, int, int], left: int) -> bytes:
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((*colour, 255), (left, 10, left + 30, 50))
    content = io.BytesIO()
    picture.save(content, format="WEBP", lossless=True, exact=True)
    return content.getvalue()


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packages")
    data = {
        "en/data.json": NAMES,
        "en/messages.json": MESSAGES,
        "en/shortcodes/github.json": {"1F448": ["point_left"]},
    }
    tarball(folder, "emojibase-data", {path: json.dumps(value).encode() for path, value in data.items()})
    bitmaps = {
        "1f34e": webp((220, 40, 30), 4),
        "0023-fe0f-20e3": webp((90, 90, 220), 20),
        "1f989": webp((120, 70, 30), 30),
        "1f600": webp((9, 9, 9), 0),
    }
    tarball(folder, "@lobehub/fluent-emoji-3d", {f"assets/{code}.webp": content for code, content in bitmaps.items()})
    for name, red in REDS.items():
        icons = {key: {"body": body.replace("{red}", red)} for key, body in SHAPES.items()}
        chars, aliases = dict(CHARS), {}
        if name == "fluent-emoji":
            chars = {}
            icons["owl"]["body"] = "<g><path"  # cannot be drawn
            icons["red-apple"] = {"body": '<path d="M2 5h15v20h-15z" fill="#dc2a20"/>'}  # as in 3D
        if name == "noto":
            icons["teacher-medium-skin-tone"] = icons["teacher"]  # the same picture twice
            aliases = {"pointing-right": {"parent": "pointing-left", "hFlip": True}, "owl": {"parent": "red-apple"}}
            chars["1fadd"] = "pickle"
            icons["pickle"] = icons["owl"]
        if name == "twemoji":
            icons["keycap-hash"] |= {"height": 16, "body": '<path d="M0 0h32v16h-32z" fill="blue"/>'}
        if name == "fxemoji":
            icons = {"redapple": icons["red-apple"], "owl": icons["owl"], "pointleft": icons["pointing-left"],
                     "guapimao": icons["owl"]}  # fmt: skip
            chars = {}
        icon_set(folder, name, icons, chars, aliases)
    return folder


@pytest.fixture(scope="module")
def built(packages, tmp_path_factory) -> tuple[Path, build.Summary]:
    dest = tmp_path_factory.mktemp("built") / "emoji"
    return dest, build.build(dest, size=64, packages=packages)


def records(dest: Path) -> list:
    return [
        record for name in SPLITS if (dest / name / "metadata.jsonl").read_text() for record in read_split(dest / name)
    ]


def pixels(dest: Path, file_name: str) -> np.ndarray:
    (path,) = dest.glob(f"*/{file_name}")
    return np.asarray(Image.open(path))


def test_layout_and_counts(built):
    dest, summary = built
    found = records(dest)
    assert len(found) == summary.images == sum(summary.splits.values()) == sum(summary.styles.values())
    assert {path.name for path in dest.glob("*/*.png")} == {record.file_name for record in found}
    assert json.loads((dest / "summary.json").read_text())["images"] == summary.images
    assert [path.name for path in dest.parent.iterdir()] == ["emoji"]  # no temporary folder stays
    apple = next(record for record in found if record.file_name == "red-apple.noto.png")
    assert (apple.text, apple.base_concept, apple.group, apple.subgroup) == (
        "red apple, Noto",
        "red apple",
        "food",
        "fruit",
    )
    assert (apple.source, apple.licence, apple.skin_tone) == ("@iconify-json/noto@1.0.0", "Apache-2.0", None)
    assert 5 <= len(apple.captions) <= 7
    tone = next(record for record in found if record.concept == "teacher with medium skin tone")
    assert (tone.base_concept, tone.skin_tone) == ("teacher", "medium")


def test_nothing_is_left_out_silently(built):
    _, summary = built
    assert summary.exact_duplicates == ["teacher with medium skin tone, Noto = teacher, Noto"]
    assert summary.near_duplicates == ["red apple, glossy ~ red apple, 3D"]
    assert len(summary.failed_renders) == 1 and summary.failed_renders[0].startswith("glossy: owl: ")
    assert summary.unmatched_icons == {"3D": ["1f600"], "Noto": ["pickle"], "FxEmoji": ["guapimao"]}
    icons = 3 + 7 * 5 + 1 + 3  # 3D; five SVG sets; the alias that Noto needs for "pointing right"; FxEmoji
    assert summary.images == icons - 3


def test_every_caption_passes_the_stock_cleaning_unchanged(built):
    captions = {caption for record in records(built[0]) for caption in record.captions}
    assert len(captions) == built[1].distinct_captions
    for caption in captions:
        assert cleaned_twice(caption) == caption.lower()


def test_pictures_are_rgb_on_white_at_the_asked_size(built):
    for record in records(built[0]):
        picture = Image.open(record.path)
        assert picture.size == (64, 64) and picture.mode == "RGB"
        assert picture.getpixel((0, 0)) == (255, 255, 255) or record.style == "Twemoji"


def test_small_icons_are_drawn_as_vectors_and_bitmaps_keep_their_colours(built):
    apple = pixels(built[0], "red-apple.flat.png")
    assert tuple(apple[36, 32]) == (255, 96, 64)
    black = pixels(built[0], "owl.black-and-white.png")
    assert tuple(black[32, 32]) == (0, 0, 0)  # currentColor
    bitmap = pixels(built[0], "red-apple.3d.png")
    assert tuple(bitmap[30, 20]) == (220, 40, 30)
    assert bitmap[30, 35:].min() == 255  # the black of invisible pixels does not bleed in


def test_an_icon_that_is_not_square_is_centred(built):
    keycap = pixels(built[0], "keycap-with-a-hash-sign.twemoji.png")
    assert (keycap[:15] == 255).all() and (keycap[49:] == 255).all()
    assert tuple(keycap[32, 32]) == (0, 0, 255)


def test_an_alias_is_mirrored(built):
    left = pixels(built[0], "pointing-left.noto.png")
    assert np.array_equal(pixels(built[0], "pointing-right.noto.png"), left[:, ::-1])


def test_building_again_gives_the_same_bytes(built, packages, tmp_path):
    build.build(tmp_path / "again", size=64, packages=packages)
    for path in built[0].rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(built[0])).read_bytes() == path.read_bytes()


def test_a_folder_in_use_is_refused(built, packages, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for dest in (built[0], tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UsageError):
            build.build(dest, packages=packages)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_bad_size_and_packages(packages, tmp_path):
    with pytest.raises(UsageError):
        build.build(tmp_path / "x", size=0, packages=packages)
    with pytest.raises(UsageError):
        build.build(tmp_path / "x", packages=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PixArtError, match="emojibase-data"):
        build.build(tmp_path / "x", packages=tmp_path / "empty")
    assert not (tmp_path / "x").exists()


def test_npm_missing_or_failing_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PixArtError, match="emojibase-data"):
        npm.fetch("emojibase-data", tmp_path, None, print)
    script = tmp_path / "npm"
    script.write_text("#!/bin/sh\necho 'npm error code E404' >&2\necho 'npm error 404 Not Found' >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(PixArtError, match="404 Not Found"):
        npm.fetch("emojibase-data", tmp_path, None, print)


def test_npm_pack_is_asked_for_the_package_by_name(monkeypatch, packages, tmp_path):
    script = tmp_path / "npm"
    tarball_name = "emojibase-data-1.0.0.tgz"
    asked = '[ "$1 $2" = "pack emojibase-data" ] || exit 1'
    script.write_text(f'#!/bin/sh\n{asked}\n/bin/cp {packages}/{tarball_name} "$5"\necho {tarball_name}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    package = npm.fetch("emojibase-data", tmp_path, None, print)
    assert (package.source, package.licence) == ("emojibase-data@1.0.0", "MIT")


def test_the_newest_tarball_of_exactly_that_package_is_taken(tmp_path):
    tarball(tmp_path, "@iconify-json/fluent-emoji", {}, "1.9.0")
    tarball(tmp_path, "@iconify-json/fluent-emoji", {}, "1.10.0")
    tarball(tmp_path, "@iconify-json/fluent-emoji-flat", {}, "2.0.0")
    assert npm.fetch("@iconify-json/fluent-emoji", tmp_path / "to", tmp_path, print).version == "1.10.0"


def test_a_damaged_or_wrong_tarball_is_named(tmp_path):
    (tmp_path / "emojibase-data-1.0.0.tgz").write_bytes(b"not a tarball")
    with pytest.raises(PixArtError, match=r"emojibase-data-1\.0\.0\.tgz"):
        npm.fetch("emojibase-data", tmp_path / "to", tmp_path, print)
    tarball(tmp_path, "other", {})
    (tmp_path / "other-1.0.0.tgz").rename(tmp_path / "emojibase-data-1.0.0.tgz")
    with pytest.raises(PixArtError, match=r"emojibase-data-1\.0\.0\.tgz"):
        npm.fetch("emojibase-data", tmp_path / "to2", tmp_path, print)


def many_pictures() -> tuple[list[str], list[str]]:
    """400 base concepts in up to five styles, some with two skin tones."""
    styles = ["3D", "glossy", "flat", "Noto", "Twemoji"]
    rows = [(f"c{i}", s) for i in range(400) for s in styles[: 1 + i % 5] for _ in range(1 + i % 2)]
    return [concept for concept, _ in rows], [style for _, style in rows]


def test_split_holds_out_concepts_and_cells_without_leaks():
    concepts, styles = many_pictures()
    parts = split.assign(concepts, styles, seed=0)
    rows = list(zip(parts, concepts, styles, strict=True))
    hidden = {c for p, c, _ in rows if p == "test_concepts"}
    assert len(hidden) == 8
    assert all(p == "test_concepts" for p, c, _ in rows if c in hidden)
    train = {(c, s) for p, c, s in rows if p == "train"}
    cells = {(c, s) for p, c, s in rows if p == "test_cells"}
    assert not train & cells
    assert all(any(other == c for other, _ in train) for c, _ in cells)
    eligible = {(c, s) for c, s in train | cells if len({t for d, t in train | cells if d == c}) > 1}
    assert abs(len(cells) - 0.05 * len(eligible)) <= 1
    assert {c for c, s in cells if s == "3D"} == {c for c, s in cells if s == "glossy"}  # twins go together
    assert any(s == "3D" for _, s in cells)


def test_split_depends_on_the_seed_and_not_on_the_order():
    concepts, styles = many_pictures()
    parts = split.assign(concepts, styles, seed=0)
    turned = split.assign(concepts[::-1], styles[::-1], seed=0)
    assert turned[::-1] == parts
    assert split.assign(concepts, styles, seed=1) != parts


def test_near_duplicates_are_found_between_styles_only():
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    nearly = picture.copy()
    nearly[0, 0] ^= 8
    other = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    thumbnails = np.stack([picture, nearly, nearly, nearly, other])
    concepts = ["owl", "owl", "owl", "cat", "owl"]
    styles = ["3D", "glossy", "3D", "glossy", "flat"]
    assert near_duplicates.near(thumbnails, concepts, styles) == [(1, 0)]


def test_a_small_difference_on_much_white_is_seen():
    blank = np.full((16, 16, 3), 255, dtype=np.uint8)
    left, right = blank.copy(), blank.copy()
    left[8, 4:7] = 0
    right[8, 9:12] = 0
    assert near_duplicates.distances(np.stack([left, right]))[0, 1] > 50


@pytest.mark.parametrize("line", ['{"file_name": ', "[]", '{"file_name": "a.png"}'])
def test_a_bad_line_is_named_with_its_number(built, tmp_path, line):
    source = built[0] / "train"
    good = (source / "metadata.jsonl").read_text().splitlines()[0]
    name = json.loads(good)["file_name"]
    (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "metadata.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(PixArtError, match="line 2"):
        read_split(tmp_path)
    parted = json.loads(good) | {"captions": ["a fox\u2028in two lines"]}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(parted, ensure_ascii=False), encoding="utf-8")
    assert read_split(tmp_path)[0].captions == ("a fox\u2028in two lines",)
    (tmp_path / name).unlink()
    with pytest.raises(PixArtError, match=name):
        read_split(tmp_path)
    with pytest.raises(PixArtError, match=r"metadata\.jsonl"):
        read_split(tmp_path / "nowhere")
