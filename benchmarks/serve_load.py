"""Load on `pixart serve`, beside stock Diffusers behind FastAPI with a lock, in one run on this machine over loopback.

    python benchmarks/serve_load.py --seconds 20

Closed loop: so many clients, each sends its next request when the last one is answered. Open loop: requests arrive at
random (Poisson) at a multiple of the capacity that the closed loop found, whether or not the server keeps up. Short
behind long: how long a request of 4 steps takes while others of 50 are always there. Memory: of the server's process,
before, amid and after so many requests. Prints the tables of docs/benchmarks.md, and with --json FILE writes what they
are made of. The queue of `pixart serve` is short (--serve), so that at 3 times the capacity it is full in time. On a
GPU, both servers use it in bfloat16: --size 512 --serve "--max-queue 16 --device cuda --dtype bfloat16".
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

PROMPT = "a red apple, 3D"


@dataclass
class Load:
    """The outcome of one load: seconds of the answers by status, and how long it went on."""

    seconds: float = 0.0
    answers: dict[int, list[float]] = field(default_factory=dict)
    live: list[float] = field(default_factory=list)  # of /livez meanwhile

    def add(self, status: int, seconds: float) -> None:
        self.answers.setdefault(status, []).append(seconds)

    @property
    def throughput(self) -> float:
        return len(self.answers.get(200, ())) / self.seconds

    def percentile(self, share: float, status: int = 200) -> float:
        return percentile(self.answers.get(status, []), share)

    @property
    def failures(self) -> int:
        return sum(len(times) for status, times in self.answers.items() if status >= 500 or status == 0)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Server:
    """A server in a process of its own."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.address = self.process.stdout.readline().strip()
        while httpx.get(f"{self.address}/readyz", timeout=120, trust_env=False).status_code != 200:
            time.sleep(0.2)

    @property
    def resident(self) -> int:
        """Bytes of memory that the process holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


async def send(client: httpx.AsyncClient, load: Load, steps: int, size: int) -> None:
    body = {"prompt": PROMPT, "size": f"{size}x{size}", "num_inference_steps": steps, "seed": random.randrange(10**6)}
    began = time.perf_counter()
    try:
        status = (await client.post("/v1/images/generations", json=body)).status_code
    except httpx.HTTPError:
        status = 0
    load.add(status, time.perf_counter() - began)


def connection(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=2000)
    return httpx.AsyncClient(base_url=server.address, timeout=600, limits=limits, trust_env=False)


async def closed_loop(server: Server, clients: int, seconds: float, steps: int, size: int) -> Load:
    load, began = Load(), time.perf_counter()
    async with connection(server) as client:

        async def one() -> None:
            while time.perf_counter() - began < seconds:
                await send(client, load, steps, size)

        await asyncio.gather(*[one() for _ in range(clients)])
    load.seconds = time.perf_counter() - began
    return load


async def open_loop(server: Server, rate: float, seconds: float, steps: int, size: int) -> Load:
    load, began, tasks = Load(), time.perf_counter(), []
    async with connection(server) as client, connection(server) as watch:
        stop = asyncio.Event()

        async def livez() -> None:
            while not stop.is_set():
                at = time.perf_counter()
                await watch.get("/livez")
                load.live.append(time.perf_counter() - at)
                await asyncio.sleep(0.1)

        watching = asyncio.create_task(livez())
        while time.perf_counter() - began < seconds:
            tasks.append(asyncio.create_task(send(client, load, steps, size)))
            await asyncio.sleep(random.expovariate(rate))
        await asyncio.gather(*tasks)
        stop.set()
        await watching
    load.seconds = time.perf_counter() - began
    return load


async def short_behind_long(server: Server, clients: int, seconds: float, size: int) -> Load:
    """Of 4 steps, one after another, while so many clients keep the server busy with 50."""
    short, long, began = Load(), Load(), time.perf_counter()
    async with connection(server) as client:

        async def busy() -> None:
            while time.perf_counter() - began < seconds:
                await send(client, long, 50, size)

        tasks = [asyncio.create_task(busy()) for _ in range(clients)]
        await asyncio.sleep(1)
        while time.perf_counter() - began < seconds:
            await send(client, short, 4, size)
        await asyncio.gather(*tasks)
    short.seconds = time.perf_counter() - began
    return short


def plain_server() -> None:
    """Stock Diffusers behind FastAPI, one request at a time: what one writes in an afternoon."""
    import base64
    import io
    import socket

    import torch
    import uvicorn
    from diffusers import PixArtAlphaPipeline
    from fastapi import FastAPI

    import pixart

    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    folder = Path(pixart.__file__).parent / "default_model"
    pipeline = PixArtAlphaPipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    app, lock = FastAPI(), threading.Lock()

    @app.get("/readyz")
    @app.get("/livez")
    def ready() -> dict:
        return {}

    @app.post("/v1/images/generations")
    def generate(body: dict) -> dict:
        width, height = map(int, body["size"].split("x"))
        with lock:
            image = pipeline(
                body["prompt"], width=width, height=height, num_inference_steps=body["num_inference_steps"],
                guidance_scale=2.5, generator=torch.Generator().manual_seed(body["seed"]),
                use_resolution_binning=False, clean_caption=False,
            ).images[0]  # fmt: skip
        file = io.BytesIO()
        image.save(file, "PNG")
        return {"data": [{"b64_json": base64.b64encode(file.getvalue()).decode()}]}

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listening])


async def measure(options: argparse.Namespace) -> dict:
    seconds, size, steps = options.seconds, options.size, options.steps
    results: dict[str, dict] = {}
    commands = {
        "pixart serve": [sys.executable, "-m", "pixart", "serve", "--port", "0", *options.serve.split()],
        "Diffusers with a lock": [sys.executable, __file__, "--plain"],
    }
    for name, command in commands.items():
        server, found = Server(command), {}
        try:
            await closed_loop(server, 1, 2, steps, size)  # warm
            for clients in (1, 8):
                found[f"closed loop, {clients} clients"] = await closed_loop(server, clients, seconds, steps, size)
            found["4 steps behind eight of 50"] = await short_behind_long(server, 8, seconds, size)
            if name == "pixart serve":
                capacity = found["closed loop, 8 clients"].throughput
                for times in (0.9, 3):
                    load = await open_loop(server, times * capacity, seconds, steps, size)
                    found[f"open loop, {times:g} x capacity"] = load
                sent, resident = 0, [server.resident]
                for part in (0.5, 1):
                    while sent < part * options.requests:
                        load = await closed_loop(server, 8, 2, 1, 64)
                        sent += len(load.answers.get(200, ()))
                    resident.append(server.resident)
                found["memory"] = {"requests": sent, "resident": resident}
        finally:
            server.close()
        results[name] = found
    return results


def report(results: dict) -> None:
    print("| Server | Load | images/s | p50 s | p95 s | p99 s | 429 | 429 p99 ms | failed | /livez p99 ms |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, found in results.items():
        for what, load in found.items():
            if isinstance(load, dict):
                continue
            times = " | ".join(f"{load.percentile(share):.2f}" for share in (0.5, 0.95, 0.99))
            refused, slow = len(load.answers.get(429, ())), 1000 * load.percentile(0.99, 429)
            live = 1000 * percentile(load.live, 0.99)
            row = f"{load.throughput:.2f} | {times} | {refused} | {slow:.0f} | {load.failures} | {live:.0f}"
            print(f"| {name} | {what} | {row} |")
    ours, plain = results["pixart serve"], results["Diffusers with a lock"]
    peak, over, memory = ours["closed loop, 8 clients"], ours["open loop, 3 x capacity"], ours["memory"]
    times = peak.throughput / plain["closed loop, 8 clients"].throughput
    short = [each["4 steps behind eight of 50"].percentile(0.95) for each in (ours, plain)]
    before, half, after = (size / 1e6 for size in memory["resident"])
    goals = [
        ("throughput at 8 clients, times that of the plain server", f"{times:.2f}", "2 or more", times >= 2),
        ("p95 of 4 steps behind eight of 50, and of the plain server", f"{short[0]:.2f} s, {short[1]:.2f} s", "less",
         short[0] < short[1]),
        ("5xx at 3 times the capacity", f"{over.failures}", "0", over.failures == 0),
        ("throughput there, of the peak", f"{over.throughput / peak.throughput:.0%}", "95% or more",
         over.throughput >= 0.95 * peak.throughput),
        ("rejects there, p99", f"{1000 * over.percentile(0.99, 429):.0f} ms", "under 50 ms",
         over.percentile(0.99, 429) < 0.05),
        ("/livez there, p99", f"{1000 * percentile(over.live, 0.99):.0f} ms", "under 50 ms",
         percentile(over.live, 0.99) < 0.05),
        (f"memory over {memory['requests']:,} requests: before, half way, after",
         f"{before:.0f}, {half:.0f}, {after:.0f} MB", "flat (2%)", after < 1.02 * half),
    ]  # fmt: skip
    print("\n| What | Measured | Goal | Reached |\n| --- | --- | --- | --- |")
    for what, measured, goal, reached in goals:
        print(f"| {what} | {measured} | {goal} | {'yes' if reached else 'no'} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--requests", type=int, default=2000, help="of the look at memory")
    parser.add_argument("--serve", default="--max-queue 16", help="further options of pixart serve, in quotes")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        plain_server()
        return
    began = time.perf_counter()
    results = asyncio.run(measure(options))
    print(f"{time.perf_counter() - began:.0f} s in all\n", file=sys.stderr)
    report(results)
    if options.json:
        plain = {
            name: {what: load if isinstance(load, dict) else asdict(load) for what, load in found.items()}
            for name, found in results.items()
        }
        options.json.write_text(json.dumps(plain))


if __name__ == "__main__":
    main()
