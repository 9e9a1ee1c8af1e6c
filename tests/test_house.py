"""Layers, style, and documents that name only what exists."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "pixart"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    PACKAGE / "default_model" / "README.md",
    ROOT / "projects" / "emoji" / "README.md",
]


def test_the_layers_hold():
    code = "import sys; sys.path.insert(0, 'src'); from importlinter.cli import lint_imports as lint"
    words = [sys.executable, "-c", f"{code}; sys.exit(lint(no_cache=True))"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_module_imports_where_there_is_no_posix():
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules.update(fcntl=None, resource=None)\n"  # importing either raises ImportError
        "import pixart\n"
        "for module in pkgutil.walk_packages(pixart.__path__, 'pixart.'):\n"
        "    if module.name != 'pixart.__main__':\n"
        "        importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_folder_of_the_package_has_its_layer():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    named = {name.strip() for layer in contract["layers"] for name in re.split("[|:]", layer)}
    folders = {f"pixart.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= named


def test_ruff_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_link_to_what_exists_and_have_no_open_fields(document):
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []
    named = re.findall(r"`((?:src|tests|docs|benchmarks|projects)/[\w./-]+)`", text)
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert re.findall(r"@@\w+@@", text) == []


def commands() -> list[str]:
    """Every `pixart ...` or `python projects/emoji/make.py ...` in the shell blocks, without the way to the program."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf-8"), re.S):
            for line in block.replace("\\\n", " ").splitlines():  # a command may go over several lines
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    if words and words[0] in ("pixart", ".venv/bin/pixart"):
                        found.append(shlex.join(words[1:]))
                    if words[:2] == ["python", "projects/emoji/make.py"]:
                        found.append(shlex.join(words[1:]))
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_documents_are_understood(command, tmp_path, monkeypatch, capsys):
    import tyro
    from tyro.conf import FlagCreatePairsOff, PositionalRequiredArgs

    from make import main as make
    from pixart.cli import main
    from pixart.commands.generate import Generate

    monkeypatch.chdir(tmp_path)
    (tmp_path / "projects").symlink_to(ROOT / "projects")
    config = (PositionalRequiredArgs, FlagCreatePairsOff)
    match shlex.split(command):
        case ["generate", *rest]:
            options = tyro.cli(Generate, args=rest, config=config)
            assert options.prompt or options.prompts or options.memory.text_states
        case ["projects/emoji/make.py", *words]:
            assert make([*words, "--help"]) == 0
            shown = capsys.readouterr().out
            assert [word for word in words if word.startswith("--") and word.split("=")[0] not in shown] == []
        case ["train", "mine.toml", *_]:
            pass  # a file that the page shows
        case ["train", *rest]:
            assert main(["train", *rest, "--dry-run"]) == 0
            assert '"phases"' in capsys.readouterr().out
        case words:
            # Not run, since it may take its time; but its help must know it and each of its options.
            assert main([*words, "--help"]) == 0
            shown = capsys.readouterr().out
            assert [word for word in words if word.startswith("--") and word.split("=")[0] not in shown] == []


def test_ci_runs_the_two_command_lines_of_the_readme():
    done = subprocess.run(["bash", ".ci/run", "--print"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt . && "
        '.venv/bin/pixart generate "a red apple, 3D"',
        ".venv/bin/pip install -c constraints.txt '.[test]' && .venv/bin/pytest",
    ]


def test_every_requirement_is_pinned_to_a_plain_version_that_it_allows():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            # No local build such as +cpu, which an index may not have; a beta is all that some packages offer.
            assert re.fullmatch(r"[\d.]+(b\d+)?", version), line
            pins[canonicalize_name(name)] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    # An extra may name others of our own: pixart[torch].
    others = [requirement for requirement in map(Requirement, wanted) if requirement.name != "pixart"]
    for requirement in others:
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_notice_names_every_source_of_the_shipped_model():
    from emojis.icon_sets import NAMES_PACKAGE, STYLES

    notice = (ROOT / "NOTICE").read_text()
    for name in (*STYLES.values(), NAMES_PACKAGE, "all-MiniLM-L6-v2", "creativecommons.org/licenses/by/4.0"):
        assert name in notice
    assert "Apache License" in (ROOT / "LICENSE").read_text()
