"""Images to start from: beside Diffusers' image-to-image and inpainting arithmetic, and from the command line."""

import io
import json
import os
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from conftest import write_graphs_into, write_tiny_model
from PIL import Image

import pixart
from pixart.cli import main
from pixart.diffusion.noise import initial_noise
from pixart.errors import PixArtError, UsageError
from pixart.pipeline.image_files import read_settings

SIZE = 64
SMALL = {"width": SIZE, "height": SIZE, "binning": False}


@pytest.fixture(scope="module", params=["eps", "flow"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / request.param
    write_tiny_model(folder, eps=request.param == "eps")
    return folder


@pytest.fixture(scope="module")
def pipe(model):
    return pixart.Pipeline.from_pretrained(model, dtype="float32")


def photo(width: int = SIZE, height: int = SIZE) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 3, columns * 3, 128 + 100 * np.sin(rows / 5)], -1).clip(0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def half_mask(width: int = SIZE, height: int = SIZE) -> Image.Image:
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 255
    return Image.fromarray(mask)


@torch.no_grad()
def stock_latent(folder, strength: float, steps: int, seed: int, mask: torch.Tensor | None) -> torch.Tensor:
    """The clean latent by stock Diffusers' parts, in the order of its image-to-image and inpainting pipelines."""
    from diffusers import PixArtAlphaPipeline
    from diffusers.image_processor import VaeImageProcessor

    stock = PixArtAlphaPipeline.from_pretrained(folder)
    scheduler = stock.scheduler
    pixels = VaeImageProcessor().preprocess(photo())
    image = stock.vae.encode(pixels).latent_dist.mean * stock.vae.config.scaling_factor
    texts = stock.encode_prompt("a red fox", negative_prompt="", clean_caption=False)
    states, states_mask = torch.cat([texts[2], texts[0]]), torch.cat([texts[3], texts[1]])
    scheduler.set_timesteps(steps)
    first = max(steps - min(int(steps * strength), steps), 0)
    timesteps = scheduler.timesteps[first:]
    scheduler.set_begin_index(first)
    noise = torch.from_numpy(initial_noise(seed, tuple(image.shape[1:])))[None]
    x_t = noise
    if strength < 1 or mask is None:
        x_t = scheduler.add_noise(image, noise, timesteps[:1])
    for index, timestep in enumerate(timesteps):
        prediction = stock.transformer(
            torch.cat([x_t, x_t]),
            encoder_hidden_states=states,
            encoder_attention_mask=states_mask,
            timestep=timestep.expand(2),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        if prediction.shape[1] == 2 * x_t.shape[1]:
            prediction = prediction.chunk(2, dim=1)[0]
        without, text = prediction.chunk(2)
        x_t = scheduler.step(without + 4.5 * (text - without), timestep, x_t, return_dict=False)[0]
        if mask is not None:
            known = image
            if index < len(timesteps) - 1:
                known = scheduler.add_noise(image, noise, timesteps[index + 1 : index + 2])
            x_t = (1 - mask) * known + mask * x_t
    return x_t


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("strength", [1.0, 0.55])
def test_latents_are_those_of_diffusers(pipe, model, strength, masked):
    latents = []
    mask = None
    if masked:
        mask = torch.zeros(1, 1, SIZE // 8, SIZE // 8)
        mask[..., SIZE // 16 :] = 1
    theirs = stock_latent(model, strength, 7, 5, mask)
    result = pipe(
        "a red fox",
        image=photo(),
        mask=half_mask() if masked else None,
        strength=strength,
        seed=5,
        steps=7,
        guidance_scale=4.5,
        on_step=lambda index, step: latents.append(step.x_t),
        **SMALL,
    )
    assert len(latents) == int(7 * strength)
    assert theirs.std() > 0.1
    torch.testing.assert_close(latents[-1], theirs, atol=2e-3, rtol=2e-3)
    assert result.settings[0]["strength"] == strength


def test_what_a_mask_keeps_stays_as_it_is(pipe):
    image = pipe("a red fox", image=photo(), mask=half_mask(), seed=5, steps=4, **SMALL).images[0]
    before, after = np.asarray(photo()).astype(int), np.asarray(image).astype(int)
    assert np.array_equal(before[:, : SIZE // 2 - 8], after[:, : SIZE // 2 - 8])
    assert np.abs(before[:, SIZE // 2 + 8 :] - after[:, SIZE // 2 + 8 :]).mean() > 5


def test_outpainting_keeps_the_image_in_the_middle(pipe):
    image = pipe("a red fox", image=photo(32, 48), outpaint=True, seed=5, steps=4, **SMALL).images[0]
    after = np.asarray(image)[8:56, 16:48]
    assert np.array_equal(after[16:-16, 14:-14], np.asarray(photo(32, 48))[16:-16, 14:-14])
    result = pipe("a red fox", image=photo(200, 100), outpaint=True, seed=5, steps=4, **SMALL)
    assert result.images[0].size == (SIZE, SIZE) and result.notices


def test_a_second_pass_is_image_to_image_of_the_enlarged_image(pipe):
    seen = []
    common = {"seed": 5, "steps": 4, "num_images": 2, "binning": False}
    small = pipe("a red fox", **common, width=64, height=80)
    large = pipe("a red fox", **common, width=64, height=80, upscale=2, on_step=lambda index, step: seen.append(index))
    assert sorted(seen) == [0] * 5 + [1] * 5
    assert (large.settings[1]["width"], large.settings[1]["upscale"]) == (64, 2)
    start = small.images[1].resize((128, 160), Image.Resampling.LANCZOS)
    alone = pipe("a red fox", image=start, strength=0.4, seed=6, steps=4, binning=False, width=128, height=160)
    apart = np.asarray(large.images[1]).astype(int) - np.asarray(alone.images[0])
    assert np.abs(apart).max() <= 2


def test_sizes_are_fitted_and_said(pipe):
    result = pipe("a fox", image=photo(200, 100), mask=half_mask(100, 50), steps=2, seed=1, **SMALL)
    assert result.images[0].size == (SIZE, SIZE)
    assert len(result.notices) == 2
    alike = pipe("a fox", image=photo(200, 100), steps=2, seed=1, binning=False).images[0]
    assert alike.width == pytest.approx(2 * alike.height, rel=0.1)
    assert alike.width * alike.height == pytest.approx(256**2, rel=0.1)
    image = photo()
    image.putalpha(Image.new("L", image.size, 0))
    on_white = pipe("a fox", image=image, steps=2, seed=1, **SMALL)
    white = pipe("a fox", image=Image.new("RGB", image.size, "white"), steps=2, seed=1, **SMALL)
    assert on_white.images[0].tobytes() == white.images[0].tobytes()


@pytest.mark.parametrize(
    "given",
    [
        {"mask": half_mask()},
        {"outpaint": True},
        {"strength": 0.5},
        {"image": photo(), "strength": 1.1},
        {"image": photo(), "strength": -0.1},
        {"image": photo(), "strength": 0.01},
        {"image": photo(), "mask": Image.new("L", (8, 8), 0)},
        {"image": photo(), "mask": half_mask(), "outpaint": True},
        {"image": photo(), "mask": half_mask(), "upscale": 2},
        {"image": photo(), "outpaint": True, **SMALL},
        {"image": "missing.png"},
        {"image": __file__},
        {"image": 7},
        {"image": Image.new("RGB", (0, 4))},
        {"image": Image.new("F", (64, 64))},
        {"image": photo(), "mask": Image.new("L", (0, 0))},
        {"upscale": 0},
        {"upscale": 2, "width": 1024, "height": 1024},
    ],
)
def test_what_cannot_be_is_one_sentence(pipe, given):
    with pytest.raises(UsageError):
        pipe("a fox", **{"steps": 2, "seed": 1, **given})


def test_an_image_of_too_many_pixels_is_refused_with_the_limit(pipe, tmp_path):
    for side in (10_500, 14_000):  # beyond our limit, and beyond Pillow's
        Image.new("1", (side, side)).save(tmp_path / f"{side}.png")
        with pytest.raises(UsageError, match="100,000,000"):
            pipe("a fox", image=tmp_path / f"{side}.png", steps=2)


def png_with(kind: bytes, content: bytes) -> bytes:
    file = io.BytesIO()
    photo().save(file, "PNG")
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return file.getvalue()[:33] + chunk + file.getvalue()[33:]


def test_files_that_never_end_or_run_programs_are_refused(pipe, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    Image.fromarray(np.full((64, 64), 1.5, np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((64, 64), 70_000, np.int32)).save(tmp_path / "int.tif")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(PixArtError):
            pipe("a fox", image=path, steps=2)
        with pytest.raises(PixArtError):
            pipe("a fox", image=photo(), mask=path, steps=2)


def test_what_is_long_thin_or_deep_costs_no_more_than_its_pixels(pipe, tmp_path):
    from pixart.pipeline.image_input import open_image

    values = (np.arange(SIZE * SIZE).reshape(SIZE, SIZE) * 16).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "16.png")
    assert np.array_equal(np.asarray(open_image(tmp_path / "16.png", "image"))[..., 0], values >> 8)
    # 20,000 entries of EXIF that all are the same megabyte, and an orientation.
    entries = [struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)]
    entries += [struct.pack("<HHII", 0x9000 + i, 1, 1_000_000, 8) for i in range(20_000)]
    exif = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(1_000_010)
    (tmp_path / "aliased.png").write_bytes(png_with(b"eXIf", exif))
    turned = open_image(tmp_path / "aliased.png", "image")
    assert turned.tobytes() == photo().transpose(Image.Transpose.ROTATE_270).tobytes()
    thin = Image.new("RGB", (1, 60_000), "red")
    _, kept = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, kept))
    try:
        image = pipe("a fox", image=thin, steps=2, seed=1, strength=0.5, binning=False, width=256, height=256).images[0]
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (kept, kept))
    assert image.size == (256, 256)


def test_both_engines_and_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "model")
    write_graphs_into(tmp_path / "model")
    photo().save("photo.png")
    half_mask().save("mask.png")
    command = ["generate", "a fox", "--model", "model", "--steps", "3", "--seed", "1", "--json", "--dtype", "float32"]
    images = []
    for engine in ("onnx", "torch"):
        options = ["--image", "photo.png", "--mask", "mask.png", "--size", "64x64", "--engine", engine]
        assert main([*command, *options, "--output", f"{engine}.png"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["image"]["sha256"] and record["image"]["mask_sha256"]
        images.append(np.asarray(Image.open(record["path"])).astype(int))
    assert np.abs(images[0] - images[1]).max() <= 2
    assert read_settings("torch.png")["strength"] == 1.0
    assert main(["verify", "torch.png", "--model", "model"]) == 2
    capsys.readouterr()
    assert main([*command, "--upscale", "2", "--size", "64x64", "--output", "large.png", "--engine", "onnx"]) == 0
    capsys.readouterr()
    assert Image.open("large.png").size == (128, 128)
    assert main(["verify", "large.png", "--model", "model"]) == 0
    # A folder whose graphs were written before there was one for images.
    (tmp_path / "model" / "encoder.onnx").unlink()
    capsys.readouterr()
    assert main([*command, "--image", "photo.png", "--engine", "onnx", "--output", "no.png"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and not (tmp_path / "no.png").exists()
    huge = Image.new("1", (20_000, 10_000))
    huge.save("huge.png")
    assert main([*command, "--image", "huge.png", "--output", "no.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
