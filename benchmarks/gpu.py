"""pixart on a GPU beside stock Diffusers, with a model of the published size whose weights are random.

    sh benchmarks/gpu.sh FOLDER             # five minutes at most, on a GPU
    python benchmarks/gpu.py --dry          # every row at a tiny size on the CPU, which proves only that it runs

Rows go to FOLDER/gpu.jsonl and FOLDER/gpu.md as they are measured, the most valuable ones first; those for which no
time is left are missing. Stock is `PixArtAlphaPipeline` in bf16 as its documentation has it ("stock"), and with fused
projections, compiled blocks and a channels-last decoder ("stock, best"). Both generate from the same folder with 20
steps and guidance 4.5. Cold is the time from the start of a process to the first image; warm is a loaded pipeline, text
encoding and decoding included, median of several calls. `share` is what the products of the denoiser would take at the
rate of a large bf16 product, over the time that was taken. Where there is no room for T5-XXL, ours streams it.
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

BEGAN = time.monotonic()
PROMPTS = ["a red fox in the snow", "an old lighthouse by the sea at night, oil painting, with a small boat"]
GUIDANCE = 4.5
GIGABYTE = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """What is measured: of the published model on a GPU, or tiny, where only that it runs is of interest."""

    device: str = "cuda"
    width: int = 1152
    heads: int = 16
    depth: int = 28
    text: tuple[int, int, int] = (4096, 24, 10240)  # T5-XXL: width, layers, hidden
    channels: tuple[int, ...] = (128, 256, 512, 512)
    images: tuple[int, ...] = (512, 1024)
    batches: tuple[int, ...] = (1, 4, 16)
    steps: int = 20
    limits: tuple[int, ...] = (8, 16, 24)
    clients: int = 8
    training: tuple[int, int] = (512, 16)  # pixels, batch
    training_steps: int = 8
    peak: int = 8192  # side of the product


DRY = Sizes("cpu", 32, 2, 2, (32, 1, 64), (32, 32, 32, 32), (64, 96), (1, 2), 2, (8,), 2, (64, 2), 2, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)  # name, model folder: one process of a run
    options = parser.parse_args()
    sizes = DRY if options.dry else Sizes()
    if options.part:
        return run_part(*options.part, sizes, options.seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        measure(options, sizes, Path(work) / "model")


def measure(options: argparse.Namespace, sizes: Sizes, model: Path) -> None:
    deadline = BEGAN + options.seconds
    rows = Rows(options.out)
    rows.add({"row": "machine", **machine(sizes)})
    write_model(model, sizes)
    rows.add({"row": "random weights written", "seconds": time.monotonic() - BEGAN})
    # Of the time that is left, ours may take half, so that there is something to compare it with.
    for name, share in (("ours", 0.5), ("stock", 0.8)):
        rows.follow(name, model, options, share * (deadline - time.monotonic()))
    rows.compare()
    rows.follow("training", model, options, deadline - time.monotonic())
    for limit in sizes.limits:
        rows.follow(f"limit-{limit}", model, options, deadline - time.monotonic())
    left = deadline - time.monotonic()
    if options.no_tests or left < 10:
        rows.add({"row": "tests", "skipped": "as given" if options.no_tests else "no time left"})
        return
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q", "-m", "gpu", "tests"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, cwd=Path(__file__).parents[1])
        rows.add({"row": "tests", "last_line": done.stdout.strip().splitlines()[-1:], "failed": done.returncode != 0})
        (options.out / "tests.txt").write_text(done.stdout + done.stderr)
    except subprocess.TimeoutExpired:
        rows.add({"row": "tests", "skipped": f"not done in {left:.0f} s"})


class Rows:
    """What was measured, in two files that are complete after every row."""

    def __init__(self, folder: Path):
        self.lines, self.table, self.rows = folder / "gpu.jsonl", folder / "gpu.md", []
        self.lines.write_text("")

    def add(self, row: dict) -> None:
        row = {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}
        self.rows.append(row)
        with self.lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        lines = ["| Row | Measured |", "| --- | --- |"]
        for each in self.rows:
            rest = ", ".join(f"{key} {value}" for key, value in each.items() if key != "row")
            lines.append(f"| {each['row']} | {rest} |")
        self.table.write_text("\n".join(lines) + "\n")

    def follow(self, part: str, model: Path, options: argparse.Namespace, seconds: float) -> None:
        """Run a part in a process of its own, and take its rows as it prints them."""
        if seconds < 5:
            return self.add({"row": part, "skipped": "no time left"})
        command = [sys.executable, __file__, "--part", part, str(model), "--seconds", str(seconds)]
        command += ["--dry"] if options.dry else []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        watch = threading.Timer(seconds, process.kill)
        watch.start()
        for line in process.stdout:
            if line.startswith("{"):
                self.add(json.loads(line))
        if process.wait() != 0:
            self.add({"row": part, "failed": "no time left" if process.returncode < 0 else "see above"})
        watch.cancel()

    def compare(self) -> None:
        """How many times as fast as stock's best ours is, at each size and batch."""
        seconds: dict[tuple, dict[str, float]] = {}
        for row in self.rows:
            if "seconds_an_image" in row:
                seconds.setdefault((row["pixels"], row["batch"]), {})[row["row"]] = row["seconds_an_image"]
        for (pixels, batch), arms in seconds.items():
            ours = min((value for name, value in arms.items() if name.startswith("ours")), default=math.nan)
            stock = min((value for name, value in arms.items() if name.startswith("stock")), default=math.nan)
            self.add({"row": "stock's best over ours", "pixels": pixels, "batch": batch, "ratio": stock / ours})


def machine(sizes: Sizes) -> dict:
    import diffusers
    import torch
    import transformers

    found = {"torch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__}
    found |= {"python": platform.python_version()}
    if sizes.device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "gigabytes": torch.cuda.mem_get_info()[1] / GIGABYTE}
    return found | {"sizes": asdict(sizes)}


# ------------------------------------------------------------------------------------------------ the parts of a run


def run_part(name: str, model: str, sizes: Sizes, seconds: float) -> None:
    """One process: prints its rows, one JSON object a line."""
    if sizes == DRY:
        trace_only()
    parts = {"ours": ours, "stock": stock, "training": training}
    if name.startswith("limit-"):
        rows = limited(int(name.removeprefix("limit-")), Path(model), sizes)
    else:
        rows = parts[name](Path(model), sizes, BEGAN + seconds)
    for row in rows:
        print(json.dumps(row), flush=True)


def trace_only() -> None:
    """At a tiny size compiling gains nothing and takes minutes: blocks are traced, and run as they are."""
    import torch

    compile_ = torch.compile
    torch.compile = lambda model=None, **options: compile_(model, **options | {"backend": "eager"})


def ours(model: Path, sizes: Sizes, deadline: float) -> Iterator[dict]:
    import pixart

    pipes = {"ours": pixart.Pipeline.from_pretrained(model, engine="torch", device=sizes.device)}

    def generate(pipe, pixels: int, prompts: list[str], steps: int) -> None:
        pipe(prompts, seed=0, width=pixels, height=pixels, steps=steps, guidance_scale=GUIDANCE, binning=False)

    generate(pipes["ours"], sizes.images[0], PROMPTS[:1], sizes.steps)
    yield {"row": "ours, cold", "pixels": sizes.images[0], "seconds": time.monotonic() - BEGAN}
    pipes["ours, compiled"] = compiled_like(pipes["ours"])
    for pixels in sizes.images:
        yield from warm(pipes, generate, pixels, sizes, deadline)
        if pixels == sizes.images[0]:
            yield clients(pipes["ours, compiled"], pixels, sizes)


def compiled_like(pipe):
    """The same weights, compiled; a second text encoder might not fit."""
    import copy

    from pixart.model.pixart import Block
    from pixart.pipeline.pipeline import Pipeline
    from pixart.runtime.compiled import compile_blocks

    networks = copy.copy(pipe.networks)
    networks.compile, networks._batch = True, None
    networks._loaded = dict(networks._loaded)
    denoiser = copy.copy(networks._loaded["denoiser"])
    denoiser._modules = dict(denoiser._modules) | {"blocks": copy.copy(denoiser.blocks)}
    denoiser.blocks._modules = {name: copy.copy(block) for name, block in denoiser.blocks._modules.items()}
    compile_blocks(module for module in denoiser.modules() if isinstance(module, Block))
    networks._loaded["denoiser"] = denoiser
    return Pipeline(pipe.folder, networks)


def stock(model: Path, sizes: Sizes, deadline: float) -> Iterator[dict]:
    import torch
    from diffusers import PixArtAlphaPipeline

    pipe = PixArtAlphaPipeline.from_pretrained(model, torch_dtype=torch.bfloat16).to(sizes.device)
    pipe.set_progress_bar_config(disable=True)

    def generate(pipe, pixels: int, prompts: list[str], steps: int) -> None:
        given = {"clean_caption": False, "use_resolution_binning": False, "guidance_scale": GUIDANCE}
        pipe(prompts, width=pixels, height=pixels, num_inference_steps=steps, **given)

    generate(pipe, sizes.images[0], PROMPTS[:1], sizes.steps)
    yield {"row": "stock, cold", "pixels": sizes.images[0], "seconds": time.monotonic() - BEGAN}
    yield from warm({"stock": pipe}, generate, sizes.images[0], sizes, deadline)
    yield locked(lambda: generate(pipe, sizes.images[0], PROMPTS[:1], sizes.steps), sizes, "stock behind a lock")
    pipe.transformer.fuse_qkv_projections()
    for block in pipe.transformer.transformer_blocks:
        block.compile(fullgraph=True)
    pipe.vae.to(memory_format=torch.channels_last)
    for pixels in sizes.images:
        yield from warm({"stock, best": pipe}, generate, pixels, sizes, deadline)


def warm(pipes: dict, generate: Callable, pixels: int, sizes: Sizes, deadline: float) -> Iterator[dict]:
    for batch in sizes.batches:
        prompts = [PROMPTS[index % len(PROMPTS)] for index in range(batch)]
        for name, pipe in pipes.items():
            began = time.monotonic()
            generate(pipe, pixels, prompts, 2)  # compiles, and finds out what the libraries' kernels are
            first = time.monotonic() - began
            reset_peak(sizes)
            taken = []
            while len(taken) < 5 and (not taken or sum(taken) < 4):
                if time.monotonic() > deadline:
                    return
                began = time.monotonic()
                generate(pipe, pixels, prompts, sizes.steps)
                synchronise(sizes)
                taken.append(time.monotonic() - began)
            middle = statistics.median(taken)
            needed = flops(sizes, pixels) * sizes.steps * batch
            yield {
                "row": name,
                "pixels": pixels,
                "batch": batch,
                "seconds_an_image": middle / batch,
                "fastest": min(taken) / batch,
                "slowest": max(taken) / batch,
                "calls": len(taken),
                "first_call_of_2_steps": first,
                "share_of_peak": needed / middle / peak(sizes),
                "gigabytes": peak_memory(sizes),
            }


def clients(pipe, pixels: int, sizes: Sizes) -> dict:
    """Clients that each wait for their image and ask for the next, through the engine of `pixart serve`."""
    from pixart.pipeline.engine import Engine
    from pixart.pipeline.request import make_request

    engine = Engine()
    settings = {"width": pixels, "height": pixels, "steps": sizes.steps, "guidance_scale": GUIDANCE, "binning": False}

    def request() -> None:
        engine.submit(pipe, make_request(pipe.folder, PROMPTS[0], seed=1, **settings)).future.result()

    try:
        request()
        return from_clients(request, sizes, "ours, the server's engine")
    finally:
        engine.close()


def locked(generate: Callable[[], None], sizes: Sizes, name: str) -> dict:
    lock = threading.Lock()

    def request() -> None:
        with lock:
            generate()

    return from_clients(request, sizes, name)


def from_clients(request: Callable[[], None], sizes: Sizes, name: str, each: int = 2) -> dict:
    threads = [
        threading.Thread(target=lambda: [request() for _ in range(each)], daemon=True) for _ in range(sizes.clients)
    ]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    count = each * sizes.clients
    taken = time.monotonic() - began
    return {"row": name, "clients": sizes.clients, "images": count, "images_a_second": count / taken}


def training(model: Path, sizes: Sizes, deadline: float) -> Iterator[dict]:
    """A step of the real loop with features in memory: all weights, then LoRA of rank 16, compiled and not."""
    for method in ("full", "lora"):
        for compiled in (False, True):
            if time.monotonic() < deadline - 15:
                yield {"row": f"training step, {method}" + (", compiled" if compiled else "")} | trained(
                    method, compiled, sizes
                )


def trained(method: str, compiled: bool, sizes: Sizes) -> dict:
    import torch

    from pixart.diffusion.objective import Objective
    from pixart.model.pixart import PixArt, PixArtConfig
    from pixart.training.distribution import alone
    from pixart.training.ema import EmaConfig
    from pixart.training.loop import LoopConfig, StopOnSignal, train_loop
    from pixart.training.optimizers import OptimizerConfig
    from pixart.training.trainable import Trainable, apply

    pixels, batch = sizes.training
    latent, objective = pixels // 8, Objective("ddpm")
    config = PixArtConfig(
        in_channels=4, out_channels=8, width=sizes.width, depth=sizes.depth, num_heads=sizes.heads,
        text_dim=sizes.text[0], sample_size=latent,
    )  # fmt: skip
    network = PixArt(config)
    apply(network, Trainable(method=method))
    times: list[float] = []

    class Batches(torch.utils.data.Dataset):
        def __getitem__(self, where) -> dict:
            times.append(time.monotonic())
            text = torch.zeros(batch, 120, config.text_dim)
            mask = torch.arange(120)[None].expand(batch, -1) < 40
            latents = torch.zeros(batch, 4, latent, latent)
            return {"latent": latents, "text": text, "text_mask": mask, "count": batch, "keys": [""] * batch}

    def loss(network, given: dict):
        noised = objective.add_noise(given["latent"], given["rng"])
        return objective.losses(network(noised.x_t, noised.timestep, given["text"], given["text_mask"]), noised)

    steps, rare = sizes.training_steps + 3, 10**6
    loop = LoopConfig(
        compile=compiled, device=sizes.device, workers=0, log_every=rare, validate_every=rare, save_every=rare
    )
    torch.compiler.reset()
    reset_peak(sizes)
    with tempfile.TemporaryDirectory() as folder, StopOnSignal() as stop:
        train_loop(
            network, loss, Batches(), steps, Path(folder), loop=loop,
            optimizer=OptimizerConfig(learning_rate=1e-4), ema=EmaConfig(decays=(0.999,)), world=alone(sizes.device),
            stop=stop, validate=lambda ema, step: {}, say=lambda line: None,
        )  # fmt: skip
    between = [after - before for before, after in itertools.pairwise(times)][2:]
    middle = statistics.median(between)
    # Backward is twice the forward; with LoRA the gradients of the frozen weights are not computed.
    needed = flops(sizes, pixels, rows=1) * batch * (3 if method == "full" else 2)
    return {
        "pixels": pixels,
        "batch": batch,
        "seconds": middle,
        "images_a_second": batch / middle,
        "share_of_peak": needed / middle / peak(sizes),
        "gigabytes": peak_memory(sizes),
    }


def limited(gigabytes: int, model: Path, sizes: Sizes) -> Iterator[dict]:
    """An image on a card of so much memory: what `pixart generate` decides there, and what it takes."""
    from pixart.checkpoints.model_folder import open_model_folder
    from pixart.pipeline.networks import choose_runtime, load_networks
    from pixart.pipeline.pipeline import Pipeline
    from pixart.pipeline.request import make_request

    if sizes.device == "cuda":
        import torch

        total = torch.cuda.mem_get_info()[1]
        if total < gigabytes * GIGABYTE:
            yield {"row": f"at most {gigabytes} GB", "skipped": "this card has less"}
            return
        torch.cuda.set_per_process_memory_fraction(gigabytes * GIGABYTE / total)
    folder = open_model_folder(str(model))
    for pixels in sizes.images:
        began = time.monotonic()
        runtime = choose_runtime(folder, "torch", device=sizes.device, size=(pixels, pixels), once=True)
        pipe = Pipeline(folder, load_networks(folder, runtime))
        request = make_request(folder, PROMPTS[0], seed=0, width=pixels, height=pixels, steps=2, binning=False)
        reset_peak(sizes)
        list(pipe.generate(request))
        yield {
            "row": f"at most {gigabytes} GB",
            "pixels": pixels,
            "seconds_to_load_and_take_2_steps": time.monotonic() - began,
            "gigabytes": peak_memory(sizes),
            "decided": runtime.line,
        }
        del pipe


# ------------------------------------------------------------------------------------------------- the model, the card


def flops(sizes: Sizes, pixels: int, rows: int = 2) -> float:
    """Of the products of a pass of the denoiser for one image: linear layers of the image tokens, and attention."""
    tokens = (pixels // 16) ** 2
    linear = 2 * 14 * sizes.width**2 * tokens  # qkv 3, proj 1, q 1, proj 1, mlp 8
    return rows * sizes.depth * (linear + 4 * tokens**2 * sizes.width)


_peak: list[float] = []


def peak(sizes: Sizes) -> float:
    """FLOP/s of a large product in bf16, the best of several."""
    import torch

    if not _peak:
        a = torch.randn(sizes.peak, sizes.peak, device=sizes.device).bfloat16()
        taken = []
        for _ in range(8):
            synchronise(sizes)
            began = time.monotonic()
            a @ a
            synchronise(sizes)
            taken.append(time.monotonic() - began)
        _peak.append(2 * sizes.peak**3 / min(taken))
    return _peak[0]


def synchronise(sizes: Sizes) -> None:
    if sizes.device == "cuda":
        import torch

        torch.cuda.synchronize()


def reset_peak(sizes: Sizes) -> None:
    if sizes.device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(sizes: Sizes) -> float | None:
    if sizes.device != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_allocated() / GIGABYTE


def write_model(folder: Path, sizes: Sizes) -> None:
    """A model folder in the layout of PixArt-XL-2-512x512, in bf16, with random weights: 11 GB at the real size."""
    import torch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel
    from safetensors.torch import save_file
    from transformers import T5Config, T5EncoderModel

    noise = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).bfloat16()

    def random(shape: torch.Size, scale: float) -> torch.Tensor:
        return (noise.repeat(-(-shape.numel() // len(noise)))[: shape.numel()] * scale).view(shape)

    def write(network: torch.nn.Module, file: Path) -> None:
        """Weights that keep the scale of what passes through, so that nothing overflows."""
        state = {}
        for name, tensor in network.state_dict().items():
            inputs = tensor.shape[1:].numel()
            state[name] = (
                torch.ones(tensor.shape).bfloat16()
                if "norm" in name and name.endswith("weight") and tensor.ndim == 1
                else random(tensor.shape, 0.5 * inputs**-0.5 if tensor.ndim > 1 else 0.02)
            )
        state.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight
        save_file(state, file, {"format": "pt"})

    for part in ("transformer", "text_encoder", "vae", "tokenizer"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    width, layers, hidden = sizes.text
    with torch.device("meta"):
        transformer = PixArtTransformer2DModel(
            sample_size=sizes.images[0] // 8, num_layers=sizes.depth, num_attention_heads=sizes.heads,
            attention_head_dim=sizes.width // sizes.heads, in_channels=4, out_channels=8,
            cross_attention_dim=sizes.width, caption_channels=width, use_additional_conditions=False,
        )  # fmt: skip
        config = T5Config(
            vocab_size=32128, d_model=width, d_kv=width // 64 or 1, d_ff=hidden, num_layers=layers,
            num_heads=64 if width >= 64 else 4, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            architectures=["T5EncoderModel"],
        )  # fmt: skip
        text_encoder = T5EncoderModel(config)
    write(transformer, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    transformer.save_config(folder / "transformer")
    write(text_encoder, folder / "text_encoder" / "model.safetensors")
    config.save_pretrained(folder / "text_encoder")
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=sizes.channels, layers_per_block=2, latent_channels=4, sample_size=512,
    )  # fmt: skip
    vae.save_pretrained(folder / "vae")
    DPMSolverMultistepScheduler(beta_schedule="linear").save_pretrained(folder / "scheduler")
    write_tokenizer(folder / "tokenizer")
    parts = {
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline", **parts}))


def write_tokenizer(folder: Path) -> None:
    """T5's kind of tokenizer with single letters for pieces."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = [chr(code) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$0 </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    kind = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind | special))


if __name__ == "__main__":
    main()
