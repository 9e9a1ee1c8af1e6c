"""What people install: a wheel, in another folder, with no network, and nothing of the source tree beside it."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CUT_OFF = (
    "import socket\n\n\ndef refuse(*args, **kwargs):\n    raise SystemExit('no network, please')\n\n\n"
    "socket.socket.connect = refuse\nsocket.getaddrinfo = refuse\n"
)


@pytest.mark.slow
def test_a_wheel_installs_and_generates_from_another_folder_without_a_network(tmp_path):
    tree, wheels, site = tmp_path / "tree", tmp_path / "wheels", tmp_path / "site"
    # What git knows and nothing else: a build/ folder of before must not get into the wheel.
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in (Path(os.fsdecode(entry)) for entry in listed if entry):
        if (ROOT / name).is_file() and name.parts[0] not in ("docs", "tests", "benchmarks"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(ROOT / name, tree / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(tree)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # what an installer does with a wheel of pure Python
        assert "NOTICE" in {Path(name).name for name in archive.namelist()}
    (site / "sitecustomize.py").write_text(CUT_OFF)
    (tmp_path / "elsewhere").mkdir()
    script = (
        "import sys\nimport pixart\nfrom pixart.cli import main\n"
        "assert pixart.__file__.startswith(sys.argv[1]), pixart.__file__\n"
        "small = ['--width', '64', '--height', '64', '--steps', '2']\n"
        "sys.exit(main(['generate', 'a red apple, 3D', '--seed', '7', *small]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(site)],
        capture_output=True,
        text=True,
        cwd=tmp_path / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "a-red-apple-3d-7.png\n"
    assert (tmp_path / "elsewhere" / "a-red-apple-3d-7.png").is_file()
