"""What mkdocs.yml asks of us: the reference of the commands from their own --help, and links that leave docs/."""

import contextlib
import io
import os
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def on_page_markdown(markdown, page, config, files):
    """A link to a file of the repository outside docs/ becomes its path, or a link into `repo_url`, if that is set."""
    if page.file.src_uri == "reference/commands.md":
        return f"{markdown}\n{commands()}"
    folder = (Path(config.docs_dir) / page.file.src_uri).parent

    def resolve(link: re.Match) -> str:
        path = Path(os.path.normpath(folder / link["path"]))
        if path.is_relative_to(config.docs_dir) or not path.is_relative_to(ROOT) or not path.exists():
            return link[0]  # mkdocs itself checks it
        name = path.relative_to(ROOT).as_posix()
        return f"[{link['text']}]({config.repo_url}/blob/main/{name})" if config.repo_url else f"`{name}`"

    return re.sub(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<path>[^):#]+)(#[^)]*)?\)", resolve, markdown)


def commands() -> str:
    """The help of every command that `pixart --help` and `pixart data --help` list."""
    from pixart.cli import DATA_HELP, HELP

    listed = re.findall(r"^  ([a-z]+) ", HELP, re.M)
    listed = [[name] for name in listed if name != "data"]
    listed += [["data", name] for name in re.findall(r"^  ([a-z]+) ", DATA_HELP, re.M)]
    return "\n".join([block([]), *(f"## pixart {' '.join(words)}\n\n{block(words)}" for words in listed)])


def block(words: list[str]) -> str:
    from pixart.cli import main

    os.environ["COLUMNS"] = "100"
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        if main([*words, "--help"]) != 0:
            raise RuntimeError(f"pixart {' '.join(words)} --help failed")
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown.getvalue())
    return f"```text\n{plain.strip()}\n```\n"
