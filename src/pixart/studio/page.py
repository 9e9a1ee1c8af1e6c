"""The page: its fields, its images and what its buttons do."""

import html
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from pixart import __version__
from pixart.errors import PixArtError
from pixart.pipeline.image_files import read_settings
from pixart.pipeline.networks import DTYPES, ENGINES
from pixart.pipeline.prompts import NO_STYLE
from pixart.pipeline.request import make_request
from pixart.pipeline.restore import fit_to_model, restore_settings
from pixart.pipeline.settings import MAX_IMAGES, MAX_UPSCALE, NULL_TEXTS, Settings
from pixart.runtime.device import DEVICES
from pixart.runtime.memory import DECODE, Memory, check_memory
from pixart.studio import fields, markup
from pixart.studio.examples import examples_for
from pixart.studio.generation import Generation, Tile
from pixart.studio.models import Choice
from pixart.studio.runs import Run
from pixart.studio.studio import Studio

HERE = Path(__file__).parent
SHIPPED = "The shipped model"
OTHER = "A folder or a hub id"
# Buttons in the images' HTML name an event of the page.
ON_CLICK = """const events = %s;
element.addEventListener('click', (event) => {
  const { do: name, index } = event.target.closest('[data-do]')?.dataset ?? {};
  const sure = name !== 'remove' || confirm('Delete these images from the disk?');
  if (!events.includes(name) || !sure) return;
  if (name === 'edit') {
    window.pixartEdit = event.target.closest('figure').querySelector('img').src;
    window.pixartStart?.open(window.pixartEdit);
  }
  trigger(name, { index: Number(index) });
});"""
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Who has a turn is decided by the engine, for all visitors; Gradio's queue only carries what is shown.
LONG: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}


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
            outputs = [*self.fields, *self.stage, self.model_line]
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
        with gr.Accordion("Start from an image", open=False, elem_id="start") as self.start:
            self.brush = gr.HTML(markup.BRUSH, js_on_load=content("brush.js"), elem_id="brush")
            strength = gr.Slider(0.05, 1, value=0.8, step=0.05, label="How much may change", elem_id="strength")
            outpaint = gr.Checkbox(
                False, label="Outpaint: keep the image, and generate what is around it", elem_id="outpaint"
            )
        with gr.Accordion("Adapters (LoRA)", open=True, elem_id="adapters", visible=bool(self.studio.models.loras)):
            loras = gr.Dropdown(
                list(self.studio.models.loras), label="Adapters", multiselect=True, allow_custom_value=True,
                elem_id="loras",
            )  # fmt: skip
            strengths = gr.Textbox(label="Strengths, in the same order", placeholder="1, 0.8", elem_id="strengths")
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
            weights = gr.Checkbox(
                False, label="Prompt weights: (word:1.2) counts more, [word] less", elem_id="prompt-weights"
            )
            upscale = gr.Slider(
                1, MAX_UPSCALE, value=1, step=1, label="Enlarge so many times, in a second pass", elem_id="upscale"
            )
            transparent = gr.Checkbox(
                False, label="Cut out: nothing behind what stands on white", elem_id="transparent"
            )
        return [prompt, style, number, width, height, binning, use_negative, negative, random_seed, seed, scale, steps,
                sampler, low, high, rescale, channels, null_text, upscale, transparent, loras, strengths, strength,
                outpaint, weights]  # fmt: skip

    def _stage(self) -> None:
        """Where images appear; `stage` is what `_show_run` fills, in its order."""
        status = gr.HTML(elem_id="status")
        self.tiles = gr.HTML(elem_id="tiles", js_on_load=ON_CLICK % [*markup.ACTIONS, "example", "remove"])
        self.run = gr.State("")
        self.stage = [status, self.tiles, self.run]

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
        gr.on(
            [self.blocks.load, *(field.change for field in size)], self._size, size, [self.size, self.aspect], **latest
        )
        self.aspect.input(
            lambda aspect: fields.size_for(self.studio.models.folder, aspect), self.aspect, size[:2], **QUIET
        )
        suited = [by_name["steps"], by_name["guidance_scale"]]
        sampler.input(self._suit_sampler, sampler, suited, **QUIET)
        example = [by_name[name] for name in ("prompt", "style", "random_seed", "seed")]
        self.tiles.example(self._take_example, None, example, **QUIET)
        self.dropped.upload(self._take_dropped, self.dropped, [*self.fields, self.note, self.dropped], **QUIET)
        self.tiles.settings(self._use, self.run, [*self.fields, self.note], **QUIET)
        self.tiles.edit(self._edit, self.run, [*self.fields, self.note, self.start], **QUIET)
        self.brush.opened(self._size_like, None, size[:2], **QUIET)

    def _open(self, kept: Any) -> list:
        """The page is opened: the fields as the browser kept them."""
        folder = self.studio.models.folder
        return [*self._filled(fields.restored(kept, folder)), *self._nothing(), self._model_line()]

    def _filled(self, values: dict[str, Any]) -> list:
        """The fields with these values, and the choices and ranges of the model of this moment."""
        folder, loras = self.studio.models.folder, self.studio.models.loras
        updates = {
            "style": gr.Dropdown(choices=fields.styles_of(folder), value=values["style"] or NO_STYLE),
            "sampler": gr.Dropdown(choices=fields.samplers_of(folder), value=values["sampler"]),
            "steps": gr.Slider(value=values["steps"], maximum=max(100, values["steps"])),
            "guidance_scale": gr.Slider(value=values["guidance_scale"], maximum=max(20, values["guidance_scale"])),
            "loras": gr.Dropdown(choices=list(loras), value=[name for name in values["loras"] if name in loras]),
        }
        return [updates.get(name, values[name]) for name in fields.NAMES]

    def _meter(self, prompt: str, style: str) -> str:
        try:
            counted = self.studio.tokens(prompt or "", style)
        except PixArtError as error:
            return markup.lines([str(error)])
        return markup.token_meter(*counted) if counted else ""

    def _size(self, width: Any, height: Any, binning: str) -> list:
        folder = self.studio.models.folder
        line = markup.size_line(folder, width, height, fields.BINNING.get(binning))
        return [line, fields.aspect_of(width, height)]

    def _size_like(self, event: gr.EventData) -> list:
        """Width and height in the shape of the image to start from."""
        return list(fields.size_like(self.studio.models.folder, event.width / event.height))

    def _take_example(self, event: gr.EventData) -> list:
        prompt, style, seed = examples_for(self.studio.models.folder)[event.index]
        return [prompt, style, False, seed]

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

    def _use(self, name: str, event: gr.EventData) -> list:
        run, path = self._image(name, event.index)
        try:
            return self._from_image(path)
        except PixArtError:  # written without metadata, perhaps: the run remembers the fields
            values = fields.restored(run.form, self.studio.models.folder)
            return [*self._filled(values | {"random_seed": False, "seed": run.images[event.index]["seed"]}), ""]

    def _edit(self, name: str, event: gr.EventData) -> list:
        """The settings of the image that the browser puts under the brush; not its seed, which would give it again."""
        *values, _ = self._use(name, event)
        values[fields.NAMES.index("random_seed")] = True
        note = markup.lines(["The image stands under Start from an image; press Generate to vary it."])
        return [*values, note, gr.Accordion(open=True)]

    def _image(self, name: str, index: int) -> tuple[Run, Path]:
        with _errors_shown():
            if found := self.studio.runs.image(name, index):
                return found
            raise PixArtError("This image is not there any more.")

    # Generating

    def _connect_generating(self) -> None:
        started = gr.Textbox(visible=False)
        take = "(start, ...values) => [window.pixartStart?.value() ?? '', ...values]"
        one = self.generate.click(self._generate, [started, *self.fields], self.stage, js=take, **LONG)
        larger = self.tiles.enlarge(self._enlarge, self.run, self.stage, **LONG)
        # In this order: an event with a function and `cancels` would cancel after the function.
        cancelled = self.cancel.click(None, cancels=[one, larger], **QUIET)
        cancelled.then(self._stopped, self.run, self.stage, **QUIET)

    async def _generate(self, request: gr.Request, start: str, *values: Any) -> AsyncIterator[list]:
        """The stage until the images are saved, and then these; `start` is what the brush gives."""
        form, models = dict(zip(fields.NAMES, values, strict=True)), self.studio.models
        with _errors_shown():
            wanted = fields.checked(form, models.folder, *fields.from_brush(start))
            generation = Generation(self.studio, wanted, form, fields.adapters(form, models.loras))
        async with aclosing(self._follow(generation, request.session_hash)) as views:
            async for view in views:
                yield view

    async def _enlarge(self, request: gr.Request, name: str, event: gr.EventData) -> AsyncIterator[list]:
        """An image once more at twice its size, starting from it: what `upscale` does, of an image that is there."""
        run, path = self._image(name, event.index)
        folder = self.studio.models.folder
        form = fields.restored(run.form, folder)
        with _errors_shown():
            try:
                settings = fit_to_model(restore_settings(path), folder).request
            except PixArtError:  # written without metadata, perhaps: the run remembers the fields
                settings = fields.arguments(form)
            width, height = _size_of(path)
            settings |= {"width": 2 * width, "height": 2 * height, "binning": False, "num_images": 1, "upscale": 1}
            strength = Settings.upscale_strength
            wanted = make_request(folder, **settings | {"image": path, "mask": None, "strength": strength})
            loras = fields.adapters(form, self.studio.models.loras)
            own = {name: form[name] for name in ("loras", "strengths", "transparent")}
            generation = Generation(self.studio, wanted, fields.filled(settings, folder) | own, loras)
        async with aclosing(self._follow(generation, request.session_hash)) as views:
            async for view in views:
                yield view

    async def _follow(self, generation: Generation, session: str | None) -> AsyncIterator[list]:
        submit = partial(generation.submit, str(session))
        try:
            with _errors_shown():
                async with aclosing(self.studio.follow(submit, generation.view, session)) as views:
                    async for view in views:
                        yield [*view, generation.run_name]
        except gr.Error as error:  # what was saved stays, and what was seen
            status = f'<div class="error">{markup.lines([html.unescape(error.message)])}</div>'
            shown = self._show_run(generation.run_name)[1] if generation.saved else markup.tiles(generation.tiles)
            yield [status, shown, generation.run_name]
            raise
        if generation.saved == len(generation.tiles):
            generation.finish()
            yield self._show_run(generation.run_name)

    def _stopped(self, name: str) -> list:
        """Cancel was clicked: the engine ends with the step that it is in, and what is saved is shown."""
        return self._show_run(name) if name else self._nothing("Stopped.")

    def _show_run(self, name: str) -> list:
        """The stage with the images of a run."""
        run = self.studio.runs.get(name)
        if run is None:
            return self._nothing("These images are not there any more.")
        files = self.studio.runs.files(run)
        seeds = {image["file"]: image["seed"] for image in run.images}
        words = _count(len(run.images), "image")
        if run.form.get("num_images", 1) > len(run.images):
            words = f"{len(run.images)} of {run.form['num_images']} images"
        status = f'<div data-state="done">{markup.lines([f"{words} · {run.seconds:.1f} s", *run.notices])}</div>'
        shown = [Tile(seeds[file.name], _size_of(file), path=file, details=_details(run, file)) for file in files]
        return [status, markup.tiles(shown, is_done=True), name]

    def _nothing(self, said: str = "") -> list:
        """The stage without images: what may be tried."""
        return [markup.lines([said]) if said else "", markup.examples(self.studio.models.folder), ""]

    # History

    def _connect_history(self) -> None:
        listing = [self.count, self.covers, self.names]
        gr.on([self.history.select, self.search.change], self._listing, self.search, listing, **QUIET)
        self.covers.select(self._choose, self.names, [*self.stage, self.tabs], **QUIET)
        self.tiles.remove(self._delete, self.run, self.stage, **QUIET)

    def _listing(self, words: str) -> list:
        runs, more = self.studio.runs.search(words or "")
        covers = [(str(self.studio.runs.files(run)[0]), _caption(run)) for run in runs]
        said = f"The newest {len(runs)} runs; search for others." if more else _count(len(runs), "run")
        return [markup.lines([said]), covers, [run.name for run in runs]]

    def _choose(self, names: list[str], event: gr.SelectData) -> list:
        return [*self._show_run(names[event.index]), gr.Tabs(selected="generate")]

    def _delete(self, name: str) -> list:
        with _errors_shown():
            number = self.studio.runs.delete(name)
        return self._nothing(f"Deleted {_count(number, 'image')}.")

    # The model

    def _connect_model(self) -> None:
        which, source = self.choice[:2]
        which.input(lambda name: gr.Textbox(visible=name == OTHER), which, source, **QUIET)
        facts = [self.facts, self.model_line]
        gr.on([self.model.select, self.blocks.load], lambda: [self._facts(), self._model_line()], None, facts, **QUIET)
        outputs = [self.loading, self.facts, self.model_line, *self.stage, *self.fields]
        self.load.click(self._load, [self.run, *self.choice, *self.fields], outputs, **LONG)

    async def _load(
        self, run: str, which, source, fast, engine, dtype, device, staged, offload, eight, decode, *values
    ) -> AsyncIterator[list]:
        source = (source or "").strip() if which == OTHER else None
        nothing = [gr.skip()] * (2 + len(self.stage) + len(self.fields))
        try:
            if source == "":
                raise PixArtError("Name a folder, or a model on the Hub as organisation/name.")
            memory = check_memory(Memory(staged=staged, offload=offload, text_encoder_8bit=eight, decode=decode))
            yield [markup.lines(["Loading, after the images that are being generated ..."]), *nothing]
            await self.studio.load(Choice(source, engine, dtype, memory, device, fast=fast))
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
        stage = [gr.skip()] * len(self.stage) if run else self._nothing()
        yield [markup.lines([said]), self._facts(), self._model_line(), *stage, *updates]

    def _facts(self) -> str:
        return markup.model_facts(self.studio.models)

    def _model_line(self) -> str:
        return markup.lines([self.studio.models.folder.name])


@contextmanager
def _errors_shown() -> Iterator[None]:
    """A PixArtError inside the block is what Gradio shows over the page, which it does as HTML."""
    try:
        yield
    except PixArtError as error:
        raise gr.Error(html.escape(str(error)), duration=30, print_exception=False) from None


def content(name: str) -> str:
    """A file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def _number(label: str, value: float | None, name: str, precision: int | None = 0, **options: Any) -> gr.Number:
    return gr.Number(value, label=label, precision=precision, min_width=90, elem_id=name, **options)


def _size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # somebody has put another file there; decoders raise nearly everything
        return 256, 256


def _details(run: Run, path: Path) -> str:
    try:
        settings = read_settings(path)
    except PixArtError:  # written without metadata
        settings = {**run.form, "seed": None, "model": run.model}
    return markup.details(settings, f"{run.name}/{path.name}")


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
