"""Settings out of picture files: ours, A1111's, Fooocus', InvokeAI's and ComfyUI's, and files that mean harm."""

import json
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import pixart
from pixart.checkpoints.model_folder import open_model_folder
from pixart.diffusion.noise import MAX_SEED
from pixart.errors import PixArtError, UsageError
from pixart.pipeline.foreign_metadata import read_pairs
from pixart.pipeline.image_files import AI_MADE, XMP_KEYWORD, parameters_text, read_settings, write_image
from pixart.pipeline.image_metadata import MAX_TEXT, MAX_TEXTS, read_texts
from pixart.pipeline.prompts import MAX_CHARACTERS
from pixart.pipeline.request import make_request
from pixart.pipeline.restore import NAMES, fit_to_model, restore_settings

RECORD = {
    "format": 1,
    "prompt": "a red fox",
    "negative_prompt": "blurry",
    "style": "3D",
    "resolved_prompt": "a red fox, 3d",
    "resolved_negative_prompt": "blurry",
    "seed": 7,
    "steps": 3,
    "guidance_scale": 4.5,
    "guidance_interval": [100, 900],
    "guidance_rescale": 0.25,
    "width": 64,
    "height": 80,
    "sampler": "euler",
    "model": "pixart-default",
    "model_hash": "0123456789abcdef",
    "versions": {"pixart": "0.1.0"},
}
A1111 = (
    "A small cactus with a happy face\nin the Sahara desert.\nNegative prompt: blurry,\nlow quality\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, Seed: 1234567890, Size: 1024x768, "
    'Model hash: 1a2b3c4d5e, Model: PixArt-XL-2-1024-MS, Style: "Cinematic, warm: v2", Version: ourtool 1.0.0'
)
FOOOCUS = {
    "prompt": "a cat",
    "negative_prompt": "",
    "styles": "['Fooocus V2']",
    "performance": "Speed",
    "resolution": "(1152, 896)",
    "guidance_scale": 4.0,
    "base_model": "juggernautXL_v8Rundiffusion",
    "sampler": "dpmpp_2m_sde_gpu",
    "scheduler": "karras",
    "seed": "1845063209835273129",
    "version": "Fooocus v2.5.0",
}
INVOKEAI = {
    "generation_mode": "sdxl_txt2img",
    "positive_prompt": "a lighthouse",
    "negative_prompt": "people",
    "width": 832,
    "height": 1216,
    "seed": 42,
    "rand_device": "cpu",
    "cfg_scale": 6.0,
    "cfg_rescale_multiplier": 0.0,
    "steps": 28,
    "scheduler": "dpmpp_2m_k",
    "model": {"key": "x", "name": "Juggernaut XL v9", "base": "sdxl", "type": "main"},
    "app_version": "5.0.0",
}
COMFYUI = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 156680208700286,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["10", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": ["9", 0], "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["8", 0], "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
    "8": {"class_type": "PrimitiveString", "inputs": {"value": "a galaxy in a bottle"}},
    "9": {"class_type": "PrimitiveInt", "inputs": {"value": 640}},
    "10": {"class_type": "ConditioningSetArea", "inputs": {"conditioning": ["6", 0], "width": 64}},
    "11": {
        "class_type": "KSampler",
        "inputs": {"seed": 1, "steps": 9, "latent_image": ["3", 0], "positive": ["6", 0], "negative": ["7", 0]},
        "is_changed": [float("nan")],
    },
}


def png(path: Path, texts: dict[str, str], size: tuple[int, int] = (8, 8)) -> Path:
    info = PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    Image.new("RGB", size).save(path, pnginfo=info)
    return path


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(path: Path, *chunks: bytes, size: tuple[int, int] = (8, 8)) -> Path:
    """A PNG of these text chunks, whose header may claim any size."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(8 * 25)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + chunk(b"IEND", b""))
    return path


def test_our_own_settings_come_back(tmp_path):
    restored = restore_settings(write_image(Image.new("RGB", (64, 80)), RECORD, tmp_path / "fox.png"))
    assert (restored.source, restored.notices) == ("pixart", [])
    wanted = {key: RECORD[key] for key in ("prompt", *NAMES) if key in RECORD}
    assert restored.request == wanted | {"guidance_interval": (100, 900)}


def test_restored_settings_generate_the_same_pixels(tiny_model, tmp_path):
    pipe = pixart.Pipeline.from_pretrained(tiny_model)
    given = {"negative_prompt": "house", "style": "Flat", "seed": 5, "steps": 2, "guidance_interval": (200, 1000)}
    first = pipe("a 苹果 \N{FOX FACE}, red", width=64, height=80, sampler="sa-solver", guidance_rescale=0.5, **given)
    path = write_image(first.images[0], first.settings[0], tmp_path / "fox.png")
    restored = fit_to_model(restore_settings(path), pipe.folder)
    assert len(restored.notices) == 1 and "tiny" in restored.notices[0]
    assert pipe(**restored.request).settings == first.settings


OF_A1111 = {
    "prompt": "A small cactus with a happy face\nin the Sahara desert.", "negative_prompt": "blurry,\nlow quality",
    "sampler": "dpm-solver-karras", "seed": 1234567890, "steps": 20, "guidance_scale": 4.5, "width": 1024,
    "height": 768,
}  # fmt: skip
OF_INVOKEAI = {
    "prompt": "a lighthouse", "negative_prompt": "people", "sampler": "dpm-solver-karras", "seed": 42, "steps": 28,
    "guidance_scale": 6.0, "guidance_rescale": 0.0, "width": 832, "height": 1216,
}  # fmt: skip
OF_COMFYUI = {
    "prompt": "a galaxy in a bottle", "negative_prompt": "text, watermark", "sampler": "euler", "steps": 20,
    "guidance_scale": 8.0, "width": 512, "height": 640,
}  # fmt: skip
IN_NODES = {"nodes": {"a": {"type": "noise"}, "m": {"type": "core_metadata", **INVOKEAI}}}


@pytest.mark.parametrize(
    ("texts", "source", "request_", "said"),
    [
        ({"parameters": A1111}, "A1111", OF_A1111, ["PixArt-XL-2-1024-MS"]),
        (
            {"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"},
            "Fooocus",
            {"prompt": "a cat", "steps": 30, "guidance_scale": 4.0, "width": 1152, "height": 896},
            ["1845063209835273129", "dpmpp_2m_sde_gpu", "juggernautXL_v8Rundiffusion"],
        ),
        ({"invokeai_metadata": json.dumps(INVOKEAI)}, "InvokeAI", OF_INVOKEAI, ["Juggernaut XL v9"]),
        ({"invokeai_graph": json.dumps(IN_NODES)}, "InvokeAI", OF_INVOKEAI, ["Juggernaut XL v9"]),
        ({"prompt": json.dumps(COMFYUI), "workflow": "{}"}, "ComfyUI", OF_COMFYUI, ["156680208700286"]),
        (
            {"Comment": '{"prompt": "an owl", "seed": 3, "steps": 28}'},
            "Another tool",
            {"prompt": "an owl", "seed": 3, "steps": 28},
            [],
        ),
        (
            {"Comment": '{"prompt": "an owl", "uc": "bad", "scale": 11, "steps": 28, "qualityToggle": true}'},
            "Another tool",
            {"prompt": "an owl", "negative_prompt": "bad", "guidance_scale": 11, "steps": 28},
            ["qualityToggle"],
        ),
        (
            {"parameters": 'an owl\nSteps: 28, CFG scale: 5, Model hash: ab, Clip skip: 2, Hires prompt: "a, b"'},
            "A1111",
            {"prompt": "an owl", "guidance_scale": 5, "steps": 28},
            ["Clip skip, Hires prompt"],
        ),
    ],
)
def test_settings_of_other_tools(tmp_path, texts, source, request_, said):
    restored = restore_settings(png(tmp_path / "a.png", texts))
    assert (restored.source, restored.request) == (source, request_)
    assert all(any(what in notice for notice in restored.notices) for what in said)


@pytest.mark.parametrize("kind", ["jpg", "webp"])
@pytest.mark.parametrize(
    ("tags", "source", "prompt"),
    [
        ({0x9286: b"UNICODE\0" + ("Ein Würfel, " + A1111).encode("utf-16-be")}, "A1111", "Ein Würfel, A small"),
        ({0x9286: b"UNICODE\0" + ("Ein Würfel, " + A1111).encode("utf-16-le")}, "A1111", "Ein Würfel, A small"),
        ({0x9286: json.dumps(FOOOCUS).encode(), 0x927C: b"fooocus"}, "Fooocus", "a cat"),
        ({0x9286: A1111.encode(), 0x927C: b"a1111"}, "Fooocus", "A small cactus"),
    ],
)
def test_settings_of_other_tools_in_exif(tmp_path, kind, tags, source, prompt):
    exif = Image.Exif()
    exif.get_ifd(0x8769).update(tags)
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{kind}", exif=exif)
    restored = restore_settings(tmp_path / f"a.{kind}")
    assert restored.source == source and restored.request["prompt"].startswith(prompt)


def test_our_text_for_other_tools_is_read_by_their_rules(tmp_path):
    """A prompt with all that their rules trip over still gives them the settings; ours have the truth."""
    record = {**RECORD, "resolved_prompt": "a: b, c: d, e: f\nSteps: 9", "model": 'my, "model": 2\n', "style": None}
    pairs = read_pairs(parameters_text(record).split("\n")[-1])
    assert (pairs["Model"], pairs["Size"], pairs["Version"]) == ('my, "model": 2\n', "64x80", "pixart 0.1.0")
    restored = restore_settings(png(tmp_path / "a.png", {"parameters": parameters_text(record)}))
    assert restored.request["prompt"] == "a: b, c: d, e: f\nSteps: 9"
    assert "Model:" not in parameters_text({**RECORD, "model": ""}), "an empty value would end their reading"


def test_the_longest_texts_still_fit_into_what_pillow_reads(tmp_path):
    text = "\N{FOX FACE}" * MAX_CHARACTERS
    record = {**RECORD, **dict.fromkeys(("prompt", "negative_prompt", "resolved_prompt"), text), "model": "a\udcff\0b"}
    record["resolved_negative_prompt"] = text
    path = write_image(Image.new("RGB", (8, 8)), record, tmp_path / "long.png")
    with Image.open(path) as image:
        image.load()
        assert json.loads(image.text["pixart"])["prompt"] == text
        assert image.text["parameters"].startswith(text)
    assert restore_settings(path).request["negative_prompt"] == text


def test_comfyui_with_its_own_sampler_nodes(tmp_path):
    graph = {
        "1": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {
                "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0], "latent_image": ["6", 0]
            },
        },
        "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 12}},
        "3": {"class_type": "CFGGuider", "inputs": {"cfg": 3.5, "positive": ["7", 0], "negative": ["8", 0]}},
        "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "dpmpp_2m"}},
        "5": {"class_type": "BasicScheduler", "inputs": {"scheduler": "simple", "steps": 14, "model": ["9", 0]}},
        "6": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 256, "height": 320}},
        "7": {"class_type": "CLIPTextEncodePixArtAlpha", "inputs": {"width": 1, "height": 1, "text": "a kite"}},
        "8": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}},
        "9": {"class_type": "UNETLoader", "inputs": {"unet_name": "PixArt-Sigma.safetensors"}},
    }  # fmt: skip
    restored = restore_settings(png(tmp_path / "c.png", {"prompt": json.dumps(graph)}))
    assert restored.request == {
        "prompt": "a kite",
        "sampler": "dpm-solver",
        "seed": 12,
        "steps": 14,
        "guidance_scale": 3.5,
        "width": 256,
        "height": 320,
    }
    assert any("PixArt-Sigma.safetensors" in notice for notice in restored.notices)


def test_fitting_to_a_model(tiny_model, tmp_path):
    folder = open_model_folder(tiny_model)
    restored = restore_settings(png(tmp_path / "i.png", {"invokeai_metadata": json.dumps(INVOKEAI)}))
    fitted = fit_to_model(restored, folder)
    assert (fitted.request["width"], fitted.request["height"]) == (704, 1024)
    assert any("704 x 1024" in notice for notice in fitted.notices)
    record = {**RECORD, "style": "Oil", "sampler": "ddim", "steps": 4}
    ours = restore_settings(write_image(Image.new("RGB", (8, 8)), record, tmp_path / "o.png"))
    fitted = fit_to_model(ours, folder)
    assert "style" not in fitted.request and "sampler" not in fitted.request and fitted.request["steps"] == 4
    style, sampler = fitted.notices
    assert "Oil" in style and "ddim" in sampler


def test_a_damaged_record_leaves_the_copy_for_others(tmp_path):
    texts = {"pixart": '{"prompt": ', "parameters": parameters_text(RECORD)}
    restored = restore_settings(png(tmp_path / "d.png", texts))
    assert (restored.source, restored.request["seed"]) == ("A1111", 7)
    assert restored.notices
    with pytest.raises(PixArtError):
        read_settings(png(tmp_path / "e.png", {"pixart": "[1]"}))


def test_every_field_of_a_record_is_checked(tmp_path):
    wrong = {
        "prompt": ["a"],
        "negative_prompt": {"a": 1},
        "style": "x" * 300,
        "sampler": "eular",
        "seed": -2,
        "steps": True,
        "guidance_scale": 1e400,
        "guidance_interval": [0, True],
        "guidance_rescale": "NaN",
        "guidance_channels": 0,
        "null_text": "nothing",
        "prompt_weights": "yes",
        "binning": 1,
        "width": 10**9,
        "height": 0.5,
        "strength": 2,
        "upscale": 9,
        "upscale_strength": [],
    }
    assert wrong.keys() == {"prompt", *NAMES}
    restored = restore_settings(png(tmp_path / "w.png", {"pixart": json.dumps(wrong)}))
    assert restored.request == {"prompt": ""}
    assert len(restored.notices) == len(wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: png(path, {}),
        lambda path: png(path, {"parameters": "just a text: of, no: use"}),
        lambda path: png(path, {"parameters": '{"prompt": "a fox"}'}),
        lambda path: png(path, {"prompt": '{"nodes": 7}', "workflow": "[]"}),
        lambda path: Image.new("RGB", (8, 8)).save(path, format="JPEG"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("<svg/>"),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),  # to which nobody writes
        lambda path: None,
        lambda path: raw_png(path, chunk(b"zTXt", b"pixart\0\0" + b"no zlib")),
        lambda path: raw_png(path, struct.pack(">I", 2**31) + b"tEXt" + b"pixart\0{"),
        lambda path: raw_png(path, chunk(b"tEXt", b"pixart\0{}")[:-1] + b"!"),
        lambda path: raw_png(path, chunk(b"eXIf", b"II*\0\xff\xff\xff\x7f")),
        lambda path: raw_png(path, chunk(b"tEXt", b"pixart\0" + b"[" * 100_000)),
    ],
)
def test_files_without_settings_are_one_sentence(tmp_path, make):
    path = tmp_path / "a\x1b[31m image.png"
    make(path)
    for bad in (path, "fox\0.png"):
        with pytest.raises(UsageError) as caught:
            restore_settings(bad)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["zTXt", "iTXt"])
def test_a_text_that_unpacks_to_very_much_is_not_unpacked(tmp_path, kind):
    packed = zlib.compress(bytes(2**26))
    head = {"zTXt": b"pixart\0\0", "iTXt": b"pixart\0\1\0\0\0"}[kind]
    path = raw_png(tmp_path / "bomb.png", chunk(kind.encode(), head + packed))
    tracemalloc.start()
    with pytest.raises(UsageError):
        restore_settings(path)
    assert tracemalloc.get_traced_memory()[1] < 4 * MAX_TEXT
    tracemalloc.stop()


def test_many_texts_are_read_up_to_a_limit(tmp_path):
    many = [chunk(b"tEXt", b"%d\0" % number + b"x" * (MAX_TEXT - 9)) for number in range(8)]
    own = chunk(b"tEXt", b"pixart\0" + json.dumps(RECORD).encode())
    texts = read_texts(raw_png(tmp_path / "many.png", own, *many))
    assert len(texts.texts) == 1 + MAX_TEXTS // MAX_TEXT - 1
    assert len(texts.notices) == 1
    assert restore_settings(tmp_path / "many.png").request["seed"] == 7


@pytest.mark.parametrize("line", ["x" * 99_000, "a:" * 49_000, 'a:"' * 33_000, "a:\\" * 33_000, ", a" * 33_000])
def test_lines_that_would_take_a_careless_parser_hours(line, tmp_path):
    read_pairs(line)
    restored = restore_settings(png(tmp_path / "l.png", {"parameters": f"{line}\nSteps: 1, Seed: 2, Size: 64x64"}))
    assert restored.request["prompt"] == line[:MAX_CHARACTERS]


def test_graphs_that_go_in_circles_or_are_huge(tmp_path):
    link = {"latent_image": ["1", 0], "seed": ["1", 0], "positive": ["1", 0], "negative": ["2", 0], "model": ["1", 0]}
    circle = {"1": {"class_type": "KSampler", "inputs": link}, "2": {"class_type": "A", "inputs": {"text": ["2", 0]}}}
    restored = restore_settings(png(tmp_path / "c.png", {"prompt": json.dumps(circle)}))
    assert (restored.source, restored.request) == ("ComfyUI", {"prompt": ""})
    chain = {
        str(number): {"class_type": "KSampler", "inputs": {"seed": 1, "latent_image": [str(number + 1), 0]}}
        for number in range(20_000)
    }
    restore_settings(png(tmp_path / "d.png", {"prompt": json.dumps(chain)}))


def test_xmp_says_that_a_machine_made_it_and_no_metadata_means_none(tmp_path):
    import xml.etree.ElementTree as ElementTree

    image = Image.new("RGB", (64, 80))
    with Image.open(write_image(image, RECORD, tmp_path / "fox.png")) as written:
        kinds = list(written.text)
        assert kinds == ["parameters", "pixart", XMP_KEYWORD]
        xmp = ElementTree.fromstring(written.text[XMP_KEYWORD].encode())
        assert written.getxmp()["xmpmeta"]["RDF"]["Description"]["DigitalSourceType"] == AI_MADE
    extension = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert [tag.text for tag in xmp.iter(extension)] == [AI_MADE]
    path = write_image(image, RECORD, tmp_path / "bare.png", metadata=False)
    assert b"fox" not in path.read_bytes()
    assert read_texts(path).texts == {}
    with pytest.raises(PixArtError):
        read_settings(path)


# What a file may hold: any JSON, also under the names that are looked for; and any bytes.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["3", "1e9", "-1"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["prompt", *NAMES, "model", "inputs", "class_type", "nodes", "links"]), inner, max_size=8
        )
    ),
    max_leaves=20,
)
NODES = st.dictionaries(
    st.sampled_from("1234"),
    st.fixed_dictionaries(
        {
            "class_type": st.sampled_from(["KSampler", "CLIPTextEncode", "EmptyLatentImage"]),
            "inputs": st.dictionaries(
                st.sampled_from(["seed", "steps", "cfg", "latent_image", "positive", "negative", "text", "width"]),
                JSON | st.tuples(st.sampled_from("1234"), st.just(0)),
            ),
        }
    ),
)
KEYWORDS = ("pixart", "parameters", "invokeai_metadata", "invokeai_graph", "prompt", "workflow", "fooocus_scheme")
TEXTS = st.dictionaries(
    st.sampled_from(KEYWORDS),
    st.builds(json.dumps, JSON) | st.builds(json.dumps, NODES) | st.text() | st.just(A1111) | st.just("fooocus"),
    max_size=4,
)


def holds_what_it_says(restored) -> None:
    assert restored.source in ("pixart", "A1111", "Fooocus", "InvokeAI", "ComfyUI", "Another tool")
    assert "prompt" in restored.request
    assert restored.request.keys() <= {"prompt", *NAMES}
    assert 0 <= restored.request.get("seed", 0) <= MAX_SEED
    assert all(notice.isprintable() and len(notice) < 1000 for notice in restored.notices)
    json.dumps(restored.request, allow_nan=False)


@given(texts=TEXTS)
def test_whatever_the_texts_are_the_request_can_be_generated(texts, tiny_model, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.png"
    chunks = [chunk(b"iTXt", key.encode() + bytes(5) + text.encode(errors="replace")) for key, text in texts.items()]
    raw_png(path, *chunks)
    try:
        restored = restore_settings(path)
    except UsageError as error:
        assert str(error).isprintable()
        return
    holds_what_it_says(restored)
    folder = open_model_folder(tiny_model)
    fitted = fit_to_model(restored, folder)
    make_request(folder, **fitted.request)


def flipped(position: int, value: int) -> bytes:
    data = bytearray(GOOD)
    data[position % len(data)] = value
    return bytes(data)


GOOD = b"".join(
    [b"\x89PNG\r\n\x1a\n", chunk(b"tEXt", b"parameters\0" + A1111.encode()), chunk(b"tEXt", b"prompt\0{}"),
     chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x86\x92\7\0\4\0\0\0abcd"), chunk(b"IEND", b"")]
)  # fmt: skip
STARTS = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1\x00\xffExif\0\0II*\0", b"RIFF\x00\x00\x00\x00WEBPEXIF", b""]


@given(
    data=st.builds(flipped, st.integers(0), st.integers(0, 255))
    | st.builds(bytes.__add__, st.sampled_from(STARTS), st.binary(max_size=300))
)
def test_any_bytes_are_settings_or_one_sentence(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "bytes.png"
    path.write_bytes(data)
    try:
        holds_what_it_says(restore_settings(path))
    except UsageError as error:
        assert str(error).isprintable()


@given(
    asked=st.fixed_dictionaries(
        {},
        optional={
            "prompt": st.text(max_size=200),
            "negative_prompt": st.text(max_size=50),
            "style": st.sampled_from(["3D", "Flat"]),
            "seed": st.integers(0, MAX_SEED),
            "steps": st.integers(1, 500),
            "guidance_scale": st.floats(0, 50),
            "guidance_interval": st.tuples(st.integers(0, 500), st.integers(500, 1000)),
            "guidance_rescale": st.floats(0, 1),
            "sampler": st.sampled_from(["dpm-solver", "sa-solver", "euler"]),
            "width": st.sampled_from(range(64, 1025, 16)),
            "height": st.sampled_from(range(64, 1025, 16)),
        },
    )
)
def test_every_request_survives_its_image(asked, tiny_model, tmp_path_factory):
    folder = open_model_folder(tiny_model)
    asked = {"prompt": "a fox", "seed": 1, **asked}
    asked = {key: value.replace("\0", "") if isinstance(value, str) else value for key, value in asked.items()}
    request = make_request(folder, **asked)
    record = {**RECORD, "style": None, "negative_prompt": "", "guidance_interval": [0, 1000], "guidance_rescale": 0.0}
    record |= {key: getattr(request, key) for key in ("steps", "guidance_scale", "width", "height", "sampler")}
    path = tmp_path_factory.getbasetemp() / "request.png"
    path.unlink(missing_ok=True)
    written = write_image(Image.new("RGB", (1, 1)), record | asked, path)
    restored = fit_to_model(restore_settings(written), folder)
    assert restored.notices == []
    assert make_request(folder, **restored.request) == request
