"""What the fields and buttons of the drawing tab do."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from pixart.errors import PixArtError
from pixart.pipeline.image_files import read_settings
from pixart.pipeline.prompts import NO_STYLE
from pixart.web import markup
from pixart.web.draw_tab import DrawTab, samples
from pixart.web.examples import examples_for
from pixart.web.form import ASPECTS, Form, from_request, restored, sampler_defaults, samplers_of, size_for, styles_of
from pixart.web.grid import DEFAULT_VALUES, Grid
from pixart.web.studio import Studio

LOOK_EVERY = 0.08  # seconds between two looks at a running drawing
NAMES = [field.name for field in fields(Form)]
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}


def connect(studio: Studio, draw: DrawTab, tab: gr.Textbox, model_line: gr.HTML) -> None:
    """Give every component of the tab its events."""
    prompt, style = draw.fields[NAMES.index("prompt")], draw.fields[NAMES.index("style")]
    shown = [draw.message, *draw.stage, model_line]
    streaming = {**QUIET, "concurrency_limit": None, "trigger_mode": "multiple"}

    async def click(tab_id: str, *values: Any) -> AsyncIterator[list]:
        async for update in _asked(studio, tab_id, lambda: studio.draw(tab_id, Form(*values))):
            yield update

    async def click_grid(tab_id: str, x: str, xs: str, y: str, ys: str, *values: Any) -> AsyncIterator[list]:
        def ask():
            return studio.draw_grid(tab_id, Grid(Form(*values), (x, xs), (y, ys), studio.models.folder))

        async for update in _asked(studio, tab_id, ask):
            yield update

    draw.draw.click(click, [tab, *draw.fields], shown, **streaming)
    draw.grid[-1].click(click_grid, [tab, *draw.grid[:-1], *draw.fields], shown, **streaming)
    draw.cancel.click(lambda tab_id: studio.queue.cancel_all(tab_id) and None, tab, None, queue=False, **QUIET)

    def meter(text: str, name: str) -> str:
        try:
            return markup.token_meter(*studio.tokens(text or "", name))
        except PixArtError as error:
            return markup.message(str(error), "error")

    gr.on(
        [prompt.change, style.change],
        meter,
        [prompt, style],
        draw.meter,
        trigger_mode="always_last",
        concurrency_limit=None,
        **QUIET,
    )
    draw.aspect.input(
        lambda aspect: size_for(studio.models.folder, aspect) if aspect in ASPECTS else (gr.skip(), gr.skip()),
        draw.aspect,
        [draw.fields[NAMES.index("width")], draw.fields[NAMES.index("height")]],
        queue=False,
        **QUIET,
    )
    sampler = draw.fields[NAMES.index("sampler")]
    sampler.input(
        lambda name: (
            sampler_defaults(studio.models.folder, name)
            if name in samplers_of(studio.models.folder)
            else (gr.skip(), gr.skip())
        ),
        sampler,
        [draw.fields[NAMES.index("steps")], draw.fields[NAMES.index("guidance_scale")]],
        queue=False,
        **QUIET,
    )
    size = [draw.fields[NAMES.index("width")], draw.fields[NAMES.index("height")]]
    gr.on(
        [field.change for field in size],
        lambda width, height: markup.size_line(studio.models.folder, width, height),
        size,
        draw.size,
        queue=False,
        **QUIET,
    )
    for axis, values in ((draw.grid[0], draw.grid[1]), (draw.grid[2], draw.grid[3])):
        axis.input(lambda name: DEFAULT_VALUES.get(name, ""), axis, values, queue=False, **QUIET)

    def take_example(index: int) -> list:
        prompt, style, seed = examples_for(studio.models.folder)[index]
        return [prompt, style, False, seed]

    draw.examples.click(
        take_example,
        draw.examples,
        [draw.fields[NAMES.index(name)] for name in ("prompt", "style", "random_seed", "seed")],
        **QUIET,
    )

    def pick(run_name: str, chosen: gr.SelectData) -> tuple[int, str]:
        return chosen.index, details(studio, run_name, chosen.index)

    draw.stage[2].select(pick, draw.run, [draw.picked, draw.details], **QUIET)

    def keep_seed(run_name: str, index: int) -> list:
        run = studio.runs.get(run_name)
        if run is None or not 0 <= index < len(run.pictures):
            return [gr.skip(), gr.skip(), markup.message("This picture is not there any more.", "error")]
        seed = run.pictures[index]["seed"]
        return [False, seed, markup.message(f"The next picture starts from the seed {seed}.")]

    seed_fields = [draw.fields[NAMES.index("random_seed")], draw.fields[NAMES.index("seed")], draw.message]
    draw.same_seed.click(keep_seed, [draw.run, draw.picked], seed_fields, **QUIET)
    draw.again.click(
        lambda run_name, index: reuse(studio, run_name, index),
        [draw.run, draw.picked],
        [*draw.fields, draw.message],
        **QUIET,
    )

    def drop(path: str | None) -> list:
        if not path:
            return [*[gr.skip()] * len(NAMES), gr.skip(), gr.skip()]
        # The page names the file, so it may name any; only uploads are read, and not kept.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(get_upload_folder())):
            return [*[gr.skip()] * len(NAMES), markup.message("Only uploaded images are read.", "error"), None]
        try:
            return [*from_file(studio, path), None]
        finally:
            Path(path).unlink(missing_ok=True)

    draw.dropped.upload(drop, draw.dropped, [*draw.fields, draw.message, draw.dropped], **QUIET)

    # In the browser only: what stands in the fields outlives a reload.
    gr.on(
        [field.change for field in draw.fields],
        None,
        draw.fields,
        None,
        js=f"(...values) => pixart.keep({json.dumps(NAMES)}, values)",
    )


def connect_look(studio: Studio, draw: DrawTab, look: Any, tabs: gr.Tabs) -> None:
    """The button under a picture that takes it to the glass box; `look` has that tab's fields."""
    names = ("prompt", "negative_prompt", "style", "seed", "steps", "guidance_scale", "width", "height", "sampler")

    def settings(run_name: str, index: int) -> list:
        values = picture_settings(studio, run_name, index)
        if values is None:
            return [gr.skip()] * (len(names) + 1)
        filled = {**values, "style": values.get("style") or NO_STYLE}
        return [*[filled.get(name) for name in names], gr.Tabs(selected="glass")]

    draw.look.click(settings, [draw.run, draw.picked], [*[getattr(look, name) for name in names], tabs], **QUIET).then(
        None, None, None, js="() => pixart.press('glass-go')"
    )


def opened(studio: Studio) -> Callable:
    """What the page does when it is opened or loaded again: old settings, and the drawing that may still run."""

    async def open_page(request: gr.Request, tab_id: str, stored: str) -> AsyncIterator[list]:
        studio.arrive(request.session_hash, tab_id)
        try:
            values = json.loads(stored) if stored and len(stored) < 1_000_000 else {}
        except (ValueError, RecursionError):
            values = {}
        first = [tab_id, *field_updates(studio, restored(values, studio.models.folder))]
        first.append(gr.Dataset(samples=samples(studio)))
        yield [*first, *[gr.skip()] * 8, head_line(studio)]
        async for update in stream(studio, tab_id):
            yield [*[gr.skip()] * (len(first)), *update]

    return open_page


async def stream(studio: Studio, tab_id: str) -> AsyncIterator[list]:
    """The stage of one tab, again and again while its drawings wait or run, and once more when they are over.

    A newer stream of the same tab ends this one, so that clicks and reloads never show two stages in turn.
    """
    number = studio.new_stream(tab_id)
    before: Any = None
    while studio.is_newest_stream(tab_id, number):
        job, view, more = studio.shown(tab_id)
        position = studio.queue.position(job) if job else 0
        over = job is None or job.over.is_set()
        now = (job, job.state if job else "", view, more, position, studio.models.stage, job and job.stopping)
        if now != before:
            yield [*_stage(studio, job, view, more, position), head_line(studio) if over else gr.skip()]
            before = now
        if over and not more:
            return
        await asyncio.sleep(LOOK_EVERY)


def head_line(studio: Studio) -> str:
    loaded = studio.models.loaded
    return markup.model_line(studio.models.folder.name, loaded.pipeline.networks.name if loaded else "")


def field_updates(studio: Studio, form: Form) -> list:
    """The fields with the values of a form, and the choices and ranges of the model of this moment."""
    folder = studio.models.folder
    values = asdict(form)
    updates: dict[str, Any] = {
        "style": gr.Dropdown(choices=styles_of(folder), value=form.style),
        "sampler": gr.Dropdown(choices=samplers_of(folder), value=form.sampler),
        "steps": gr.Slider(value=form.steps, maximum=max(100, form.steps or 0)),
        "guidance_scale": gr.Slider(value=form.guidance_scale, maximum=max(20, form.guidance_scale or 0)),
    }
    return [updates.get(name, values[name]) for name in NAMES]


def from_file(studio: Studio, path: str) -> list:
    """The fields and a message from a picture that somebody dropped; whatever is in it, nothing is raised."""
    from pixart.pipeline.restore import fit_to_model, restore_settings

    try:
        found = fit_to_model(restore_settings(path), studio.models.folder)
        form = from_request(found.request, studio.models.folder)
    except PixArtError as error:
        return [*[gr.skip()] * len(NAMES), markup.message(str(error), "error")]
    said = " ".join([f"These are the settings of the picture, as {found.source} wrote them.", *found.notices])
    return [*field_updates(studio, form), markup.message(said)]


def reuse(studio: Studio, run_name: str, index: int) -> list:
    """The fields and a message for drawing one picture of a run again."""
    run = studio.runs.get(run_name)
    if run is None or not 0 <= index < len(run.pictures):
        return [*[gr.skip()] * len(NAMES), markup.message("This picture is not there any more.", "error")]
    try:
        settings = read_settings(studio.runs.folder / run.name / run.pictures[index]["file"])
        form = from_request(settings, studio.models.folder)
    except PixArtError:  # drawn without metadata, perhaps: the run remembers what stood in the fields
        form = restored(run.form, studio.models.folder).with_seed(run.pictures[index]["seed"])
    return [*field_updates(studio, form), markup.message("The fields are as they were for this picture.")]


def details(studio: Studio, run_name: str, index: int) -> str:
    """What is known of one picture of a run."""
    settings = picture_settings(studio, run_name, index)
    return "" if settings is None else markup.picture_details(studio.runs.get(run_name), index, settings)


def picture_settings(studio: Studio, run_name: str, index: int) -> dict[str, Any] | None:
    """The settings in a picture's file, or what the run knows where it has none; None if it is not there."""
    run = studio.runs.get(run_name)
    if run is None or not 0 <= index < len(run.pictures):
        return None
    try:
        return read_settings(studio.runs.folder / run.name / run.pictures[index]["file"])
    except PixArtError:
        form = run.form
        negative = form.get("negative_prompt") if form.get("use_negative") else ""
        style = None if form.get("style") == NO_STYLE else form.get("style")
        return {**form, "negative_prompt": negative, "style": style, "seed": run.pictures[index]["seed"]}


async def _asked(studio: Studio, tab_id: str, ask: Callable[[], Any]) -> AsyncIterator[list]:
    """Ask for a drawing, say what is wrong with it, or show it until it is over."""
    try:
        ask()
    except PixArtError as error:
        yield [markup.message(str(error), "error"), *[gr.skip()] * 9]
        return
    async for update in stream(studio, tab_id):
        yield ["", *update]


def _stage(studio: Studio, job, view, more: int, position: int) -> list:
    """Status, tiles, gallery, run, picked, actions, details, cancel; see DrawTab.stage."""
    if job is None:
        return [""] * 2 + [gr.skip()] * 5 + [gr.Button(interactive=False)]
    line = markup.status(job, view, position=position, more=more, stage=studio.models.stage)
    live = not job.over.is_set()
    columns = job.work.columns
    if live:
        gone = gr.Column(visible=False)
        return [
            line,
            markup.tiles(view, columns),
            gr.Gallery(value=[], visible=False),
            view.run,
            0,
            gone,
            "",
            gr.Button(interactive=True),
        ]
    saved = [tile for tile in view.tiles if tile.path is not None]
    in_gallery = bool(saved) and not columns and job.state != "failed"
    return [
        line,
        "" if in_gallery else markup.tiles(view, columns),
        gr.Gallery(
            value=[(str(tile.path), f"seed {tile.seed}") for tile in saved] if in_gallery else [],
            visible=in_gallery,
            columns=1 if len(saved) == 1 else 2 if len(saved) <= 4 else 4,
        ),
        view.run,
        0,
        gr.Column(visible=bool(saved)),
        details(studio, view.run, 0) if saved else "",
        gr.Button(interactive=False),
    ]
