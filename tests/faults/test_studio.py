"""The studio over HTTP, as somebody who means harm would use it: a real server in a process of its own."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from studio_site import serving

from pixart import Pipeline
from pixart.pipeline.image_files import read_settings
from pixart.studio.runs import Runs

HARM = {
    "GRADIO_ALLOWED_PATHS": "/", "GRADIO_DEBUG": "true", "GRADIO_BLOCKED_PATHS": "/x", "GRADIO_ROOT_PATH": "/elsewhere",
    "GRADIO_SHARE": "true", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SSR_MODE": "true", "GRADIO_MCP_SERVER": "true",
    "GRADIO_WATCH_DIRS": "/tmp", "GRADIO_NUM_WORKERS": "3", "GRADIO_VIBE_MODE": "1", "GRADIO_TEMP_DIR": "/",
    "GRADIO_RUN_HISTORY": "true", "GRADIO_PROFILING": "1", "GRADIO_LOCAL_DEV_MODE": "1",
    "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9",
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tiny_model_with_graphs, tmp_path_factory):
    with serving(tiny_model_with_graphs, tmp_path_factory.mktemp("site"), **HARM) as site:
        yield site


@pytest.fixture(scope="module")
def run(site):
    """A finished run, as the page writes one."""
    from PIL import Image

    folder = site.outputs / "20260101-000000-a-fox"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "fox.png")
    images = [{"file": "fox.png", "seed": 1, "label": ""}, {"file": "link.png", "seed": 2, "label": ""}]
    record = {"format": 1, "name": folder.name, "created": 1.0, "prompt": "a fox", "model": "tiny", "seconds": 1.0}
    record |= {"form": {}, "images": images, "notices": [], "grid": 0}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_only_images_of_runs_are_served(site, run, tmp_path):
    out = site.outputs
    (out.parent / "secret.png").write_bytes(b"secret")
    for path in (out / "diary.txt", run / "notes.html", run / "other.png", out / ".hidden", out / "loose.png"):
        path.write_bytes(b"secret")
    (run / "more").mkdir()
    (run / "more" / "fox.png").write_bytes(b"secret")
    (run / "link.png").symlink_to(out.parent / "secret.png")
    (out / "20260101-000000-linked").symlink_to(out.parent)
    (out / "uploads").mkdir()
    (out / "uploads" / "a.png").write_bytes(b"secret")
    for prefix in ("/gradio_api/file=", "/gradio_api/file/"):
        status, body = site.ask(f"{prefix}{run}/fox.png")
        assert (status, body) == (200, (run / "fox.png").read_bytes())
        assert site.headers["content-type"] == "image/png"
    asked = [
        "/etc/hostname", "/proc/self/environ", "/proc/self/cwd/outputs/diary.txt", f"/proc/self/root{out}/diary.txt",
        "outputs/diary.txt", f"{out}/diary.txt", f"{out}/./diary.txt", f"{out}//diary.txt", f"/./{out}/diary.txt",
        f"{run}/../diary.txt", f"{run}/..%2fdiary.txt", f"{run}/%2e%2e/diary.txt", f"{run}/notes.html",
        f"{run}/other.png", f"{run}/run.json", f"{run}/more/fox.png", f"{run}/link.png", f"{out}/loose.png",
        f"{out}/.hidden", f"{out}/20260101-000000-linked/secret.png", f"{out}/../secret.png", f"{out}/uploads/a.png",
        f"{run}/../../secret.png", f"{run}/%2e%2e/%2e%2e/secret.png", f"{run}/fox.png/../../diary.txt",
        f"{run}", f"{out}", f"{run}/fox.png%00.txt", "http://127.0.0.1:1/x", "https://example.org/",
    ]  # fmt: skip
    for file in asked:
        for prefix in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/file/", "/gradio_api//file=", "//file="):
            status, body = site.ask(prefix + file)
            assert status in (400, 403, 404) and b"secret" not in body, prefix + file
    for path in (
        "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/runs", "/gradio_api/deep_link", "/monitoring",
        "/gradio_api/stream/a/b/1/playlist-file", "/gradio_api/custom_component/1/client/component/x.js",
        "/gradio_api/component_server", "/gradio_api/vibe-code/", "/gradio_api/dev/reload", "/gradio_api/openapi.json",
        "/gradio_api/profiling/traces", "/gradio_api/mcp/", "/openapi.json", "/docs", "/static/../../../etc/hostname",
    ):  # fmt: skip
        assert site.status(path) in (400, 403, 404), path


def test_uploads_are_no_files_of_the_page(site):
    status, body = site.upload(b"<script>alert(1)</script>", "a.html")
    assert status == 200
    (path,) = json.loads(body)
    assert site.status(f"/gradio_api/file={path}") == 403


def test_only_the_addresses_served_are_answered(site):
    port = site.port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "localhost:9000", "LOCALHOST"):
        assert site.status("/config", Host=host) == 200, host
    for host in ("evil.example", f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "10.0.0.1", "0.0.0.0", "",
                 f"localhost.:{port}", "evil@localhost", "localhost:x", "localhost/evil"):  # fmt: skip
        for path in ("/", "/config", "/gradio_api/queue/join"):
            assert site.status(path, Host=host) in (400, 403), host


def test_pages_of_other_addresses_are_refused(site):
    own = f"http://127.0.0.1:{site.port}"
    assert site.status("/config", Origin=own) == 200
    assert site.upload(b"x", Origin=own)[0] == 200
    for origin in ("http://evil.example", f"http://evil.example:{site.port}", "http://127.0.0.1:1", "http://127.0.0.1",
                   f"http://localhost:{site.port}", "null", "", f"{own}.evil.example", f"{own}/", "x:"):  # fmt: skip
        assert site.upload(b"x", Origin=origin)[0] == 403, origin
        for method in ("GET", "POST", "OPTIONS"):
            asked = {"Access_Control_Request_Method": "POST"} if method == "OPTIONS" else {}
            assert site.status("/gradio_api/queue/join", method, b"{}", Origin=origin, **asked) == 403
            assert "access-control-allow-origin" not in site.headers
    assert site.status("/config", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors") == 403
    assert site.status("/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate") == 200


def test_bodies_have_a_limit(site):
    join = "/gradio_api/queue/join"
    assert site.status(join, "POST", None, Content_Length=str(10**12)) == 413
    for path in (join, "/gradio_api/upload"):
        connection = socket.create_connection(("127.0.0.1", site.port), timeout=60)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nTransfer-Encoding: chunked\r\n"
        kind = "multipart/form-data; boundary=b" if path.endswith("upload") else "application/json"
        connection.sendall(f"{head}Content-Type: {kind}\r\n\r\n".encode())
        start = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        connection.sendall(b"%x\r\n%s\r\n" % (len(start), start))
        sent, piece = 0, b"100000\r\n" + bytes(2**20) + b"\r\n"
        with contextlib.suppress(OSError):
            while sent < 200 * 2**20:
                connection.sendall(piece)
                sent += 2**20
        assert sent < 200 * 2**20
        connection.close()


def test_uploads_of_one_client_have_a_limit(site):
    statuses = [site.upload(bytes(1000))[0] for _ in range(60)]
    assert 429 in statuses and statuses[-1] == 429


def test_another_address_needs_a_password(tiny_model_with_graphs, tmp_path):
    command = [sys.executable, "-m", "pixart", "app", "--model", str(tiny_model_with_graphs), "--host", "0.0.0.0"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SPACE_", "PIXART_"))}
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "") and "Traceback" not in done.stderr
    (tmp_path / "word").write_text("sésame\n")
    options = ("--host", "0.0.0.0", "--password-file", "word", "--allowed-host", "pixart.example")
    with serving(tiny_model_with_graphs, tmp_path, *options) as site:
        assert site.status("/config") == 401
        for given, status in (("sésame", 200), ("sesame", 401), ("", 401)):
            word = base64.b64encode(f"anna:{given}".encode()).decode()
            assert site.status("/config", Authorization=f"Basic {word}") == status
        good = "Basic " + base64.b64encode("anna:sésame".encode()).decode()
        assert site.status("/config", Authorization="Basic *") == 401
        named = {"Host": "pixart.example", "Authorization": good}
        assert site.status("/config", **named, Origin="https://pixart.example") == 200
        assert site.status("/config", Host="evil.example", Authorization=good) == 403
    # Nor does the relay do without one; and where there is no network, there is one sentence.
    share = [*command[:-2], "--port", "0", "--share"]
    offline = clean | {"https_proxy": "http://127.0.0.1:9"}
    for environment, code in ((clean, 2), (offline | {"PIXART_PASSWORD": "sésame"}, 1)):
        done = subprocess.run(share, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == code and "--share" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(command, env=clean | {"PIXART_PASSWORD": ""}, cwd=tmp_path, capture_output=True, timeout=120)
    assert done.returncode == 2 and b"Traceback" not in done.stderr


def test_a_space_answers_to_its_own_name_without_a_password(tiny_model_with_graphs, tmp_path):
    space = {"SPACE_ID": "somebody/pixart", "SPACE_HOST": "somebody-pixart.hf.space"}
    with serving(tiny_model_with_graphs, tmp_path, "--host", "0.0.0.0", **space) as site:
        own = "somebody-pixart.hf.space"
        assert site.status("/config", Host=own, Origin=f"https://{own}") == 200
        assert site.status("/config", Host="evil.example") == 403


def test_programs_are_answered_beside_the_page(tiny_model_with_graphs, tmp_path):
    key = {"Authorization": "Bearer a-key-of-a-program", "Content_Type": "application/json"}
    asked = json.dumps({"prompt": "a fox", "size": "64x64", "num_inference_steps": 2}).encode()
    with serving(tiny_model_with_graphs, tmp_path, "--api", PIXART_API_KEY="a-key-of-a-program") as site:
        assert site.status("/config") == 200
        assert site.status("/v1/models") == 401
        assert site.status("/v1/models", **key, Host="evil.example") == 403
        assert site.visit().press("generate", prompt="a house", **SMALL)[0]  # so that the model is loaded
        status, body = site.ask("/v1/images/generations", "POST", asked, **key)
        assert status == 200 and json.loads(body)["data"][0]["b64_json"]


SMALL = {"width": 64, "height": 64, "steps": 1, "random_seed": False}


def test_a_tokenizer_that_panics_does_not_end_the_studio(site, tiny_model_with_graphs, tmp_path):
    """Loading such a model is one sentence, and the page goes on with the model before."""
    bad = Path(shutil.copytree(tiny_model_with_graphs, tmp_path / "bad"))
    file = bad / "tokenizer" / "tokenizer.json"
    value = json.loads(file.read_text())
    value["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}
    file.write_text(json.dumps(value))
    visitor = site.visit()
    _, said = visitor.press("load", which="A folder or a hub id", source=str(bad))
    assert "goes on with" in said and "Traceback" not in said
    assert visitor.press("generate", prompt="after a panic", **SMALL)[0]


def test_two_visitors_at_once_get_the_images_that_each_gets_alone(site, tiny_model_with_graphs):
    asked = {"a red fox": {"num_images": 3, "seed": 11}, "a green house": {"num_images": 2, "seed": 400}}
    same = {"width": 64, "height": 64, "steps": 3}

    def press(prompt: str) -> bool:
        page = {"number": asked[prompt]["num_images"], "seed": asked[prompt]["seed"], "random_seed": False}
        return site.visit().press("generate", prompt=prompt, **page, **same)[0]

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(press, asked)) == [True, True]
    runs = Runs(site.outputs)
    alone = Pipeline.from_pretrained(tiny_model_with_graphs)
    for prompt, settings in asked.items():
        wanted = [one["pixels_sha256"] for one in alone(prompt, **settings, **same).settings]
        files = runs.files(runs.search(prompt)[0][0])
        assert [read_settings(file)["pixels_sha256"] for file in files] == wanted
    # What the page did not send as it should is refused, and the next click works.
    for wrong in ({"steps": "many"}, {"seed": -5}, {"width": 100}, {"prompt": "x" * 10_000_000}, {"style": "oil"}):
        success, said = site.visit().press("generate", **({"prompt": "a fox"} | SMALL | wrong))
        assert not success and "Traceback" not in said
    assert press("a red fox")


def test_a_visitor_who_leaves_stops_the_generation_and_the_next_one_has_a_turn(site):
    gone, stayed = site.visit(), site.visit()
    gone.join("generate", prompt="gone", number=100, steps=100, random_seed=False)
    with gone.listening() as messages:
        next(message for message in messages if message["msg"] == "process_generating")
    assert stayed.press("generate", prompt="stayed", **SMALL)[0]
    (kept,) = [json.loads(file.read_text()) for file in site.outputs.glob("*-stayed/run.json")]
    assert len(kept["images"]) == 1
    assert sum(len(list(folder.glob("*.png"))) for folder in site.outputs.glob("*-gone")) < 100


@pytest.mark.slow
def test_visitors_that_are_gone_hold_no_memory(site):
    def visits(number: int) -> int:
        for _ in range(number):
            assert site.visit().press("generate", prompt="a fox", **SMALL)[0]
        status = Path(f"/proc/{site.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])  # KiB

    for _ in range(110):  # as many as Gradio remembers, and more
        assert site.visit().press("search", "change", search="fox")[0]
    before = visits(10)
    assert visits(40) - before < 40 * 100  # it was 800 KiB for each
