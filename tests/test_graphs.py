"""The ONNX graphs: equal to the torch networks, the same bits in any batch, no weights inside, no torch needed."""

import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import write_graphs_into, write_tiny_model
from safetensors.torch import load_file, save_file

import pixart
from pixart.checkpoints.model_folder import DEFAULT_MODEL, GRAPHS, open_model_folder
from pixart.cli import main
from pixart.errors import PixArtError
from pixart.graphs.autoencoder import build_decoder, build_encoder
from pixart.graphs.denoiser import build_denoiser
from pixart.graphs.engine import GraphNetworks
from pixart.graphs.text import build_text
from pixart.graphs.write import write_graphs
from pixart.model.embed import sincos_positions as torch_positions
from pixart.model.positions import sincos_positions

SMALL = {"width": 64, "height": 64, "steps": 3}


def session(model: onnx.ModelProto, folder, threads: int = 1) -> onnxruntime.InferenceSession:
    path = folder / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def relative(ours: np.ndarray, theirs: torch.Tensor) -> float:
    theirs = theirs.detach().numpy()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def transformer_folder(folder, *, dtype=torch.float32, micro=False, variance=False):
    """A Diffusers transformer with random weights, none of them zero, and its config."""
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(3)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=8 if variance else 4, num_layers=2,
        cross_attention_dim=48, caption_channels=32, sample_size=128 if micro else 32, use_additional_conditions=micro,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.to(dtype).save_pretrained(folder / "transformer")
    return model.float().eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("micro", "variance"), [(False, False), (True, True)])
def test_the_denoiser_equals_diffusers(tmp_path, dtype, micro, variance):
    from pixart.checkpoints.diffusers import read_settings

    stock = transformer_folder(tmp_path, dtype=dtype, micro=micro, variance=variance)
    config = read_settings(tmp_path / "transformer" / "config.json")
    graph = session(build_denoiser(tmp_path, config), tmp_path)
    text_graph = _text_of(stock)
    base, scale = config["sample_size"] // 2, max(config["sample_size"] // 64, 1)
    for rows, columns in ((8, 8), (6, 10)):
        x_t, text = torch.randn(2, 4, 2 * rows, 2 * columns), torch.randn(2, 7, 32)
        mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
        size = torch.tensor([[512.0, 320.0, 1.6], [256.0, 1024.0, 0.25]])
        extra = {"resolution": size[:, :2], "aspect_ratio": size[:, 2:]} if micro else {}
        added = {"added_cond_kwargs": extra or {"resolution": None, "aspect_ratio": None}}
        with torch.inference_mode():
            theirs = stock(x_t, text, torch.tensor([321, 977]), encoder_attention_mask=mask, **added).sample
        feed = {
            "x_t": x_t.numpy(),
            "timestep": np.array([321, 977], np.float32),
            "rows": np.arange(2),
            "positions": sincos_positions(rows, columns, 48, base, scale),
            "text": text_graph(text),
            "text_mask": mask.numpy().astype(np.int32),
        }
        ours = graph.run(None, feed | ({"size": size.numpy()} if micro else {}))[0]
        assert relative(ours, theirs) < 1e-5


def _text_of(stock):
    """Keys and values of a text (B, L, 32) by Diffusers' own layers, in the order of the graph's input."""

    def read(text: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            text = stock.caption_projection(text)
            parts = [p for b in stock.transformer_blocks for p in (b.attn2.to_k(text), b.attn2.to_v(text))]
            return torch.stack([p.unflatten(-1, (2, 24)).transpose(1, 2) for p in parts]).numpy()

    return read


@pytest.mark.parametrize("kind", ["bert", "t5", "t5-gated"])
def test_the_text_encoder_equals_transformers(tmp_path, kind):
    from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

    torch.manual_seed(4)
    stock = transformer_folder(tmp_path)
    if kind == "bert":
        sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
        encoder = BertModel(BertConfig(vocab_size=50, hidden_size=32, max_position_embeddings=40, **sizes))
    else:
        form = "gated-gelu" if kind == "t5-gated" else "relu"
        sizes = {"d_kv": 12, "d_ff": 40, "num_layers": 2, "num_heads": 3}
        encoder = T5EncoderModel(T5Config(vocab_size=50, d_model=32, feed_forward_proj=form, **sizes))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    encoder.eval().save_pretrained(tmp_path / "text_encoder")
    configs = [json.loads((tmp_path / part / "config.json").read_text()) for part in ("text_encoder", "transformer")]
    graph = session(build_text(tmp_path, *configs), tmp_path)
    for length in (5, 36):
        tokens = torch.randint(50, (2, length))
        mask = torch.ones(2, length, dtype=torch.int64)
        mask[1, 3:] = 0
        with torch.inference_mode():
            states = encoder(input_ids=tokens, attention_mask=mask)[0]
        ours = graph.run(None, {"tokens": tokens.numpy(), "text_mask": mask.numpy().astype(np.int32)})[0]
        theirs = _text_of(stock)(states)
        for row, count in ((0, length), (1, 3)):  # what stands in padded places nobody reads
            assert relative(ours[:, row, :, :count], torch.from_numpy(theirs[:, row, :, :count])) < 1e-5


@pytest.mark.parametrize("attention", [False, True])
def test_the_autoencoder_equals_diffusers(tmp_path, attention):
    from diffusers import AutoencoderKL

    torch.manual_seed(5)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[8, 16, 16], layers_per_block=2, latent_channels=4, norm_num_groups=4,
        scaling_factor=0.18215, mid_block_add_attention=attention,
    ).eval()  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    decoder, encoder = (session(build(tmp_path, config), tmp_path) for build in (build_decoder, build_encoder))
    latent, pixels = torch.randn(2, 4, 6, 10), torch.rand(2, 3, 24, 40) * 2 - 1
    with torch.inference_mode():
        decoded, encoded = vae.decode(latent / 0.18215).sample, vae.encode(pixels).latent_dist.mean * 0.18215
    assert relative(decoder.run(None, {"latent": latent.numpy()})[0], decoded) < 1e-5
    assert relative(encoder.run(None, {"pixels": pixels.numpy()})[0], encoded) < 1e-5


def test_int8_is_near_and_an_image_does_not_depend_on_its_neighbours(tiny_model_with_graphs):
    exact, near = (pixart.Pipeline.from_pretrained(tiny_model_with_graphs, dtype=d) for d in ("float32", "int8"))
    several = near("a red apple", seed=1, num_images=3, **SMALL)
    assert (several.settings[0]["engine"], several.settings[0]["dtype"]) == ("onnx", "int8")
    for index, image in enumerate(several.images):
        alone = near("a red apple", seed=1 + index, **SMALL).images[0]
        assert image.tobytes() == alone.tobytes()
        difference = np.asarray(image).astype(float) - np.asarray(
            exact("a red apple", seed=1 + index, **SMALL).images[0]
        )
        assert 0 < np.sqrt((difference**2).mean()) < 12  # of 255; different, and hardly so


def test_the_positions_equal_those_of_torch():
    for rows, columns, base, scale in ((16, 16, 16, 1), (8, 12, 16, 1), (64, 40, 64, 2), (7, 9, 16, 0.5)):
        theirs = torch_positions(rows, columns, 48, base, scale, torch.device("cpu"), torch.float32)
        assert np.abs(sincos_positions(rows, columns, 48, base, scale) - theirs.numpy()).max() < 1e-6


def test_a_batch_gives_each_row_the_bits_that_it_has_alone_with_any_number_of_threads(tmp_path):
    """The network of the shipped model at its own size, since it is there that kernels are chosen by size."""
    folder = open_model_folder()
    shutil.copytree(DEFAULT_MODEL / "transformer", tmp_path / "transformer")
    model = build_denoiser(tmp_path, folder.transformer)
    one, two = (session(model, tmp_path, threads) for threads in (1, 2))
    rng = np.random.default_rng(0)
    x_t = rng.standard_normal((16, 8, 16, 16), np.float32)
    text = rng.standard_normal((16, 16, 4, 32, 64), np.float32)
    mask = (np.arange(32) < rng.integers(1, 33, (16, 1))).astype(np.int32)
    timestep, positions = rng.integers(0, 1000, 16).astype(np.float32), sincos_positions(8, 8, 256, 16, 1)

    def run(graph, rows: slice) -> np.ndarray:
        feed = {"x_t": x_t[rows], "timestep": timestep[rows], "text": text[:, rows], "text_mask": mask[rows]}
        return graph.run(None, feed | {"rows": np.arange(len(mask[rows])), "positions": positions})[0]

    alone = np.concatenate([run(one, slice(i, i + 1)) for i in range(16)])
    assert np.abs(alone).std() > 0
    for graph in (one, two):
        for count in (2, 3, 8, 16):
            assert run(graph, slice(0, count)).tobytes() == alone[:count].tobytes()


def test_longer_padding_does_not_change_a_byte(tiny_model_with_graphs):
    """A prompt is padded to the length of the negative prompt beside it; the same prompt must still mean the same."""
    networks = GraphNetworks(open_model_folder(tiny_model_with_graphs))
    (short, _), (long, _) = networks.encode("a red apple"), networks.encode("red fox " * 30)
    x_t = np.random.default_rng(1).standard_normal((1, 8, 8, 8), np.float32)
    alone = networks.denoise(x_t, [500], [short], [0])
    beside = networks.denoise(x_t, [500], [short, long], [0, 0])
    assert short.mask.shape != long.mask.shape
    assert alone.tobytes() == beside[:1].tobytes()


def test_the_aspect_ratio_of_an_image_reaches_micro_conditions(tmp_path):
    """Height over width: a wide image of the graphs is that of torch."""
    import dataclasses

    from pixart.checkpoints.diffusers import load_transformer, read_settings
    from pixart.graphs.engine import Text

    transformer_folder(tmp_path, micro=True)
    settings = read_settings(tmp_path / "transformer" / "config.json")
    model = load_transformer(tmp_path / "transformer")
    networks = object.__new__(GraphNetworks)
    networks.int8, networks.denoiser = False, session(build_denoiser(tmp_path, settings), tmp_path)
    networks.folder = dataclasses.replace(open_model_folder(), transformer=settings, vae_factor=8, size_multiple=16)
    x_t, states = torch.randn(1, 4, 8, 32), torch.randn(1, 5, 32)
    context = model.encode_text(states, None)
    parts = np.stack([part.detach().numpy() for pair in context.keys_and_values for part in pair])
    ours = networks.denoise(x_t.numpy(), [500], [Text(parts, np.ones((1, 5), np.int32))], [0])
    size = torch.tensor([[64.0, 256.0, 0.25]])
    with torch.inference_mode():
        theirs = model(x_t, torch.tensor([500]), states, torch.ones(1, 5, dtype=torch.bool), size)
    assert relative(ours, theirs) < 1e-5


def test_the_graphs_hold_no_weights():
    for name in GRAPHS:
        model = onnx.load(DEFAULT_MODEL / name, load_external_data=False)
        inside = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        assert sum(len(t.raw_data) for t in inside) < 10_000
        assert len(model.graph.initializer) - len(inside) > 50
    assert sum((DEFAULT_MODEL / name).stat().st_size for name in GRAPHS) < 300_000


def test_the_shipped_graphs_are_those_that_convert_writes():
    from pixart.graphs.write import build_graphs

    for name, graph in build_graphs(open_model_folder()).items():
        assert (DEFAULT_MODEL / name).read_bytes() == graph.SerializeToString()


def test_both_engines_give_the_same_image_of_the_shipped_model():
    request = {"seed": 5, "steps": 6, "negative_prompt": "green"}
    found = []
    for engine in ("torch", "onnx"):
        result = pixart.Pipeline.from_pretrained(engine=engine, dtype="float32")("a red apple, 3D", **request)
        assert result.settings[0]["engine"] == engine
        found.append(np.asarray(result.images[0]).astype(int))
    assert np.abs(found[0] - found[1]).max() <= 2
    assert pixart.Pipeline.from_pretrained().networks.name == "onnx"


def test_torch_computes_in_bfloat16(tiny_model_with_graphs):
    pipe = pixart.Pipeline.from_pretrained(tiny_model_with_graphs, dtype="bfloat16")
    settings = pipe("a red apple", seed=1, **SMALL).settings[0]
    assert (settings["engine"], settings["dtype"]) == ("torch", "bfloat16")


def test_convert_writes_the_graphs_and_says_how_near_the_engines_are(folder, capsys):
    assert main(["convert", str(folder), "--to", "onnx"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == [str(folder / name) for name in GRAPHS]
    assert "largest difference: " in err
    assert pixart.Pipeline.from_pretrained(folder).networks.name == "onnx"
    assert main(["convert", str(folder), "--to", "onnx"]) == 0  # again, over the old ones


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [(["nowhere", "--to", "onnx"], 1, "nowhere"), ([".", "--to", "onyx"], 2, "onnx"), (["."], 2, "--to")],
)
def test_what_convert_cannot_do_is_refused(tmp_path, monkeypatch, capsys, arguments, code, named):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == code
    printed = capsys.readouterr()
    assert named in printed.out + printed.err


def test_graphs_that_fail_their_check_leave_the_old_ones(folder):
    write_graphs_into(folder)
    old = [(folder / name).read_bytes() for name in GRAPHS]

    def check(names):
        assert all((folder / name).is_file() for name in names)
        raise PixArtError("The engines differ.")

    with pytest.raises(PixArtError, match="differ"):
        write_graphs(open_model_folder(folder), check)
    assert [(folder / name).read_bytes() for name in GRAPHS] == old
    assert sorted(path.name for path in folder.glob("*onnx*")) == sorted(GRAPHS)


def test_graphs_follow_new_values_and_refuse_other_files(folder):
    write_graphs_into(folder)
    before = pixart.Pipeline.from_pretrained(folder)("a red apple", seed=1, **SMALL).images[0]
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["proj_out.bias"] += 1
    save_file(weights, path, metadata={"format": "pt"})
    after = pixart.Pipeline.from_pretrained(folder)("a red apple", seed=1, **SMALL).images[0]
    assert before.tobytes() != after.tobytes()
    save_file({name: tensor.half() for name, tensor in weights.items()}, path, metadata={"format": "pt"})
    with pytest.raises(PixArtError, match=r"other weights or configs.*pixart convert .* --to onnx"):
        pixart.Pipeline.from_pretrained(folder)


def test_a_damaged_graph_is_named(folder):
    write_graphs_into(folder)
    path = folder / "denoiser.onnx"
    path.write_bytes(b"\xff" * 40 + path.read_bytes()[40:])
    with pytest.raises(PixArtError, match=r"denoiser\.onnx cannot be loaded.*pixart convert"):
        pixart.Pipeline.from_pretrained(folder)


def test_models_that_graphs_do_not_know_are_refused(tmp_path, folder):
    config = json.loads((folder / "vae" / "config.json").read_text())
    with pytest.raises(PixArtError, match="act_fn = 'mish'"):
        build_decoder(folder, config | {"act_fn": "mish"})
    transformer = json.loads((folder / "transformer" / "config.json").read_text())
    with pytest.raises(PixArtError, match="model_type = 'clip'"):
        build_text(folder, {"model_type": "clip"}, transformer)
    with pytest.raises(PixArtError, match="scale_shift_table"):
        build_denoiser(folder, open_model_folder(folder).transformer | {"num_layers": 3})


def without_torch(tmp_path, *arguments: str) -> subprocess.CompletedProcess:
    """Run `pixart` as in the base install: whatever the extras bring cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n\n\nclass Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'diffusers', 'transformers', 'onnx', 'pyarrow'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n\n\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "pixart", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)


def test_the_base_install_generates_and_says_what_needs_more(tmp_path, tiny_model):
    small = ("--width", "64", "--height", "64", "--steps", "2", "--seed", "7")
    done = without_torch(tmp_path, "generate", "a red apple, 3D", *small)
    assert (done.returncode, done.stdout) == (0, "a-red-apple-3d-7.png\n"), done.stderr
    for command in (
        ["generate", "a fox", "--engine", "torch"],
        ["generate", "a fox", "--dtype", "bfloat16"],
        ["generate", "a fox", "--model", str(tiny_model)],
        ["train", "paper/stage1_pixels_256"],
        ["convert", str(tiny_model), "--to", "onnx"],
    ):
        done = without_torch(tmp_path, *command)
        assert done.returncode == 1, (command, done.stderr)
        assert "pip install 'pixart[torch]'" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    (tmp_path / "captions.parquet").write_bytes(b"PAR1")
    done = without_torch(tmp_path, "data", "caption", "captions.parquet", "--template", "{label}")
    assert done.returncode == 1
    assert done.stderr.endswith("pip install 'pixart[data]'\n")


def test_a_header_is_read_as_the_format_says(folder):
    """Offsets in the graph, taken from the header by hand, lead to the numbers that safetensors itself reads."""
    write_graphs_into(folder)
    name = "transformer/diffusion_pytorch_model.safetensors"
    graph = onnx.load(folder / "denoiser.onnx", load_external_data=False).graph
    (tensor,) = [t for t in graph.initializer if t.name == "transformer/proj_out.weight"]
    where = {entry.key: entry.value for entry in tensor.external_data}
    assert where["location"] == name
    with (folder / name).open("rb") as file:
        file.seek(int(where["offset"]))
        data = file.read(int(where["length"]))
    expected = load_file(folder / name)["proj_out.weight"].flatten()
    assert struct.unpack(f"<{len(expected)}f", data) == tuple(expected.tolist())


def test_a_tiny_model_is_written_the_same_twice(tmp_path):
    write_tiny_model(tmp_path / "a")
    write_tiny_model(tmp_path / "b")
    for name in ("a", "b"):
        write_graphs_into(tmp_path / name)
    assert [(tmp_path / "a" / n).read_bytes() for n in GRAPHS] == [(tmp_path / "b" / n).read_bytes() for n in GRAPHS]
