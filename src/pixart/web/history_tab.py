"""The tab with all runs: search, look, use again, delete, zip."""

from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from pixart.errors import PixArtError
from pixart.web import markup
from pixart.web.draw_events import QUIET, details, reuse
from pixart.web.draw_tab import DrawTab
from pixart.web.runs import Run
from pixart.web.studio import Studio

PAGE = 48  # runs shown before "More"


@dataclass
class HistoryTab:
    """The components of the tab; `names` are the runs shown, in order, `run` the one chosen, `picked` its picture."""

    words: gr.Textbox
    count: gr.HTML
    covers: gr.Gallery
    more: gr.Button
    names: gr.State
    most: gr.State
    chosen: gr.Column
    pictures: gr.Gallery
    details: gr.HTML
    run: gr.State
    picked: gr.State
    use: gr.Button
    zip: gr.Button
    archive: gr.File
    delete: gr.Button
    sure: gr.Button
    message: gr.HTML


def build(studio: Studio) -> HistoryTab:
    names, most, run, picked = gr.State([]), gr.State(PAGE), gr.State(""), gr.State(0)
    with gr.Row():
        with gr.Column(scale=7, min_width=320):
            words = gr.Textbox(
                label="Search", placeholder="words of the prompt, the style or the model", elem_id="search"
            )
            count = gr.HTML(elem_id="count")
            covers = gr.Gallery(
                show_label=False,
                columns=4,
                object_fit="contain",
                allow_preview=False,
                interactive=False,
                elem_id="covers",
                height="auto",
                buttons=[],
            )
            more = gr.Button("Show more", visible=False, size="sm")
        with gr.Column(scale=5, min_width=320, visible=False, elem_id="chosen") as chosen:
            pictures = gr.Gallery(
                show_label=False,
                columns=2,
                object_fit="contain",
                interactive=False,
                elem_id="chosen-pictures",
                height="auto",
                buttons=["download", "fullscreen"],
            )
            with gr.Row():
                use = gr.Button("Use settings and seed", size="sm", variant="primary", min_width=120, elem_id="use")
                pack = gr.Button("Zip", size="sm", min_width=60, elem_id="zip")
                delete = gr.Button("Delete", size="sm", min_width=60, elem_id="delete")
                sure = gr.Button(
                    "Really delete these files", size="sm", variant="stop", visible=False, min_width=120, elem_id="sure"
                )
            archive = gr.File(label="Archive", visible=False, interactive=False, elem_id="archive")
            shown_details = gr.HTML(elem_id="chosen-details")
    message = gr.HTML(elem_id="history-message")
    return HistoryTab(
        words,
        count,
        covers,
        more,
        names,
        most,
        chosen,
        pictures,
        shown_details,
        run,
        picked,
        use,
        pack,
        archive,
        delete,
        sure,
        message,
    )


def connect(studio: Studio, history: HistoryTab, item: gr.Tab, draw: DrawTab, tabs: gr.Tabs) -> None:
    """Give every component of the tab its events."""
    listing = [history.count, history.covers, history.more, history.names]
    panel = [
        history.chosen,
        history.pictures,
        history.details,
        history.run,
        history.picked,
        history.sure,
        history.archive,
        history.message,
    ]

    def look(words: str, most: int) -> list:
        return _listing(studio, words, most)

    item.select(look, [history.words, history.most], listing, **QUIET)
    history.words.change(look, [history.words, history.most], listing, trigger_mode="always_last", **QUIET)
    history.more.click(lambda most: most + PAGE, history.most, history.most, **QUIET).then(
        look, [history.words, history.most], listing, **QUIET
    )

    def choose(names: list[str], event: gr.SelectData) -> list:
        return _panel(studio, names[event.index] if 0 <= event.index < len(names) else "")

    history.covers.select(choose, history.names, panel, **QUIET)

    def pick(run_name: str, event: gr.SelectData) -> tuple[int, str]:
        return event.index, details(studio, run_name, event.index)

    history.pictures.select(pick, history.run, [history.picked, history.details], **QUIET)

    def use(run_name: str, index: int) -> list:
        return [*reuse(studio, run_name, index), gr.Tabs(selected="draw")]

    history.use.click(use, [history.run, history.picked], [*draw.fields, draw.message, tabs], **QUIET)

    def pack(run_name: str) -> list:
        # Gradio's own folder for files of the moment: served, and emptied after an hour.
        from gradio.utils import get_cache_folder

        try:
            folder = Path(get_cache_folder())
            folder.mkdir(parents=True, exist_ok=True)
            return [gr.File(value=str(studio.runs.zip(run_name, folder)), visible=True), ""]
        except (PixArtError, OSError) as error:
            return [gr.File(visible=False), markup.message(str(error), "error")]

    history.zip.click(pack, history.run, [history.archive, history.message], **QUIET)
    history.delete.click(lambda: gr.Button(visible=True), None, history.sure, **QUIET)

    def delete(run_name: str, words: str, most: int) -> list:
        try:
            said = markup.message(f"Deleted {studio.runs.delete(run_name)} pictures.")
        except PixArtError as error:
            said = markup.message(str(error), "error")
        return [*_listing(studio, words, most), *_panel(studio, "")[:-1], said]

    history.sure.click(delete, [history.run, history.words, history.most], [*listing, *panel], **QUIET)


def _listing(studio: Studio, words: str, most: int) -> list:
    """Count, covers, whether there are more, names."""
    runs, number = studio.runs.search(words or "", most)
    covers = [(str(files[0]), _caption(run)) for run in runs if (files := studio.runs.files(run))]
    names = [run.name for run in runs if studio.runs.files(run)]
    said = f"{number} runs" if number != 1 else "1 run"
    if not number:
        said = "No run has these words." if (words or "").strip() else "What you draw will be here."
    return [f'<p class="px-count">{said}</p>', covers, gr.Button(visible=number > len(runs)), names]


def _caption(run: Run) -> str:
    words = run.prompt[:60] + ("..." if len(run.prompt) > 60 else "") or "(no prompt)"
    return f"{words} · {len(run.pictures)}" if len(run.pictures) > 1 else words


def _panel(studio: Studio, name: str) -> list:
    """The chosen run: column, pictures, details, name, picture, and everything that belonged to the one before gone."""
    run = studio.runs.get(name)
    gone = [gr.Button(visible=False), gr.File(visible=False, value=None), ""]
    if run is None:
        return [gr.Column(visible=False), [], "", "", 0, *gone]
    pictures = [
        (str(studio.runs.folder / run.name / picture["file"]), picture.get("label") or f"seed {picture['seed']}")
        for picture in run.pictures
        if (studio.runs.folder / run.name / picture["file"]).is_file()
    ]
    shown = gr.Gallery(value=pictures, columns=1 if len(pictures) == 1 else run.grid or 2)
    return [gr.Column(visible=True), shown, details(studio, name, 0), name, 0, *gone]
