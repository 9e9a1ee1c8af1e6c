"""The page: its head, its tabs, and what happens when it is opened."""

import html
from pathlib import Path

import gradio as gr

from pixart import __version__
from pixart.web import draw_events, draw_tab, glass_box, history_tab, model_tab
from pixart.web.studio import Studio

HERE = Path(__file__).parent


def build_page(studio: Studio) -> gr.Blocks:
    """The whole page as a gr.Blocks, which `pixart.web.serve` serves. All tabs share `studio`."""
    with gr.Blocks(title="pixart studio", analytics_enabled=False, delete_cache=(3600, 3600), fill_width=True) as page:
        tab = gr.Textbox(visible="hidden", elem_id="tab-id", container=False)  # which browser tab this is
        stored = gr.Textbox(visible="hidden", container=False)  # what the browser kept, as JSON
        with gr.Row(elem_id="head", equal_height=True):
            gr.HTML('<h1 class="px-title">pixart <span>studio</span></h1>')
            model_line = gr.HTML(draw_events.head_line(studio), elem_id="model-line")
            gr.HTML('<button class="px-theme" type="button" title="Light or dark">◐</button>', elem_id="theme")
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Draw", id="draw"):
                draw = draw_tab.build(studio, tab)
            with gr.Tab("History", id="history") as history_item:
                history = history_tab.build(studio)
            look = glass_box.build_tab(studio)
            with gr.Tab("Model", id="model") as model_item:
                model = model_tab.build(studio, tab)
        gr.HTML(f'<p class="px-foot">pixart {html.escape(__version__)} · everything stays on this machine</p>')

        draw_events.connect(studio, draw, tab, model_line)
        history_tab.connect(studio, history, history_item, draw, tabs)
        draw_events.connect_look(studio, draw, look, tabs)
        model_tab.connect(studio, model, model_item, draw, tab, model_line)
        page.load(
            draw_events.opened(studio),
            inputs=[tab, stored],
            outputs=[tab, *draw.fields, draw.examples, *draw.stage, model_line],
            js="() => [pixart.tab(), pixart.stored()]",
            show_progress="hidden",
            concurrency_limit=None,
            api_visibility="private",
        )

        def leave(request: gr.Request) -> None:
            studio.leave(request.session_hash)

        page.unload(leave)
    return page


def theme() -> gr.themes.Base:
    """System fonts only: others would have to come from somewhere."""
    return gr.themes.Base(
        primary_hue="teal",
        neutral_hue="stone",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )


def css() -> str:
    return (HERE / "page.css").read_text(encoding="utf-8")


def head() -> str:
    """The script of the page, for its head: it must be there before the first event."""
    return f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>"
