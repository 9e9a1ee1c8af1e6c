"""The tab to choose a model in: which one, how it is held in memory, and records of what is drawn."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import gradio as gr

from pixart.errors import PixArtError
from pixart.pipeline.networks import DTYPES, ENGINES
from pixart.runtime.device import DEVICES
from pixart.runtime.memory import DECODE, Memory, check_memory
from pixart.web import markup
from pixart.web.draw_events import NAMES, QUIET, field_updates, head_line
from pixart.web.draw_tab import DrawTab, samples
from pixart.web.form import restored
from pixart.web.models import Choice, weights_bytes
from pixart.web.studio import Studio

SHIPPED = "The shipped model"
OTHER = "A folder or a hub id"
TRACKERS = {"Nothing": None, "trackio": "trackio", "Weights & Biases": "wandb"}
OF_THE_MODEL = ("steps", "guidance_scale", "sampler", "width", "height")


@dataclass
class ModelTab:
    which: gr.Radio
    source: gr.Textbox
    choices: list[gr.components.Component]  # engine, dtype, device, staged, offload, 8-bit text encoder, decode, fast
    load: gr.Button
    message: gr.HTML
    facts: gr.HTML
    tracker: gr.Radio
    tracking: gr.HTML


def build(studio: Studio, tab: gr.Textbox) -> ModelTab:
    choice = studio.models.choice
    with gr.Row():
        with gr.Column(scale=5, min_width=320):
            which = gr.Radio(
                [SHIPPED, OTHER], value=SHIPPED if choice.source is None else OTHER, label="Model", elem_id="which"
            )
            source = gr.Textbox(
                label="Folder on this machine, or organisation/name on the Hub",
                placeholder="PixArt-alpha/PixArt-XL-2-512x512",
                value=choice.source or "",
                visible=choice.source is not None,
                elem_id="source",
            )
            fast = gr.Checkbox(
                choice.fast,
                label="Fast",
                info="The model's fast denoiser, if it has one: a few steps, with guidance in its weights.",
                elem_id="fast",
            )
            with gr.Accordion("How it is computed and held in memory", open=False):
                engine = gr.Radio(list(ENGINES), value=choice.engine, label="Engine", elem_id="engine")
                dtype = gr.Radio(list(DTYPES), value=choice.dtype, label="Numbers of the denoiser", elem_id="dtype")
                device = gr.Radio(list(DEVICES), value=choice.device, label="Device", elem_id="device")
                staged = gr.Checkbox(
                    choice.memory.staged,
                    label="One part at a time in memory (staged)",
                    info="The same bytes, slower: each part is read from disk when its turn comes.",
                )
                offload = gr.Checkbox(
                    choice.memory.offload, label="Offload", info="Parts wait in main memory and go to the GPU to work."
                )
                eight = gr.Checkbox(
                    choice.memory.text_encoder_8bit,
                    label="Text encoder in 8 bits",
                    info="A quarter of its memory; pictures may differ a little.",
                )
                decode = gr.Radio(list(DECODE), value=choice.memory.decode, label="Decoding of large pictures")
            load = gr.Button("Load", variant="primary", elem_id="load")
            message = gr.HTML(elem_id="model-message")
        with gr.Column(scale=5, min_width=320):
            facts = gr.HTML(model_facts(studio), elem_id="facts")
            tracker = gr.Radio(list(TRACKERS), value="Nothing", label="Record every run with", elem_id="tracker")
            tracking = gr.HTML(elem_id="tracking")
    choices = [engine, dtype, device, staged, offload, eight, decode, fast]
    return ModelTab(which, source, choices, load, message, facts, tracker, tracking)


def connect(studio: Studio, model: ModelTab, item: gr.Tab, draw: DrawTab, tab: gr.Textbox, model_line: gr.HTML) -> None:
    """Give every component of the tab its events."""
    model.which.input(lambda which: gr.Textbox(visible=which == OTHER), model.which, model.source, queue=False, **QUIET)
    item.select(
        lambda: [model_facts(studio), head_line(studio), markup.message(studio.tracking_said, "error")],
        None,
        [model.facts, model_line, model.tracking],
        **QUIET,
    )
    outputs = [model.message, model.facts, model_line, draw.examples, *draw.fields]

    async def load(
        tab_id, which, source, engine, dtype, device, staged, offload, eight, decode, fast, *values
    ) -> AsyncIterator[list]:
        nothing = [gr.skip()] * (len(outputs) - 1)
        try:
            if which == OTHER and not (source or "").strip():
                raise PixArtError("Name a folder, or a model on the Hub as organisation/name.")
            memory = check_memory(Memory(staged=staged, offload=offload, text_encoder_8bit=eight, decode=decode))
            choice = Choice((source or "").strip() if which == OTHER else None, engine, dtype, memory, device, fast)
            job = studio.swap(tab_id, choice)
        except PixArtError as error:
            yield [markup.message(str(error), "error"), *nothing]
            return
        started = time.monotonic()
        while not job.over.is_set():
            yield [_progress(studio, job, time.monotonic() - started), *nothing]
            await asyncio.sleep(0.3)
        if job.state != "done":
            said = job.error or "Loading was stopped."
            said += f" The page goes on with {studio.models.folder.name}."
            yield [markup.message(said, "error"), model_facts(studio), head_line(studio), *nothing[2:]]
            return
        # Prompt, style and seed stay; numbers that suit another model do not.
        folder = studio.models.folder
        kept = dict(zip(NAMES, values, strict=True))
        kept = {key: value for key, value in kept.items() if key not in OF_THE_MODEL}
        form = restored(kept, folder)
        said = markup.message(f"{folder.name} is loaded, in {job.result.seconds:.1f} s.")
        updates = field_updates(studio, form)
        yield [said, model_facts(studio), head_line(studio), gr.Dataset(samples=samples(studio)), *updates]

    model.load.click(
        load,
        [tab, model.which, model.source, *model.choices, *draw.fields],
        outputs,
        concurrency_limit=None,
        trigger_mode="once",
        **QUIET,
    )

    def track(name: str) -> str:
        tool = TRACKERS.get(name)
        try:
            studio.switch_tracking(tool)
        except PixArtError as error:
            return markup.message(str(error), "error")
        except ModuleNotFoundError as error:
            from pixart.extras import missing_extra

            return markup.message(str(missing_extra(error) or error), "error")
        return markup.message(f"From now on every run is recorded with {name}." if tool else "Runs are not recorded.")

    model.tracker.input(track, model.tracker, model.tracking, **QUIET)


def model_facts(studio: Studio) -> str:
    """What the model of the page is, as a list."""
    models = studio.models
    folder, choice = models.folder, models.choice
    config = folder.transformer
    rows = {
        "Model": f"{folder.name}, its fast denoiser" if folder.fast else folder.name,
        "Folder": folder.path,
        "Weights": markup.readable(weights_bytes(folder)),
        "Pictures": f"{folder.native_size} pixels wide, others in steps of {folder.size_multiple}",
        "Blocks": f"{config.get('num_layers')} of width {config['num_attention_heads'] * config['attention_head_dim']}",
        "Prompt": f"up to {folder.max_tokens} tokens",
        "Engine": models.loaded.pipeline.networks.name if models.loaded else "not loaded yet",
        "Numbers": choice.dtype,
        "Device": choice.device,
        "Memory": ", ".join(f"{key} {value}" for key, value in choice.memory.chosen.items()) or "everything loaded",
        "Could not load": models.error,
    }
    lines = "".join(f"<dt>{name}</dt><dd>{markup.text(value)}</dd>" for name, value in rows.items() if value)
    return f'<dl class="px-details">{lines}</dl>'


def _progress(studio: Studio, job, seconds: float) -> str:
    position = studio.queue.position(job)
    if position:
        return markup.message(f"Number {position} in the queue; the drawings before it are finished first.")
    now, _ = markup.memory_now()
    stage = studio.models.stage or "Loading"
    return markup.message(f"{stage} ... {seconds:.0f} s, {markup.readable(now)} in memory")
