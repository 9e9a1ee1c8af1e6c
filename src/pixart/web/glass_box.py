"""The tab that shows how an image comes about: its words and its steps."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from pixart.errors import PixArtError
from pixart.pipeline.prompts import NO_STYLE
from pixart.web import markup
from pixart.web.form import Form, samplers_of, styles_of
from pixart.web.glass_box_html import NO_TORCH, looked_html, said_html
from pixart.web.glass_box_work import Eyes, has_torch, look_inside
from pixart.web.studio import Studio
from pixart.web.work_queue import Job

HERE = Path(__file__).parent
LOOK_EVERY = 0.15  # seconds between two looks at what is being done
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
INTRO = (
    "Draw one picture and look inside: which words each part of it reads, and what the network believes at every step."
)


@dataclass(frozen=True)
class Look:
    """The tab and its fields, which a "look inside" button elsewhere may set; None in a number is the model's own."""

    tab: gr.Tab
    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    style: gr.Dropdown
    seed: gr.Number
    steps: gr.Number
    guidance_scale: gr.Number
    width: gr.Number
    height: gr.Number
    sampler: gr.Dropdown
    go: gr.Button


def build_tab(studio: Studio) -> Look:
    """Add the tab to the gr.Tabs that is open; everything heavy is done in the studio's queue."""
    eyes = Eyes()
    with gr.Tab("Glass box", id="glass") as tab:
        gr.HTML(f'<p class="gb-intro">{INTRO}</p>')
        with gr.Row():
            with gr.Column(scale=5, min_width=300):
                prompt = gr.Textbox("a red apple, flat", label="Prompt", lines=2, max_lines=6, elem_id="glass-prompt")
                with gr.Row():
                    go = gr.Button("Look inside", variant="primary", elem_id="glass-go", scale=3, min_width=120)
                    stop = gr.Button("Stop", elem_id="glass-stop", scale=1, min_width=80, interactive=False)
                status = gr.HTML("" if has_torch() else said_html(NO_TORCH), elem_id="glass-status")
                fields = _fields(studio)
            with gr.Column(scale=6, min_width=300):
                view = _live_html(elem_id="glass-view")
    look = Look(tab, prompt, *fields, go)
    _connect_drawing(studio, eyes, look, stop, status, view)
    return look


def _fields(studio: Studio) -> list[Any]:
    """Negative prompt, style, seed, steps, guidance scale, width, height, sampler: in the order of `Look`."""
    folder = studio.models.folder
    seed = gr.Number(1, label="Seed", precision=0, minimum=0, elem_id="glass-seed")
    with gr.Accordion("More settings", open=False):
        style = gr.Dropdown(styles_of(folder), value=NO_STYLE, label="Style", allow_custom_value=True)
        negative = gr.Textbox(label="Negative prompt")
        own = "the model's own"
        with gr.Row():
            steps = gr.Number(None, label="Steps", placeholder=own, precision=0, min_width=110)
            scale = gr.Number(None, label="Guidance scale", placeholder=own, min_width=110)
        with gr.Row():
            width = gr.Number(None, label="Width", placeholder=own, precision=0, min_width=110)
            height = gr.Number(None, label="Height", placeholder=own, precision=0, min_width=110)
        sampler = gr.Dropdown(samplers_of(folder), value=None, label="Sampler", allow_custom_value=True)
    return [negative, style, seed, steps, scale, width, height, sampler]


def _live_html(*, elem_id: str) -> gr.HTML:
    css, script = ((HERE / f"glass_box.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return gr.HTML(css_template=css, js_on_load=script, elem_id=elem_id)


def _connect_drawing(studio: Studio, eyes: Eyes, look: Look, stop: gr.Button, status: gr.HTML, view: gr.HTML) -> None:
    fields = (look.prompt, look.negative_prompt, look.style, look.seed, look.steps)
    fields = [*fields, look.guidance_scale, look.width, look.height, look.sampler]

    async def draw(request: gr.Request, *values: Any) -> AsyncIterator[list]:
        form = _form(*values)

        def work(job: Job, tell: Callable[[str], None]) -> str:
            loaded = studio.models.require()
            asked = form.requests(loaded.folder)[0]
            return looked_html(look_inside(loaded.pipeline, asked, eyes if has_torch() else None, tell))

        try:
            form.requests(studio.models.folder)  # what is wrong with the fields is said before the queue
        except PixArtError as error:
            yield [markup.message(str(error), "error"), gr.skip(), gr.Button(interactive=False)]
            return
        async for line, over, result in _told(studio, _owner(request), form.prompt, work):
            hint = "" if line or has_torch() else said_html(NO_TORCH)
            yield [line + hint, gr.skip() if result is None else result, gr.Button(interactive=not over)]

    gr.on(
        [look.go.click, look.prompt.submit],
        draw,
        fields,
        [status, view, stop],
        concurrency_limit=None,
        trigger_mode="once",
        **QUIET,
    )

    def cancel(request: gr.Request) -> None:
        studio.queue.cancel_all(_owner(request))

    stop.click(cancel, None, None, queue=False, **QUIET)

    def choices() -> list:
        folder = studio.models.folder
        return [gr.Dropdown(choices=styles_of(folder)), gr.Dropdown(choices=samplers_of(folder))]

    look.tab.select(choices, None, [look.style, look.sampler], queue=False, **QUIET)


async def _told(
    studio: Studio, owner: str, title: str, work: Callable[[Job, Callable[[str], None]], Any]
) -> AsyncIterator[tuple[str, bool, Any]]:
    """Do `work` in its turn of the queue: again and again what is being done as HTML, whether it is over, its result.

    The result is None until it is there, and if it failed or was stopped.
    """
    doing = ["Getting ready"]

    def run(job: Job) -> Any:
        def tell(what: str) -> None:
            job.check()
            doing[0] = what

        return work(job, tell)

    try:
        job = studio.queue.submit(run, owner=owner, title=title[:80])
    except PixArtError as error:
        yield markup.message(str(error), "error"), True, None
        return
    try:
        while not job.over.is_set():
            position = studio.queue.position(job)
            line = f"Waiting: number {position} in the queue" if position else f"{doing[0]} ..."
            yield markup.message(line), False, None
            await asyncio.sleep(LOOK_EVERY)
    finally:
        job.cancel()  # if it is not over, nobody looks any more
    match job.state:
        case "done":
            yield "", True, job.result
        case "failed":
            yield markup.message(job.error, "error"), True, None
        case _:
            yield markup.message("Stopped."), True, None


def _form(prompt, negative, style, seed, steps, scale, width, height, sampler) -> Form:
    return Form(
        prompt=prompt or "",
        style=style or NO_STYLE,
        width=width,
        height=height,
        negative_prompt=negative or "",
        random_seed=seed is None,
        seed=seed,
        guidance_scale=scale,
        steps=steps,
        sampler=sampler or None,
    )


def _owner(request: gr.Request) -> str:
    return f"glass-{request.session_hash}"
