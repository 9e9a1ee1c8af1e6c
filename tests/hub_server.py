"""A small Hugging Face Hub on the loopback: the four questions that huggingface_hub asks of a model repository."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`folders` are its repositories by id; `asked` the paths that came; files in `broken` end in their middle."""

    folders: dict[str, Path]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    tokens: set[str | None] = field(default_factory=set)  # the Authorization headers that came


@contextmanager
def serve(folders: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(folders)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            if self.command == "GET":  # a HEAD looks whether a file is the one in the cache
                hub.asked.append(path)
            parts = path.strip("/").split("/")
            if parts[0] != "api" or parts[1] == "models":  # huggingface_hub also asks which programs it knows
                hub.tokens.add(self.headers.get("Authorization"))
            if parts[:2] == ["api", "models"]:
                self.tell("/".join(parts[2:4]), parts[4:])
            else:
                self.give("/".join(parts[:2]), "/".join(parts[4:]))

        def tell(self, name: str, rest: list[str]) -> None:
            if name in hub.gated:
                return self.answer(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            if name not in hub.folders:
                return self.answer(404, {"error": "no"}, {"X-Error-Code": "RepoNotFound"})
            if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
                return self.answer(404, {"error": "no"}, {"X-Error-Code": "RevisionNotFound"})
            folder = hub.folders[name]
            files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
            if rest[:1] == ["tree"]:
                tree = [
                    {"type": "file", "path": file, "size": path.stat().st_size, "oid": etag(path)}
                    for file, path in files.items()
                ]
                return self.answer(200, tree, {})
            siblings = [{"rfilename": file, "size": path.stat().st_size} for file, path in files.items()]
            self.answer(200, {"id": name, "sha": COMMIT, "siblings": siblings}, {})

        def give(self, name: str, file: str) -> None:
            path = hub.folders.get(name, Path("/nowhere")) / file
            if not path.is_file():
                return self.answer(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound"})
            body = path.read_bytes()
            self.send_response(200)
            for key, value in (("ETag", f'"{etag(path)}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", len(body))):
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if file in hub.broken else body)

        def answer(self, code: int, value: object, headers: dict[str, str]) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            for key, text in {**headers, "Content-Type": "application/json", "Content-Length": len(body)}.items():
                self.send_header(key, str(text))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
