"""What a client can send that is wrong: always 4xx with the field, the limit and the nearest value; never 5xx, a hang.

The numbers are those of the list of bad inputs that the server was built against.
"""

import base64
import contextlib
import gzip
import io
import json
import socket
import time

import httpx
import pytest
from PIL import Image
from serving import Served

GENERATE, TXT2IMG = "/v1/images/generations", "/sdapi/v1/txt2img"
QUICK = {GENERATE: {"size": "64x64", "num_inference_steps": 1}, TXT2IMG: {"width": 64, "height": 64, "steps": 1}}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server():
    made = Served("--max-work", "50")
    yield made
    assert made.generate().status_code == 200
    assert "Traceback" not in made.log and '"status": 5' not in made.log
    made.close()


def raw(server, body: bytes, path=GENERATE, headers=JSON):
    return server.http.post(path, content=body, headers=headers)


def refused(answer, param: str | None = None, *words: str, status: int = 400) -> None:
    """A proper refusal, which names the field and holds the words: the limit, the nearest value."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) < 2000
    assert error["param"] == param
    assert [word for word in words if word not in error["message"]] == []


BODIES = {
    "1 empty": b"",
    "2 invalid": b'{"prompt": "a fox"',
    "2 invalid number": b'{"prompt": "a fox", "n": 01}',
    "3 array": b'["a fox"]',
    "3 number": b"1",
    "3 null": b"null",
    "3 text": b'"a fox"',
    "4 deep": b"[" * 500_000 + b"]" * 500_000,
    "4 deep value": b'{"prompt": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "5 double keys": b'{"prompt": "a fox", "prompt": "a dog"}',
    "11 no UTF-8": b'{"prompt": "\xff\xfe"}',
    "11 BOM": b'\xef\xbb\xbf{"prompt": "a fox"}',
    "11 UTF-16": '{"prompt": "a fox"}'.encode("utf-16"),
    "11 surrogate": b'{"prompt": "\\ud800"}',
    "21 NaN": b'{"prompt": "a fox", "guidance_scale": NaN}',
    "25 infinite": b'{"prompt": "a fox", "guidance_scale": Infinity}',
    "25 too large a float": b'{"prompt": "a fox", "guidance_scale": 1e400}',
    "26 huge": b'{"prompt": "a fox", "seed": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", [GENERATE, TXT2IMG])
def test_a_body_that_is_no_object(server, path, name):
    assert raw(server, BODIES[name], path).status_code == 400


def test_6_large_bodies(server):
    refused(raw(server, b" " * 2_000_000), None, status=413)
    refused(server.http.post(TXT2IMG, content=iter([b" " * 500_000] * 10), headers=JSON), None, status=413)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(30)
        connection.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {},
        {**JSON, "content-encoding": "gzip"},
        {**JSON, "content-encoding": "br"},
    ],
)
def test_7_content_types_and_encodings(server, headers):
    body = b'{"prompt": "a fox"}'
    refused(raw(server, gzip.compress(body) if "gzip" in str(headers) else body, headers=headers), None, status=415)


# Field, value, the name of the field in the error, and words that the error holds. Of OpenAI's protocol.
FIELDS = [
    ("8", "prompt", None, "prompt"),
    ("8", "prompt", 5, "prompt"),
    ("8", "prompt", ["a fox"], "prompt"),
    ("8", "prompt", "x" * 20_001, "prompt", "20,000"),
    ("21", "size", 1024, "size"),
    ("21", "size", "0x64", "size"),
    ("21", "size", "1x64", "size", "nearest is 64"),
    ("21", "size", "513x512", "size", "nearest is 512"),
    ("21", "size", "99999x64", "size", "65535"),
    ("21", "size", "2147483648x64", "size"),
    ("22", "size", "1024", "size"),
    ("22", "size", "1024x", "size"),
    ("22", "size", "x", "size"),
    ("22", "size", "64\u00d764", "size"),
    ("22", "size", "64X64", "size"),
    ("22", "size", " 64x64", "size"),
    ("22", "size", "64x64\n", "size"),
    ("22", "size", "-1x5", "size"),
    ("22", "size", "\u0661\u0662\u0668x64", "size"),
    ("23", "size", "64x8192", "size", "nearest is 1024"),
    ("24", "num_inference_steps", 0, "num_inference_steps", "nearest is 1"),
    ("24", "num_inference_steps", -1, "num_inference_steps", "nearest is 1"),
    ("24", "num_inference_steps", 10**9, "num_inference_steps", "nearest is 150"),
    ("24", "num_inference_steps", 1.5, "num_inference_steps"),
    ("24", "num_inference_steps", "4", "num_inference_steps"),
    ("25", "guidance_scale", -5, "guidance_scale", "nearest is 0"),
    ("25", "guidance_scale", 1e38, "guidance_scale", "nearest is 50"),
    ("25", "guidance_scale", "high", "guidance_scale"),
    ("26", "seed", -1, "seed", "nearest is 0"),
    ("26", "seed", 2**64, "seed"),
    ("26", "seed", "abc", "seed"),
    ("26", "seed", True, "seed"),
    ("26", "seed", 1.5, "seed"),
    ("27", "n", 0, "n", "nearest is 1"),
    ("27", "n", -1, "n", "nearest is 1"),
    ("27", "n", 11, "n", "nearest is 10"),
    ("27", "n", 10**6, "n", "nearest is 10"),
    ("27", "n", True, "n"),
    ("30", "sampler", "nosuch", "sampler", "dpm-solver"),
    ("30", "sampler", "__class__", "sampler"),
    ("30", "style", "nosuch", "style", "glossy"),
    ("30", "style", "__class__", "style"),
    ("31", "response_format", "file", "response_format", "b64_json", "nearest is url"),
    ("31", "output_format", "svg", "output_format", "webp"),
    ("31", "output_compression", 101, "output_compression", "nearest is 100"),
    ("31", "svg", {"model": "x"}, "svg"),
    ("32", "partial_images", 4, "partial_images", "nearest is 3"),
    ("33", "num_inference_step", 5, "num_inference_step", "num_inference_steps"),
    ("33", "__proto__", {}, "__proto__"),
    ("34", "user", "u" * 100_000, "user", "512"),
]


@pytest.mark.parametrize("case", FIELDS, ids=lambda case: f"{case[0]}-{case[1]}-{str(case[2])[:12]}")
def test_a_wrong_field_is_named_with_its_limit_and_the_nearest_value(server, case):
    _, field, value, param, *words = case
    refused(raw(server, json.dumps({"prompt": "a fox"} | QUICK[GENERATE] | {field: value}).encode()), param, *words)


@pytest.mark.parametrize(
    "field, value",
    [
        ("prompt", 5),
        ("width", 513),
        ("width", 0),
        ("width", 1),
        ("width", -8),
        ("width", 2**31),
        ("width", True),
        ("height", "64"),
        ("height", 64.5),
        ("steps", 10**9),
        ("cfg_scale", -1),
        ("seed", -2),
        ("batch_size", 11),
        ("sampler_name", "nosuch"),
        ("scheduler", "nosuch"),
        ("styles", ["__class__"]),
        ("styles", ["3D", "flat"]),
        ("prompts", "x"),
    ],
)
def test_wrong_fields_of_the_other_protocol(server, field, value):
    answer = server.http.post(TXT2IMG, json={"prompt": "a fox"} | QUICK[TXT2IMG] | {field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(field)


def test_28_legal_fields_whose_product_is_too_large(server):
    refused(server.generate(n=10, size="1024x1024", num_inference_steps=100), "n", "limit is 50", "one image with 47")
    refused(server.generate(n=10, size="512x512", num_inference_steps=20), "n", "9 images")


@pytest.mark.parametrize("model", ["nosuch", "../../etc/passwd", "http://127.0.0.1/x", "m" * 300, ""])
def test_29_unknown_models(server, model):
    refused(server.generate(model=model), "model", "pixart-default", status=404)


def test_32_a_stream_of_several_images(server):
    refused(server.generate(stream=True, n=10), "n")
    refused(server.generate(partial_images=2), "partial_images")
    refused(server.generate(stream=True, response_format="url"), "response_format")
    refused(server.generate(background="transparent", output_format="jpeg"), "output_format")


PROMPTS = {
    "9 empty": "",
    "9 blank": " \t\n",
    "10 control characters": "a\0 fox\a \x1b[2J\r\nX-Evil: 1",
    "12 marks": "\u202efox\u200d" + "z\u0351" * 500 + "\U0001f98a" * 3000,
    "13 composed": "un caf\u00e9",
    "14 HTML": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "15 settings": "a fox\nNegative prompt: x\nSteps: 9, Sampler: Euler, CFG scale: 7, Seed: 5",
    "16 options": "a fox --ar 0:0 --hw -1:99999 --ar 1:1e309",
    "17 holes": "{prompt} {0.__class__} {} %s ${x}",
    "18 long runs": "." * 9_000 + "<" * 9_000,
    "19 entities": "&amp;" * 3000 + "<a <b </",
    "20 tokens": "<extra_id_0> </s> [SEP] [PAD] [MASK]",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_that_are_unusual_but_legal(server, name):
    began = time.monotonic()
    answer = server.generate(PROMPTS[name], num_inference_steps=1)
    assert answer.status_code == 200 and time.monotonic() - began < 30
    assert "x-evil" not in answer.headers
    image = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    assert json.loads(image.info["pixart"])["prompt"] == PROMPTS[name]


def test_34_many_and_large_headers(server):
    assert server.http.get("/livez", headers={f"x-{number}": "y" for number in range(1000)}).status_code == 200
    for headers in ([("x-large", "x" * 100_000)], [(f"x-{number}", "y" * 20) for number in range(5000)]):
        with contextlib.suppress(httpx.TransportError):  # closed while they were being sent
            assert 400 <= server.http.get("/livez", headers=headers).status_code < 500


@pytest.mark.parametrize(
    "path",
    [
        "/v1/images/..%2f..%2fetc%2fpasswd/content",
        "/v1/images/%00/content",
        "/v1/images/....//....//content",
        "/v1/images/C:%5cCON.png/content",
        "/v1/models/..%2f..%2f..%2fetc%2fpasswd",
        "/docs",
        "/static/../../etc/passwd",
        "//etc/passwd",
        "/v1/images/generations/",
    ],
)
def test_35_paths(server, path):
    assert server.http.get(path).status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_other_methods(server, method):
    assert server.http.request(method, GENERATE).status_code in (404, 405)


@pytest.mark.parametrize(
    "image",
    [
        "",
        "data:image/png;base64,",
        "data:image/png,x",
        "file:///etc/passwd",
        "http://169.254.169.254/",
        "http://127.1/",
        "/etc/passwd",
        "aGVs bG8=",
        "====",
        base64.b64encode(b"no image").decode(),
        "data:image/png;base64," + base64.b64encode(b"GIF89a").decode(),
        5,
        None,
    ],
)
def test_38_39_images_that_are_none(server, image):
    refused(server.http.post("/sdapi/v1/png-info", json={"image": image}), "image")


def as_file(image: Image.Image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PNG = as_file(Image.new("RGB", (64, 64), "red"))
BOMB = PNG[:16] + (65_535).to_bytes(4, "big") * 2 + PNG[24:]
BAD_IMAGES = {
    "empty": b"",
    "text": b"no image",
    "cut": PNG[: len(PNG) // 2],
    "bomb": BOMB,
    "GIF": as_file(Image.new("RGB", (8, 8)), "GIF"),
    "TIFF": as_file(Image.new("RGB", (8, 8)), "TIFF"),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "damaged": PNG[:60] + b"\0" * 20 + PNG[80:],
}


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("field", ["image", "mask"])
def test_39_files_that_are_no_image(server, name, field):
    files = {"image": ("a.png", PNG), "mask": ("b.png", PNG)} | {field: ("c.png", BAD_IMAGES[name], "image/png")}
    answer = server.http.post("/v1/images/edits", data={"prompt": "a fox"}, files=files)
    refused(answer, field)
    body = {"prompt": "a fox", "init_images": [base64.b64encode(PNG).decode()]}
    encoded = base64.b64encode(BAD_IMAGES[name]).decode()
    body |= {"init_images": [encoded]} if field == "image" else {"mask": encoded}
    refused(server.http.post("/sdapi/v1/img2img", json=body), "init_images" if field == "image" else "mask")


@pytest.mark.parametrize(
    "fields, files, param",
    [
        ({}, {"image": PNG}, "prompt"),
        ({"prompt": "a fox"}, {}, None),
        ({"prompt": "a fox"}, {"mask": PNG}, "image"),
        ({"prompt": "a fox"}, {"image": PNG, "picture": PNG}, "picture"),
        ({"prompt": "a fox", "n": "11"}, {"image": PNG}, "n"),
        ({"prompt": "a fox", "n": "two"}, {"image": PNG}, "n"),
        ({"prompt": "a fox", "strength": "0"}, {"image": PNG}, "strength"),
        ({"prompt": "a fox", "strength": "1.5"}, {"image": PNG}, "strength"),
        ({"prompt": "a fox", "image": "http://169.254.169.254/"}, {"mask": PNG}, "image"),
        ({"prompt": "a fox", "nosuch": "1"}, {"image": PNG}, "nosuch"),
        ({"prompt": ["a fox", "a dog"]}, {"image": PNG}, "image"),
    ],
)
def test_wrong_forms(server, fields, files, param):
    files = {name: (f"{name}.png", data) for name, data in files.items()}
    answer = server.http.post("/v1/images/edits", data=fields, files=files)
    refused(answer, param, status=400 if files else 415)


@pytest.mark.parametrize(
    "mode, kind", [("I;16", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("RGBA", "WEBP")]
)
def test_44_unusual_images_are_read(server, mode, kind):
    image = as_file(Image.new("L", (40, 90), 128).convert(mode), kind)
    files = {"image": ("a", image)}
    fields = {"prompt": "a fox", "size": "64x64", "num_inference_steps": "2"}
    assert server.http.post("/v1/images/edits", data=fields, files=files).status_code == 200


def test_an_error_does_not_repeat_a_long_input(server):
    answer = server.generate(**{"x" * 100_000: 1})
    assert answer.status_code == 400 and len(answer.content) < 5000


@pytest.mark.slow
def test_nothing_that_the_document_allows_or_forbids_is_a_server_error(server):
    """schemathesis makes requests from the OpenAPI document, right and wrong ones."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    seen = 0

    def send(case):
        nonlocal seen
        seen += 1
        if isinstance(case.body, dict):  # small enough to wait for
            case.body = QUICK.get(case.operation.path, {}) | case.body
        case.call_and_validate(checks=[schemathesis.checks.not_a_server_error], timeout=120)

    for result in schema.get_all_operations():
        operation = result.ok()
        examples = 150 if operation.path in QUICK else 15
        options = {"suppress_health_check": list(HealthCheck), "phases": [Phase.generate], "deadline": None}
        settings(max_examples=examples, **options)(given(case=operation.as_strategy())(send))()
    assert seen > 300
