"""A GPU gives what the CPU gives. `pytest -m gpu` runs these; PIXART_TEST_DEVICE=cpu runs most of them without one."""

import os

import numpy as np
import pytest
import torch
from test_batches import psnr
from test_compiled import LORA_LAYERS, write_lora
from tiny_run import metrics, tiny_train

import pixart
from pixart.checkpoints.model_folder import open_model_folder
from pixart.encoders.vae import Decoder
from pixart.pipeline.engine import Engine
from pixart.pipeline.networks import choose_runtime
from pixart.pipeline.request import make_request
from pixart.runtime.device import choose_device, choose_precision, find_devices
from pixart.runtime.memory import Memory
from pixart.training import distribution

DEVICE = os.environ.get("PIXART_TEST_DEVICE", "cuda")
SMALL = {"width": 128, "height": 128, "steps": 4, "binning": False}
PROMPTS = ["a red apple", "a green fox and a black house, flat, white and red"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]
only_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="of CUDA alone")


def pipeline(folder, device=DEVICE, dtype="float32", **how) -> pixart.Pipeline:
    return pixart.Pipeline.from_pretrained(folder, engine="torch", device=device, dtype=dtype, **how)


@pytest.fixture(scope="module")
def on_cpu(tiny_model):
    return pipeline(tiny_model, "cpu")


@pytest.fixture(scope="module")
def on_gpu(tiny_model):
    return pipeline(tiny_model)


@pytest.fixture
def limited():
    """A function that leaves this process so many bytes of the GPU."""

    def limit(left: int) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + left) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("sampler", ["dpm-solver", "euler-ancestral"])
def test_images_are_those_of_the_cpu(on_cpu, on_gpu, sampler):
    expected, found = (pipe(PROMPTS, seed=3, sampler=sampler, **SMALL).images for pipe in (on_cpu, on_gpu))
    assert np.asarray(expected[0]).std() > 20, "a grey image would prove nothing"
    assert min(map(psnr, expected, found)) > 40  # convolutions of the decoder may be in TF32


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=only_cuda)])
def test_half_precision_is_near(on_cpu, tiny_model, dtype):
    expected, found = (
        pipe("a red apple", seed=3, **SMALL).images[0] for pipe in (on_cpu, pipeline(tiny_model, dtype=dtype))
    )
    assert psnr(expected, found) > 25
    other = on_cpu("a green house", seed=4, **SMALL).images[0]
    assert psnr(expected, other) < 20, "else the limit above would prove nothing"


@pytest.mark.parametrize(("dtype", "least"), [("float32", 45), ("bfloat16", 35)])
def test_an_image_does_not_depend_on_its_neighbours(tiny_model, dtype, least):
    pipe = pipeline(tiny_model, dtype=dtype)
    together = pipe(PROMPTS, seed=3, num_images=3, **SMALL)
    alone = pipe(PROMPTS[1], seed=4, **SMALL).images[0]
    assert psnr(together.images[4], alone) > least


@pytest.mark.parametrize(
    "memory", [{"offload": True}, {"staged": True}, {"offload": True, "staged": True}, {"text_encoder": "streamed"}]
)
def test_saving_memory_changes_no_pixel(on_gpu, tiny_model, memory):
    pipe = pipeline(tiny_model, memory=Memory(**memory))
    for _ in range(2):  # moved there and back
        found, expected = (each(PROMPTS, seed=3, **SMALL).images for each in (pipe, on_gpu))
        assert min(map(psnr, expected, found)) > (40 if "text_encoder" in memory else 60)


@only_cuda
def test_offloading_keeps_one_network_on_the_gpu_and_copies_nothing_back(tiny_model):
    from pixart.pipeline.torch_networks import device_of

    networks = pipeline(tiny_model, memory=Memory(offload=True)).networks
    parameters = list(networks.denoiser.parameters())
    at_rest = [parameter.at_rest.data_ptr() for parameter in parameters]
    assert networks.decoder.model.device.type == "cuda"
    assert [device_of(networks._loaded[name]).type for name in ("text_encoder", "denoiser")] == ["cpu", "cpu"]
    assert [parameter.data_ptr() for parameter in parameters] == at_rest
    assert all(parameter.is_pinned() for parameter in parameters)


@only_cuda
def test_a_limit_on_this_process_counts_as_the_memory_of_the_gpu(tiny_model, limited):
    folder = open_model_folder(tiny_model)
    usual = choose_device(find_devices(), "cuda").free_bytes
    limited(1 << 30)
    found = choose_device(find_devices(), "cuda").free_bytes
    assert found < usual and found == pytest.approx(1 << 30, rel=0.1)
    need = choose_runtime(folder, "torch", device="cuda", size=(256, 256))
    assert need.memory.text_encoder == "loaded"
    limited(8 << 20)
    with pytest.raises(pixart.errors.PixArtError):
        choose_runtime(folder, "torch", device="cuda", size=(4096, 4096))


@only_cuda
def test_out_of_memory_halves_the_batch_and_goes_on(on_gpu, monkeypatch, limited):
    expected = on_gpu("a red apple", seed=3, num_images=32, **SMALL).images
    monkeypatch.setattr(on_gpu.networks, "images_at_once", lambda rows, height, width: 32)
    limited(3 << 20)
    result = on_gpu("a red apple", seed=3, num_images=32, **SMALL)
    on_gpu.core.most_images = None
    assert result.notices and min(map(psnr, expected, result.images)) > 40


def test_pixels_are_rounded_as_on_the_cpu(tiny_model):
    latents = torch.randn(2, 8, 8, 12, generator=torch.Generator().manual_seed(1))
    here, there = Decoder(tiny_model / "vae"), Decoder(tiny_model / "vae")
    there.model.to(DEVICE)
    assert np.abs(here.decode(latents).astype(int) - there.decode(latents)).max() <= 1


def test_adapters_do_what_they_do_on_the_cpu(on_cpu, on_gpu, tmp_path):
    lora = write_lora(tmp_path / "lora.safetensors", LORA_LAYERS)
    plain = on_cpu("a red apple", seed=3, **SMALL).images[0]
    try:
        images = []
        for pipe in (on_cpu, on_gpu):
            pipe.set_loras([lora])
            images.append(pipe("a red apple", seed=3, **SMALL).images[0])
    finally:
        for pipe in (on_cpu, on_gpu):
            pipe.set_loras([])
    assert psnr(*images) > 40 and psnr(plain, images[0]) < 35


def test_requests_share_passes_and_get_their_own_images(on_gpu):
    settings = [{"seed": seed, "guidance_scale": 1.0 + seed % 3} for seed in range(8)]
    requests = [make_request(on_gpu.folder, PROMPTS[seed % 2], **SMALL, **each) for seed, each in enumerate(settings)]
    engine = Engine()
    try:
        jobs = [engine.submit(on_gpu, request) for request in requests]
        found = [job.future.result(120)[0].image for job in jobs]
    finally:
        engine.close()
    for image, request in zip(found, requests, strict=True):
        assert psnr(image, next(iter(on_gpu.generate(request))).image) > 40


@pytest.mark.parametrize("loop", [{}, {"checkpoint_activations": True, "accumulate": 2}])
def test_training_takes_the_steps_of_the_cpu(tmp_path, loop):
    tiny_train(tmp_path / "cpu")
    tiny_train(tmp_path / "gpu", world=distribution.alone(DEVICE), device=DEVICE, **loop)
    for name in ("loss", "grad_norm"):
        here, there = (dict(metrics(tmp_path / device, name)) for device in ("cpu", "gpu"))
        assert list(there.values()) == pytest.approx(list(here.values()), rel=1e-3)


def test_a_run_of_half_precision_learns(tmp_path):
    precision = (
        "bfloat16" if choose_precision(choose_device(find_devices(), DEVICE)).arithmetic == "bfloat16" else "float16"
    )
    if DEVICE == "cpu" and precision == "float16":
        pytest.skip("this processor computes in float32")
    tiny_train(tmp_path / "run", world=distribution.alone(DEVICE), device=DEVICE, precision=precision)
    tiny_train(tmp_path / "full")
    half, full = (dict(metrics(tmp_path / run)) for run in ("run", "full"))
    assert list(half.values()) == pytest.approx(list(full.values()), rel=0.05)
