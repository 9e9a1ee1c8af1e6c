"""`pixart serve` as its own process, for tests: real requests over loopback."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

WAIT = 300


class Served:
    """A running server; `log` is what it wrote to stderr so far."""

    def __init__(self, *arguments: str, ready: bool = True, **environment: str):
        self.stderr = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pixart", "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
            env=os.environ | environment,
        )
        self.address = self.process.stdout.readline().strip()
        self.port = int(self.address.rpartition(":")[2] or 0)
        self.http = httpx.Client(base_url=self.address, timeout=WAIT, trust_env=False)
        try:
            if ready:
                assert self.address, self.log
                self.until(lambda: self.http.get("/readyz").status_code == 200)
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> str:
        return Path(self.stderr.name).read_text(errors="replace")

    def generate(self, prompt="a red apple, 3D", **fields) -> httpx.Response:
        headers = fields.pop("headers", {})
        body = {"prompt": prompt, "size": "64x64", "num_inference_steps": 2, "seed": 1} | fields
        return self.http.post("/v1/images/generations", json=body, headers=headers)

    def metric(self, name: str, headers=None) -> float:
        """The sum of a metric over its labels, or of one with labels: `name{a="b"}`."""
        text = self.http.get("/metrics", headers=headers).text
        pattern = "^" + re.escape(name) + ("" if "{" in name else r"(?:\{.*\})?") + r" (\S+)$"
        return sum(float(value) for value in re.findall(pattern, text, re.M))

    def until(self, holds) -> None:
        ends = time.monotonic() + WAIT
        while not holds():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < ends, self.log
            time.sleep(0.05)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT)

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.stderr.close()


def opened(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def same(one, other) -> bool:
    """To 45 dB: images of one batch are equal to rounding."""
    error = np.asarray(one, float) - np.asarray(other, float)
    return error.shape == np.asarray(other).shape and bool((error**2).mean() < 255**2 / 10**4.5)
