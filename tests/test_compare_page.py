"""The page of a comparison in a real browser: vote blind by keyboard, read the win rates, reload, export, import."""

import json
from pathlib import Path

import pytest
from PIL import Image

from pixart.evaluation.comparison.models import Model, Settings
from pixart.evaluation.comparison.page import write_page
from pixart.evaluation.comparison.record import Plan, Row, Sampled, add_image, begin, save_sampled

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="the browser tests need Debian's chromium")
HOSTILE = '</script><img src=x onerror="document.title=1"><b>&amp;'


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """Three models, five prompts; one model makes other sizes, lacks its last image and has a hostile name."""
    folder = tmp_path_factory.mktemp("page") / "out"
    rows = [Row(f"a red apple {number}", "test", "even" if number % 2 == 0 else "odd") for number in range(4)]
    rows.append(Row(HOSTILE, "test", "even"))
    models = tuple(
        Model(name, plain, "pixart", "x", Settings())
        for name, plain in (("one", "one"), ("two", "two"), (HOSTILE, "h"))
    )
    plan = Plan(tuple(rows), (0,), models)
    begin(plan, folder)
    for index, model in enumerate(models):
        own = folder / "models" / model.folder
        own.mkdir(parents=True)
        for cell in plan.cells[: 4 if index == 2 else 5]:
            size = (96, 48) if index == 2 else (64, 64)
            add_image(own, cell, Image.new("RGB", size, (40 * cell.row, 80 * index, 120)), seconds=0.5)
        save_sampled(own, Sampled("memory" if index == 2 else "done", settings={"steps": index}))
    write_page(plan, folder)
    return folder / "index.html"


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, compared):
    """The page on its voting tab, in a browser that has never seen it; nothing may go wrong or be fetched meanwhile."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(120_000)
    page = context.new_page()
    wrong, asked = [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{compared.as_uri()}#/vote")
    yield page
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def exported(page) -> dict:
    with page.expect_download() as download:
        page.click("#export")
    return json.loads(Path(download.value.path()).read_text())


def told(page, sentence: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#imported")).to_contain_text(sentence, timeout=120_000)


def test_votes_are_blind_counted_kept_and_exported(page, compared, tmp_path):
    assert page.text_content("#state") == "0 of 13 pairs voted on."  # 4 prompts with 3 pairs, 1 with one
    ballot = page.inner_html("#ballot")
    assert "one" not in page.inner_text("#ballot").split() and "models/" not in ballot
    for key in ("ArrowLeft", "ArrowRight", "ArrowDown", "s", "ArrowLeft"):
        page.keyboard.press(key)
    page.keyboard.press("u")
    page.click("[data-choice=right]")
    assert page.text_content("#state") == "4 of 13 pairs voted on, 1 skipped."
    votes = exported(page)["votes"]
    assert [vote["choice"] for vote in votes] == ["left", "right", "tie", "right"]
    # Ten other people on "one" against "two".
    theirs = [
        {"voter": f"v{n}", "row": 0, "seed": 0, "left": "one", "right": "two", "choice": "left" if n < 8 else "right"}
        for n in range(10)
    ]
    own = [vote for vote in votes if {vote["left"], vote["right"]} == {"one", "two"} and vote["choice"] != "tie"]
    won = sum(vote[vote["choice"]] == "one" for vote in own)
    file = tmp_path / "votes.json"
    comparison = exported(page)["comparison"]
    file.write_text(json.dumps({"comparison": comparison, "votes": [*theirs, {"voter": "x", "choice": "left"}]}))
    page.set_input_files("#import", str(file))
    told(page, "10 new votes were read, 1 are no votes of this page.")
    page.click("#results summary")
    pair = page.inner_text("#pairs tr:first-child")
    assert "one against two" in pair and f"{8 + won} of {10 + len(own)}" in pair
    assert "14 votes of 11 people, 1 of them ties" in page.inner_text("#ties")
    page.reload()
    assert page.text_content("#state") == "4 of 13 pairs voted on."  # a skip is asked again
    assert len(exported(page)["votes"]) == 14
    # The page saved with its votes tells them to a browser that has never seen it.
    with page.expect_download() as download:
        page.click("#save")
    copy = tmp_path / "copy.html"
    download.value.save_as(copy)
    page.evaluate("localStorage.clear()")
    page.goto(f"{copy.as_uri()}#/vote")
    assert len(exported(page)["votes"]) == 14 and page.text_content("#state") == "0 of 13 pairs voted on."


def test_wilson_interval_of_eight_in_ten(page, tmp_path):
    votes = [
        {"voter": f"v{n}", "row": 0, "seed": 0, "left": "one", "right": "two", "choice": "left" if n < 8 else "right"}
        for n in range(10)
    ]
    file = tmp_path / "votes.json"
    file.write_text(json.dumps({"comparison": exported(page)["comparison"], "votes": votes}))
    page.set_input_files("#import", str(file))
    told(page, "10 new votes were read.")
    page.click("#results summary")
    # scipy.stats.binomtest(8, 10).proportion_ci(method="wilson"): 0.4902 to 0.9433
    assert "80.0% (49.0% to 94.3%), 8 of 10" in page.inner_text("#pairs tr:first-child")
    file.write_text(json.dumps({"comparison": "another", "votes": votes}))
    page.set_input_files("#import", str(file))
    told(page, "these votes are of another comparison")


def test_pictures_slider_and_hostile_words(page):
    page.click("nav button[data-tab=images]")
    assert page.locator(".row[data-place]:visible").count() == 5
    page.select_option("#category", "odd")
    assert page.locator(".row[data-place]:visible").count() == 2
    page.select_option("#category", "")
    assert page.locator(".gap").inner_text() == "missing: memory ran out"
    assert HOSTILE in page.inner_text("body") and page.title() != "1"
    page.click("#p3-2")
    assert page.text_content("#over-name") == HOSTILE and "64 × 64 and 96 × 48" in page.text_content("#sizes")
    page.focus("#at")
    page.keyboard.press("ArrowDown")
    assert page.input_value("#which") == "4" and "(no image)" in page.text_content("#over-name")
    before = page.evaluate("getComputedStyle(document.getElementById('stage')).getPropertyValue('--at')")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.getElementById('stage').style.getPropertyValue('--at')") != before
    page.click("nav button[data-tab=metrics]")
    assert page.locator("tr.differs th", has_text="steps").count() == 1


def test_a_phone_shows_all_of_it(page):
    page.set_viewport_size({"width": 390, "height": 844})
    for tab in ("images", "slider", "vote", "metrics"):
        page.click(f"nav button[data-tab={tab}]")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
