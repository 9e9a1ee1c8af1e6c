"""Peak memory of drawing with networks of the released sizes and random weights: XL/2, its autoencoder, T5-XXL.

    python benchmarks/memory.py FOLDER                  # makes the models in FOLDER (7 GB), then measures
    python benchmarks/memory.py FOLDER --only draw --sizes 256 --modes bf16 "bf16 staged"

Each measurement is a process of its own, which draws one picture in one step with guidance. `peak` is the system's own
figure of the largest resident memory (VmHWM), in which pages of the weights' files count too, while they are mapped;
`own` is the largest memory that is the process's own (RssAnon, looked at every 5 ms): this much must be free, the
system can drop the rest. T5-XXL is measured with 1 and 3 of its 24 layers, which gives the memory of a layer and so of
24; the draw rows take the texts from a file and load no text encoder. Pictures of random weights mean nothing.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

DRAW = {
    "fp32": ("float32", {}),
    "fp32 staged": ("float32", {"staged": True}),
    "bf16": ("bfloat16", {}),
    "bf16 staged": ("bfloat16", {"staged": True}),
    "bf16 staged tiled": ("bfloat16", {"staged": True, "decode": "tiled"}),
    "bf16 staged tiled bf16-vae": (
        "bfloat16",
        {"staged": True, "decode": "tiled", "vae_dtype": "bfloat16"},
    ),
}
TEXT = {
    "fp32": {},
    "bf16": {"text_encoder_dtype": "bfloat16"},
    "8-bit": {"text_encoder_8bit": True},
    "8-bit, rest bf16": {"text_encoder_8bit": True, "text_encoder_dtype": "bfloat16"},
}
DECODE = {
    "whole": {},
    "tiled": {"tiled": True},
    "whole, bf16": {"dtype": "bfloat16"},
    "tiled, bf16": {"tiled": True, "dtype": "bfloat16"},
}
LAYERS, ALL_LAYERS = (1, 3), 24


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--modes", nargs="+", default=[*DRAW, *DECODE])
    kinds = ["base", "text", "decode", "draw"]
    parser.add_argument("--only", choices=kinds, nargs="+", default=kinds)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.folder, json.loads(options.child))
        return
    if "base" in options.only:
        show("the program alone", measure(options.folder, {"base": True}))
    if "text" in options.only:
        for name, memory in TEXT.items():
            peaks = {}
            for layers in LAYERS:
                make_text_encoder(options.folder / f"t5-{layers}", layers)
                found = measure(options.folder / f"t5-{layers}", {"text": memory})
                peaks[layers] = found
                show(f"T5-XXL, {layers} of {ALL_LAYERS} layers, {name}", found)
            for figure in ("peak", "own"):
                each = (peaks[LAYERS[1]][figure] - peaks[LAYERS[0]][figure]) / (LAYERS[1] - LAYERS[0])
                whole = peaks[LAYERS[0]][figure] + (ALL_LAYERS - LAYERS[0]) * each
                print(f"    computed for {ALL_LAYERS} layers: {figure} {whole / 1e9:.2f} GB", flush=True)
    if "decode" in options.only:
        make_model(options.folder / "xl", options.folder / "t5-1")
        for size in options.sizes:
            for name in [name for name in options.modes if name in DECODE]:
                found = measure(options.folder / "xl" / "vae", {"decode": DECODE[name], "size": size})
                show(f"decoding alone, {size} px, {name}", found)
    if "draw" in options.only:
        make_model(options.folder / "xl", options.folder / "t5-1")
        for size in options.sizes:
            for name in [name for name in options.modes if name in DRAW]:
                dtype, memory = DRAW[name]
                found = measure(options.folder / "xl", {"size": size, "dtype": dtype, "memory": memory})
                show(f"XL/2, {size} px, {name}", found)


def show(name: str, found: dict) -> None:
    print(f"{name:50} peak {found['peak'] / 1e9:5.2f} GB, own {found['own'] / 1e9:5.2f} GB, {found['seconds']:.0f} s")
    sys.stdout.flush()


def measure(folder: Path, what: dict) -> dict:
    command = [sys.executable, __file__, str(folder), "--child", json.dumps(what)]
    begun = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what}: {done.returncode}\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.monotonic() - begun}


def child(folder: Path, what: dict) -> None:
    """Do one thing, and print the peaks of this process in bytes."""
    watch = Watch()
    if "text" in what:
        encode(folder, what["text"])
    elif "decode" in what:
        import torch

        from pixart.encoders.vae import Decoder

        torch.manual_seed(0)
        Decoder(folder, **what["decode"]).decode(torch.randn(1, 4, what["size"] // 8, what["size"] // 8))
    elif "size" in what:
        draw(folder, what)
    else:
        import diffusers
        import transformers

        import pixart.pipeline.torch_networks

        _ = (diffusers.AutoencoderKL, transformers.T5EncoderModel, pixart.pipeline.torch_networks)
    print(json.dumps({"peak": status("VmHWM"), "own": watch.stop()}))


def encode(folder: Path, memory: dict) -> None:
    from pixart.encoders.text import TextEncoder

    encoder = TextEncoder(
        folder,
        folder.parent / "tokenizer",
        "T5EncoderModel",
        dtype=memory.get("text_encoder_dtype", "float32"),
        eight_bit=memory.get("text_encoder_8bit", False),
    )
    encoder.encode("a red apple on a table, " * 40)


def draw(folder: Path, what: dict) -> None:
    from pixart import Pipeline
    from pixart.runtime.memory import Memory

    memory = Memory(**what["memory"], text_states=folder.parent / "texts.safetensors")
    pipe = Pipeline.from_pretrained(folder, engine="torch", dtype=what["dtype"], memory=memory)
    size = {"width": what["size"], "height": what["size"]}
    pipe("a red apple", seed=1, steps=1, binning=False, **size)


def status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("This needs Linux's /proc.")


class Watch:
    """The largest RssAnon since it began."""

    def __init__(self):
        self.largest, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.done.wait(0.005):
            self.largest = max(self.largest, status("RssAnon"))

    def stop(self) -> int:
        self.done.set()
        self.thread.join()
        return max(self.largest, status("RssAnon"))


def make_text_encoder(folder: Path, layers: int) -> None:
    """T5-XXL's encoder (google/t5-v1_1-xxl) with fewer layers, fp32 as published."""
    if (folder / "model.safetensors").is_file():
        return
    import torch
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=layers,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    torch.manual_seed(0)
    T5EncoderModel(config).save_pretrained(folder)
    make_tokenizer(folder.parent / "tokenizer")


def make_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    words = ["[PAD]", "[UNK]", "</s>", "a", "red", "apple", "on", "table", ","]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def make_model(folder: Path, text_encoder: Path) -> None:
    """A model folder of XL/2 1024-MS in fp32, as published, and a file with the states of its one prompt."""
    if (folder / "model_index.json").is_file():
        return
    import torch
    from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

    from pixart.checkpoints.diffusers import save_transformer
    from pixart.checkpoints.model_folder import open_model_folder
    from pixart.commands.encode import encode_texts
    from pixart.encoders.text_states import write_text_states
    from pixart.model.pixart import PixArt, PixArtConfig
    from pixart.runtime.memory import Memory

    torch.manual_seed(0)
    make_text_encoder(text_encoder, 1)
    for name, target in (("text_encoder", text_encoder), ("tokenizer", text_encoder.parent / "tokenizer")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target.resolve(), target_is_directory=True)
    config = PixArtConfig(
        in_channels=4,
        out_channels=8,
        width=1152,
        depth=28,
        num_heads=16,
        text_dim=4096,
        sample_size=128,
        micro_conditions=True,
    )
    with torch.device("meta"):
        network = PixArt(config)
    state = {name: torch.randn(tensor.shape) * 0.02 for name, tensor in network.state_dict().items()}
    save_transformer(state, config, folder / "transformer", None)
    levels = 4
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=[128, 256, 512, 512],
        layers_per_block=2,
        latent_channels=4,
        sample_size=256,  # as that of the released models, sd-vae-ft-ema
    ).save_pretrained(folder / "vae")
    DPMSolverMultistepScheduler(beta_schedule="linear").save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "PixArtAlphaPipeline",
        "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    texts = folder.parent / "texts.safetensors"
    if not texts.exists():
        head, encoded = encode_texts(open_model_folder(folder), ["a red apple"], "", Memory(text_encoder_8bit=True))
        write_text_states(texts, head, encoded)


if __name__ == "__main__":
    main()
