"""The studio without a browser: its queue, its fields, its runs, and that drawings do not touch each other."""

import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from pixart import Pipeline
from pixart.checkpoints.model_folder import open_model_folder
from pixart.errors import PixArtError, UsageError
from pixart.pipeline.image_files import read_settings
from pixart.runtime.memory import Memory
from pixart.web import markup
from pixart.web.form import ASPECTS, Form, default_form, from_request, restored, size_for
from pixart.web.grid import Grid, axis_values
from pixart.web.models import Choice
from pixart.web.preview import Preview, data_uri
from pixart.web.runs import RECORD, Run, Runs
from pixart.web.studio import Studio
from pixart.web.work_queue import MAX_WAITING_OF_ONE, WorkQueue


@pytest.fixture(scope="module")
def studio(tiny_model_with_graphs, tmp_path_factory):
    made = Studio(Choice(str(tiny_model_with_graphs)), tmp_path_factory.mktemp("studio") / "out")
    yield made
    made.close()


def quick(studio, prompt="a red fox", **changes) -> Form:
    form = replace(default_form(studio.models.folder), prompt=prompt, steps=2, width=64, height=64)
    return replace(form, **{"random_seed": False, "seed": 7, **changes})


def finished(job):
    assert job.over.wait(120)
    return job


def begun(job):
    while job.state == "waiting":
        time.sleep(0.005)
    return job


# The queue


def test_jobs_run_in_turn_and_know_their_place():
    queue, order, gate = WorkQueue(), [], threading.Event()
    first = queue.submit(lambda job: gate.wait(60), owner="a", title="")
    begun(first)
    others = [queue.submit(lambda job, n=n: order.append(n), owner="ab"[n % 2], title="") for n in range(4)]
    assert [queue.position(job) for job in others] == [1, 2, 3, 4]
    assert queue.cancel_all("b") == 2
    assert [queue.position(job) for job in others] == [1, 0, 2, 0]
    gate.set()
    finished(others[2])
    assert order == [0, 2]
    assert [job.state for job in [first, *others]] == ["done", "done", "cancelled", "done", "cancelled"]
    queue.close()


def test_a_running_job_stops_at_its_next_step():
    queue, steps, stepped = WorkQueue(), [], threading.Event()

    def work(job):
        while True:
            job.check()
            steps.append(job.stopping)
            stepped.set()
            time.sleep(0.01)

    job = queue.submit(work, owner="a", title="")
    stepped.wait(60)
    queue.cancel_all("a")
    assert finished(job).state == "cancelled"
    assert sum(steps) <= 1  # the step in which it was asked to stop was the last
    queue.close()


def test_a_job_that_fails_says_why_and_the_next_one_runs(capsys):
    queue = WorkQueue()

    def refuse(job):
        raise PixArtError("The disk is full.")

    def break_down(job):
        raise ZeroDivisionError("x")

    said = [finished(queue.submit(work, owner="a", title="")) for work in (refuse, break_down, lambda job: 5)]
    assert [job.state for job in said] == ["failed", "failed", "done"]
    assert said[0].error == "The disk is full."
    assert "ZeroDivisionError" in said[1].error and "ZeroDivisionError" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no"):
        queue.alone(lambda: (_ for _ in ()).throw(UsageError("no")))
    assert queue.alone(lambda: queue.alone(lambda: 3)) == 3  # from inside, at once
    queue.close()


def test_the_queue_has_an_end():
    queue, gate = WorkQueue(), threading.Event()
    begun(queue.submit(lambda job: gate.wait(60), owner="a", title=""))
    for _ in range(MAX_WAITING_OF_ONE):
        queue.submit(lambda job: None, owner="a", title="")
    with pytest.raises(UsageError, match=f"{MAX_WAITING_OF_ONE} of your drawings are waiting already"):
        queue.submit(lambda job: None, owner="a", title="")
    queue.submit(lambda job: None, owner="b", title="")
    gate.set()
    queue.close()


# Drawing


def test_two_users_at_once_get_the_bytes_that_each_gets_alone(studio, tiny_model_with_graphs):
    forms = {
        "anna": quick(studio, "a red fox", num_images=3, batches=2, seed=11),
        "bert": quick(studio, "a green house", num_images=2, seed=400, sampler="sa-solver", steps=3),
    }
    jobs = {}
    threads = [
        threading.Thread(target=lambda name=name, form=form: jobs.update({name: studio.draw(name, form)}))
        for name, form in forms.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = Pipeline.from_pretrained(tiny_model_with_graphs)
    for name, form in forms.items():
        run = finished(jobs[name]).result
        assert len(run.pictures) == form.num_images * form.batches
        for picture in run.pictures:
            settings = read_settings(studio.runs.folder / run.name / picture["file"])
            again = alone(**{**form.settings(), "seed": picture["seed"]})
            assert settings["pixels_sha256"] == again.settings[0]["pixels_sha256"]


def test_batches_take_the_following_seeds(studio):
    requests = quick(studio, num_images=3, batches=2, seed=5).requests(studio.models.folder)
    assert [request.seeds for request in requests] == [(5, 6, 7), (8, 9, 10)]


def test_the_picture_is_seen_before_it_is_done_and_a_double_click_counts_once(studio):
    form = quick(studio, num_images=2, steps=40, seed=1)
    first, second = studio.draw("clara", form), studio.draw("clara", form)
    assert first is second
    finished(first)
    view = first.work.view
    assert view.previews >= 1
    assert view.step == view.steps == 80
    assert [tile.seed for tile in view.tiles] == [1, 2]
    assert all(tile.path.is_file() for tile in view.tiles)


def test_cancel_keeps_what_is_saved(studio):
    job = studio.draw("dora", quick(studio, num_images=16, steps=30))
    while not any(tile.path for tile in job.work.view.tiles):
        time.sleep(0.002)
    studio.queue.cancel_all("dora")
    assert finished(job).state == "cancelled"
    view = job.work.view
    saved = [tile for tile in view.tiles if tile.path]
    assert 0 < len(saved) < 16
    assert view.notices[-1] == f"Stopped: {len(saved)} of 16 pictures are saved."
    assert len(studio.runs.get(view.run).pictures) == len(saved)


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(studio, folder, tmp_path):
    (folder / "transformer" / "config.json").write_text("{")
    for source in (str(folder), str(tmp_path / "nowhere")):
        job = finished(studio.swap("emil", Choice(source)))
        assert job.state == "failed"
        assert job.error == studio.models.error
    assert "nowhere" in job.error
    assert finished(studio.draw("emil", quick(studio, seed=77))).state == "done"


def test_a_swap_draws_what_waits_with_the_new_model_and_says_so(tiny_model_with_graphs, tiny_model, tmp_path):
    studio = Studio(Choice(str(tiny_model_with_graphs)), tmp_path / "out")
    gate = threading.Event()
    studio.queue.submit(lambda job: gate.wait(60), owner="", title="")
    studio.swap("a", Choice(str(tiny_model), memory=Memory(staged=True)))
    job = studio.draw("a", quick(studio))
    gate.set()
    assert finished(job).state == "done", job.error
    assert job.work.view.notices == ("The model was changed meanwhile: this is drawn by tiny.",)
    assert studio.models.loaded.pipeline.networks.name == "torch"
    studio.close()


def test_a_full_disk_is_said_and_the_next_drawing_works(tiny_model_with_graphs, tmp_path):
    """A limit on the size of files stands for the disk: the system refuses the write in the same place."""
    program = f"""
import resource, signal
from pathlib import Path
from dataclasses import replace
from pixart.web.form import default_form
from pixart.web.models import Choice
from pixart.web.studio import Studio
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
studio = Studio(Choice({str(tiny_model_with_graphs)!r}), Path({str(tmp_path / "out")!r}))
form = replace(default_form(studio.models.folder), prompt="a fox", steps=2)
studio.warm_up().over.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
job = studio.draw("a", form)
job.over.wait()
print(job.state, "|", job.error, "|", job.work.view.tiles[0].preview[:22], "|", list(studio.runs.folder.iterdir()))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
job = studio.draw("a", replace(form, prompt="a house"))
job.over.wait()
print(job.state, len(job.result.pictures))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
    first, second = done.stdout.splitlines()
    assert first.startswith("failed | "), done.stderr
    assert "File too large" in first
    assert first.endswith("| data:image/jpeg;base64 | []")  # what was drawn is seen, and nothing half written is left
    assert second == "done 1"


# Fields


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompt": "x" * 10_000_000}, "The prompt is 10,000,000 characters long; at most 20,000 are read."),
        ({"negative_prompt": "\ud800"}, "not valid Unicode"),
        ({"steps": 1e300}, "number of steps is far too large"),
        ({"steps": -3}, "steps must be from 1 to 500, not -3"),
        ({"steps": 2.5}, "must be a whole number, not 2.5"),
        ({"guidance_scale": float("nan")}, "guidance scale must be a number"),
        ({"guidance_scale": "<b>"}, "guidance scale must be a number, not <b>"),
        ({"width": 100}, "the nearest is 96"),
        ({"num_images": 16, "batches": 25}, "16 pictures in 25 batches are 400; at most 100"),
        ({"batches": 0}, "batches must be from 1 to 25"),
        ({"seed": None}, "There is no seed"),
        ({"seed": 2**32 - 1, "num_images": 1, "batches": 2}, "seed over"),
        ({"style": "<script>"}, 'no style "<script>"'),
        ({"sampler": "eular"}, 'Did you mean "euler"'),
        ({"guidance_from": 900, "guidance_to": 100}, "from the lower timestep to the higher"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_the_queue(studio, changes, says):
    before = len(studio.queue.jobs_of("frank"))
    with pytest.raises(UsageError) as refused:
        studio.draw("frank", quick(studio, **changes))
    assert says in str(refused.value)
    assert len(str(refused.value)) < 400
    assert len(studio.queue.jobs_of("frank")) == before


def test_words_of_all_kinds_are_drawn(studio):
    for prompt in ("", "🦊 fox", "ثعلب أحمر", "<img src=x onerror=alert(1)>", "a\0b\x1b[31m", "fox " * 3000):
        job = finished(studio.draw("greta", quick(studio, prompt, steps=1)))
        assert job.state == "done", job.error
        assert studio.runs.get(job.result.name).prompt == prompt


def test_the_toggle_leaves_the_negative_prompt_out(studio):
    form = quick(studio, negative_prompt="blurry", style="3D")
    assert form.requests(studio.models.folder)[0].negative_prompt == "blurry"
    assert replace(form, use_negative=False).requests(studio.models.folder)[0].negative_prompt == ""


def test_the_token_meter_names_the_words_beyond_the_limit(studio):
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
        {"steps": float("inf"), "num_images": {}, "random_seed": "yes", "new field": 1},
    ],
)
def test_a_damaged_memory_of_the_browser_gives_the_models_own_fields(studio, stored):
    assert restored(stored, studio.models.folder) == default_form(studio.models.folder)


def test_fields_come_back_from_storage_and_from_a_picture(studio):
    form = quick(studio, num_images=4, negative_prompt="x", style="Cinematic", guidance_scale=3.5, guidance_from=100)
    assert restored(json.loads(json.dumps(form.__dict__)), studio.models.folder) == form
    run = finished(studio.draw("hanna", form)).result
    settings = read_settings(studio.runs.folder / run.name / run.pictures[2]["file"])
    back = from_request(settings, studio.models.folder)
    assert back == replace(form, num_images=1, seed=9)
    assert restored(run.form, studio.models.folder).with_seed(7) == form


def test_every_shape_is_a_size_of_the_model(studio):
    for aspect, ratio in ASPECTS.items():
        width, height = size_for(studio.models.folder, aspect)
        assert abs(width / height - ratio) < 0.15
        assert quick(studio, width=width, height=height).requests(studio.models.folder)[0].width == width


def test_the_size_line_names_the_bin(tmp_path, studio):
    from conftest import write_tiny_model

    write_tiny_model(tmp_path / "eps", eps=True)
    folder = open_model_folder(tmp_path / "eps")
    assert "300 × 200 pixels, drawn in the bin 304 × 208 and fitted" in markup.size_line(folder, 300, 200)
    assert "256 × 256 pixels, a bin of the model" in markup.size_line(folder, None, None)
    assert "bin" not in markup.size_line(studio.models.folder, 64, 64)
    assert "must be a whole number" in markup.size_line(studio.models.folder, 64.5, 64)


# Grid


def test_a_grid_changes_one_thing_in_each_direction(studio):
    folder = studio.models.folder
    grid = Grid(quick(studio, random_seed=True), ("Guidance scale", "1, 4.5"), ("Style", "3D, no style"), folder)
    requests = grid.requests(folder)
    assert [(r.guidance_scale, r.style) for r in requests] == [(1, "3D"), (4.5, "3D"), (1, None), (4.5, None)]
    assert len({r.seeds for r in requests}) == 1
    assert grid.labels[1] == "guidance 4.5 · 3D"
    run = finished(studio.draw_grid("ida", grid)).result
    assert (run.grid, len(run.pictures)) == (2, 4)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (("Steps", "1, two"), ("Nothing", ""), "whole numbers with commas"),
        (("Steps", ""), ("Nothing", ""), "no values for steps"),
        (("Steps", "1"), ("Steps", "2"), "Both axes"),
        (("Style", "oil"), ("Nothing", ""), 'no style "oil"'),
        (("Steps", ",".join("1" * 7)), ("Guidance scale", ",".join("1" * 7)), "49 cells; at most 36"),
        (("Colour", "1"), ("Nothing", ""), 'no axis "Colour"'),
    ],
)
def test_a_grid_that_cannot_be_is_refused(studio, x, y, says):
    with pytest.raises(UsageError, match=says):
        Grid(quick(studio), x, y, studio.models.folder)


def test_styles_left_out_are_the_models_own(studio):
    assert axis_values("Style", "", studio.models.folder) == ["3D", "Flat"]


# Runs


def some_run(runs: Runs, prompt: str) -> Run:
    path = runs.new(prompt)
    (path / "a.png").write_bytes(b"picture")
    run = Run(path.name, 1.0, prompt, pictures=({"file": "a.png", "seed": 3, "label": ""},))
    runs.write(run)
    return run


def test_runs_are_found_by_words_zipped_and_deleted(tmp_path):
    runs = Runs(tmp_path / "out")
    fox, house = some_run(runs, "a red <b>Fox</b>"), some_run(runs, "a red house")
    assert [run.name for run in runs.search("red")[0]] == sorted([fox.name, house.name], reverse=True)
    assert [run.name for run in runs.search("FOX red")[0]] == [fox.name]
    assert runs.search("cat") == ([], 0)
    with zipfile.ZipFile(runs.zip(fox.name, tmp_path)) as archive:
        assert sorted(archive.namelist()) == [f"{fox.name}/a.png", f"{fox.name}/{RECORD}"]
    (runs.folder / fox.name / "notes.txt").write_text("mine")
    assert runs.delete(fox.name) == 1
    assert runs.search("fox") == ([], 0)
    assert (runs.folder / fox.name / "notes.txt").read_text() == "mine"  # not ours to delete
    assert runs.delete(house.name) == 1
    assert not (runs.folder / house.name).exists()


@pytest.mark.parametrize(
    "name", ["..", "../x", "/etc", "", "20260101-000000-a/../../x", "20260101-000000-" + "x" * 200]
)
def test_a_name_that_is_no_run_reaches_nothing(tmp_path, name):
    (tmp_path / "x").mkdir()
    runs = Runs(tmp_path / "out")
    assert runs.get(name) is None
    with pytest.raises(PixArtError, match="not there any more"):
        runs.delete(name)
    with pytest.raises(PixArtError, match="not there any more"):
        runs.zip(name, tmp_path)


def test_a_record_that_names_other_files_is_not_followed(tmp_path):
    runs = Runs(tmp_path / "out")
    (tmp_path / "secret.png").write_bytes(b"secret")
    run = some_run(runs, "a fox")
    record = json.loads((runs.folder / run.name / RECORD).read_text())
    record["pictures"] = [{"file": name, "seed": 1, "label": ""} for name in ("../../secret.png", "a.png", ".x.png")]
    (runs.folder / run.name / RECORD).write_text(json.dumps(record))
    assert [picture["file"] for picture in runs.get(run.name).pictures] == ["a.png"]
    runs.delete(run.name)
    assert (tmp_path / "secret.png").exists()


def test_a_run_without_a_readable_record_is_put_together_from_its_pictures(studio):
    run = finished(studio.draw("jan", quick(studio, "a very special fox", num_images=2))).result
    for damage in ("{", "[]", '{"pictures": 5}', "[" * 100_000):
        (studio.runs.folder / run.name / RECORD).write_text(damage)
        found = studio.runs.search("very special")[0][0]
        assert found.prompt == "a very special fox"
        assert [picture["seed"] for picture in found.pictures] == [7, 8]
        assert restored(found.form, studio.models.folder).steps == 2


def test_an_outputs_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PixArtError, match=r"outputs folder .* cannot be made"):
        Runs(tmp_path / "file" / "out")


# What is seen


def test_the_map_for_previews_is_near_the_decoder():
    """On the shipped model, whose drawings are no noise: nearer than a flat colour is, by far."""
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
    run = Run("20260101-000000-x", 1.0, nasty, nasty, pictures=({"file": "a.png", "seed": nasty, "label": nasty},))
    for made in (
        markup.picture_details(run, 0, {"prompt": nasty, "style": nasty, "seed": nasty}),
        markup.message(nasty, "error"),
        markup.token_meter(1, 1, nasty),
        markup.model_line(nasty, "onnx"),
    ):
        assert "<img" not in made
