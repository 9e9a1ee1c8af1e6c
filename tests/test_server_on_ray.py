"""`pixart serve --ray`: a real Ray on this machine, two replicas with half a CPU each, one of which is killed."""

import contextlib
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import webuiapi
from serving import Served, opened, same

import pixart

pytestmark = pytest.mark.slow
FOLDER = Path(pixart.__file__).parent / "default_model"
PROMPT = "a red apple, 3D"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("served") / "model"
    return shutil.copytree(FOLDER, target, ignore=shutil.ignore_patterns("fast*"))


@pytest.fixture(scope="module")
def server(folder):
    replicas = ("--ray", "local", "--min-replicas", "2", "--max-replicas", "2", "--cpus-per-replica", "0.5")
    made = Served(str(folder), *replicas)
    yield made
    made.close()


def replicas_of(server) -> list[int]:
    """The process ids of its replicas: Ray names a process by its deployment, which has the server's port."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (process / "cmdline").read_text()
            if name.startswith("ray::ServeReplica") and f"-{server.port}:replica" in name:
                found.append(int(process.name))
    return found


def processor_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def test_a_replica_that_dies_loses_no_request_and_a_stream_says_that_it_begins_again(server):
    client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0, timeout=300)
    replicas = replicas_of(server)
    assert len(replicas) == 2

    def stream(seed: int) -> list:
        fields = {"seed": seed, "num_inference_steps": 150}
        common = {"prompt": PROMPT, "size": "64x64", "extra_body": fields}
        return list(client.images.generate(stream=True, partial_images=3, **common))

    def ask(seed: int):
        return server.generate(PROMPT, seed=seed, num_inference_steps=100)

    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, seed) for seed in range(4)]
        answers = [pool.submit(ask, seed) for seed in range(4)]
        server.until(lambda: server.metric("pixart_time_to_first_preview_seconds_count") >= 3)
        os.kill(max(replicas, key=processor_time), signal.SIGKILL)
        streams, answers = ([each.result() for each in some] for some in (streams, answers))
    assert [answer.status_code for answer in answers] == [200] * 4
    again = [events for events in streams if events[-1].model_extra.get("restarts")]
    assert again and [events[-1].type for events in streams] == ["image_generation.completed"] * 4
    for events in again:
        assert [event.partial_image_index for event in events[-4:-1]] == [0, 1, 2]
        assert events[-1].model_extra["notices"]
    made = pixart.Pipeline.from_pretrained()(PROMPT, seed=2, steps=100, width=64, height=64).images[0]
    assert same(opened(answers[2].json()["data"][0]["b64_json"]), made)
    server.until(lambda: len(replicas_of(server)) == 2)


def test_the_application_is_the_same(server):
    a1111 = webuiapi.WebUIApi(host="127.0.0.1", port=server.port)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(a1111.txt2img, prompt="a fox", steps=150, width=256, height=256)
        server.until(lambda: a1111.get_progress()["progress"] > 0)
        a1111.interrupt()
        assert running.result().info["interrupted"]
    server.until(lambda: server.metric("pixart_requests_running") == 0)
    assert server.generate(num_inference_steps=0).status_code == 400
    assert server.generate(response_format="url").json()["data"][0]["url"]
    assert server.metric("pixart_denoise_steps_total") > 0


def test_changed_weights_are_loaded_without_a_restart_and_damaged_ones_are_not(server, folder):
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.touch()
    server.process.send_signal(signal.SIGHUP)
    server.until(lambda: server.log.count('"loaded: model"') == 2)
    weights.write_bytes(b"broken")
    server.process.send_signal(signal.SIGHUP)
    server.until(lambda: "not loaded" in server.log)
    assert {server.generate(seed=seed).status_code for seed in range(6)} == {200}


def test_it_drains_and_leaves_nothing_behind(server):
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.generate, num_inference_steps=150)
        server.until(lambda: server.metric("pixart_requests_running") == 1)
        replicas = replicas_of(server)
        assert server.stop() == 0
        assert running.result().status_code == 200
    assert not any(Path(f"/proc/{pid}").exists() for pid in replicas)
