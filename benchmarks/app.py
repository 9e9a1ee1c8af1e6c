"""How long the studio takes from a click to a preview and to an image, and what memory it holds.

    python benchmarks/app.py --repeats 5

Starts `pixart app` as a person would, opens it in Debian's Chromium (Playwright), and clicks. Prints a table in
Markdown. The memory is that of the server's process alone, from /proc; the browser is not counted.
"""

import argparse
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "-m", "pixart", "app", "--port", str(port), "--outputs", folder]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            address = server.stdout.readline().strip()
            to_address = time.perf_counter() - started
            measure(address, server.pid, options, to_address)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def measure(address: str, pid: int, options: argparse.Namespace, to_address: float) -> None:
    from playwright.sync_api import sync_playwright

    previews, images, fours = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(300_000)
        opened = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("#examples button")
        to_page = time.perf_counter() - opened
        page.wait_for_timeout(3000)
        idle = memory(pid, "VmRSS")
        for number, times in ((1, images), (4, fours)):
            page.fill("#number input[type=number]", str(number))
            for repeat in range(options.repeats + 1):
                page.fill("#prompt textarea", f"a red apple, 3D {repeat}")
                page.wait_for_timeout(1000)
                clicked = time.perf_counter()
                page.click("#generate")
                page.wait_for_selector('#tiles figure[data-state="preview"] img')
                preview = time.perf_counter() - clicked
                page.wait_for_function("n => document.querySelectorAll('#gallery img').length >= n", arg=number)
                if repeat:  # the first warms up
                    times.append(time.perf_counter() - clicked)
                    previews.extend([preview] if number == 1 else [])
        after, peak = memory(pid, "VmRSS"), memory(pid, "VmHWM")
        browser.close()
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}\n")
    print("| What | Median | Fastest to slowest |\n| --- | --- | --- |")
    for name, times in (
        ("command to address", [to_address]),
        ("address to page", [to_page]),
        ("click to first preview", previews),
        ("click to one image of 256 px, 20 steps", images),
        ("click to four images", fours),
    ):
        spread = f"{min(times):.2f} to {max(times):.2f} s" if len(times) > 1 else "once"
        print(f"| {name} | {statistics.median(times):.2f} s | {spread} |")
    for name, size in (("idle, model loaded", idle), ("after the generations", after), ("peak", peak)):
        print(f"| memory: {name} | {size / 1e6:.0f} MB | |")


def memory(pid: int, field: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} of {pid}")


if __name__ == "__main__":
    main()
