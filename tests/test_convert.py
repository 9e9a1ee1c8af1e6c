"""`pixart convert`: both ways without loss, and from a class-conditional DiT."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_official import official_state

from pixart.checkpoints.diffusers import load_transformer, read_null_caption
from pixart.checkpoints.official import NULL_CAPTION
from pixart.cli import main
from pixart.model.pixart import PixArtConfig

CONFIG = PixArtConfig(width=32, depth=2, num_heads=2, text_dim=32, in_channels=8, out_channels=16, sample_size=32)
DIT = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 8, "num_layers": 2}


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_there_and_back_loses_no_bit(tmp_path, folder, capsys, dtype):
    state = official_state(CONFIG)
    stored = {name: tensor if name == "pos_embed" else tensor.to(dtype) for name, tensor in state.items()}
    torch.save({"state_dict": stored}, tmp_path / "a.pth")
    options = ("--num-heads", 2)
    assert convert(tmp_path / "a.pth", tmp_path / "made", "--to", "diffusers", "--parts", folder, *options) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'made'}\n"
    assert convert(tmp_path / "made", tmp_path / "b.pth", "--to", "official") == 0
    back = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
    assert back.keys() == stored.keys()
    for name in back:
        assert back[name].dtype == stored[name].dtype
        assert torch.equal(back[name], stored[name]) or name == "pos_embed"
    assert convert(tmp_path / "made", tmp_path / "again", "--to", "diffusers") == 0
    for path in (tmp_path / "made" / "transformer").iterdir():
        assert (tmp_path / "again" / "transformer" / path.name).read_bytes() == path.read_bytes()


def test_a_converted_official_file_draws_in_stock_diffusers_and_here(tmp_path, folder, capsys):
    from diffusers import PixArtAlphaPipeline

    save_file(official_state(CONFIG), tmp_path / "a.safetensors")
    arguments = (tmp_path / "a.safetensors", tmp_path / "made", "--to", "diffusers", "--num-heads", 2)
    assert convert(*arguments, "--parts", folder) == 0
    index = json.loads((tmp_path / "made" / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "PixArtTransformer2DModel"]
    assert PixArtAlphaPipeline.from_pretrained(tmp_path / "made").transformer.config.num_layers == 2
    small = ("--width", "64", "--height", "64", "--steps", "2", "--engine", "torch")
    drawn = tmp_path / "x.png"
    assert main(["generate", "a fox", "--model", str(tmp_path / "made"), *small, "--output", str(drawn)]) == 0
    assert drawn.is_file()


def test_a_transformer_alone_says_what_is_still_needed(tmp_path, capsys):
    save_file(official_state(CONFIG), tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", tmp_path / "t", "--to", "diffusers", "--num-heads", 2) == 0
    assert "still needs model_index.json, scheduler, text_encoder, tokenizer, vae" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "t").iterdir()] == ["transformer"]
    assert load_transformer(tmp_path / "t" / "transformer").config == CONFIG
    assert read_null_caption(tmp_path / "t" / "transformer", 32).shape == (120, 32)


def test_what_cannot_be_converted_is_one_sentence_and_writes_nothing(tmp_path, folder, capsys):
    state = official_state(CONFIG)
    save_file(state, tmp_path / "good.safetensors")
    del state["t_block.1.bias"]
    save_file(state, tmp_path / "lacks.safetensors")
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    good, heads = tmp_path / "good.safetensors", ("--num-heads", "2")
    for code, *arguments in (
        (1, tmp_path / "lacks.safetensors", tmp_path / "d", "--to", "diffusers", *heads),
        (2, good, tmp_path / "taken", "--to", "diffusers", *heads),
        (2, good, tmp_path / "d", "--to", "official", *heads),
        (2, good, "--to", "official"),
        (2, good, tmp_path / "d", "--to", "onnx"),
        (2, good, tmp_path / "d"),
        (1, tmp_path / "no", "--to", "onnx"),
        (1, tmp_path / "no", tmp_path / "d", "--to", "diffusers"),
        (1, tmp_path / "empty", tmp_path / "d", "--to", "diffusers"),
        (2, folder, tmp_path / "d", "--to", "diffusers", *heads),
        (1, good, tmp_path / "d", "--to", "diffusers", *heads, "--parts", tmp_path / "empty"),
        (1, good, tmp_path / "d", "--to", "reparameterized"),
    ):
        assert convert(*arguments) == code, arguments
        assert capsys.readouterr().err.count("\n") == 1, arguments
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def diffusers_dit():
    """A DiT of Diffusers with random weights, computing as DiT's own code does (see checkpoints/dit.py)."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(**DIT, sample_size=16, num_embeds_ada_norm=10, norm_eps=1e-6).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5)
        first = model.transformer_blocks[0].norm1.emb
        for block in model.transformer_blocks:
            block.norm1.emb.load_state_dict(first.state_dict())
    return model


def in_its_own_layout(model) -> dict[str, torch.Tensor]:
    """The same weights by the names of facebookresearch/DiT."""
    theirs = model.state_dict()
    names = {
        "pos_embed.proj": "x_embedder.proj",
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "proj_out_1": "final_layer.adaLN_modulation.1",
        "proj_out_2": "final_layer.linear",
    }
    for i in range(2):
        for old, new in (
            ("attn1.to_out.0", "attn.proj"),
            ("norm1.linear", "adaLN_modulation.1"),
            ("ff.net.0.proj", "mlp.fc1"),
            ("ff.net.2", "mlp.fc2"),
        ):
            names[f"transformer_blocks.{i}.{old}"] = f"blocks.{i}.{new}"
    state = {f"{new}.{part}": theirs[f"{old}.{part}"] for old, new in names.items() for part in ("weight", "bias")}
    for i in range(2):
        for part in ("weight", "bias"):
            three = [theirs[f"transformer_blocks.{i}.attn1.to_{letter}.{part}"] for letter in "qkv"]
            state[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(three)
    state["y_embedder.embedding_table.weight"] = theirs[
        "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"
    ]
    state["pos_embed"] = torch.zeros(1, 64, 32)  # only its size is read
    return state


@pytest.mark.parametrize("layout", ["own", "diffusers"])
@pytest.mark.parametrize("class_free", ["null", "timestep"])
@torch.no_grad()
def test_a_dit_becomes_a_pixart_that_equals_it_at_500(tmp_path, diffusers_dit, layout, class_free):
    source = tmp_path / "dit.pt"
    if layout == "own":
        torch.save(in_its_own_layout(diffusers_dit), source)
    else:
        source = tmp_path / "dit"
        diffusers_dit.save_pretrained(source / "transformer")
    options = ["--text-dim", "12", "--class-free", class_free]
    if layout == "own":
        options += ["--num-heads", "2"]
    assert convert(source, tmp_path / "start", "--to", "reparameterized", *options) == 0
    pixart = load_transformer(tmp_path / "start" / "transformer")
    x_t, text, mask = torch.randn(2, 4, 16, 16), torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.bool)
    embedders = [block.norm1.emb for block in diffusers_dit.transformer_blocks]
    table = embedders[0].class_embedder.embedding_table.weight.clone()
    for embedder in embedders:
        embedder.time_proj.downscale_freq_shift = 0  # as DiT's own code spaces its sines
        if class_free == "timestep":
            embedder.class_embedder.embedding_table.weight[10] = 0
    for timestep, equal in ((500, True), (20, False)):
        when = torch.full((2,), timestep)
        expected = diffusers_dit(x_t, when, torch.tensor([10, 10]), return_dict=False)[0]
        distance = (pixart(x_t, when, text, mask) - expected).norm() / expected.norm()
        assert (distance < 1e-5) == equal, (timestep, distance)
    for embedder in embedders:
        embedder.class_embedder.embedding_table.weight.copy_(table)


def test_a_dit_that_is_not_whole_is_named(tmp_path, diffusers_dit, capsys):
    folder = tmp_path / "dit"
    diffusers_dit.save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    whole = load_file(path)
    copy = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    for changed, words in (
        ({name: tensor for name, tensor in whole.items() if name != "proj_out_1.bias"}, "proj_out_1.bias"),
        (whole | {copy: torch.zeros_like(whole[copy])}, copy),
        (whole | {"proj_out_1.bias": torch.full((64,), torch.inf)}, "final_layer"),
    ):
        save_file(changed, path)
        assert convert(folder, tmp_path / "d", "--to", "reparameterized") == 1
        assert words in capsys.readouterr().err
    (folder / "config.json").write_text('{"_class_name": "UNet2DModel", "num_attention_heads": 2, "sample_size": 4}')
    assert convert(folder, tmp_path / "d", "--to", "reparameterized") == 1
    assert "UNet2DModel" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()
    assert NULL_CAPTION not in whole
