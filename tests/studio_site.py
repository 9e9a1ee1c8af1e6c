"""The studio as a server of its own, and over HTTP what a browser does with it: for tests that need no browser."""

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path


class Site:
    """A served page. `outputs` is its outputs folder."""

    def __init__(self, port: int, outputs: Path, process):
        self.port, self.outputs, self.process = port, outputs, process
        self.config: dict = {}
        self.address = f"http://127.0.0.1:{port}/"

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str):
        """Status and body; headers by names with underscores. "Host" may be any text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        host = named.pop("Host", f"127.0.0.1:{self.port}")
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": host, **named}.items():
            connection.putheader(name, value)
        if body is not None and "Transfer-Encoding" not in named:
            connection.putheader("Content-Length", str(len(body)))
        try:
            connection.endheaders(body)
            answer = connection.getresponse()
            self.headers = answer.headers
            return answer.status, answer.read()
        finally:
            connection.close()

    def status(self, path: str, *rest, **headers) -> int:
        return self.ask(path, *rest, **headers)[0]

    def upload(self, content: bytes, name: str = "a.png", **headers: str):
        body = (
            f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
            + content
            + b"\r\n--b--\r\n"
        )
        return self.ask("/gradio_api/upload", "POST", body, Content_Type="multipart/form-data; boundary=b", **headers)

    def visit(self) -> "Visitor":
        return Visitor(self)


class Visitor:
    """One open page: it presses buttons by their elem_id, with the values of fields by theirs."""

    def __init__(self, site: Site):
        self.site, self.session = site, secrets.token_hex(5)
        site.config = site.config or json.loads(site.ask("/config")[1])
        self.config = site.config
        self.components = {one["id"]: one for one in self.config["components"]}
        self.ids = {one["props"].get("elem_id"): one["id"] for one in self.config["components"]}

    def join(self, button: str, trigger: str = "click", **values) -> None:
        """Press a button: its event stands in the queue."""
        events = [one for one in self.config["dependencies"] if [self.ids[button], trigger] in one["targets"]]
        event = next(one for one in events if one["backend_fn"])
        given = {self.ids[name.replace("_", "-")]: value for name, value in values.items()}
        data = [given.get(one, self.components[one]["props"].get("value")) for one in event["inputs"]]
        body = {"data": data, "fn_index": event["id"], "trigger_id": self.ids[button], "session_hash": self.session}
        status, answer = self.site.ask(
            "/gradio_api/queue/join", "POST", json.dumps(body).encode(), Content_Type="application/json"
        )
        assert status == 200, answer

    @contextlib.contextmanager
    def listening(self):
        """The messages of the session, one at a time; leaving the block is closing the page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.site.port, timeout=120)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={self.session}")
        answer = connection.getresponse()
        try:
            yield (json.loads(line[6:]) for line in iter(answer.readline, b"") if line.startswith(b"data: "))
        finally:
            answer.close()
            connection.close()

    def press(self, button: str, trigger: str = "click", **values) -> tuple[bool, str]:
        """Whether it succeeded, and all that the page was sent, as JSON."""
        self.join(button, trigger, **values)
        with self.listening() as messages:
            seen = []
            for message in messages:
                seen.append(message)
                if message["msg"] == "process_completed":
                    return message["success"], json.dumps(seen, ensure_ascii=False)
        raise AssertionError(f"the event did not end: {seen}")


@contextlib.contextmanager
def serving(model, folder: Path, *options: str, **environment: str):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "pixart", "app", "--port", str(port), "--model", str(model), *options]
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("GRADIO_", "SPACE_", "PIXART_"))}
    process = subprocess.Popen(
        command, cwd=folder, env=clean | own | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        address = process.stdout.readline().strip()
        assert address.endswith(f":{port}/"), address + process.stderr.read()
        yield Site(port, folder / "outputs", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
