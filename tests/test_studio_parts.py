"""The studio without a browser: its worker, its fields, its runs, and that generations do not touch each other."""

import asyncio
import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from pixart import Pipeline
from pixart.checkpoints.model_folder import open_model_folder
from pixart.errors import PixArtError, UsageError
from pixart.pipeline.image_files import read_settings
from pixart.pipeline.restore import NAMES
from pixart.studio import fields, grid, markup
from pixart.studio.generation import Generation, Tile
from pixart.studio.models import Choice
from pixart.studio.preview import Preview, data_uri
from pixart.studio.runs import RECORD, Run, Runs
from pixart.studio.studio import Stopped, Studio


@pytest.fixture(scope="module")
def studio(tiny_model_with_graphs, tmp_path_factory):
    made = Studio(Choice(str(tiny_model_with_graphs)), tmp_path_factory.mktemp("studio") / "out")
    yield made
    made.close()


def values(studio, prompt="a red fox", **changes) -> dict:
    small = {"steps": 2, "width": 64, "height": 64, "random_seed": False, "seed": 7, "prompt": prompt}
    return fields.defaults(studio.models.folder) | small | changes


def generation(studio, prompt="a red fox", **changes) -> Generation:
    form = values(studio, prompt, **changes)
    return Generation(studio, [fields.checked(form, studio.models.folder)], form)


def generate(studio, *given, **changes) -> Run:
    return generation(studio, *given, **changes).run(threading.Event())


# The worker


class Panic(BaseException):
    def __str__(self):
        raise RuntimeError("no text either")


@pytest.mark.parametrize("error", [PixArtError("The disk is full."), ZeroDivisionError("x"), MemoryError(), Panic()])
def test_whatever_a_job_throws_ends_that_job_only(studio, error):
    def fail(stop):
        raise error

    async def views(run) -> list:
        return [view async for view in studio.follow(run, lambda: ["seen"], "a session")]

    with pytest.raises(PixArtError):
        asyncio.run(views(fail))
    assert asyncio.run(views(lambda stop: None)) == [["seen"]]


def test_a_job_whose_page_is_gone_is_told_to_stop(studio):
    began, ended = threading.Event(), threading.Event()

    def run(stop):
        began.set()
        assert stop.wait(60)
        ended.set()
        raise Stopped

    async def leave() -> None:
        studio.listening["a session"] = 1
        views = studio.follow(run, lambda: ["seen"], "a session")
        await anext(views)
        await views.aclose()

    asyncio.run(leave())
    assert began.is_set() and ended.wait(60)


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(studio, folder, tmp_path):
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    for source in (str(folder), str(tmp_path / "nowhere")):
        with pytest.raises(PixArtError):
            studio.models.load(Choice(source))
        assert studio.models.choice.source != source
        assert generate(studio).images


# Generating


def test_a_stopped_generation_keeps_what_is_saved(studio):
    stop, job = threading.Event(), generation(studio, num_images=16, steps=3)
    job.requests = [
        fields.checked(job.form | {"num_images": 1, "seed": seed}, studio.models.folder) for seed in range(16)
    ]
    write = studio.runs.write
    studio.runs.write = lambda run: (write(run), stop.set() if len(run.images) == 5 else None)
    try:
        with pytest.raises(Stopped):
            job.run(stop)
    finally:
        studio.runs.write = write
    run = studio.runs.get(job.run_name)
    assert len(run.images) == len(studio.runs.files(run)) == 5
    assert run.notices


def test_the_image_is_seen_before_it_is_done(studio):
    job, previews = generation(studio, num_images=2, steps=40), set()
    job.studio.models.require()
    on_step = job._on_step
    job._on_step = lambda *given: (on_step(*given), previews.update(tile.preview for tile in job.tiles))
    job.run(threading.Event())
    assert len(previews - {""}) >= 1
    assert (job.step, job.steps) == (80, 80)
    assert [(tile.seed, tile.path.is_file()) for tile in job.tiles] == [(7, True), (8, True)]


@pytest.mark.parametrize(
    "prompt", ["", "🦊 fox", "ثعلب أحمر", "<img src=x onerror=alert(1)>", "a\0b\x1b[31m", "fox " * 3000]
)
def test_words_of_all_kinds_are_generated(studio, prompt):
    run = generate(studio, prompt, steps=1)
    assert studio.runs.get(run.name).prompt == prompt


def test_a_full_disk_is_said_and_the_next_generation_works(tiny_model_with_graphs, tmp_path):
    """A limit on the size of files stands for the disk: the system refuses the write in the same place."""
    program = f"""
import resource, signal, threading
from pathlib import Path
from pixart.errors import PixArtError
from pixart.studio import fields
from pixart.studio.generation import Generation
from pixart.studio.models import Choice
from pixart.studio.studio import Studio
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
studio = Studio(Choice({str(tiny_model_with_graphs)!r}), Path({str(tmp_path / "out")!r}))
form = fields.defaults(studio.models.folder) | dict(prompt="a fox", steps=2)
jobs = [Generation(studio, [fields.checked(form, studio.models.folder)], form) for _ in range(2)]
studio.models.require()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    jobs[0].run(threading.Event())
except PixArtError as error:
    print(jobs[0].tiles[0].preview[:22], list(studio.runs.folder.iterdir()))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(jobs[1].run(threading.Event()).images))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    # The image is seen all the same, and nothing half written is left.
    assert done.stdout.splitlines() == ["data:image/jpeg;base64 []", "1"], done.stderr


# Fields


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "x" * 10_000_000},
        {"negative_prompt": "\ud800"},
        {"steps": 1e300},
        {"steps": -3},
        {"steps": 2.5},
        {"guidance_scale": float("nan")},
        {"guidance_scale": "<b>"},
        {"width": 100},
        {"num_images": 101},
        {"num_images": 0},
        {"seed": None},
        {"seed": 2**32 - 1, "num_images": 2},
        {"style": "<script>"},
        {"sampler": "eular"},
        {"guidance_from": 900, "guidance_to": 100},
        {"null_text": "nothing"},
        {"guidance_channels": 99},
    ],
)
def test_what_cannot_be_generated_is_one_short_sentence(studio, changes):
    with pytest.raises(UsageError) as refused:
        fields.checked(values(studio, **changes), studio.models.folder)
    assert len(str(refused.value)) < 400


def test_the_switch_leaves_the_negative_prompt_out(studio):
    form = values(studio, negative_prompt="blurry", style="3D")
    assert fields.checked(form, studio.models.folder).negative_prompt == "blurry"
    assert fields.checked(form | {"use_negative": False}, studio.models.folder).negative_prompt == ""


def test_the_token_meter_names_the_words_beyond_the_limit(studio):
    studio.models.require()
    used, most, cut = studio.tokens("fox " * 130 + "<i>house</i>", None)
    assert used > most == 120
    assert cut.endswith("<i>house</i>") and cut.startswith("fox")
    assert "&lt;i&gt;house&lt;/i&gt;" in markup.token_meter(used, most, cut)
    assert studio.tokens("a red fox", None) == (5, 120, "")


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        {"prompt": 5, "style": ["x"], "steps": "many", "width": True, "seed": None, "sampler": "nothing"},
        {"steps": float("inf"), "num_images": {}, "random_seed": "yes", "new field": 1, "binning": [], "height": 10**9},
    ],
)
def test_a_damaged_memory_of_the_browser_gives_the_models_own_fields(studio, stored):
    assert fields.restored(stored, studio.models.folder) == fields.defaults(studio.models.folder)


def test_fields_come_back_from_storage_and_from_an_image(studio):
    form = values(studio, num_images=4, negative_prompt="x", style="Cinematic", guidance_scale=3.5, guidance_from=100)
    assert fields.restored(json.loads(json.dumps(form)), studio.models.folder) == form
    run = generate(studio, **form)
    settings = read_settings(studio.runs.files(run)[2])
    assert settings["seed"] == 9
    back = fields.filled({name: settings.get(name) for name in ("prompt", *NAMES)}, studio.models.folder)
    assert fields.checked(back, studio.models.folder) == fields.checked(
        form | {"num_images": 1, "seed": 9}, studio.models.folder
    )
    assert fields.restored(studio.runs.get(run.name).form, studio.models.folder) == form


def test_every_shape_is_a_size_of_the_model(studio):
    for aspect, ratio in fields.ASPECTS.items():
        width, height = fields.size_for(studio.models.folder, aspect)
        assert abs(width / height - ratio) < 0.15
        assert fields.checked(values(studio, width=width, height=height), studio.models.folder).width == width


def test_the_size_line_names_the_bin(tmp_path, studio):
    from conftest import write_tiny_model

    write_tiny_model(tmp_path / "eps", eps=True)
    folder = open_model_folder(tmp_path / "eps")
    assert "304 × 208" in markup.size_line(folder, 300, 200, None)
    assert "304 × 208" not in markup.size_line(folder, 304, 304, False)
    assert "bin" not in markup.size_line(studio.models.folder, 64, 64, None)
    assert "64.5" in markup.size_line(studio.models.folder, 64.5, 64, None)


def test_a_grid_changes_one_thing_in_each_direction(studio):
    folder = studio.models.folder
    form = values(studio, random_seed=True)
    requests, labels, columns = grid.grid_of(form, ("Guidance scale", "1, 4.5"), ("Style", "3D, no style"), folder)
    assert [(r.guidance_scale, r.style) for r in requests] == [(1, "3D"), (4.5, "3D"), (1, None), (4.5, None)]
    assert len({r.seeds for r in requests}) == 1
    assert (labels[1], columns) == ("guidance 4.5 · 3D", 2)
    run = Generation(studio, requests, form, labels, columns).run(threading.Event())
    assert (run.grid, [image["label"] for image in run.images]) == (2, labels)
    assert grid.axis_values("Style", "", folder) == ["3D", "Flat"]


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (("Steps", "1, two"), ("Nothing", "")),
        (("Steps", ""), ("Nothing", "")),
        (("Steps", "1"), ("Steps", "2")),
        (("Style", "oil"), ("Nothing", "")),
        (("Steps", ",".join("1" * 7)), ("Guidance scale", ",".join("1" * 7))),
        (("Colour", "1"), ("Nothing", "")),
    ],
)
def test_a_grid_that_cannot_be_is_refused(studio, x, y):
    with pytest.raises(UsageError):
        grid.grid_of(values(studio), x, y, studio.models.folder)


# Runs


def some_run(runs: Runs, prompt: str) -> Run:
    path = runs.new(prompt)
    (path / "a.png").write_bytes(b"image")
    run = Run(path.name, 1.0, prompt, images=({"file": "a.png", "seed": 3, "label": ""},))
    runs.write(run)
    return run


def test_runs_are_found_by_words_and_deleted(tmp_path):
    runs = Runs(tmp_path / "out")
    fox, house = some_run(runs, "a red <b>Fox</b>"), some_run(runs, "a red house")
    assert [run.name for run in runs.search("red")[0]] == sorted([fox.name, house.name], reverse=True)
    assert [run.name for run in runs.search("FOX red")[0]] == [fox.name]
    assert (runs.search("cat"), runs.search("red", 1)[1]) == (([], False), True)
    (runs.folder / fox.name / "notes.txt").write_text("mine")
    assert runs.delete(fox.name) == 1
    assert runs.search("fox") == ([], False)
    assert (runs.folder / fox.name / "notes.txt").read_text() == "mine"  # not ours to delete
    assert runs.delete(house.name) == 1
    assert not (runs.folder / house.name).exists()


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc", "", None, "20260101-000000-a/../../x", "20260101-000000-" + "x" * 200]
)
def test_a_name_that_is_no_run_reaches_nothing(tmp_path, name):
    (tmp_path / "x").mkdir()
    runs = Runs(tmp_path / "out")
    assert runs.get(name) is None
    with pytest.raises(PixArtError):
        runs.delete(name)


def test_a_record_that_names_other_files_or_is_damaged_is_not_followed(tmp_path):
    runs = Runs(tmp_path / "out")
    (tmp_path / "secret.png").write_bytes(b"secret")
    run = some_run(runs, "a fox")
    record = json.loads((runs.folder / run.name / RECORD).read_text())
    record["images"] = [{"file": name, "seed": 1, "label": ""} for name in ("../../secret.png", "a.png", ".x.png")]
    (runs.folder / run.name / RECORD).write_text(json.dumps(record))
    assert [image["file"] for image in runs.get(run.name).images] == ["a.png"]
    runs.delete(run.name)
    assert (tmp_path / "secret.png").exists()
    for damage in ("{", "[]", '{"images": 5}', "[" * 100_000):
        other = some_run(runs, "a house")
        (runs.folder / other.name / RECORD).write_text(damage)
        assert runs.get(other.name) is None and runs.search()[0] == []


def test_an_outputs_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PixArtError):
        Runs(tmp_path / "file" / "out")


# What is seen


def test_the_map_for_previews_is_near_the_decoder():
    """On the shipped model, whose images are no noise: nearer than a flat colour is, by far."""
    pipeline = Pipeline.from_pretrained()
    preview = Preview(pipeline.networks, pipeline.folder.transformer["in_channels"], pipeline.folder.vae_factor)
    steps = []
    pipeline("a red apple, 3D", seed=7, steps=4, on_step=lambda index, step: steps.append(step))
    x_0 = np.asarray(steps[-1].x_0)
    decoded = pipeline.networks.decode(x_0)[0].reshape(32, 8, 32, 8, 3).mean((1, 3))
    rough = preview.rough(x_0)
    assert rough.shape == (32, 32, 3)
    assert np.abs(rough - decoded).mean() < 0.5 * np.abs(decoded.mean((0, 1)) - decoded).mean()
    assert data_uri(rough).startswith("data:image/jpeg;base64,")


def test_nothing_from_outside_becomes_html(studio):
    nasty = '<img src=x onerror="alert(1)">'
    job = generation(studio)
    job.notices, job.tiles = [nasty], [Tile(1, nasty)]
    for made in (
        markup.details({"prompt": nasty, "style": nasty, "seed": nasty}, nasty),
        markup.lines([nasty]),
        markup.token_meter(1, 1, nasty),
        markup.status(job),
        markup.tiles(job),
        markup.word_maps([(nasty, 0.5, "data:,")], 0.5),
    ):
        assert "<img src=x" not in made
