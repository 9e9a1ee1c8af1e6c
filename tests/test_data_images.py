"""Images of every mode become RGB the right way up; everything that is no image is refused by kind."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from reader_data import image as made

from pixart.data.pairs import ImageProblem
from pixart.images import MAX_PIXELS, open_image

pytestmark = pytest.mark.filterwarnings("ignore::Warning:PIL")  # pytest undoes what images.py says


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def first_pixel(data: bytes) -> tuple[int, ...]:
    image = open_image(data).image
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def refused(data: bytes) -> ImageProblem:
    with pytest.raises(ImageProblem) as caught:
        open_image(data)
    problem = pickle.loads(pickle.dumps(caught.value))  # as it comes out of another process
    assert str(problem) == problem.reason
    assert problem.reason.endswith(".")
    return problem


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_that_is_promised(format):
    image = Image.new("RGB", (20, 10), (255, 0, 0))
    opened = open_image(saved(image, format))
    assert (opened.format, opened.image.size, opened.alpha, opened.animated) == (format, (20, 10), False, False)
    assert np.abs(np.subtract(opened.image.getpixel((5, 5)), (255, 0, 0))).max() < 8


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("1", (2, 2), 1), {}, (255, 255, 255)),
        (Image.new("L", (2, 2), 100), {}, (100, 100, 100)),
        (Image.new("P", (2, 2), 0), {}, (0, 0, 0)),
        (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), {"format": "TIFF"}, (255, 0, 0)),
        (Image.fromarray(np.full((2, 2), 0x80FF, np.uint16)), {}, (128, 128, 128)),
        (Image.fromarray(np.full((2, 2), 0x80FF, np.uint16)), {"format": "TIFF"}, (128, 128, 128)),
        (Image.fromarray(np.full((2, 2), 0.5, np.float32)), {"format": "TIFF"}, (128, 128, 128)),
    ],
    ids=["1-bit", "grey", "palette", "cmyk", "16-bit png", "16-bit tiff", "float tiff"],
)
def test_colour_modes(image, options, expected):
    data = saved(image, **options)
    assert first_pixel(data) == expected
    assert not open_image(data).alpha


def test_16_bit_colour_keeps_its_high_byte():
    rows = b"".join(b"\0" + struct.pack(">3H", 0x80FF, 0x10FF, 0xFFFF) for _ in range(2))
    head = struct.pack(">IIBBBBB", 1, 2, 16, 2, 0, 0, 0)
    assert first_pixel(png(chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))) == (
        128,
        16,
        255,
    )


def test_transparent_pixels_become_white_in_every_mode_that_has_them():
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    grey = Image.fromarray(np.full((2, 2), 7, np.uint16))
    cases = {
        "RGBA": saved(Image.new("RGBA", (2, 2), (255, 0, 0, 0))),
        "LA": saved(Image.new("LA", (2, 2), (0, 0))),
        "P with transparency": saved(palette, transparency=0),
        "RGB with a key colour": saved(Image.new("RGB", (2, 2), (9, 8, 7)), transparency=(9, 8, 7)),
        "1 with a key colour": saved(Image.new("1", (2, 2), 0), transparency=0),
        "16-bit with a key colour": saved(grey, transparency=7),
        "WebP": saved(Image.new("RGBA", (2, 2), (0, 0, 0, 0)), "WEBP", lossless=True),
    }
    for name, data in cases.items():
        assert (name, first_pixel(data), open_image(data).alpha) == (name, (255, 255, 255), True)
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    assert first_pixel(saved(half)) == (127, 127, 127)
    opaque = open_image(saved(Image.new("RGBA", (2, 2), (1, 2, 3, 255))))
    assert (opaque.alpha, opaque.mode, opaque.image.getpixel((0, 0))) == (False, "RGBA", (1, 2, 3))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_as_pillow_applies_it(orientation, format):
    ramp = np.zeros((16, 32, 3), np.uint8)
    ramp[:8, :16] = (255, 0, 0)
    ramp[8:, 16:] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(Image.fromarray(ramp), format, exif=exif)
    opened = open_image(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert opened.image.size == expected.size == ((32, 16) if orientation < 5 else (16, 32))
    assert np.array_equal(np.asarray(opened.image), np.asarray(expected))
    if format != "AVIF":  # whose decoder turns it, and says nothing
        assert opened.orientation == orientation


def test_damaged_exif_does_not_hide_the_made():
    data = saved(Image.new("RGB", (4, 4), "red"), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff junk")
    assert open_image(data).orientation == 1


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = saved(
        frames[0], format, save_all=True, append_images=frames[1:], **({"lossless": True} if format == "WEBP" else {})
    )
    opened = open_image(data)
    assert opened.animated
    assert opened.image.getpixel((0, 0)) in ((255, 0, 0), (254, 0, 0))


def test_a_hundred_thousand_frames_cost_no_more_than_one():
    frame = b"\x2c\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0"
    data = b"GIF89a\1\0\1\0\x80\0\0\xff\0\0\0\0\xff" + frame * 100_000 + b";"
    opened = open_image(data)
    assert (opened.animated, opened.image.size) == (True, (1, 1))


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1)])
def test_extreme_shapes_are_images(size):
    assert open_image(made("blue", size)).image.size == size


def test_a_decompression_bomb_is_refused_by_its_header():
    head = struct.pack(">IIBBBBB", 65_535, 65_535, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 10_000_000)
    assert refused(png(chunk(b"IHDR", head), chunk(b"IDAT", body), chunk(b"IEND", b""))).kind == "bomb"
    just_over = Image.new("1", (10_010, 10_010))
    assert MAX_PIXELS < 10_010 * 10_010
    assert refused(saved(just_over)).kind == "bomb"
    with pytest.raises(ImageProblem) as caught:
        open_image(made("red", (4, 4)), max_pixels=15)
    assert caught.value.kind == "bomb"


def test_a_text_bomb_is_refused():
    text = b"Comment\0\0" + zlib.compress(b"a" * 3_000_000)
    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0\0\0\0"))
    problem = refused(png(chunk(b"IHDR", head), chunk(b"zTXt", text), body, chunk(b"IEND", b"")))
    assert problem.kind == "bomb"
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a" * 900_000, zip=True)
    assert first_pixel(saved(Image.new("RGB", (1, 1), "red"), pnginfo=info)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_cut_off_files_are_refused(format):
    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8))
    data = saved(noise, format)
    for end in (0, 1, 10, 30, len(data) // 3, len(data) // 2, len(data) * 9 // 10):
        assert refused(data[:end]).kind in ("empty", "format", "truncated", "broken"), end


def test_a_wrong_checksum_is_refused():
    for chunk_name in (b"IHDR", b"IDAT"):
        data = bytearray(made())
        data[data.index(chunk_name) + 11] ^= 0x01
        assert refused(bytes(data)).kind == "broken"


def test_what_follows_an_image_does_not_matter():
    assert first_pixel(made() + b"PK\x03\x04 a zip at the end") == (255, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\n<!DOCTYPE html><html>404</html>",
        b"PK\x03\x04aaaa",
        b"\0\0\0\x18ftypheic\0\0\0\0",
        b"8BPS\0\1",
        b"P6 4 4 255\n" + b"\0" * 48,
        b"hello",
    ],
)
def test_other_formats_are_refused(data):
    assert refused(data).kind == "format"


def test_numbers_whose_white_is_unknown_are_refused():
    for values in (
        np.full((2, 2), 100_000, np.int32),
        np.array([[np.nan, 0.5]], np.float32),
        np.full((2, 2), 255.0, np.float32),
    ):
        assert refused(saved(Image.fromarray(values), "TIFF")).kind == "mode"
    assert refused(saved(Image.new("LAB", (2, 2)), "TIFF")).kind == "mode"


def test_a_colour_profile_is_reported_and_a_damaged_one_harmless():
    opened = open_image(saved(Image.new("RGB", (2, 2), "red"), icc_profile=b"not a profile at all"))
    assert (opened.icc, opened.image.getpixel((0, 0))) == (True, (255, 0, 0))


def test_a_phones_file_of_several_images_is_a_jpeg():
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")])
    opened = open_image(file.getvalue())
    assert (opened.format, opened.animated, opened.image.getpixel((0, 0))[2] < 9) == ("MPO", True, True)
