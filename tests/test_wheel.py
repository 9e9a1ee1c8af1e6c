"""What people install: a wheel made of the sdist, in another folder, and nothing of the source tree beside it."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CUT_OFF = (
    "import socket\n\n\ndef refuse(*args, **kwargs):\n    raise SystemExit('no network, please')\n\n\n"
    "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
)
SMALL = ["generate", "a red apple, 3D", "--seed", "7", "--width", "64", "--height", "64", "--steps", "2"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist, and the wheel that was made of it."""
    tree, built = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("built")
    # What git knows and nothing else: a build/ folder of before must not get into the wheel.
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in (Path(os.fsdecode(entry)) for entry in listed if entry):
        if (ROOT / name).is_file() and name.parts[0] not in ("docs", "tests", "benchmarks"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(ROOT / name, tree / name)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(tree)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return built


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


@pytest.mark.slow
def test_an_index_would_take_wheel_and_sdist(built):
    files = [str(path) for path in built.iterdir()]
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(only(built, "*.whl")) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assert {"pixart/py.typed", "pixart/default_model/model_index.json"} <= set(names)
    assert {"NOTICE", "LICENSE"} <= {Path(name).name for name in names}
    assert not [name for name in names if name.split("/")[0] in ("tests", "docs", "projects")]
    assert "Classifier: Programming Language :: Python :: 3.13" in metadata and "Project-URL: " in metadata
    with tarfile.open(only(built, "*.tar.gz")) as archive:
        assert {"pyproject.toml", "README.md", "NOTICE"} <= {Path(name).name for name in archive.getnames()}


@pytest.mark.slow
def test_a_wheel_generates_from_another_folder_without_a_network(built, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(only(built, "*.whl")) as archive:
        archive.extractall(site)  # what an installer does with a wheel of pure Python
    (site / "sitecustomize.py").write_text(CUT_OFF)
    (tmp_path / "elsewhere").mkdir()
    script = (
        "import sys\nimport pixart\nfrom pixart.cli import main\n"
        "assert pixart.__file__.startswith(sys.argv[1]), pixart.__file__\n"
        "sys.exit(main(sys.argv[2:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(site), *SMALL],
        capture_output=True,
        text=True,
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a-red-apple-3d-7.png\n"
    assert (tmp_path / "elsewhere" / "a-red-apple-3d-7.png").is_file()


def interpreter(version: str) -> str | None:
    """A Python of this version on the PATH, or among those of pyenv."""
    for command in (f"python{version}", *sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))):
        try:
            done = subprocess.run([command, "--version"], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if done.returncode == 0 and done.stdout.startswith(f"Python {version}."):
            return str(command)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_other_versions_of_python_install_the_wheel_and_generate(built, tmp_path, version):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run([python, "-m", "venv", str(tmp_path / "venv")], check=True, env=environment)
    pip = [str(tmp_path / "venv" / "bin" / "pip"), "install", "-q", "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run([*pip, str(only(built, "*.whl"))], capture_output=True, text=True, env=environment)
    if "NewConnectionError" in done.stderr or "Temporary failure in name resolution" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    command = [str(tmp_path / "venv" / "bin" / "pixart"), *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (0, "a-red-apple-3d-7.png\n"), done.stderr
