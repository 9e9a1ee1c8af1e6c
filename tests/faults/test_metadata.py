"""Image metadata of other tools, and files made to exhaust whoever reads them."""

import json
import struct
import subprocess
import sys
import zlib

import pytest
from PIL import Image


def restored(path):
    from pixart.pipeline.restore import restore_settings

    return restore_settings(path)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(path, *chunks: bytes):
    Image.new("RGB", (16, 16)).save(path, "PNG")
    plain = path.read_bytes()
    path.write_bytes(plain[:33] + b"".join(chunks) + plain[33:])
    return path


def text(words):
    return {"class_type": "PrimitiveString", "inputs": {"value": words}}


def encode(words):
    return {"class_type": "CLIPTextEncode", "inputs": {"text": words, "clip": ["4", 1]}}


def graph(positive, negative, extra):
    link = {"model": ["4", 0], "positive": positive, "negative": negative, "latent_image": ["5", 0]}
    values = {"seed": 5, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "normal"}
    return {
        "3": {"class_type": "KSampler", "inputs": values | link},
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "6": encode("a red barn"),
        "7": encode("blurry"),
        **extra,
    }


def both(kind, slots=(0, 1), **inputs):
    """A node that carries both conditionings."""
    node = {"class_type": kind, "inputs": {"positive": ["6", 0], "negative": ["7", 0], **inputs}}
    return graph(["20", slots[0]], ["20", slots[1]], {"20": node})


def made(node, **others):
    """A graph whose prompt comes out of `node`."""
    return graph(["21", 0], ["7", 0], {"10": node, "21": encode(["10", 0]), **others})


CHAIN = {
    "20": {"class_type": "ControlNetApplyAdvanced", "inputs": {"positive": ["22", 0], "negative": ["22", 1]}},
    "22": {"class_type": "InpaintModelConditioning", "inputs": {"positive": ["8", 0], "negative": ["7", 0]}},
    "8": {"class_type": "FluxGuidance", "inputs": {"guidance": 30, "conditioning": ["6", 0]}},
}
CONCAT = {"delimiter": ", ", "text_a": ["11", 0], "text_b": ["12", 0]}
PARTS = {"11": text("a red barn"), "12": text("in snow")}
LOADER = {
    "class_type": "Efficient Loader",
    "inputs": {"ckpt_name": "m", "positive": "a red barn", "negative": "blurry"},
}


@pytest.mark.parametrize(
    ("nodes", "prompt", "negative"),
    [
        (both("ControlNetApplyAdvanced", strength=0.8, image=["9", 0]), "a red barn", "blurry"),
        (both("InpaintModelConditioning", vae=["4", 2]), "a red barn", "blurry"),
        (both("ACustomApplier"), "a red barn", "blurry"),
        (both("ControlNetApplyAdvanced", slots=(1, 0)), "blurry", "a red barn"),
        (graph(["20", 0], ["20", 1], CHAIN), "a red barn", "blurry"),
        (graph(["20", 1], ["20", 2], {"20": LOADER}), "a red barn", "blurry"),
        (
            made({"class_type": "StringConcatenate", "inputs": {"string_a": "a", "string_b": "b", "delimiter": ", "}}),
            "a, b",
            "blurry",
        ),
        (made({"class_type": "Text Concatenate", "inputs": CONCAT}, **PARTS), "a red barn, in snow", "blurry"),
        (
            made({"class_type": "StringReplace", "inputs": {"string": "a C barn", "find": "C", "replace": "red"}}),
            "a red barn",
            "blurry",
        ),
        (made({"class_type": "ShowText|pysssss", "inputs": {"text": ["11", 0], "text_0": "x"}}, **PARTS), "a red barn",
         "blurry"),
        (made(text("a kite")), "a kite", "blurry"),
    ],
)  # fmt: skip
def test_prompts_are_followed_through_the_graph(tmp_path, nodes, prompt, negative):
    found = restored(png_with(tmp_path / "a.png", chunk(b"tEXt", b"prompt\0" + json.dumps(nodes).encode())))
    assert found.source == "ComfyUI"
    assert (found.request["prompt"], found.request["negative_prompt"]) == (prompt, negative)
    assert (found.request["seed"], found.request["steps"], found.request["width"]) == (5, 20, 512)


COMBINED = {"conditioning_1": ["21", 0], "conditioning_2": ["22", 0]}
TWO = {"21": encode("a red barn"), "22": encode("in snow")}


@pytest.mark.parametrize(
    "nodes",
    [
        graph(["20", 0], ["7", 0], {"20": {"class_type": "ConditioningCombine", "inputs": COMBINED}, **TWO}),
        graph(["20", 0], ["7", 0], {"20": {"class_type": "ConditioningConcat", "inputs": COMBINED}, **TWO}),
        made({"class_type": "ShowText|pysssss", "inputs": {"text": ["11", 0], "text_0": "a red barn"}},
             **{"11": {"class_type": "LanguageModel", "inputs": {"prompt": "Describe a barn."}}}),
        made({"class_type": "Text Upper", "inputs": {"text": "a barn"}}),
        made({"class_type": "Text Concatenate", "inputs": {**CONCAT, "mode": "shuffle"}}, **PARTS),
        made({"class_type": "RandomPrompt", "inputs": {"text_1": "a barn", "text_2": "a house", "seed": 3}}),
        graph(["20", 0], ["7", 0], {"20": {"class_type": "CLIPTextEncodeSDXL",
                                           "inputs": {"text_g": "a barn", "text_l": "in snow"}}}),
        graph(["20", 0], ["7", 0], {}),
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_known_is_left_out_and_said(tmp_path, nodes):
    found = restored(png_with(tmp_path / "a.png", chunk(b"tEXt", b"prompt\0" + json.dumps(nodes).encode())))
    assert (found.source, found.request["prompt"], found.request["seed"]) == ("ComfyUI", "", 5)
    assert any("prompt" in notice for notice in found.notices)


def test_several_images_of_one_graph_keep_only_what_they_share(tmp_path):
    nodes = graph(["6", 0], ["7", 0], {"8": encode("a green house")})
    second = dict(nodes["3"]["inputs"], positive=["8", 0])
    nodes["30"] = {"class_type": "KSampler", "inputs": second}
    found = restored(png_with(tmp_path / "a.png", chunk(b"tEXt", b"prompt\0" + json.dumps(nodes).encode())))
    assert (found.request["prompt"], found.request["seed"]) == ("", 5)
    assert any("prompt" in notice for notice in found.notices)


LINE = "Steps: 24, Sampler: Euler, CFG scale: 6.5, Seed: 77, Size: 512x640, Model: mymodel"
HEAD = f"a red barn\nNegative prompt: blurry\n{LINE}"


@pytest.mark.parametrize(
    "written",
    [
        f"{HEAD}\nTemplate: a {{red|blue}} barn\nNegative Template: blurry",
        f'{HEAD}, Wildcard prompt: "a __colour__ barn,\nin snow", Version: v1.4.1',
        f"{HEAD}\n\nmade with an extension",
        f'{HEAD}, Note: 5" wide\nTemplate: a barn',
    ],
)
def test_a1111_text_with_lines_after_the_settings(tmp_path, written):
    found = restored(png_with(tmp_path / "a.png", chunk(b"tEXt", b"parameters\0" + written.encode("latin-1"))))
    wanted = {"prompt": "a red barn", "negative_prompt": "blurry", "seed": 77, "steps": 24, "width": 512, "height": 640}
    assert found.source == "A1111"
    assert {key: found.request.get(key) for key in wanted} == wanted


NODES = graph(["6", 0], ["7", 0], {})


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "tags",
    [
        {0x9286: b"UNICODE\0" + json.dumps({"prompt": NODES, "workflow": {}}).encode("utf-16-be")},
        {0x9286: b"UNICODE\0" + json.dumps(NODES).encode("utf-16-le")},
        {0x9286: b"ASCII\0\0\0" + b"prompt:" + json.dumps(NODES).encode()},
        {0x9286: b"ASCII\0\0\0" + b"Workflow:{}\nPrompt:" + json.dumps(NODES).encode()},
        {0x010F: "prompt:" + json.dumps(NODES)},
        {0x0110: "Prompt: " + json.dumps(NODES), 0x010F: "Workflow: {}"},
        {0x010E: json.dumps({"prompt": json.dumps(NODES)})},
    ],
)
def test_comfyui_graphs_in_exif(tmp_path, kind, tags):
    exif = Image.Exif()
    exif[0x0131] = "a tool"  # Pillow writes no EXIF of subfolders alone into PNG
    for tag, value in tags.items():
        (exif.get_ifd(0x8769) if tag == 0x9286 else exif)[tag] = value
    Image.new("RGB", (16, 16)).save(tmp_path / "a", kind, exif=exif)
    found = restored(tmp_path / "a")
    assert (found.source, found.request["prompt"], found.request["seed"]) == ("ComfyUI", "a red barn", 5)


def test_metadata_in_a_jpeg_comment(tmp_path):
    for comment in (json.dumps({"prompt": NODES}), HEAD):
        Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", comment=comment)
        assert restored(tmp_path / "a.jpg").request["prompt"] == "a red barn"


def aliased_exif(entries: int, size: int, folder: int = 0) -> bytes:
    """A TIFF folder whose entries all point at the same bytes; `folder` 1: of the EXIF folder."""
    rows = b"".join(struct.pack("<HHII", 1 + n, 7, size, 8 + 6 + 12 * entries) for n in range(entries))
    named = b"prompt:" + b"\xff" * size
    return b"II*\0" + struct.pack("<IH", 8, entries) + rows + bytes(4) + named


JPEG_ALIASED = aliased_exif(2500, 30_000)[:65_000]
BOMB = zlib.compress(bytes(2**22))
HARM = {
    "aliased.jpg": b"\xff\xd8\xff\xe1" + struct.pack(">H", len(JPEG_ALIASED) + 8) + b"Exif\0\0" + JPEG_ALIASED,
    "aliased.png": chunk(b"eXIf", aliased_exif(60_000, 300_000)),
    "chunks.png": b"".join(chunk(b"tEXt", b"%d\0x" % n) for n in range(250_000)),
    "empty.png": chunk(b"abCd", b"") * 250_000,
    "damaged.png": (struct.pack(">I", 1) + b"tEXtx\0\0\0\0") * 250_000,
    "segments.jpg": b"\xff\xd8" + b"\xff\xfe\0\x03x" * 250_000,
    "bombs.png": b"".join(chunk(b"zTXt", b"%d\0\0" % n + BOMB) for n in range(3000)),
    "deep.png": chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b'{"a":' * 300_000)),
    "exifs.png": chunk(b"eXIf", aliased_exif(100, 30_000)) * 500,
}


@pytest.mark.parametrize("name", HARM)
def test_what_a_file_costs_to_read_has_a_limit(tmp_path, name):
    """A process of its own may use 5 seconds of processor time and 400 MB more than it needs to start."""
    path = tmp_path / name
    if name.endswith(".png"):
        png_with(path, HARM[name])
    else:
        path.write_bytes(HARM[name])
    program = """
import resource, sys
from pixart.errors import PixArtError
from pixart.pipeline.restore import restore_settings
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 400 * 2**20,) * 2)
used = resource.getrusage(resource.RUSAGE_SELF)
resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + 3,) * 2)
try:
    restore_settings(sys.argv[1])
except PixArtError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") <= 1
