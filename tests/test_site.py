"""The documents as a site, built strictly: every link, anchor, page of the menu and documented name exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_site_builds_with_a_reference_of_every_command_and_of_the_public_names(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    from pixart.cli import HELP

    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = (tmp_path / "reference" / "commands" / "index.html").read_text()
    listed = set(re.findall(r"^  ([a-z]+) ", HELP, re.M)) - {"data"}
    assert listed <= set(re.findall(r'id="pixart-([a-z]+)"', commands))
    assert 'id="pixart-data-extract"' in commands and "--guidance-scale" in commands
    python = (tmp_path / "reference" / "python" / "index.html").read_text()
    assert 'id="pixart.pipeline.pipeline.Pipeline.from_pretrained"' in python
