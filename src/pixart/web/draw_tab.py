"""The tab to draw in: the fields, the buttons, and the stage where the pictures appear."""

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from pixart.pipeline.prompts import NO_STYLE
from pixart.web import markup
from pixart.web.examples import examples_for
from pixart.web.form import ASPECTS, MAX_BATCHES, Form, default_form, samplers_of, styles_of
from pixart.web.grid import AXES, DEFAULT_VALUES, NO_AXIS
from pixart.web.studio import Studio


@dataclass
class DrawTab:
    """The components that others need: `fields` in the order of Form's, `stage` as `updates` fills it."""

    fields: list[gr.components.Component]
    stage: list[Any]  # what `draw_events.stream` fills, in its order
    message: gr.HTML
    draw: gr.Button
    cancel: gr.Button
    meter: gr.HTML
    aspect: gr.Radio
    size: gr.HTML
    examples: gr.Dataset
    dropped: gr.UploadButton
    grid: list[Any]  # x axis, x values, y axis, y values, button
    run: gr.State
    picked: gr.State
    details: gr.HTML
    again: gr.Button
    same_seed: gr.Button
    look: gr.Button


def build(studio: Studio, tab: gr.Textbox) -> DrawTab:
    folder = studio.models.folder
    form = default_form(folder)
    # What a list lacks is refused with our own sentence, also where another tab has swapped the model meanwhile: hence
    # allow_custom_value.
    with gr.Row(elem_id="draw-row"):
        with gr.Column(scale=5, min_width=320, elem_id="controls"):
            prompt = gr.Textbox(
                label="Prompt",
                placeholder="What to draw",
                lines=3,
                max_lines=8,
                autofocus=True,
                elem_id="prompt",
                value=form.prompt,
            )
            meter = gr.HTML(elem_id="meter")
            with gr.Row(elem_id="buttons"):
                draw = gr.Button("Draw", variant="primary", elem_id="draw", scale=3, min_width=120)
                cancel = gr.Button("Cancel", elem_id="cancel", scale=1, min_width=90, interactive=False)
            message = gr.HTML(elem_id="message")
            style = gr.Dropdown(
                styles_of(folder), value=NO_STYLE, label="Style", allow_custom_value=True, elem_id="style"
            )
            aspect = gr.Radio(list(ASPECTS), value=None, label="Shape", elem_id="aspect")
            size = gr.HTML(markup.size_line(folder, form.width, form.height), elem_id="size")
            with gr.Row():
                num_images = gr.Slider(
                    1, 16, value=1, step=1, label="Pictures at once", min_width=140, elem_id="number"
                )
                batches = gr.Slider(1, MAX_BATCHES, value=1, step=1, label="Batches", min_width=140, elem_id="batches")
            with gr.Accordion("Advanced settings", open=False, elem_id="advanced"):
                with gr.Row():
                    width = _number("Width", form.width, "width")
                    height = _number("Height", form.height, "height")
                use_negative = gr.Checkbox(True, label="Use the negative prompt", elem_id="use-negative")
                negative = gr.Textbox(label="Negative prompt", lines=2, max_lines=4, elem_id="negative")
                with gr.Row():
                    random_seed = gr.Checkbox(True, label="Random seed", elem_id="random-seed", min_width=120)
                    seed = _number("Seed", 0, "seed")
                guidance = gr.Slider(
                    1, 20, value=form.guidance_scale, step=0.1, label="Guidance scale", elem_id="guidance"
                )
                steps = gr.Slider(1, 100, value=form.steps, step=1, label="Steps", elem_id="steps")
                sampler = gr.Dropdown(
                    samplers_of(folder), value=form.sampler, label="Sampler", allow_custom_value=True, elem_id="sampler"
                )
                with gr.Row():
                    low = _number("Guidance from timestep", 0, "guidance-from")
                    high = _number("to timestep", 1000, "guidance-to")
                    rescale = _number("Guidance rescale", 0, "rescale", precision=None)
            with gr.Accordion("Variations: the same seed in a grid", open=False, elem_id="variations"):
                with gr.Row():
                    x_axis = gr.Dropdown(AXES[1:], value="Guidance scale", label="Across", min_width=120)
                    x_values = gr.Textbox(DEFAULT_VALUES["Guidance scale"], label="Values", min_width=120, elem_id="x")
                with gr.Row():
                    y_axis = gr.Dropdown(AXES, value=NO_AXIS, label="Down", min_width=120, elem_id="y-axis")
                    y_values = gr.Textbox("", label="Values", min_width=120, elem_id="y")
                grid = gr.Button("Draw the grid", elem_id="draw-grid")
            with gr.Row(elem_id="from-picture"):
                dropped = gr.UploadButton(
                    "Settings from a picture (or drop one anywhere)", file_types=["image"], size="sm"
                )
        with gr.Column(scale=7, min_width=320, elem_id="stage"):
            status = gr.HTML(elem_id="status")
            tiles = gr.HTML(elem_id="tiles")
            gallery = gr.Gallery(
                label="Pictures",
                show_label=False,
                columns=2,
                object_fit="contain",
                height="auto",
                elem_id="gallery",
                visible=False,
                interactive=False,
                buttons=["download", "fullscreen"],
            )
            with gr.Column(visible=False, elem_id="actions") as actions:
                with gr.Row():
                    same_seed = gr.Button("Keep this seed", size="sm", min_width=100, elem_id="same-seed")
                    again = gr.Button("All its settings", size="sm", min_width=100, elem_id="again")
                    look = gr.Button("Look inside", size="sm", min_width=100, elem_id="look")
                details = gr.HTML(elem_id="details")
            examples = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=samples(studio),
                label="Try one of these",
                elem_id="examples",
                type="index",
            )
    run, picked = gr.State(""), gr.State(0)
    in_order = {
        "prompt": prompt,
        "style": style,
        "num_images": num_images,
        "batches": batches,
        "width": width,
        "height": height,
        "use_negative": use_negative,
        "negative_prompt": negative,
        "random_seed": random_seed,
        "seed": seed,
        "guidance_scale": guidance,
        "steps": steps,
        "sampler": sampler,
        "guidance_from": low,
        "guidance_to": high,
        "guidance_rescale": rescale,
    }
    return DrawTab(
        fields=[in_order[field.name] for field in fields(Form)],
        stage=[status, tiles, gallery, run, picked, actions, details, cancel],
        message=message,
        draw=draw,
        cancel=cancel,
        meter=meter,
        aspect=aspect,
        size=size,
        examples=examples,
        dropped=dropped,
        grid=[x_axis, x_values, y_axis, y_values, grid],
        run=run,
        picked=picked,
        details=details,
        again=again,
        same_seed=same_seed,
        look=look,
    )


def _number(label: str, value: int, name: str, precision: int | None = 0) -> gr.Number:
    return gr.Number(value, label=label, precision=precision, min_width=90, elem_id=name)


def samples(studio: Studio) -> list[list[str]]:
    """The examples as they are shown: prompt and style."""
    return [
        [prompt if style == NO_STYLE else f"{prompt} · {style}"]
        for prompt, style, _ in examples_for(studio.models.folder)
    ]
