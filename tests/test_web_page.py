"""The studio in a real browser: Debian's Chromium, driven by Playwright, on a server of this process."""

import base64
import re
import shutil
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from pixart import Pipeline
from pixart.pipeline.image_files import read_settings
from pixart.web.models import Choice
from pixart.web.serve import serve, temporary_folder
from pixart.web.studio import Studio

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="the browser tests need Debian's chromium")
PATIENCE = 60_000  # milliseconds: the machine may be busy


class Served:
    """A studio that is served, with what its process asked of other hosts."""

    def __init__(self, studio: Studio, address: str, strangers: list):
        self.studio, self.address, self.strangers = studio, address, strangers

    def runs(self, words: str = "") -> list:
        return self.studio.runs.search(words)[0]

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.address.rstrip("/") + path, timeout=60) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture(scope="module")
def served(tiny_model_with_graphs, tmp_path_factory):
    strangers = []
    connect = socket.socket.connect

    def watched(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            strangers.append(address)
        return connect(self, address)

    socket.socket.connect = watched
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    studio = Studio(Choice(str(tiny_model_with_graphs)), tmp_path_factory.mktemp("page") / "out")
    studio.warm_up()
    page, address = serve(studio, host="127.0.0.1", port=port)
    yield Served(studio, address, strangers)
    socket.socket.connect = connect
    studio.close()
    page.close()
    shutil.rmtree(temporary_folder(), ignore_errors=True)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def context(browser):
    made = browser.new_context(viewport={"width": 1200, "height": 900})
    made.set_default_timeout(PATIENCE)
    yield made
    made.close()


@pytest.fixture
def page(context, served):
    return opened(context, served)


def opened(context, served):
    """A new tab that stands ready; `wrong` collects errors of its scripts, `asked` every address."""
    page = context.new_page()
    page.wrong, page.asked = [], []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(served.address)
    ready(page)
    return page


def ready(page) -> None:
    page.wait_for_selector("#examples button")
    page.wait_for_function("document.querySelector('#tab-id textarea, #tab-id input')?.value?.length === 32")


def fill(page, name: str, text) -> None:
    page.fill(f"#{name} textarea, #{name} input:not([type=range])", str(text))


def advanced(page, **values) -> None:
    """Open the advanced settings and type into them; `seed` also takes the random seed off."""
    if not page.is_visible("#steps"):
        page.click("#advanced button")
        page.wait_for_selector("#steps input")
    if "seed" in values:
        page.uncheck("#random-seed input")
    for name, value in values.items():
        fill(page, name.replace("_", "-"), value)
    page.keyboard.press("Tab")


def wait_state(page, *states: str) -> str:
    page.wait_for_selector(", ".join(f'.px-status[data-state="{state}"]' for state in states))
    return page.inner_text("#status")


def go_to(page, name: str) -> None:
    page.click(f'button[role=tab]:visible:text-is("{name}")')


def test_a_picture_appears_out_of_the_noise_and_is_saved(page, served):
    fill(page, "prompt", "a red fox <b>in</b> html")
    page.wait_for_selector("#meter :text('tokens')")
    advanced(page, steps=60, seed=31)
    fill(page, "number", 4)
    page.click("#draw")
    page.wait_for_selector('#tiles figure[data-state="preview"] img')
    assert re.search(r"Step \d+ of 240", page.inner_text("#status"))
    said = wait_state(page, "done")
    assert "4 pictures" in said and "seeds 31 to 34" in said
    page.wait_for_function("document.querySelectorAll('#gallery .thumbnail-item img').length === 4")
    page.wait_for_function("[...document.querySelectorAll('#gallery .thumbnail-item img')].every(i => i.naturalWidth)")
    assert "a red fox <b>in</b> html" in page.inner_text("#details")
    run = served.runs("html")[0]
    assert [picture["seed"] for picture in run.pictures] == [31, 32, 33, 34]
    page.click("#gallery .thumbnail-item >> nth=2")
    page.wait_for_selector("#details dd:text-is('33')")
    page.click("#same-seed")
    page.wait_for_selector("#message :text('seed 33')")
    assert page.input_value("#seed input") == "33"
    # Nothing but this server was asked for anything, by the page or by the server.
    assert [url for url in page.asked if not url.startswith((served.address, "data:", "blob:"))] == []
    assert served.strangers == []
    assert page.wrong == []


def test_escape_stops_it_and_control_enter_begins_the_next(page, served):
    fill(page, "prompt", "a green fox")
    fill(page, "number", 16)
    advanced(page, steps=100)
    page.click("#draw")
    page.wait_for_selector('#tiles figure[data-state="preview"]')
    page.keyboard.press("Escape")
    wait_state(page, "cancelled")
    done = served.runs("green")
    assert sum(len(run.pictures) for run in done) < 16
    fill(page, "number", 1)
    advanced(page, steps=2)
    fill(page, "prompt", "a green house")
    page.keyboard.press("Control+Enter")
    wait_state(page, "done")
    assert served.runs("green house")[0].form["steps"] == 2
    assert page.wrong == []


def test_a_reload_keeps_the_fields_and_finds_the_drawing_again(page, served):
    fill(page, "prompt", "a white fox")
    fill(page, "number", 16)
    fill(page, "batches", 6)
    advanced(page, steps=100, guidance=3.5, seed=12)
    page.click("#draw")
    page.wait_for_selector('#tiles figure[data-state="preview"]')
    page.wait_for_timeout(400)
    page.reload()
    page.wait_for_selector('#tiles figure[data-state="preview"]')
    assert page.input_value("#prompt textarea") == "a white fox"
    page.click("#cancel")
    wait_state(page, "cancelled")
    page.click("#advanced button")
    assert [page.input_value(f"#{name} input[type=number]") for name in ("steps", "guidance", "seed", "number")] == [
        "100",
        "3.5",
        "12",
        "16",
    ]
    # A memory that is no JSON, or not ours, gives the model's own fields.
    page.evaluate('localStorage.setItem(\'pixart-settings\', \'{"steps": "x", "prompt": 5\')')
    page.reload()
    ready(page)
    assert page.input_value("#prompt textarea") == ""
    assert page.wrong == []


def drop(page, name: str, content: bytes, kind: str = "image/png") -> None:
    """As if a file were dropped somewhere on the page, not on the field that is for it."""
    page.evaluate(
        """([name, kind, text]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], name, { type: kind }));
            const event = (type) => new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: carried });
            document.querySelector("#stage").dispatchEvent(event("dragover"));
            document.querySelector("#stage").dispatchEvent(event("drop"));
        }""",
        [name, kind, base64.b64encode(content).decode()],
    )


def test_a_dropped_picture_brings_its_settings_back(page, served, tmp_path):
    fill(page, "prompt", "black fox, flat")
    advanced(page, steps=3, seed=99, negative="blurry")
    page.click("#draw")
    wait_state(page, "done")
    run = served.runs("black")[0]
    file = served.studio.runs.folder / run.name / run.pictures[0]["file"]
    content = file.read_bytes()
    fill(page, "prompt", "something else")
    advanced(page, steps=9, seed=1, negative="")
    drop(page, "fox.png", content)
    page.wait_for_selector("#message :text('settings of the picture')")
    assert page.input_value("#prompt textarea") == "black fox, flat"
    assert [page.input_value(f"#{name} input[type=number]") for name in ("steps", "seed")] == ["3", "99"]
    assert page.input_value("#negative textarea") == "blurry"
    page.click("#draw")
    while len(served.runs("black")) < 2:  # the page still says "done" of the first
        page.wait_for_timeout(50)
    wait_state(page, "done")
    again = next(other for other in served.runs("black") if other.name != run.name)
    second = served.studio.runs.folder / again.name / again.pictures[0]["file"]
    assert read_settings(second)["pixels_sha256"] == read_settings(file)["pixels_sha256"]
    # Cut off, or no picture at all: one sentence, and the fields stay.
    for name, broken in (("cut.png", content[:200]), ("page.png", b"<script>alert(1)</script>" * 50)):
        drop(page, name, broken)
        page.wait_for_selector("#message .error")
        assert page.input_value("#prompt textarea") == "black fox, flat"
        drop(page, "fox.png", content)
        page.wait_for_selector("#message :text('settings of the picture')")
    assert page.wrong == []


def test_history_searches_uses_zips_and_deletes(page, served):
    for prompt in ("<img src=x onerror=document.title='hacked'> owl", "apple"):
        fill(page, "prompt", prompt)
        advanced(page, steps=2, seed=5)
        page.click("#draw")
        page.wait_for_timeout(200)
        wait_state(page, "done")
        page.wait_for_function("text => document.querySelector('#details').innerText.includes(text)", arg=prompt[-5:])
    fill(page, "prompt", "")
    go_to(page, "History")
    page.wait_for_selector("#covers .thumbnail-item")
    fill(page, "search", "onerror OWL")
    page.wait_for_selector("#count :text-is('1 run')")
    assert "<img src=x" in page.inner_text("#covers")
    page.click("#covers .thumbnail-item")
    page.wait_for_selector("#chosen-details dd")
    assert "<img src=x onerror" in page.inner_text("#chosen-details")
    page.click("#zip")
    page.wait_for_selector("#archive a")
    with page.expect_download() as download:
        page.click("#archive a >> nth=0")
    assert Path(download.value.path()).read_bytes()[:2] == b"PK"
    page.click("#use")
    page.wait_for_selector("#prompt textarea:visible")
    assert page.input_value("#prompt textarea").startswith("<img src=x")
    assert page.input_value("#seed input") == "5"
    go_to(page, "History")
    run = served.runs("onerror")[0]
    page.click("#delete")
    page.click("#sure")
    page.wait_for_selector("#history-message :text('Deleted 1 pictures')")
    assert not (served.studio.runs.folder / run.name).exists()
    assert page.title() != "hacked" and page.wrong == []


def test_a_phone_can_draw(browser, served):
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    context.set_default_timeout(PATIENCE)
    page = opened(context, served)
    wide = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(wide)
    page.tap("#examples button >> nth=0")
    page.wait_for_function("document.querySelector('#prompt textarea').value !== ''")
    page.tap("#draw")
    wait_state(page, "done")
    page.wait_for_selector("#gallery .thumbnail-item img")
    assert page.evaluate(wide)
    page.wait_for_function("document.querySelector('#gallery').getBoundingClientRect().top < innerHeight")
    for name in ("History", "Model"):
        if not page.is_visible(f'button[role=tab]:visible:text-is("{name}")'):
            page.tap(".overflow-menu button")
        page.click(f'.overflow-menu button:visible:text-is("{name}"), button[role=tab]:visible:text-is("{name}")')
        page.wait_for_timeout(300)
        assert page.evaluate(wide)
    context.close()


def test_two_tabs_at_once_get_the_bytes_that_each_gets_alone(context, served, tiny_model_with_graphs):
    pages = [opened(context, served) for _ in range(2)]
    for page, prompt, seed in zip(pages, ("two tabs fox", "two tabs house"), (201, 301), strict=True):
        fill(page, "prompt", prompt)
        fill(page, "number", 2)
        advanced(page, steps=30, seed=seed)
    for page in pages:
        page.click("#draw")
    for page in pages:
        assert "2 pictures" in wait_state(page, "done")
    alone = Pipeline.from_pretrained(tiny_model_with_graphs)
    for prompt, seed in (("two tabs fox", 201), ("two tabs house", 301)):
        (run,) = served.runs(prompt)
        hashes = [
            read_settings(served.studio.runs.folder / run.name / picture["file"])["pixels_sha256"]
            for picture in run.pictures
        ]
        drawn = alone(prompt, seed=seed, num_images=2, steps=30)
        assert hashes == [settings["pixels_sha256"] for settings in drawn.settings]


def test_a_storm_of_clicks_draws_a_few_times_and_the_page_lives(page, served):
    fill(page, "prompt", "storm")
    advanced(page, steps=20, seed=1)
    page.evaluate("for (let i = 0; i < 30; i++) document.querySelector('#draw').click()")
    page.wait_for_selector(".px-status")
    page.wait_for_timeout(500)
    wait_state(page, "done")
    assert 1 <= len(served.runs("storm")) <= 3
    for _ in range(5):
        page.keyboard.press("Escape")
    fill(page, "prompt", "calm")
    page.click("#draw")
    page.wait_for_selector("#details dd:text-is('calm')")
    assert page.wrong == []


def test_what_cannot_be_drawn_is_said_and_the_page_stays_usable(page, served):
    advanced(page, seed="-5")
    page.click("#draw")
    page.wait_for_selector("#message .error:text('The seed must be from 0')")
    advanced(page, seed="9" * 25)
    page.click("#draw")
    page.wait_for_selector("#message .error:text('far too large')")
    advanced(page, seed=4, width=100, steps=2)
    page.click("#draw")
    page.wait_for_selector("#message .error:text('nearest is 96')")
    advanced(page, width=96)
    page.evaluate(
        """() => {
            const field = document.querySelector("#prompt textarea");
            field.value = "x".repeat(10_000_000);
            field.dispatchEvent(new Event("input", { bubbles: true }));
        }"""
    )
    page.wait_for_selector("#meter .error:text('10,000,000 characters')")
    page.click("#draw")
    page.wait_for_selector("#message .error:text('10,000,000 characters')")
    fill(page, "prompt", "after all, a فثعلب 🦊")
    page.click("#draw")
    page.wait_for_selector("#details dd:text('after all')")
    assert page.wrong == []


def test_a_model_that_cannot_be_loaded_is_said_and_another_can(page, served, folder, tiny_model_with_graphs):
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    go_to(page, "Model")
    page.click("#which label >> nth=1")
    fill(page, "source", folder)
    page.click("#load")
    page.wait_for_selector("#model-message .error:text('not a whole safetensors file')")
    assert "goes on with tiny" in page.inner_text("#model-message")
    fill(page, "source", tiny_model_with_graphs)
    page.click("#load")
    page.wait_for_selector("#model-message :text('is loaded')")
    assert re.search(r"[\d.]+ [MG]B in memory", page.inner_text("#model-line"))
    assert page.wrong == []


def test_a_grid_of_variations_stands_as_a_grid(page, served):
    page.click("#variations button")  # first: what is typed while its fields still unfold is lost to Gradio
    page.wait_for_selector("#x textarea:visible, #x input:visible")
    fill(page, "prompt", "grid fox")
    advanced(page, steps=2, seed=8)
    fill(page, "x", "1, 5")
    page.click("#draw-grid")
    wait_state(page, "done")
    page.wait_for_function("document.querySelectorAll('#tiles figure').length === 2")  # it is drawn after the status
    assert page.inner_text("#tiles").split("\n") == ["guidance 1", "guidance 5"]
    assert {picture["seed"] for picture in served.runs("grid fox")[0].pictures} == {8}


def test_dark_is_remembered(page, served):
    before = page.evaluate("document.body.classList.contains('dark')")
    page.click(".px-theme")
    page.reload()
    ready(page)
    page.wait_for_function("before => document.body.classList.contains('dark') !== before", arg=before)


def test_browsers_are_told_to_ask_no_other_host(served):  # which files are served: tests/faults/test_studio.py
    assert served.strangers == []
    with urllib.request.urlopen(served.address) as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        text = answer.read()
    assert b"googleapis" not in text
