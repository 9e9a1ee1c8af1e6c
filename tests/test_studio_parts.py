"""The studio without a browser: its jobs, its fields, its runs, and that generations do not touch each other."""

import asyncio
import base64
import io
import json
import subprocess
import sys
from contextlib import aclosing
from functools import partial

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pixart.checkpoints.model_folder import open_model_folder
from pixart.errors import PixArtError, UsageError
from pixart.pipeline.image_files import read_settings
from pixart.pipeline.request import make_request
from pixart.pipeline.restore import NAMES
from pixart.studio import fields, markup
from pixart.studio.generation import Generation, Tile
from pixart.studio.models import Choice
from pixart.studio.runs import RECORD, Run, Runs
from pixart.studio.studio import Studio


@pytest.fixture(scope="module")
def studio(tiny_model_with_graphs, tmp_path_factory):
    place, rng = tmp_path_factory.mktemp("studio"), np.random.default_rng(0)
    (place / "loras").mkdir()
    layer = "transformer.transformer_blocks.0.attn2.to_out.0.lora"
    pair = {"A": (4, 32), "B": (32, 4)}
    tensors = {f"{layer}_{side}.weight": rng.normal(0, 1, shape).astype(np.float32) for side, shape in pair.items()}
    save_file(tensors, place / "loras" / "noisy.safetensors")
    made = Studio(Choice(str(tiny_model_with_graphs)), place / "out", loras=place / "loras")
    yield made
    made.close()


def values(studio, prompt="a red fox", **changes) -> dict:
    small = {"steps": 2, "width": 64, "height": 64, "random_seed": False, "seed": 7, "prompt": prompt}
    return fields.defaults(studio.models.folder) | small | changes


def generation(studio, prompt="a red fox", **changes) -> Generation:
    form = values(studio, prompt, **changes)
    return Generation(studio, fields.checked(form, studio.models.folder), form)


def generate(studio, *given, **changes) -> Run:
    job = generation(studio, *given, **changes)
    asyncio.run(follow(studio, job))
    return studio.runs.get(job.run_name)


async def follow(studio, job, until=lambda: False) -> None:
    """As the page does it; closing the iterator is leaving the page."""
    studio.listening["visitor"] = 1
    async with aclosing(studio.follow(partial(job.submit, "visitor"), job.view, "visitor")) as views:
        async for _ in views:
            if until():
                break


# Jobs


class Panic(BaseException):
    def __str__(self):
        raise RuntimeError("no text either")


@pytest.mark.parametrize("error", [PixArtError("The disk is full."), ZeroDivisionError("x"), MemoryError(), Panic()])
def test_whatever_a_job_throws_ends_that_job_only(studio, error):
    job, failing = generation(studio), generation(studio)

    def fail(*given):
        raise error

    failing.submit = fail
    with pytest.raises(PixArtError):
        asyncio.run(follow(studio, failing))
    job._on_step = fail
    with pytest.raises(PixArtError):
        asyncio.run(follow(studio, job))
    assert generate(studio).images


def test_who_leaves_ends_the_job_within_a_step_and_what_is_saved_stays(studio):
    job = generation(studio, num_images=60, steps=3)
    asyncio.run(follow(studio, job, lambda: job.saved >= 2))
    assert job.job.future.cancelled() and studio.engine.live == []
    generate(studio)  # the engine has left the last step
    run = studio.runs.get(job.run_name)
    assert 2 <= len(run.images) == len(studio.runs.files(run)) < 60


def test_page_and_programs_share_one_queue(studio):
    """A job of the server's kind and a click are on their way together, and each gets what it gets alone."""
    pipeline = studio.models.require().pipeline
    request = make_request(pipeline.folder, "a house", seed=3, steps=40, width=64, height=64, num_images=8)
    (alone,) = pipeline.generate(make_request(pipeline.folder, "a house", seed=3, steps=40, width=64, height=64))
    seen: list[int] = []
    other = studio.engine.submit(
        pipeline, request, owner="a key", on_step=lambda index, step: seen.append(len(studio.engine.live))
    )
    clicked = generation(studio, steps=40)
    asyncio.run(follow(studio, clicked, lambda: False))
    assert max(seen) == 2 and clicked.saved == 1
    assert other.future.result()[0].settings["pixels_sha256"] == alone.settings["pixels_sha256"]


def test_a_model_that_cannot_be_loaded_leaves_the_one_before(studio, folder, tmp_path):
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut")
    for source in (str(folder), str(tmp_path / "nowhere")):
        with pytest.raises(PixArtError):
            studio.models.load(Choice(source))
        assert studio.models.choice.source != source
        assert generate(studio).images


# Generating


def test_the_image_is_seen_before_it_is_done(studio):
    job, previews = generation(studio, num_images=2, steps=40), set()
    asyncio.run(follow(studio, job, lambda: previews.update(tile.preview for tile in job.tiles)))
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
import asyncio, resource, signal
from functools import partial
from pathlib import Path
from pixart.errors import PixArtError
from pixart.studio import fields
from pixart.studio.generation import Generation
from pixart.studio.models import Choice
from pixart.studio.studio import Studio
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
studio = Studio(Choice({str(tiny_model_with_graphs)!r}), Path({str(tmp_path / "out")!r}))
form = fields.defaults(studio.models.folder) | dict(prompt="a fox", steps=2)
studio.models.require()
jobs = [Generation(studio, fields.checked(form, studio.models.folder), form) for _ in range(2)]
async def follow(job):
    studio.listening["visitor"] = 1
    async for _ in studio.follow(partial(job.submit, "visitor"), job.view, "visitor"):
        pass
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
try:
    asyncio.run(follow(jobs[0]))
except PixArtError as error:
    print(jobs[0].tiles[0].preview[:22], list(studio.runs.folder.iterdir()))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
asyncio.run(follow(jobs[1]))
print(jobs[1].saved)
studio.close()
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
    used, most, cut, _ = studio.tokens("fox " * 130 + "<i>house</i>", None)
    assert used > most == 120
    assert cut.endswith("<i>house</i>") and cut.startswith("fox")
    assert "&lt;i&gt;house&lt;/i&gt;" in markup.token_meter(used, most, cut, [])
    assert studio.tokens("a red fox", None) == (5, 120, "", [])
    assert studio.tokens("a red 🦊", None)[3] == ["🦊"]


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
        assert abs(width / height - ratio) < 0.15 and fields.aspect_of(width, height) == aspect
        assert fields.checked(values(studio, width=width, height=height), studio.models.folder).width == width


def test_the_size_line_names_the_bin(tmp_path, studio):
    from conftest import write_tiny_model

    write_tiny_model(tmp_path / "eps", eps=True)
    folder = open_model_folder(tmp_path / "eps")
    assert "304 × 208" in markup.size_line(folder, 300, 200, None)
    assert "304 × 208" not in markup.size_line(folder, 304, 304, False)
    assert "bin" not in markup.size_line(studio.models.folder, 64, 64, None)
    assert "64.5" in markup.size_line(studio.models.folder, 64.5, 64, None)


def png(size=(64, 64), colour="red") -> str:
    file = io.BytesIO()
    Image.new("RGBA", size, colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_an_image_and_what_is_brushed_over_it_are_a_request(studio):
    folder = studio.models.folder
    for mask in (None, png(colour="magenta")):
        image = fields.from_brush(json.dumps({"image": png(), "mask": mask}))
        request = fields.checked(values(studio, strength=0.5), folder, *image)
        assert (request.strength, request.image.mask is None) == (0.5, mask is None)
    assert fields.checked(values(studio, strength=0.5), folder, *fields.from_brush("")).strength is None
    with pytest.raises(UsageError):  # nothing to keep
        fields.checked(values(studio, outpaint=True), folder)


@pytest.mark.parametrize(
    "sent", ["{", "[]", '{"image": 5, "mask": null}', '{"image": "data:,", "mask": null}',
             json.dumps({"image": "/etc/passwd", "mask": None}), json.dumps({"image": png((4096, 1)), "mask": None})],
)  # fmt: skip
def test_what_is_no_image_to_start_from_is_refused(sent):
    with pytest.raises(UsageError):
        fields.from_brush(sent)


def test_adapters_of_the_folder_are_taken_at_their_strengths(studio):
    known, taken = studio.models.loras, {"loras": ["noisy"], "strengths": "0.5"}
    assert [lora.strength for lora in fields.adapters(taken, known)] == [0.5]
    assert [lora.strength for lora in fields.adapters({**taken, "strengths": ""}, known)] == [1]
    for wrong in ({"loras": ["../noisy"]}, {"strengths": "much"}, {"strengths": "1e9"}, {"strengths": "nan"}):
        with pytest.raises(UsageError):
            fields.adapters(taken | wrong, known)
    form = values(studio)
    changed, plain = (
        Generation(studio, fields.checked(form, studio.models.folder), form, fields.adapters(taken, known)),
        generation(studio),
    )
    for job in (changed, plain):
        asyncio.run(follow(studio, job))
    settings = [read_settings(job.tiles[0].path) for job in (changed, plain)]
    assert settings[0]["loras"][0]["strength"] == 0.5 and "loras" not in settings[1]
    assert settings[0]["pixels_sha256"] != settings[1]["pixels_sha256"]


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


def test_nothing_from_outside_becomes_html(studio):
    nasty = '<img src=x onerror="alert(1)">'
    job = generation(studio)
    job.notices = [nasty]
    saved = Tile(1, (64, 64), path=studio.runs.folder / nasty, details=markup.details({"prompt": nasty}, nasty))
    for made in (
        markup.details({"prompt": nasty, "style": nasty, "seed": nasty}, nasty),
        markup.lines([nasty]),
        markup.token_meter(1, 1, nasty, [nasty]),
        markup.status(job),
        markup.tiles([saved], is_done=True),
    ):
        assert "<img src=x" not in made
