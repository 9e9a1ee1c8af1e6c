"""One sampling core: how many passes it takes, and that an image does not depend on its neighbours in a pass."""

import numpy as np
import pytest
import torch
from conftest import write_graphs_into, write_tiny_model
from test_model import TINY, randomise, relative

import pixart
from pixart.checkpoints.hashes import hashes_of, write_hashes
from pixart.diffusion.solvers import SAMPLERS
from pixart.errors import PixArtError, UsageError
from pixart.model.pixart import PixArt, TextContext
from pixart.pipeline.core import Source
from pixart.pipeline.networks import choose_runtime
from pixart.pipeline.request import make_request
from pixart.runtime.device import Device
from pixart.runtime.plan import images_to_decode, rows_at_once
from pixart.runtime.storage import compute_in

SMALL = {"width": 64, "height": 64, "steps": 3}
PROMPTS = ["a red apple", "a green fox and a black house, flat, white and red", ""]


@pytest.fixture(scope="module")
def eps_model(tmp_path_factory):
    """An eps model with learned variance, which every sampler takes, with graphs."""
    folder = tmp_path_factory.mktemp("eps") / "model"
    write_tiny_model(folder, eps=True)
    write_graphs_into(folder)
    return folder


@pytest.fixture(scope="module", params=["torch", "onnx"])
def pipe(request, eps_model):
    return pixart.Pipeline.from_pretrained(eps_model, engine=request.param, dtype="float32")


@pytest.fixture
def passes(pipe, monkeypatch):
    """The numbers of images and rows of every pass of the denoiser."""
    seen, denoise = [], pipe.networks.denoise

    def counted(x_t, timesteps, texts, images):
        seen.append((len(x_t), len(texts)))
        return denoise(x_t, timesteps, texts, images)

    monkeypatch.setattr(pipe.networks, "denoise", counted)
    return seen


def psnr(first, second) -> float:
    """In dB, between images of 255 levels."""
    error = np.square(np.asarray(first, float) - np.asarray(second, float)).mean()
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def test_a_guided_batch_takes_one_pass_a_step(pipe, passes):
    pipe(PROMPTS[:2], seed=1, num_images=2, binning=False, **SMALL)
    assert passes == [(4, 8)] * 3
    passes.clear()
    pipe("a red apple", seed=1, num_images=3, guidance_scale=1.0, binning=False, **SMALL)
    assert passes == [(3, 3)] * 3
    passes.clear()  # outside the interval, the halves with no use are not computed
    pipe("a red apple", seed=1, guidance_interval=(400, 1000), binning=False, **SMALL)
    assert passes == [(1, 2), (1, 2), (1, 1)]


def test_images_at_other_steps_with_other_samplers_and_guidance_share_a_pass(pipe, passes):
    """Each equals the image that is generated alone: five requests, of which three begin later than the others."""
    settings = [
        {"guidance_scale": 4.5},
        {"guidance_scale": 1.0, "steps": 5},
        {"guidance_scale": 3.0, "sampler": "sa-solver", "guidance_rescale": 0.5},
        {"sampler": "ddpm", "steps": 4, "guidance_channels": 3},
        {"sampler": "euler", "guidance_interval": (300, 700), "negative_prompt": "blurry"},
    ]
    requests = [
        make_request(pipe.folder, PROMPTS[number % 3], seed=number, binning=False, **(SMALL | change))
        for number, change in enumerate(settings)
    ]
    alone = [next(iter(pipe.generate(request))) for request in requests]
    passes.clear()
    core, running, finished = pipe.core, [], {}
    waiting = [core.start(request, core.encode(request)[0], request.seeds[0]) for request in requests]
    everyone = list(waiting)
    running += [waiting.pop(0), waiting.pop(0)]
    while running:
        core.step(running)
        for state in [state for state in running if state.done]:
            finished[everyone.index(state)] = core.decode([state])[0]
        running = [state for state in running if not state.done] + [waiting.pop(0) for _ in waiting[:1]]
    assert len(passes) < sum(request.steps for request in requests) / 2
    assert any(images < rows < 2 * images for images, rows in passes), "guided and unguided rows in one pass"
    for number, generated in enumerate(alone):
        assert psnr(finished[number], generated.image) >= 45, settings[number]


@pytest.mark.parametrize("sampler", [name for name, sampler in SAMPLERS.items() if sampler.most > 1])
def test_an_image_does_not_depend_on_its_batch(pipe, sampler):
    """With graphs to the last bit; in torch to rounding."""
    batch = pipe(PROMPTS, seed=5, num_images=2, sampler=sampler, binning=False, **SMALL)
    assert batch.seeds == [5, 6] * 3
    for index, image in enumerate(batch.images):
        alone = pipe(PROMPTS[index // 2], seed=5 + index % 2, sampler=sampler, binning=False, **SMALL)
        if pipe.networks.name == "onnx":
            assert image.tobytes() == alone.images[0].tobytes()
            assert alone.settings[0] == batch.settings[index]
        assert psnr(image, alone.images[0]) >= 45


def test_in_half_precision_a_batch_is_near(eps_model):
    pipe = pixart.Pipeline.from_pretrained(eps_model, engine="torch", dtype="bfloat16")
    batch = pipe(PROMPTS, seed=5, num_images=2, binning=False, **SMALL)
    assert batch.settings[0]["dtype"] == "bfloat16"
    for index, image in enumerate(batch.images):
        alone = pipe(PROMPTS[index // 2], seed=5 + index % 2, binning=False, **SMALL)
        assert psnr(image, alone.images[0]) >= 35


def test_both_engines_agree(eps_model):
    first, second = (
        pixart.Pipeline.from_pretrained(eps_model, engine=engine, dtype="float32")(PROMPTS, seed=3, steps=3)
        for engine in ("torch", "onnx")
    )
    for ours, theirs in zip(first.images, second.images, strict=True):
        assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 2


def test_sampling_can_begin_with_an_image(pipe):
    """From a latent noised to the level of a later step: the later, the nearer to it. It shares a pass with others."""
    request = make_request(pipe.folder, "a fox", seed=1, binning=False, **SMALL | {"steps": 20})
    conditioning = pipe.core.encode(request)[0]
    latent = np.random.default_rng(0).standard_normal((1, 8, 8, 8)).astype(np.float32)
    sources = [Source(pipe.networks.latents(latent), first) for first in (1, 10, 19)]
    states = [pipe.core.start(request, conditioning, 1, source) for source in sources]
    while running := [state for state in states if not state.done]:
        pipe.core.step(running)
    distances = [np.abs(pipe.networks.to_numpy(state.x_t) - latent).mean() for state in states]
    assert distances[0] > distances[1] > distances[2]


def test_states_of_other_sizes_do_not_mix(pipe):
    states = []
    for width in (64, 128):
        request = make_request(pipe.folder, "a fox", seed=1, binning=False, **SMALL | {"width": width})
        states.append(pipe.core.start(request, pipe.core.encode(request)[0], 1))
    with pytest.raises(ValueError):
        pipe.core.step(states)


def test_out_of_memory_halves_the_batch_and_goes_on(pipe, monkeypatch):
    wanted = pipe("a red apple", seed=1, num_images=4, binning=False, **SMALL)
    denoise, most = pipe.networks.denoise, 2

    def refusing(x_t, *arguments):
        if len(x_t) > most:
            raise MemoryError
        return denoise(x_t, *arguments)

    monkeypatch.setattr(pipe.networks, "denoise", refusing)
    monkeypatch.setattr(pipe.core, "most_images", None)
    found = pipe("a red apple", seed=1, num_images=4, binning=False, **SMALL)
    assert len(found.notices) == len(wanted.notices) + 1
    assert all(psnr(*pair) >= 45 for pair in zip(wanted.images, found.images, strict=True))
    most = 0
    with pytest.raises(PixArtError):
        pipe("a red apple", seed=1, num_images=2, binning=False, **SMALL)


@torch.inference_mode()
def test_rows_are_independent_whatever_the_lengths_of_their_texts():
    """Each row of a pass has its own timestep and text, padded and masked."""
    model = randomise(PixArt(TINY))
    generator = torch.Generator().manual_seed(3)
    lengths = (3, 16, 7, 1)
    texts = [model.encode_text(torch.randn(1, length, 12, generator=generator), None) for length in lengths]
    x_t, timesteps = torch.randn(4, 4, 8, 12, generator=generator), torch.tensor([999, 500, 20, 321])
    together = model.denoise(x_t, model.embed_timestep(timesteps), TextContext.together(texts))
    for row, text in enumerate(texts):
        alone = model.denoise(x_t[row : row + 1], model.embed_timestep(timesteps[row : row + 1]), text)
        assert relative(together[row : row + 1], alone) < 1e-5
    assert TextContext.together([texts[0], texts[0]]).mask is None  # equal lengths need none
    both = TextContext.together([TextContext.together(texts), texts[1]])  # one unconditional text serves all rows
    assert both.rows == 8


DEVICES = {
    "H100": Device("cuda", "H100", 80 << 30, 76 << 30, True, True, (9, 0)),
    "T4": Device("cuda", "T4", 16 << 30, 12 << 30, False, True, (7, 5)),
    "P4000": Device("cuda", "P4000", 8 << 30, 5 << 30, False, False, (6, 1)),
    "M2": Device("mps", "Apple GPU", 12 << 30, 8 << 30, False, True),
    "CPU": Device("cpu", "this processor", 8 << 30, 6 << 30, False, False),
}


@pytest.mark.parametrize(("device", "least", "most"), [
    ("H100", 32, 256), ("T4", 8, 64), ("P4000", 4, 32), ("M2", 4, 64), ("CPU", 1, 1),
])  # fmt: skip
def test_the_number_at_once_follows_the_device(device, least, most):
    """Rows of XL/2 at 1024 px in half precision."""
    asked = {"tokens": 4096, "width": 1152, "number_bytes": 2}
    assert least <= rows_at_once(DEVICES[device], **asked) <= most
    assert rows_at_once(DEVICES[device], tokens=16, width=32, number_bytes=2) > 16
    decoded = images_to_decode(DEVICES[device], pixels=1024**2, channels=128, number_bytes=2)
    assert 1 <= decoded <= most


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_weights_kept_in_half_precision_are_computed_with_in_full(storage):
    exact = randomise(PixArt(TINY)).to(storage).float()
    kept = compute_in(randomise(PixArt(TINY)).to(storage), torch.float32)
    assert {layer.weight.dtype for layer in kept.modules() if isinstance(layer, torch.nn.Linear)} == {storage}
    x_t, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 12)
    mask = torch.ones(2, 5, dtype=torch.bool)
    found = kept(x_t, torch.tensor([400, 900]), text, mask)
    assert found.dtype == torch.float32
    assert relative(found, exact(x_t, torch.tensor([400, 900]), text, mask)) < 5e-3


def test_a_text_encoder_kept_in_half_precision_is_near(tiny_model):
    from pixart.encoders.text import TextEncoder

    places = tiny_model / "text_encoder", tiny_model / "tokenizer", "BertModel"
    exact, kept = TextEncoder(*places), TextEncoder(*places, dtype="bfloat16")
    compute_in(kept.model, torch.float32)
    states = [encoder.encode("a red apple").states for encoder in (exact, kept)]
    assert relative(states[1], states[0]) < 0.1


def test_where_a_model_is_computed(tiny_model_with_graphs, tiny_model):
    from pixart.checkpoints.model_folder import open_model_folder
    from pixart.runtime.memory import Memory

    with_graphs, without = open_model_folder(tiny_model_with_graphs), open_model_folder(tiny_model)
    found = choose_runtime(with_graphs)
    assert (found.engine, found.device.type, found.dtype) == ("onnx", "cpu", "float32") and found.line
    assert choose_runtime(with_graphs, dtype="int8").dtype == "int8"
    assert choose_runtime(with_graphs, memory=Memory(staged=True)).engine == "torch"
    assert choose_runtime(with_graphs, dtype="bfloat16").engine == "torch"
    assert choose_runtime(with_graphs, compile=True).engine == "torch"
    half = choose_runtime(with_graphs, dtype="float16", device="cpu")  # as Diffusers' examples ask; arithmetic in fp32
    assert (half.engine, half.dtype, half.precision.arithmetic) == ("torch", "float16", "float32")
    assert choose_runtime(without).engine == "torch"
    for bad in (
        {"engine": "onyx"},
        {"dtype": "float8"},
        {"device": "tpu"},
        {"engine": "onnx", "dtype": "bfloat16"},
        {"engine": "torch", "dtype": "int8"},
        {"engine": "onnx", "memory": Memory(staged=True)},
        {"engine": "onnx", "compile": True},
        {"memory": Memory(decode="tilde")},
        *([] if torch.cuda.is_available() else [{"device": "cuda"}]),
    ):
        with pytest.raises(UsageError):
            choose_runtime(with_graphs, **bad)
    with pytest.raises(PixArtError):
        choose_runtime(without, engine="onnx")


def test_stored_hashes_name_weights_until_the_file_changes(folder):
    from hashlib import sha256

    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    (sampled,) = hashes_of(folder, [path]).values()
    assert sampled.startswith("sampled-")
    write_hashes(folder)
    (stored,) = hashes_of(folder, [path]).values()
    assert stored == sha256(path.read_bytes()).hexdigest()
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    (after,) = hashes_of(folder, [path]).values()
    assert after.startswith("sampled-") and after != sampled
