"""The page: its fields, its images and what its buttons do."""

import asyncio
import html
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from pixart import __version__
from pixart.checkpoints.model_folder import ModelFolder
from pixart.errors import PixArtError
from pixart.pipeline.image_files import read_settings
from pixart.pipeline.networks import DTYPES, ENGINES
from pixart.pipeline.prompts import NO_STYLE
from pixart.pipeline.restore import fit_to_model, restore_settings
from pixart.pipeline.settings import MAX_IMAGES, NULL_TEXTS
from pixart.runtime.device import DEVICES
from pixart.runtime.memory import DECODE, Memory, check_memory
from pixart.studio import fields, grid, markup
from pixart.studio.examples import examples_for
from pixart.studio.generation import Generation
from pixart.studio.inspector import Inspection
from pixart.studio.models import Choice
from pixart.studio.studio import Studio

HERE = Path(__file__).parent
SHIPPED = "The shipped model"
OTHER = "A folder or a hub id"
TRACKERS = {"Nothing": None, "trackio": "trackio", "Weights & Biases": "wandb"}
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LONG: dict[str, Any] = {"concurrency_id": Studio.concurrency_id, "concurrency_limit": 1, "api_visibility": "private"}


class Page:
    """All components and their events, over the studio that all visitors share. `blocks` is what is served."""

    def __init__(self, studio: Studio):
        self.studio = studio
        options = {"title": "pixart studio", "analytics_enabled": False, "fill_width": True}
        with gr.Blocks(delete_cache=(3600, 3600), **options) as self.blocks:
            with gr.Row(elem_id="head"):
                gr.HTML('<h1 class="px-title">pixart <span>studio</span></h1>')
                self.model_line = gr.HTML(elem_id="model-line")
            with gr.Tabs() as self.tabs:
                with gr.Tab("Generate", id="generate"):
                    self._generate_tab()
                with gr.Tab("History", id="history") as self.history:
                    self._history_tab()
                with gr.Tab("Model", id="model") as self.model:
                    self._model_tab()
            gr.HTML(f'<p class="px-foot">pixart {html.escape(__version__)} · everything stays on this machine</p>')
            self.kept = gr.BrowserState({}, storage_key="pixart-settings", secret="pixart")
            self._connect_fields()
            self._connect_generating()
            self._connect_history()
            self._connect_model()
            outputs = [*self.fields, self.examples, self.model_line]
            self.blocks.load(self._open, self.kept, outputs, **QUIET)

    # Layout

    def _generate_tab(self) -> None:
        with gr.Row(elem_id="prompt-row", equal_height=True):
            prompt = gr.Textbox(
                label="Prompt", placeholder="What the image shows", lines=2, max_lines=8, autofocus=True, scale=6,
                min_width=320, elem_id="prompt",
            )  # fmt: skip
            with gr.Column(scale=1, min_width=150):
                self.generate = gr.Button("Generate", variant="primary", elem_id="generate")
                self.cancel = gr.Button("Cancel", elem_id="cancel")
        self.meter = gr.HTML(elem_id="meter")
        self.note = gr.HTML(elem_id="note")
        with gr.Row(elem_id="work"):
            with gr.Column(scale=5, min_width=320):
                self.fields = self._settings(prompt)
                self._variations()
                self.dropped = gr.File(
                    label="Drop an image here to take its settings", file_types=["image"], height=150,
                    elem_id="dropped",
                )  # fmt: skip
            with gr.Column(scale=7, min_width=320, elem_id="stage"):
                self._stage()

    def _settings(self, prompt: gr.Textbox) -> list[Any]:
        """The fields in the order of `fields.NAMES`."""
        folder = self.studio.models.folder
        shown = fields.defaults(folder)
        # What a list lacks is refused by `make_request`, also where another visitor has changed the model meanwhile:
        # hence allow_custom_value.
        style = gr.Dropdown(
            fields.styles_of(folder), value=NO_STYLE, label="Style", allow_custom_value=True, elem_id="style"
        )
        number = gr.Slider(1, MAX_IMAGES, value=1, step=1, label="Images", elem_id="number")
        self.aspect = gr.Radio(list(fields.ASPECTS), value=None, label="Shape", elem_id="aspect")
        self.size = gr.HTML(elem_id="size")
        with gr.Accordion("Advanced settings", open=False, elem_id="advanced"):
            with gr.Row():
                width = _number("Width", shown["width"], "width")
                height = _number("Height", shown["height"], "height")
            binning = gr.Dropdown(list(fields.BINNING), value=shown["binning"], label="Generated at", elem_id="binning")
            use_negative = gr.Checkbox(True, label="Use the negative prompt", elem_id="use-negative")
            negative = gr.Textbox(label="Negative prompt", lines=2, max_lines=4, elem_id="negative")
            with gr.Row():
                random_seed = gr.Checkbox(True, label="Random seed", elem_id="random-seed", min_width=120)
                seed = _number("Seed", 0, "seed")
            scale = gr.Slider(
                1, 20, value=shown["guidance_scale"], step=0.1, label="Guidance scale", elem_id="guidance"
            )
            steps = gr.Slider(1, 100, value=shown["steps"], step=1, label="Steps", elem_id="steps")
            sampler = gr.Dropdown(
                fields.samplers_of(folder), value=shown["sampler"], label="Sampler", allow_custom_value=True,
                elem_id="sampler",
            )  # fmt: skip
            with gr.Row():
                low = _number("Guidance from timestep", 0, "guidance-from")
                high = _number("to timestep", 1000, "guidance-to")
            with gr.Row():
                rescale = _number("Guidance rescale", 0, "rescale", precision=None)
                channels = _number("Guided channels", None, "channels", placeholder="all")
                null_text = gr.Dropdown(list(NULL_TEXTS), value="encoded", label="Unconditional text", min_width=90)
        return [prompt, style, number, width, height, binning, use_negative, negative, random_seed, seed, scale, steps,
                sampler, low, high, rescale, channels, null_text]  # fmt: skip

    def _variations(self) -> None:
        with gr.Accordion("Variations: the same seed in a grid", open=False, elem_id="variations"):
            with gr.Row():
                x = gr.Dropdown(grid.AXES[1:], value="Guidance scale", label="Across", min_width=120)
                x_values = gr.Textbox(grid.EXAMPLES["Guidance scale"], label="Values", min_width=120, elem_id="x")
            with gr.Row():
                y = gr.Dropdown(grid.AXES, value=grid.NO_AXIS, label="Down", min_width=120, elem_id="y-axis")
                y_values = gr.Textbox("", label="Values", min_width=120, elem_id="y")
            self.axes = [x, x_values, y, y_values]
            self.generate_grid = gr.Button("Generate the grid", elem_id="generate-grid")

    def _stage(self) -> None:
        """Where images appear; `stage` is what `_show_run` fills, in its order."""
        status = gr.HTML(elem_id="status", min_height=44)
        tiles = gr.HTML(elem_id="tiles")
        self.gallery = gr.Gallery(
            show_label=False, columns=2, object_fit="contain", height="auto", visible=False, interactive=False,
            elem_id="gallery", buttons=["download", "download_all", "fullscreen"],
        )  # fmt: skip
        with gr.Column(visible=False, elem_id="actions") as actions:
            with gr.Row():
                self.same_seed = gr.Button("Keep this seed", size="sm", min_width=100, elem_id="same-seed")
                self.use = gr.Button("Use these settings", size="sm", min_width=100, elem_id="use")
                self.inspect = gr.Button("Word attention", size="sm", min_width=100, elem_id="inspect")
                self.delete = gr.Button("Delete", size="sm", min_width=60, elem_id="delete")
            self.maps = gr.HTML(elem_id="maps")
            self.details = gr.HTML(elem_id="details")
        self.run, self.picked = gr.State(""), gr.State(0)
        self.stage = [status, tiles, self.gallery, actions, self.maps, self.details, self.run, self.picked]
        shown = [gr.Textbox(visible=False), gr.Textbox(visible=False), gr.Number(visible=False)]
        self.examples = gr.Dataset(
            components=shown, label="Try one of these", layout="gallery", elem_id="examples",
            **_samples(self.studio.models.folder),
        )  # fmt: skip

    def _history_tab(self) -> None:
        self.search = gr.Textbox(
            label="Search", placeholder="words of the prompt, the style or the model", max_lines=1, elem_id="search"
        )
        self.count = gr.HTML(elem_id="count")
        self.covers = gr.Gallery(
            show_label=False, columns=5, object_fit="contain", height="auto", allow_preview=False, interactive=False,
            elem_id="covers", buttons=[], fit_columns=False,
        )  # fmt: skip
        self.names = gr.State([])

    def _model_tab(self) -> None:
        choice = self.studio.models.choice
        with gr.Row():
            with gr.Column(scale=5, min_width=320):
                other = choice.source is not None
                which = gr.Radio([SHIPPED, OTHER], value=OTHER if other else SHIPPED, label="Model", elem_id="which")
                source = gr.Textbox(
                    label="Folder on this machine, or organisation/name on the Hub", value=choice.source or "",
                    placeholder="PixArt-alpha/PixArt-XL-2-512x512", visible=other, elem_id="source",
                )  # fmt: skip
                fast = gr.Checkbox(choice.fast, label="Its few-step model, if it has one", elem_id="fast")
                with gr.Accordion("How it is computed and kept in memory", open=False):
                    engine = gr.Radio(list(ENGINES), value=choice.engine, label="Engine", elem_id="engine")
                    dtype = gr.Radio(list(DTYPES), value=choice.dtype, label="Dtype", elem_id="dtype")
                    device = gr.Radio(list(DEVICES), value=choice.device, label="Device", elem_id="device")
                    staged = gr.Checkbox(choice.memory.staged, label="One network at a time in memory; slower")
                    offload = gr.Checkbox(choice.memory.offload, label="Offload networks from the GPU while idle")
                    eight = gr.Checkbox(choice.memory.text_encoder_8bit, label="Text encoder in 8 bits")
                    decode = gr.Radio(list(DECODE), value=choice.memory.decode, label="Decoding of large images")
                self.load = gr.Button("Load", variant="primary", elem_id="load")
                self.loading = gr.HTML(elem_id="model-message")
            with gr.Column(scale=5, min_width=320):
                self.facts = gr.HTML(elem_id="facts")
                self.tracker = gr.Radio(list(TRACKERS), value="Nothing", label="Record every run with")
        self.choice = [which, source, fast, engine, dtype, device, staged, offload, eight, decode]

    # What fills the fields

    def _connect_fields(self) -> None:
        by_name = dict(zip(fields.NAMES, self.fields, strict=True))
        prompt, style, sampler = by_name["prompt"], by_name["style"], by_name["sampler"]
        size = [by_name[name] for name in ("width", "height", "binning")]
        latest = {**QUIET, "trigger_mode": "always_last"}
        keep = (
            f"(...values) => Object.fromEntries({list(fields.NAMES)}.map((name, i) => "
            "[name, typeof values[i] === 'string' ? values[i].slice(0, 20000) : values[i]]))"
        )
        gr.on([field.change for field in self.fields], None, self.fields, self.kept, js=keep, **QUIET)
        gr.on([prompt.change, style.change], self._meter, [prompt, style], self.meter, **latest)
        gr.on([self.blocks.load, *(field.change for field in size)], self._size, size, self.size, **latest)
        self.aspect.input(
            lambda aspect: fields.size_for(self.studio.models.folder, aspect), self.aspect, size[:2], **QUIET
        )
        suited = [by_name["steps"], by_name["guidance_scale"]]
        sampler.input(self._suit_sampler, sampler, suited, **QUIET)
        for axis, values in (self.axes[:2], self.axes[2:]):
            axis.input(lambda name: grid.EXAMPLES.get(name, ""), axis, values, **QUIET)
        example = [by_name[name] for name in ("prompt", "style", "random_seed", "seed")]
        self.examples.click(lambda row: [row[0], row[1], False, row[2]], self.examples, example, **QUIET)
        self.dropped.upload(self._take_dropped, self.dropped, [*self.fields, self.note, self.dropped], **QUIET)
        self.use.click(self._use, [self.run, self.picked], [*self.fields, self.note], **QUIET)
        seeds = [by_name["random_seed"], by_name["seed"], self.note]
        self.same_seed.click(self._keep_seed, [self.run, self.picked], seeds, **QUIET)

    def _open(self, kept: Any) -> list:
        """The page is opened: the fields as the browser kept them."""
        folder = self.studio.models.folder
        return [*self._filled(fields.restored(kept, folder)), gr.Dataset(**_samples(folder)), self._model_line()]

    def _filled(self, values: dict[str, Any]) -> list:
        """The fields with these values, and the choices and ranges of the model of this moment."""
        folder = self.studio.models.folder
        updates = {
            "style": gr.Dropdown(choices=fields.styles_of(folder), value=values["style"] or NO_STYLE),
            "sampler": gr.Dropdown(choices=fields.samplers_of(folder), value=values["sampler"]),
            "steps": gr.Slider(value=values["steps"], maximum=max(100, values["steps"])),
            "guidance_scale": gr.Slider(value=values["guidance_scale"], maximum=max(20, values["guidance_scale"])),
        }
        return [updates.get(name, values[name]) for name in fields.NAMES]

    def _meter(self, prompt: str, style: str) -> str:
        try:
            counted = self.studio.tokens(prompt or "", style)
        except PixArtError as error:
            return markup.lines([str(error)])
        return markup.token_meter(*counted) if counted else ""

    def _size(self, width: Any, height: Any, binning: str) -> str:
        return markup.size_line(self.studio.models.folder, width, height, fields.BINNING.get(binning))

    def _suit_sampler(self, name: str) -> list:
        known = name in fields.samplers_of(self.studio.models.folder)
        return list(fields.sampler_defaults(self.studio.models.folder, name)) if known else [gr.skip(), gr.skip()]

    def _take_dropped(self, path: str | None) -> list:
        # The page names the file, so it may name any; only uploads are read, and not kept.
        if not path or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(get_upload_folder())):
            return [gr.skip()] * (len(self.fields) + 2)
        try:
            return [*self._from_image(Path(path)), None]
        except PixArtError as error:
            return [*[gr.skip()] * len(self.fields), markup.lines([str(error)]), None]
        finally:
            Path(path).unlink(missing_ok=True)

    def _from_image(self, path: Path) -> list:
        """The fields and a note from the settings inside an image file. Raises PixArtError where there are none."""
        found = fit_to_model(restore_settings(path), self.studio.models.folder)
        values = fields.filled(found.request, self.studio.models.folder)
        said = f"These are the settings of the image, as {found.source} wrote them."
        return [*self._filled(values), markup.lines([said, *found.notices])]

    def _use(self, name: str, index: int) -> list:
        run, path = self._image(name, index)
        try:
            return self._from_image(path)
        except PixArtError:  # written without metadata, perhaps: the run remembers the fields
            values = fields.restored(run.form, self.studio.models.folder)
            return [*self._filled(values | {"random_seed": False, "seed": run.images[index]["seed"]}), ""]

    def _keep_seed(self, name: str, index: int) -> list:
        run, _ = self._image(name, index)
        seed = run.images[index]["seed"]
        return [False, seed, markup.lines([f"The next image starts from the seed {seed}."])]

    def _image(self, name: str, index: int) -> tuple[Any, Path]:
        with _errors_shown():
            if found := self.studio.runs.image(name, index):
                return found
            raise PixArtError("This image is not there any more.")

    # Generating

    def _connect_generating(self) -> None:
        status = {"show_progress": "minimal", "show_progress_on": self.stage[:1], **LONG}
        one = self.generate.click(self._generate, self.fields, self.stage, **status)
        many = self.generate_grid.click(self._generate, [*self.axes, *self.fields], self.stage, **status)
        maps = self.inspect.click(self._inspect, [self.run, self.picked], self.maps, **LONG, show_progress="minimal")
        # In this order: an event with a function and `cancels` would cancel after the function.
        cancelled = self.cancel.click(None, cancels=[one, many, maps], **QUIET)
        cancelled.then(self._stopped, self.run, self.stage, **QUIET)
        self.gallery.select(self._pick, self.run, [self.picked, self.details, self.maps], **QUIET)

    async def _generate(self, request: gr.Request, *values: Any) -> AsyncIterator[list]:
        """The stage until the images are saved, and then these; `values`: axes of a grid, then the fields."""
        axes, values = values[: -len(fields.NAMES)], values[-len(fields.NAMES) :]
        form, folder = dict(zip(fields.NAMES, values, strict=True)), self.studio.models.folder
        with _errors_shown():
            if axes:
                requests, labels, columns = grid.grid_of(form, axes[:2], axes[2:], folder)
                job = Generation(self.studio, requests, form, labels, columns)
            else:
                job = Generation(self.studio, [fields.checked(form, folder)], form)
            try:
                async with aclosing(self.studio.follow(job.run, job.view, request.session_hash)) as views:
                    async for view in views:
                        yield [*view, gr.Gallery(visible=False), gr.Column(visible=False), "", "", job.run_name, 0]
            except PixArtError:
                if job.saved:
                    yield self._show_run(job.run_name)
                raise
            yield self._show_run(job.run_name)

    async def _stopped(self, name: str) -> list:
        """Cancel was clicked: the worker ends the step that it is in, and what is saved is shown."""
        await asyncio.wait([asyncio.wrap_future(self.studio.worker.submit(int))], timeout=10)
        return self._show_run(name)

    def _show_run(self, name: str) -> list:
        """The stage with the images of a run."""
        run = self.studio.runs.get(name)
        if run is None:
            return [markup.lines(["Stopped."]), "", *self._no_images()]
        seeds = sorted({image["seed"] for image in run.images})
        words = _count(len(run.images), "image")
        seeds = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        status = (
            f'<div data-state="done">{markup.lines([f"{words} · {run.seconds:.1f} s · {seeds}", *run.notices])}</div>'
        )
        files = self.studio.runs.files(run)
        captions = [image.get("label") or f"seed {image['seed']}" for image in run.images]
        columns = run.grid or (1 if len(files) == 1 else 2 if len(files) <= 4 else 4)
        gallery = gr.Gallery(list(zip(map(str, files), captions, strict=False)), columns=columns, visible=True)
        return [status, "", gallery, gr.Column(visible=True), "", self._details(name, 0), name, 0]

    def _no_images(self) -> list:
        return [gr.Gallery([], visible=False), gr.Column(visible=False), "", "", "", 0]

    def _pick(self, name: str, chosen: gr.SelectData) -> list:
        return [chosen.index, self._details(name, chosen.index), ""]

    def _details(self, name: str, index: int) -> str:
        found = self.studio.runs.image(name, index)
        if found is None:
            return ""
        run, path = found
        try:
            settings = read_settings(path)
        except PixArtError:
            settings = {**run.form, "seed": run.images[index]["seed"], "model": run.model}
        return markup.details(settings, f"{run.name}/{path.name}")

    async def _inspect(self, request: gr.Request, name: str, index: int) -> AsyncIterator[str]:
        job = Inspection(self.studio, self._image(name, index)[1])
        with _errors_shown():
            async with aclosing(self.studio.follow(job.run, job.view, request.session_hash)) as views:
                async for (view,) in views:
                    yield view

    # History

    def _connect_history(self) -> None:
        listing = [self.count, self.covers, self.names]
        gr.on([self.history.select, self.search.change], self._listing, self.search, listing, **QUIET)
        self.covers.select(self._choose, self.names, [*self.stage, self.tabs], **QUIET)
        ask = "(name) => name && confirm('Delete the images of this run from the disk?') ? name : ''"
        self.delete.click(self._delete, self.run, self.stage, js=ask, **QUIET)

    def _listing(self, words: str) -> list:
        runs, more = self.studio.runs.search(words or "")
        covers = [(str(self.studio.runs.files(run)[0]), _caption(run)) for run in runs]
        said = f"The newest {len(runs)} runs; search for others." if more else _count(len(runs), "run")
        return [markup.lines([said]), covers, [run.name for run in runs]]

    def _choose(self, names: list[str], event: gr.SelectData) -> list:
        return [*self._show_run(names[event.index]), gr.Tabs(selected="generate")]

    def _delete(self, name: str) -> list:
        if not name:
            return [gr.skip()] * len(self.stage)
        with _errors_shown():
            number = self.studio.runs.delete(name)
        return [markup.lines([f"Deleted {_count(number, 'image')}."]), "", *self._no_images()]

    # The model

    def _connect_model(self) -> None:
        which, source = self.choice[:2]
        which.input(lambda name: gr.Textbox(visible=name == OTHER), which, source, **QUIET)
        facts = [self.facts, self.model_line]
        gr.on([self.model.select, self.blocks.load], lambda: [self._facts(), self._model_line()], None, facts, **QUIET)
        outputs = [self.loading, self.facts, self.model_line, self.examples, *self.fields]
        self.load.click(self._load, [*self.choice, *self.fields], outputs, show_progress="hidden", **LONG)
        self.tracker.input(self._track, self.tracker, None, **QUIET)

    async def _load(
        self, request: gr.Request, which, source, fast, engine, dtype, device, staged, offload, eight, decode, *values
    ) -> AsyncIterator[list]:
        source = (source or "").strip() if which == OTHER else None
        nothing = [gr.skip()] * (3 + len(self.fields))
        try:
            if source == "":
                raise PixArtError("Name a folder, or a model on the Hub as organisation/name.")
            memory = check_memory(Memory(staged=staged, offload=offload, text_encoder_8bit=eight, decode=decode))
            choice, began = Choice(source, engine, dtype, memory, device, fast), time.monotonic()

            def view() -> list:
                return [markup.lines([f"Loading ... {time.monotonic() - began:.0f} s"])]

            load = self.studio.models.load
            async with aclosing(self.studio.follow(lambda stop: load(choice), view, request.session_hash)) as views:
                async for shown in views:
                    yield [*shown, *nothing]
        except PixArtError as error:
            said = f"The page goes on with {self.studio.models.folder.name}."
            yield [f'<div class="error">{markup.lines([str(error), said])}</div>', self._facts(), *nothing[1:]]
            return
        # Prompt, style and seed stay; numbers that suit another model do not.
        folder = self.studio.models.folder
        kept = dict(zip(fields.NAMES, values, strict=True))
        kept = {
            name: kept[name] for name in ("prompt", "style", "negative_prompt", "use_negative", "random_seed", "seed")
        }
        said = f"{folder.name} is loaded, in {self.studio.models.loaded.seconds:.1f} s."
        updates = self._filled(fields.restored(kept, folder))
        yield [markup.lines([said]), self._facts(), self._model_line(), gr.Dataset(**_samples(folder)), *updates]

    def _facts(self) -> str:
        return markup.model_facts(self.studio.models)

    def _model_line(self) -> str:
        return markup.lines([self.studio.models.folder.name])

    def _track(self, name: str) -> None:
        with _errors_shown():
            self.studio.track(TRACKERS.get(name))


@contextmanager
def _errors_shown() -> Iterator[None]:
    """A PixArtError inside the block is what Gradio shows over the page, which it does as HTML."""
    try:
        yield
    except PixArtError as error:
        raise gr.Error(html.escape(str(error)), duration=30, print_exception=False) from None


def _number(label: str, value: float | None, name: str, precision: int | None = 0, **options: Any) -> gr.Number:
    return gr.Number(value, label=label, precision=precision, min_width=90, elem_id=name, **options)


def _samples(folder: ModelFolder) -> dict[str, Any]:
    """The examples of a model for gr.Dataset."""
    rows = examples_for(folder)
    labels = [prompt if style == NO_STYLE else f"{prompt} · {style}" for prompt, style, _ in rows]
    return {"samples": [list(row) for row in rows], "sample_labels": labels}


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _caption(run: Any) -> str:
    words = run.prompt[:60] + ("..." if len(run.prompt) > 60 else "") or "(no prompt)"
    return f"{words} · {len(run.images)}" if len(run.images) > 1 else words


def theme() -> gr.themes.Base:
    """System fonts only: others would have to come from somewhere."""
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
