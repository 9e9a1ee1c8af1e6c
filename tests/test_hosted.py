"""What runs elsewhere: the notebooks, from their first cells to their last, and the page on a Space."""

import os
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def here_and_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.slow
def test_the_notebook_runs_on_the_shipped_model(tmp_path, here_and_offline):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert "size, steps = 256, 20" in parameters.source and "PixArt-XL-2-1024-MS" in parameters.source
    parameters.source = parameters.source.replace("size, steps = 256, 20", "size, steps = 64, 4")
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 5
    text = "".join(output.get("text", "") for output in shown)
    assert "apple.png: identical, SHA-256 " in text
    assert "Traceback" not in text and "goes on without it" not in text
    assert (tmp_path / "comparison" / "index.html").is_file()
    assert list((tmp_path / "trackio").rglob("*.png")), "trackio has the images"


@pytest.mark.slow
def test_the_notebook_of_fine_tuning_runs_on_the_shipped_model(tmp_path, here_and_offline):
    notebook = nbformat.read(NOTEBOOK.with_name("finetune.ipynb"), as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert "count, size, more = 30, 256, []" in parameters.source
    parameters.source = 'count, size, more = 6, 64, ["--steps", "2", "--class-images", "2"]'
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3
    assert (tmp_path / "ink-run" / "ink-run.safetensors").is_file() and (tmp_path / "before-and-after.png").is_file()


def test_a_space_installs_the_base_and_the_page_and_nothing_else():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {*project["dependencies"], *project["optional-dependencies"]["app"]}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == wanted


@pytest.mark.parametrize("space", [None, "somebody/pixart"])
def test_app_starts_the_page(tmp_path, space):
    """In a folder and an environment without the package: app.py finds it beside itself."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "SPACE_ID")}
    environment |= {"SPACE_ID": space} if space else {}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "app.py"), "--port", str(port)]
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        address = server.stdout.readline().decode().strip()
        assert address.endswith(f":{port}/"), address or server.stderr.read().decode()
        with urllib.request.urlopen(address, timeout=600) as answer:
            assert answer.status == 200
            frames = answer.headers["content-security-policy"].split("frame-ancestors ")[1].split(";")[0]
            assert frames == ("'self' https://huggingface.co" if space else "'self'")
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=600)
