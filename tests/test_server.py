"""`pixart serve` by the stock clients of both protocols, and as an operator sees it."""

import base64
import contextlib
import io
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image
from safetensors.numpy import save_file
from serving import Served, opened, same

import pixart
from pixart.cli import main
from pixart.pipeline.image_files import read_settings

KEYS = {"alice": "alice-has-a-long-key", "bob": "bob-has-another-long-key"}
FOLDER = Path(pixart.__file__).parent / "default_model"
LONG = {"size": "256x256", "num_inference_steps": 150}  # that nobody waits for


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """A folder with an adapter of random numbers for the shipped model, and one for another."""
    folder, rng = tmp_path_factory.mktemp("loras"), np.random.default_rng(0)
    for name, width in (("noisy", 256), ("foreign", 128)):
        layers = [f"transformer.transformer_blocks.{block}.attn1.to_v.lora" for block in range(4)]
        shapes = {"A": (4, width), "B": (width, 4)}
        tensors = {
            f"{layer}_{side}.weight": rng.normal(0, 0.3, shape).astype(np.float32)
            for layer in layers
            for side, shape in shapes.items()
        }
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def server(loras):
    made = Served("--fast", "--loras", str(loras))
    yield made
    made.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """With API keys and tight limits."""
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    file.write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    limits = ("--max-queue", "2", "--request-seconds", "2", "--body-seconds", "1", "--url-seconds", "1")
    made = Served("--api-key-file", str(file), "--log-prompts", *limits)
    yield made
    made.close()


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


@pytest.fixture
def a1111(server):
    return webuiapi.WebUIApi(host="127.0.0.1", port=server.port)


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


def in_background(function, *arguments, **fields):
    pool = ThreadPoolExecutor(1)
    return pool.submit(function, *arguments, **fields)


# OpenAI's protocol


def test_the_stock_openai_client_gets_the_images_that_pipeline_makes(client, tmp_path):
    answer = client.images.generate(
        prompt="a red apple, 3D",
        model="pixart-default",
        n=2,
        size="64x96",
        quality="high",
        extra_body={"seed": 3, "num_inference_steps": 3, "guidance_scale": 4.0, "negative_prompt": "green"},
    )
    expected = pixart.Pipeline.from_pretrained()(
        "a red apple, 3D",
        negative_prompt="green",
        seed=3,
        num_images=2,
        steps=3,
        guidance_scale=4.0,
        width=64,
        height=96,
    )
    assert [each.seed for each in answer.data] == [3, 4]
    for got, wanted in zip(answer.data, expected.images, strict=True):
        assert same(opened(got.b64_json), wanted)
    assert answer.usage.input_tokens == answer.usage.total_tokens > 3
    (tmp_path / "image.png").write_bytes(base64.b64decode(answer.data[1].b64_json))
    settings = read_settings(tmp_path / "image.png")
    assert (settings["prompt"], settings["seed"], settings["steps"]) == ("a red apple, 3D", 4, 3)


@pytest.mark.parametrize("kind, mode", [("png", "RGBA"), ("jpeg", "RGB"), ("webp", "RGBA")])
def test_output_formats_transparency_and_compression(server, kind, mode):
    fields = {"output_format": kind, "output_compression": 40}
    answer = server.generate(background="transparent" if mode == "RGBA" else "opaque", **fields)
    image = opened(answer.json()["data"][0]["b64_json"])
    assert (image.format, image.mode, image.size) == (kind.upper(), mode, (64, 64))
    assert answer.headers["x-seed"] == "1"
    assert ("output_compression" in answer.headers.get("x-ignored-fields", "")) == (kind == "png")


def test_a_url_brings_the_image_and_other_names_bring_nothing(client, server):
    fields = {"num_inference_steps": 2, "seed": 1}
    answer = client.images.generate(prompt="a fox", size="64x64", response_format="url", extra_body=fields)
    got = httpx.get(answer.data[0].url)
    assert got.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(got.content)).size == (64, 64)
    assert server.http.get(f"/v1/images/{'A' * 43}/content").status_code == 404


def test_a_stream_brings_partial_images_then_the_image(client):
    fields = {"num_inference_steps": 8, "seed": 5}
    common = {"prompt": "a red apple, 3D", "size": "64x64", "extra_body": fields}
    events = list(client.images.generate(stream=True, partial_images=3, **common))
    assert [event.type for event in events] == [*["image_generation.partial_image"] * 3, "image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]
    images = [np.asarray(opened(event.b64_json).convert("RGB"), float) for event in events]
    distances = [np.abs(image - images[-1]).mean() for image in images]
    assert distances == sorted(distances, reverse=True) and distances[2] > 0
    assert same(images[-1], opened(client.images.generate(**common).data[0].b64_json))
    assert events[-1].usage.input_tokens > 0 and events[-1].size == "64x64"


def start_and_mask() -> tuple[Image.Image, Image.Image]:
    """An image, and a mask as OpenAI has them: its left half is transparent."""
    start = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    mask = Image.new("RGBA", (64, 64), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    return start, mask


def as_png(image: Image.Image) -> tuple[str, bytes]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "image.png", file.getvalue()


def test_the_stock_openai_client_edits_an_image_as_pipeline_does(client):
    start, mask = start_and_mask()
    fields = {"seed": 3, "num_inference_steps": 4}
    common = {"prompt": "a red apple", "image": as_png(start), "size": "64x64"}
    inpainted = client.images.edit(mask=as_png(mask), extra_body=fields, **common)
    changed = client.images.edit(n=2, extra_body=fields | {"strength": 0.5}, **common)
    pipeline = pixart.Pipeline.from_pretrained()
    chosen = {"image": start, "seed": 3, "steps": 4, "width": 64, "height": 64}
    white = mask.getchannel("A").point(lambda alpha: 255 - alpha)
    assert same(opened(inpainted.data[0].b64_json), pipeline("a red apple", mask=white, **chosen).images[0])
    assert same(
        opened(changed.data[1].b64_json), pipeline("a red apple", strength=0.5, num_images=2, **chosen).images[1]
    )
    right = np.asarray(opened(inpainted.data[0].b64_json))[:, 40:]
    assert (right == np.asarray(start)[:, 40:]).all()
    events = list(client.images.edit(stream=True, partial_images=1, extra_body=fields, **common))
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_models_are_listed_and_chosen(client):
    assert [model.id for model in client.models.list()] == ["pixart-default", "pixart-default-fast"]
    assert client.models.retrieve("pixart-default-fast").object == "model"
    answer = client.images.generate(prompt="a fox", size="64x64", model="pixart-default-fast")
    assert opened(answer.data[0].b64_json).size == (64, 64)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="a fox", model="gpt-image-2")


def test_errors_arrive_as_the_client_knows_them(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a fox", size="60x64")
    assert refused.value.param == "size" and "64" in refused.value.message
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(prompt="a fox", extra_body={"num_inference_step": 3})
    assert refused.value.param == "num_inference_step" and "num_inference_steps" in refused.value.message


def test_what_the_text_encoder_cannot_read_is_named_in_the_response(server):
    assert "emoji" not in str(server.generate().json()["notices"])
    assert server.generate("word " * 300).json()["notices"]


# A1111's protocol


def test_the_stock_webuiapi_client_generates_with_all_its_fields(a1111):
    result = a1111.txt2img(prompt="a red apple, 3D", seed=7, steps=2, width=64, height=64, batch_size=2, n_iter=2)
    assert [image.size for image in result.images] == [(64, 64)] * 4
    assert result.info["all_seeds"] == [7, 8, 9, 10]
    assert result.info["sampler_name"] == "Euler a" and result.info["steps"] == 2
    assert {"hr_scale", "s_churn", "denoising_strength"} <= set(result.info["ignored"])
    wanted = pixart.Pipeline.from_pretrained()(
        "a red apple, 3D", seed=7, steps=2, width=64, height=64, sampler="euler-ancestral", guidance_scale=7.0
    )
    assert same(result.images[0], wanted.images[0])
    read = a1111.png_info(result.images[0])
    assert "Seed: 7" in read.info and result.info["infotexts"][0] == read.info


def test_webuiapi_changes_an_image_fills_a_mask_and_enlarges(a1111):
    start, mask = start_and_mask()
    white = mask.getchannel("A").point(lambda alpha: 255 - alpha)
    common = {"prompt": "a red apple", "seed": 3, "steps": 4, "width": 64, "height": 64, "sampler_name": "Euler"}
    filled = a1111.img2img(images=[start], mask_image=white, denoising_strength=1.0, cfg_scale=4.0, **common)
    turned = mask.getchannel("A")
    turned = a1111.img2img(
        images=[start], mask_image=turned, inpainting_mask_invert=1, denoising_strength=1.0, cfg_scale=4.0, **common
    )
    enlarged = a1111.txt2img(enable_hr=True, hr_scale=2, denoising_strength=0.5, cfg_scale=4.0, **common)
    pipeline = pixart.Pipeline.from_pretrained()
    chosen = {"seed": 3, "steps": 4, "width": 64, "height": 64, "guidance_scale": 4.0, "sampler": "euler"}
    wanted = pipeline("a red apple", image=start, mask=white, strength=1.0, **chosen).images[0]
    assert same(filled.image, wanted) and same(turned.image, wanted)
    assert "inpaint_full_res" in filled.info["ignored"] and "init_images" not in filled.parameters
    assert same(enlarged.image, pipeline("a red apple", upscale=2, upscale_strength=0.5, **chosen).images[0])


def test_a_front_end_finds_models_samplers_styles_and_can_choose(a1111):
    assert a1111.util_get_model_names() == ["pixart-default", "pixart-default-fast"]
    assert {"Euler", "Euler a", "DPM++ 2M"} <= set(a1111.util_get_sampler_names())
    assert "DDIM" not in a1111.util_get_sampler_names()  # this model is a flow
    assert {style["name"] for style in a1111.get_prompt_styles()} >= {"3D", "flat"}
    a1111.set_options({"sd_model_checkpoint": "pixart-default-fast"})
    assert a1111.get_options()["sd_model_checkpoint"] == "pixart-default-fast"
    result = a1111.txt2img(prompt="a fox", width=64, height=64, styles=["3D"])
    assert result.info["steps"] == 4 and "steps" in result.info["ignored"]
    a1111.set_options({"sd_model_checkpoint": "pixart-default"})
    for name in ("scripts", "memory", "sd_vae", "upscalers", "embeddings", "schedulers", "loras", "cmd_flags"):
        assert getattr(a1111, f"get_{name}")() is not None
    a1111.refresh_checkpoints()


def test_progress_shows_the_image_and_an_interrupt_ends_it(server, a1111):
    running = in_background(a1111.txt2img, prompt="a fox", steps=150, width=256, height=256)
    server.until(lambda: a1111.get_progress()["progress"] > 0)
    server.until(lambda: a1111.get_progress()["current_image"] is not None)
    seen = a1111.get_progress()
    assert 0 < seen["progress"] < 1 and seen["state"]["sampling_steps"] == 150
    assert opened(seen["current_image"]).size == (256, 256)
    a1111.interrupt()
    result = running.result(60)
    assert result.images == [] and result.info["interrupted"]
    assert a1111.get_progress()["progress"] == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_hr": True, "hr_scale": 1.5},
        {"refiner_checkpoint": "other"},
        {"tiling": True},
        {"subseed_strength": 0.5},
        {"script_name": "x/y/z plot"},
        {"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}},
        {"override_settings": {"sd_model_checkpoint": "/etc/passwd"}},
        {"override_settings": {"outdir_samples": "/tmp"}},
        {"sampler_name": "Restart"},
        {"batch_size": 4, "n_iter": 4},
        {"hires": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_of_a1111_that_are_not_offered_are_refused(server, fields):
    answer = server.http.post("/sdapi/v1/txt2img", json={"prompt": "a fox", "width": 64, "height": 64} | fields)
    assert answer.status_code in (400, 404)
    assert answer.json()["detail"] == answer.json()["error"]["message"]


def test_adapters_by_both_protocols(server, a1111, loras):
    assert [lora["name"] for lora in a1111.get_loras()] == ["noisy"]
    common = {"steps": 3, "width": 64, "height": 64, "seed": 1}
    plain = pixart.Pipeline.from_pretrained()("a red apple, 3D", **common).images[0]
    pipeline = pixart.Pipeline.from_pretrained(loras=[f"{loras}/noisy.safetensors:0.5"])
    adapted = pipeline("a red apple, 3D", **common).images[0]
    assert not same(adapted, plain)
    chosen = {"prompt": "a red apple, 3D", "sampler_name": "DPM++ 2M", "cfg_scale": 2.5, **common}
    with ThreadPoolExecutor(3) as pool:
        ours = pool.submit(server.generate, loras="noisy:0.5", num_inference_steps=3)
        without = pool.submit(server.generate, num_inference_steps=3)
        result = a1111.txt2img(**chosen | {"prompt": "a red apple, 3D<lora:noisy:0.5>"})
    assert same(result.image, adapted)
    assert same(opened(ours.result().json()["data"][0]["b64_json"]), adapted)
    assert same(opened(without.result().json()["data"][0]["b64_json"]), plain)
    assert json.loads(result.image.info["pixart"])["loras"][0]["strength"] == 0.5
    for wrong in ("nosuch", "../noisy", "noisy:99", "noisy:x", "foreign", ":", "noisy," * 9 + "noisy"):
        answer = server.generate(loras=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "loras")
    for wrong in ("<lora:nosuch:1>", "<lora:noisy:0.5:0.5>", "<lora:>"):
        body = {"prompt": f"a fox {wrong}", "width": 64, "height": 64}
        assert server.http.post("/sdapi/v1/txt2img", json=body).status_code == 400
    shutil.copy(loras / "noisy.safetensors", loras / "new.safetensors")
    server.http.post("/sdapi/v1/refresh-loras")
    assert [lora["name"] for lora in a1111.get_loras()] == ["new", "noisy"]


# The queue


def test_requests_share_passes(server):
    before = {name: server.metric(name) for name in ("pixart_denoise_steps_total", "pixart_batch_size_count")}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda seed: server.generate(seed=seed, num_inference_steps=20), range(6)))
    assert {answer.status_code for answer in answers} == {200}
    steps = server.metric("pixart_denoise_steps_total") - before["pixart_denoise_steps_total"]
    passes = server.metric("pixart_batch_size_count") - before["pixart_batch_size_count"]
    assert steps == 120 and passes < 100
    alone = server.generate(seed=4, num_inference_steps=20)
    assert same(*(opened(answer.json()["data"][0]["b64_json"]) for answer in (answers[4], alone)))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request(server, stream):
    cancelled = 'pixart_requests_cancelled_total{phase="running"}'
    before = server.metric(cancelled)
    body = json.dumps({"prompt": "a fox", "stream": stream, **LONG}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = "POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        server.until(lambda: server.metric("pixart_requests_running") == 1)
    server.until(lambda: server.metric(cancelled) == before + 1)
    assert server.metric("pixart_requests_running") == 0


def test_a_full_queue_gives_429_and_one_key_cannot_take_all_of_it(guarded):
    flood = [in_background(guarded.generate, headers=key("alice"), **LONG) for _ in range(3)]
    guarded.until(lambda: guarded.metric("pixart_requests_rejected_total", key("bob")) >= 2)
    served = guarded.generate(headers=key("bob"))
    assert served.status_code == 200
    codes = sorted(future.result().status_code for future in flood)
    assert codes == [429, 429, 504]  # the one that was taken runs into its deadline
    refused = next(future.result() for future in flood if future.result().status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"


# Keys, hosts, limits


def test_every_route_needs_a_key_but_health(guarded):
    paths = guarded.http.get("/openapi.json", headers=key("alice")).json()["paths"]
    assert len(paths) > 25
    for path, methods in paths.items():
        for method in methods:
            answer = guarded.http.request(method, path.replace("{token}", "x" * 43).replace("{name}", "x"))
            wanted = {"/livez": 200, "/readyz": 200, "/health": 200, "/v1/images/{token}/content": 404}
            assert answer.status_code == wanted.get(path, 401), path
    assert guarded.http.get("/no/such/path").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", f"Bearer {KEYS['alice']}x")],
        [("authorization", "Bearer x")],
        [("authorization", KEYS["alice"])],
        [("authorization", f"Bearer {KEYS['alice']}")] * 2,
        [("authorization", "Basic !!!")],
        [("x-api-key", KEYS["alice"])],
    ],
)
def test_what_is_no_key(guarded, headers):
    assert guarded.http.get("/v1/models", headers=headers).status_code == 401
    assert guarded.http.get(f"/v1/models?api_key={KEYS['alice']}").status_code == 401


def test_both_clients_can_give_a_key(guarded):
    client = openai.OpenAI(base_url=f"{guarded.address}/v1", api_key=KEYS["alice"])
    assert [model.id for model in client.models.list()] == ["pixart-default"]
    a1111 = webuiapi.WebUIApi(host="127.0.0.1", port=guarded.port)
    a1111.set_auth("anybody", KEYS["bob"])
    assert a1111.util_get_model_names() == ["pixart-default"]


def test_images_by_url_expire(guarded):
    url = guarded.generate(response_format="url", headers=key("bob")).json()["data"][0]["url"]
    assert KEYS["bob"] not in url
    guarded.until(lambda: httpx.get(url).status_code == 404)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"host": "LOCALHOST:1"}, 200),
    ],
)
def test_other_hosts_and_pages_are_refused(server, headers, status):
    assert server.http.get("/v1/models", headers=headers).status_code == status


def test_a_preflight_from_elsewhere_is_refused(server):
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = server.http.options("/v1/images/generations", headers=headers)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_every_limit_is_a_flag_and_shown(guarded):
    shown = guarded.http.get("/v1/limits", headers=key("alice")).json()
    assert (shown["max_queue"], shown["request_seconds"], shown["max_images"]) == (2, 2, 10)
    help_text = subprocess.run(
        [sys.executable, "-m", "pixart", "serve", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert [name for name in shown if f"--{name.replace('_', '-')} " not in help_text] == []


BEGUN = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nX-Slow: "
DONE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("before", [b"", DONE], ids=["first", "kept alive"])
@pytest.mark.parametrize("sent", [b"", BEGUN], ids=["nothing", "trickle"])
def test_a_connection_whose_headers_do_not_end_is_closed(guarded, before, sent):
    reset = contextlib.suppress(ConnectionError)
    with socket.create_connection(("127.0.0.1", guarded.port)) as connection, reset:
        connection.settimeout(0.2)
        connection.sendall(before + sent)
        for _ in range(150):
            try:
                if connection.recv(10_000) == b"":
                    return
            except TimeoutError:
                connection.sendall(sent and b"x")  # a byte now and then, as clients do that want to hold connections
        pytest.fail("the connection is still open")


def test_a_body_that_does_not_end_gets_408(guarded):
    with socket.create_connection(("127.0.0.1", guarded.port)) as connection:
        connection.settimeout(30)
        lines = ["POST /v1/images/generations HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        lines += [f"Authorization: {key('alice')['authorization']}", "Content-Length: 100", "", "{"]
        connection.sendall("\r\n".join(lines).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


# Operation


def test_prompts_are_logged_only_if_wanted_and_cannot_forge_lines(server, guarded):
    evil = 'walrus\r\n{"event": "forged"}\x1b[31m'
    server.generate(evil)
    guarded.generate(evil, headers=key("alice"))
    server.until(lambda: '"steps": 2' in server.log.splitlines()[-1])
    assert "walrus" not in server.log
    guarded.until(lambda: "walrus" in guarded.log)
    lines = [json.loads(line) for line in guarded.log.splitlines() if line.startswith("{")]
    assert any(line.get("prompt") == evil and line["key"] == "alice" for line in lines)
    assert not any(line["event"] == "forged" for line in lines if "event" in line)
    assert all(secret not in guarded.log for secret in KEYS.values())


def test_metrics_name_the_model_and_hold_nothing_of_clients(server):
    server.generate("a very particular walrus", user="walrus")
    text = server.http.get("/metrics").text
    for name in ("pixart_model_info", "pixart_queue_wait_seconds_bucket", "pixart_stage_duration_seconds_bucket"):
        assert name in text
    assert "walrus" not in text


def test_sigterm_ends_what_was_begun_and_takes_no_more():
    served = Served("--root-path", "/proxy")
    try:
        assert served.generate(response_format="url").json()["data"][0]["url"].startswith(f"{served.address}/proxy/v1/")
        running = in_background(served.generate, num_inference_steps=30, size="128x128")
        served.until(lambda: served.metric("pixart_requests_running") == 1)
        stopped = in_background(served.stop, signal.SIGTERM)
        assert running.result(60).status_code == 200
        assert stopped.result(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.address}/livez")
    finally:
        served.close()


def test_changed_weights_are_loaded_without_a_restart(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("fast*"))
    served = Served(str(folder))
    try:
        asking, answers = threading.Event(), []

        def keep_asking():
            while not asking.is_set():
                answers.append(served.generate().status_code)

        thread = threading.Thread(target=keep_asking)
        thread.start()
        (folder / "transformer" / "diffusion_pytorch_model.safetensors").touch()
        served.process.send_signal(signal.SIGHUP)
        served.until(lambda: served.log.count('"loaded: model"') == 2)
        (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
        served.process.send_signal(signal.SIGHUP)
        served.until(lambda: "not loaded" in served.log)
        asking.set()
        thread.join()
        assert served.generate().status_code == 200
        assert set(answers) == {200}
    finally:
        served.close()


def test_a_model_that_cannot_be_loaded_ends_the_server_with_one_sentence(tmp_path):
    folder = shutil.copytree(FOLDER, tmp_path / "model", ignore=shutil.ignore_patterns("fast*"))
    (folder / "denoiser.onnx").write_bytes(b"damaged")
    served = Served(str(folder), ready=False)
    try:
        assert served.process.wait(60) == 1
        assert "pixart: " in served.log.splitlines()[-1] and "Traceback" not in served.log
    finally:
        served.close()


@pytest.mark.parametrize(
    "arguments, code",
    [
        (["--host", "0.0.0.0"], 2),
        (["--api-key-file", "no-such-file"], 1),
        (["--max-queue", "0"], 2),
        (["--port", "99999"], 2),
        (["--min-replicas", "2"], 2),
        (["no/such/model"], 1),
    ],
    ids=lambda value: str(value),
)
def test_what_cannot_be_served_is_said_before_anything_is_loaded(arguments, code, capsys):
    assert main(["serve", *arguments]) == code
    assert capsys.readouterr().out == ""
