"""The studio in a real browser: Debian's Chromium, driven by Playwright, on a server of its own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from studio_site import serving

from pixart.pipeline.image_files import read_settings
from pixart.studio.runs import Runs

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="the browser tests need Debian's chromium")
PATIENCE = 60_000  # milliseconds: the machine may be busy


@pytest.fixture(scope="module")
def site(tiny_model_with_graphs, tmp_path_factory):
    with serving(tiny_model_with_graphs, tmp_path_factory.mktemp("page")) as site:
        yield site


@pytest.fixture(scope="module")
def runs(site):
    return Runs(site.outputs)


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
def page(context, site):
    """A page that stands ready. Its scripts may not fail, and it may ask no other host."""
    page = context.new_page()
    wrong, asked = [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(site.address)
    ready(page)
    yield page
    assert wrong == []
    assert [url for url in asked if not url.startswith((site.address, "data:", "blob:"))] == []


def ready(page) -> None:
    page.wait_for_selector("#size :text('pixels')")
    page.wait_for_selector("#tiles [data-do=example]")


def fill(page, name: str, text) -> None:
    page.fill(f"#{name} textarea, #{name} input:not([type=range])", str(text))


def number(page, name: str) -> str:
    return page.input_value(f"#{name} input[type=number]")


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


def wait_done(page, *texts: str) -> str:
    """The stage shows a run that has ended, with these texts in it."""
    page.wait_for_selector("#status [data-state=done]")
    for text in texts:
        page.wait_for_selector(f"#status :text('{text}')")
    return page.inner_text("#status")


def go_to(page, name: str) -> None:
    page.click(f'button[role=tab]:visible:text-is("{name}")')


def drop(page, name: str, content: bytes) -> None:
    page.set_input_files("#dropped input[type=file]", {"name": name, "mimeType": "image/png", "buffer": content})


def test_an_image_appears_out_of_the_noise_and_is_saved(page, runs):
    fill(page, "prompt", "a red fox <b>in</b> html")
    page.wait_for_selector("#meter :text('tokens')")
    advanced(page, steps=60, seed=31)
    fill(page, "number", 4)
    page.click("#generate")
    page.wait_for_selector('body:has(#status :text("of 240")) #tiles figure[data-state="preview"] img')
    wait_done(page, "4 images")
    loaded = "[...document.querySelectorAll('#tiles figure img')].filter(i => i.naturalWidth).length === 4"
    page.wait_for_function(loaded)
    page.click("#tiles summary >> nth=2")
    assert "a red fox <b>in</b> html" in page.inner_text("#tiles figure >> nth=2")
    run = runs.search("html")[0][0]
    assert [image["seed"] for image in run.images] == [31, 32, 33, 34]
    page.click("#tiles [data-do=settings] >> nth=2")
    page.wait_for_selector("#note :text('settings of the image')")
    assert number(page, "seed") == "33"
    assert page.evaluate("document.activeElement.dataset.do") == "settings"  # the focus stays where it was
    with page.expect_download() as download:
        page.click("#tiles a[download] >> nth=1")
    assert read_settings(Path(download.value.path()))["seed"] == 32
    # None is shown larger than it is.
    widths = "[...document.querySelectorAll('#tiles figure img')].every(i => i.clientWidth <= i.naturalWidth)"
    assert page.evaluate(widths)


def test_an_image_is_started_from_brushed_over_and_enlarged(page, runs):
    fill(page, "prompt", "an owl")
    advanced(page, steps=4, seed=5, width=128, height=96)
    page.wait_for_selector("#aspect label.selected:has-text('4:3')")
    page.click("#generate")
    wait_done(page, "1 image")
    first = runs.files(runs.search("owl")[0][0])[0]
    page.click("#tiles [data-do=edit]")
    page.wait_for_selector(".px-brush[data-open]")
    page.wait_for_selector("#note :text('press Generate')")
    box = page.locator("#brush canvas").nth(1).bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(box["x"] + 30, box["y"] + 8)
    page.mouse.up()
    page.click("#generate")
    page.wait_for_selector("#tiles summary:not(:text-is('Seed 5'))")
    brushed = runs.files(runs.search("owl")[0][0])[0]
    before, after = (np.asarray(Image.open(file)).astype(int) for file in (first, brushed))
    assert (before[60:] == after[60:]).all() and (before[:20, :40] != after[:20, :40]).any()
    assert read_settings(brushed)["image"]["mask_sha256"]
    page.click("#tiles [data-do=enlarge]")
    page.wait_for_selector("#tiles img[width='256']")
    wait_done(page, "1 image")
    larger = read_settings(runs.files(runs.search("owl")[0][0])[0])
    assert (larger["width"], larger["height"], larger["strength"]) == (256, 192, 0.4)


def test_escape_stops_it_and_control_enter_begins_the_next(page, runs):
    fill(page, "prompt", "a green fox")
    fill(page, "number", 100)
    advanced(page, steps=100)
    page.click("#generate")
    page.wait_for_selector('#tiles figure[data-state="preview"]')
    page.keyboard.press("Escape")
    page.wait_for_selector("#status [data-state=running]", state="detached")
    page.wait_for_selector("#tiles :is([data-do=example], [data-do=edit])")  # no empty boxes are left
    assert page.locator("#tiles :is([data-state=empty], [data-state=preview])").count() == 0
    assert sum(len(run.images) for run in runs.search("green")[0]) < 100
    fill(page, "number", 1)
    advanced(page, steps=2)
    fill(page, "prompt", "a green house")
    page.keyboard.press("Control+Enter")
    wait_done(page, "1 image")
    assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    assert runs.search("green house")[0][0].form["steps"] == 2


def test_two_visitors_generate_at_the_same_time_and_one_may_give_up(page, context, site, runs):
    fill(page, "prompt", "the first")
    fill(page, "number", 100)
    advanced(page, steps=100)
    page.click("#generate")
    page.wait_for_selector('#tiles figure[data-state="preview"]')
    other = context.new_page()
    other.goto(site.address)
    ready(other)
    fill(other, "number", 1)  # the browser kept that of the first
    fill(other, "prompt", "the second")
    other.click("#generate")
    wait_done(other, "1 image")
    assert page.is_visible("#status [data-state=running]")
    fill(other, "prompt", "the third")
    fill(other, "number", 100)
    other.click("#generate")
    other.wait_for_selector("#status [data-state=running]")
    other.click("#cancel")
    other.wait_for_selector("#status [data-state=running]", state="detached")
    page.close()  # a page that is closed needs no more images
    assert len(runs.search("second")[0]) == 1


def test_a_reload_keeps_the_fields_and_a_damaged_memory_does_no_harm(page):
    fill(page, "prompt", "a white fox")
    fill(page, "number", 16)
    advanced(page, steps=90, guidance=3.5, seed=12)
    page.wait_for_function("localStorage.getItem('pixart-settings')")
    page.reload()
    page.wait_for_function("document.querySelector('#prompt textarea')?.value === 'a white fox'")
    page.click("#advanced button")
    assert [number(page, name) for name in ("steps", "guidance", "seed", "number")] == ["90", "3.5", "12", "16"]
    page.evaluate("localStorage.setItem('pixart-settings', 'no such thing')")
    page.reload()
    ready(page)
    assert page.input_value("#prompt textarea") == ""


def test_a_dropped_image_brings_its_settings_back(page, runs):
    fill(page, "prompt", "black fox, flat")
    advanced(page, steps=3, seed=99, negative="blurry")
    page.click("#generate")
    wait_done(page, "1 image")
    file = runs.files(runs.search("black")[0][0])[0]
    content = file.read_bytes()
    fill(page, "prompt", "something else")
    advanced(page, steps=9, seed=1, negative="")
    drop(page, "fox.png", content)
    page.wait_for_selector("#note :text('settings of the image')")
    assert page.input_value("#prompt textarea") == "black fox, flat"
    assert (number(page, "steps"), number(page, "seed")) == ("3", "99")
    assert page.input_value("#negative textarea") == "blurry"
    page.click("#generate")
    page.wait_for_selector("#status [data-state=running]")
    wait_done(page, "1 image")
    first, second = (read_settings(runs.files(run)[0])["pixels_sha256"] for run in runs.search("black")[0])
    assert first == second
    # Cut off, or no image at all: one sentence, and the fields stay.
    for name, broken in (("cut.png", content[:200]), ("page.png", b"<script>alert(1)</script>" * 50)):
        drop(page, name, broken)
        page.wait_for_selector(f"#note :text('{name}')")
        assert page.input_value("#prompt textarea") == "black fox, flat"
        drop(page, "fox.png", content)
        page.wait_for_selector("#note :text('settings of the image')")


def test_history_searches_uses_and_deletes(page, runs, site):
    for prompt in ("<img src=x onerror=document.title='hacked'> owl", "apple"):
        fill(page, "prompt", prompt)
        advanced(page, steps=2, seed=5)
        page.click("#generate")
        page.wait_for_selector("#status [data-state=running]")
        wait_done(page, "1 image")
    fill(page, "prompt", "")
    go_to(page, "History")
    page.wait_for_selector("#covers .thumbnail-item")
    fill(page, "search", "onerror OWL")
    page.wait_for_selector("#count :text-is('1 run')")
    assert "<img src=x" in page.inner_text("#covers")
    page.click("#covers .thumbnail-item")
    page.click("#tiles summary")
    page.wait_for_selector("#tiles dd:text('onerror')")
    page.click("#tiles [data-do=settings]")
    page.wait_for_function("document.querySelector('#prompt textarea').value.startsWith('<img src=x')")
    assert number(page, "seed") == "5"
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#tiles [data-do=remove]")
    page.wait_for_selector("#status :text('Deleted 1 image')")
    assert runs.search("onerror")[0] == [] and page.title() != "hacked"


def test_a_phone_can_generate(browser, site):
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(site.address)
    ready(page)
    wide = "document.documentElement.scrollWidth <= innerWidth"
    assert page.evaluate(wide)
    page.tap("#tiles [data-do=example] >> nth=0")
    page.wait_for_function("document.querySelector('#prompt textarea').value !== ''")
    fill(page, "number", 100)
    page.tap("#generate")
    page.wait_for_selector('#tiles figure[data-state="saved"]')
    page.evaluate("scrollTo(0, document.body.scrollHeight)")  # wherever one is, Cancel is there
    cancel = "const box = document.querySelector('#cancel').getBoundingClientRect();"
    assert page.evaluate(f"() => {{ {cancel} return box.top > 0 && box.bottom <= innerHeight }}")
    page.tap("#cancel")
    wait_done(page, "of 100 images")
    assert page.evaluate(wide)
    for name, shown in (("History", "#covers"), ("Model", "#load")):
        if not page.is_visible(f'button[role=tab]:visible:text-is("{name}")'):
            page.tap(".overflow-menu button")
        page.click(f'.overflow-menu button:visible:text-is("{name}"), button[role=tab]:visible:text-is("{name}")')
        page.wait_for_selector(f"{shown}:visible")
        assert page.evaluate(wide)
    context.close()


def test_a_storm_of_clicks_generates_a_few_times_and_the_page_lives(page, runs):
    fill(page, "prompt", "storm")
    advanced(page, steps=20, seed=1)
    for _ in range(5):
        page.dblclick("#generate", delay=30)
    wait_done(page, "1 image")
    assert 1 <= len(runs.search("storm")[0]) <= 5
    fill(page, "prompt", "calm")
    for _ in range(20):  # while the last of the storm is generated, a click is not taken
        page.click("#generate")
        page.wait_for_timeout(1500)
        if page.query_selector("#tiles dd:text-is('calm')"):
            return
    raise AssertionError("the page takes no click any more")


def test_what_cannot_be_generated_is_said_and_the_page_stays_usable(page):
    advanced(page, seed=4, width=100, steps=2)
    page.wait_for_selector("#size :text('nearest is 96')")
    page.click("#generate")
    page.wait_for_selector(".toast-body:has-text('nearest is 96')")
    advanced(page, width=96)
    page.evaluate(
        """() => {
            const field = document.querySelector("#prompt textarea");
            field.value = "x".repeat(25_000);
            field.dispatchEvent(new Event("input", { bubbles: true }));
        }"""
    )
    page.wait_for_selector("#meter :text('25,000 characters')")
    page.click("#generate")
    page.wait_for_selector(".toast-body:has-text('25,000 characters')")
    fill(page, "prompt", "after <all>, a فثعلب 🦊")
    page.wait_for_selector("#meter mark:text('🦊')")
    fill(page, "style", "<i>oil")
    page.click("#generate")
    page.wait_for_selector(".toast-body:has-text('\"<i>oil\"')")
    fill(page, "style", "No style")
    page.click("#generate")
    page.wait_for_selector("#tiles dd:text('after <all>')", state="attached")


def test_another_model_is_loaded_and_one_that_cannot_be_is_said(page, folder, tiny_model):
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    go_to(page, "Model")
    page.click("#which label >> nth=1")
    for source, said in ((folder, "goes on with tiny"), (tiny_model, "is loaded")):
        fill(page, "source", source)
        page.click("#load")
        page.wait_for_selector(f"#model-message :text('{said}')")
    page.wait_for_selector("#facts :text('torch on cpu')")
    go_to(page, "Generate")
    fill(page, "prompt", "by torch")
    page.click("#generate")
    wait_done(page, "1 image")
