"""The tab that shows how a picture comes about: what is computed for it, its HTML, and all of it in a real browser."""

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from html import unescape

import numpy as np
import pytest
from PIL import Image

import pixart
from pixart.pipeline.attention_maps import attention_maps
from pixart.pipeline.request import make_request
from pixart.pipeline.trace import trace
from pixart.web.glass_box_html import looked_html
from pixart.web.glass_box_work import Eyes, look_inside

SMALL = {"width": 64, "height": 64, "steps": 3, "seed": 4}
HOSTILE = "a <img src=x onerror=alert(1)> & ${1+1} {{value}} fox"


@pytest.fixture(scope="module")
def pipeline(tiny_model) -> pixart.Pipeline:
    return pixart.Pipeline.from_pretrained(tiny_model, engine="torch")


def inside(pipeline, prompt, eyes=None, tell=lambda said: None, **settings):
    return look_inside(pipeline, make_request(pipeline.folder, prompt, **(SMALL | settings)), eyes, tell)


def picture(uri: str) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


def test_the_slider_ends_with_the_picture_itself_and_the_mean_of_the_maps(pipeline):
    said = []
    looked = inside(pipeline, "a red apple", Eyes(), said.append)
    alone = pipeline("a red apple", **SMALL).images[0]
    assert looked.words == ("a", "red", "apple") and len(looked.frames) == 4
    np.testing.assert_array_equal(picture(looked.frames[-1].picture), np.asarray(alone))
    maps = attention_maps(
        pipeline.networks, trace(pipeline, make_request(pipeline.folder, "a red apple", **SMALL))
    ).shares.mean(axis=0)
    frame = looked.frames[-1]
    np.testing.assert_allclose(frame.lows, maps.min(axis=(1, 2)), atol=1e-6)
    back = frame.lows[:, None, None] + frame.maps / 255 * (frame.highs - frame.lows)[:, None, None]
    np.testing.assert_allclose(back, maps, atol=(frame.highs - frame.lows).max() / 200)
    assert looked.rest + looked.shares.sum() == pytest.approx(1, abs=1e-5)
    assert said[0] == "Drawing: step 1 of 3" and said[-1] == "Decoding: 3 of 3"


def test_long_drawings_and_large_maps_are_thinned(pipeline):
    looked = inside(pipeline, "a red apple", Eyes(), steps=30, width=576)
    assert len(looked.frames) == 25
    assert looked.frames[0].label.startswith("Step 1 of 30") and looked.frames[23].label.startswith("Step 30 of 30")
    assert looked.frames[0].maps.shape == (3, 4, 32)  # of 4 rows and 36 columns
    shares = inside(pipeline, " ".join(["fox"] * 60), Eyes(), steps=1)
    assert len(shares.words) == 40 and "first 40 of the 60 words" in shares.notices[-1]


def test_it_can_be_stopped_at_any_step(pipeline):
    class Stop(Exception):
        pass

    def tell(said: str) -> None:
        if said == "Drawing: step 2 of 3":
            raise Stop

    with pytest.raises(Stop):
        inside(pipeline, "a fox", Eyes(), tell)


def test_words_from_outside_stay_words(pipeline):
    looked = inside(pipeline, HOSTILE, Eyes())
    page = looked_html(looked)
    assert "<img src=x" not in page and "alert(1)" not in page
    data = json.loads(unescape(re.search(r'data-box="([^"]*)"', page)[1]))
    assert data["words"] == list(looked.words) and "onerror" in data["words"]
    assert len(base64.b64decode(data["maps"])) == 4 * len(looked.words) * 16


def test_without_torch_the_steps_are_there_and_a_sentence_names_the_extra(tiny_model_with_graphs, tmp_path):
    script = f"""
import sys
from html import unescape
from pathlib import Path
sys.modules["torch"] = None
import gradio as gr
from pixart.web import glass_box
from pixart.web.glass_box_work import has_torch, look_inside
from pixart.web.models import Choice
from pixart.web.studio import Studio
studio = Studio(Choice({str(tiny_model_with_graphs)!r}), Path({str(tmp_path / "out")!r}))
with gr.Blocks(analytics_enabled=False) as page, gr.Tabs():
    glass_box.build_tab(studio)
shown = [str(block.value) for block in page.blocks.values() if isinstance(block, gr.HTML)]
assert any("pip install &#x27;pixart[torch]&#x27;" in text for text in shown), shown
from pixart.pipeline.request import make_request
pipeline = studio.pipeline()
request = make_request(pipeline.folder, "a fox", width=64, height=64, steps=2, seed=1)
looked = look_inside(pipeline, request, None)
assert not has_torch() and len(looked.frames) == 3 and looked.words == ()
studio.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def address(tiny_model_with_graphs, tmp_path_factory):
    """The whole page, served as `pixart app` serves it."""
    from pixart.web.models import Choice
    from pixart.web.serve import serve
    from pixart.web.studio import Studio

    studio = Studio(Choice(str(tiny_model_with_graphs)), tmp_path_factory.mktemp("outputs"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page, address = serve(studio, host="127.0.0.1", port=port)
    yield address
    page.close()
    studio.close()


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_a_person_looks_inside(address, browser):
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(200_000)
    wrong, hosts = [], set()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "//" in request.url[:9] else None)
    page.goto(address)
    page.get_by_role("tab", name="Glass box").click()
    page.set_viewport_size({"width": 375, "height": 800})  # as on a phone, where tabs may hide behind "..."
    page.locator("#glass-prompt textarea").fill(HOSTILE)
    page.get_by_text("More settings").click()
    for name, value in (("Steps", "3"), ("Width", "64"), ("Height", "64")):
        page.locator("#tabs").get_by_label(name, exact=True).locator("visible=true").fill(value)
    page.locator("#glass-go").click()
    words = page.locator(".gb-word")
    words.first.wait_for()
    assert words.all_inner_texts()[1].startswith("img") and "fox" in words.last.inner_text()
    assert page.locator(".gb-map").is_hidden()
    words.last.click()
    page.mouse.move(0, 0)
    assert words.last.get_attribute("aria-pressed") == "true"
    assert "“fox” takes" in page.locator(".gb-legend").inner_text()
    drawn = """canvas => {
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return [canvas.width, canvas.height, new Set(data).size];
    }"""
    columns, rows, different = page.locator(".gb-map").evaluate(drawn)
    assert (columns, rows) == (4, 4) and different > 8
    # The slider by keyboard: one back from the finished picture is the last step.
    page.locator(".gb-slider").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".gb-label").inner_text().startswith("Step 3 of 3")
    page.keyboard.press("Home")
    assert page.locator(".gb-label").inner_text().startswith("Step 1 of 3")
    assert page.locator(".gb-frame:visible").count() == 1
    words.last.click()
    assert page.locator(".gb-map").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert wrong == [] and hosts == {address.split("/")[2]}
    page.close()
