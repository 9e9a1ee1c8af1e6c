"""ControlNet: the official forward written out again, files of every form, generation, training, and bad input."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from pixart.checkpoints.controlnet import check_fit, is_controlnet, read_controlnet, write_controlnet
from pixart.checkpoints.diffusers import diffusers_config, save_transformer
from pixart.checkpoints.names import PARTS
from pixart.cli import main
from pixart.errors import PixArtError, UsageError
from pixart.model.controlnet import ControlNet, usual_copies
from pixart.model.pixart import PixArt, PixArtConfig

SIZES = {"width": 48, "depth": 4, "num_heads": 4, "text_dim": 16, "in_channels": 4, "out_channels": 8}
ALPHA = PixArtConfig(**SIZES, sample_size=64)
CONFIGS = {
    "512": ALPHA,
    "1024": PixArtConfig(**SIZES, sample_size=128, micro_conditions=True),
    "sigma": PixArtConfig(**SIZES, sample_size=32, qk_norm=True, kv_compress=2, kv_compress_blocks=(1, 3)),
}


def scrambled(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng) * 0.15
    return model.eval().requires_grad_(False)


def pair(config: PixArtConfig, copies: int = 2) -> tuple[PixArt, ControlNet]:
    return scrambled(PixArt(config)), scrambled(ControlNet(config, copies), 1)


def inputs(rows: int = 2) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    return {
        "x_t": torch.randn(rows, 4, 8, 12, generator=rng),
        "timestep": torch.tensor([300.0, 700.0])[:rows],
        "text": torch.randn(rows, 5, 16, generator=rng),
        "text_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])[:rows],
        "size": torch.tensor([[64.0, 96.0, 64 / 96]]).repeat(rows, 1),
    }


def by_hand(weights: dict, x, text, mask, t0, heads: int) -> torch.Tensor:
    """One block of the official network from its weights, by names alone (PixArt-alpha, PixArtBlock)."""

    def linear(name, value):
        return F.linear(value, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attention(query, key, value, keep=None):
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if keep is not None:
            scores = scores.masked_fill(keep[:, None, None] == 0, float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)

    def norm(value, shift, scale):
        return F.layer_norm(value, value.shape[-1:], eps=1e-6) * (1 + scale) + shift

    shift1, scale1, gate1, shift2, scale2, gate2 = (weights["scale_shift_table"][None] + t0).chunk(6, 1)
    query, key, value = linear("attn.qkv", norm(x, shift1, scale1)).chunk(3, -1)
    x = x + gate1 * linear("attn.proj", attention(query, key, value))
    key, value = linear("cross_attn.kv_linear", text).chunk(2, -1)
    x = x + linear("cross_attn.proj", attention(linear("cross_attn.q_linear", x), key, value, mask))
    hidden = F.gelu(linear("mlp.fc1", norm(x, shift2, scale2)), approximate="tanh")
    return x + gate2 * linear("mlp.fc2", hidden)


def official_forward(state: dict, base: PixArt, given: dict, control: torch.Tensor, copies: int) -> torch.Tensor:
    """The forward of an official file (`base_model.`, `controlnet.`); patches, timestep and last layer by the base."""

    def block(prefix):
        return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}

    def projected(name, value):
        return F.linear(value, state[f"controlnet.{name}.weight"], state[f"controlnet.{name}.bias"])

    modulation = base.embed_timestep(given["timestep"], given["size"])
    text, heads = base.y_embedder(given["text"]), base.config.num_heads
    rest = (text, given["text_mask"], modulation.blocks, heads)
    x, c = base.embed_latent(given["x_t"]), base.embed_latent(control)
    x = by_hand(block("base_model.blocks.0."), x, *rest)
    for index in range(1, base.config.depth):
        if index <= copies:
            start = x + projected("0.before_proj", c) if index == 1 else c
            c = by_hand(block(f"controlnet.{index - 1}.copied_block."), start, *rest)
            x = x + projected(f"{index - 1}.after_proj", c)
        x = by_hand(block(f"base_model.blocks.{index}."), x, *rest)
    patches, (rows, columns) = base.final_layer(x, modulation.final), base.grid(given["x_t"])
    return patches.view(len(x), rows, columns, 2, 2, -1).permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, 8, 12)


def write_official_control(base: PixArt, control: ControlNet, path: Path) -> dict[str, torch.Tensor]:
    """A file as the official training writes it: everything, under DataParallel's names or not."""
    state = {f"base_model.{name}": tensor for name, tensor in base.state_dict().items()} | control.state_dict()
    side = base.config.sample_size // 2
    state["base_model.pos_embed"] = torch.zeros(1, side * side, base.config.width)
    torch.save({"state_dict": state, "epoch": 1}, path) if path.suffix == ".pth" else save_file(state, path)
    return state


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", ["512", "1024"])
def test_it_predicts_what_the_official_forward_predicts(name, tmp_path):
    base, _ = pair(CONFIGS[name], 3)
    state = write_official_control(base, pair(CONFIGS[name], 3)[1], tmp_path / "a.pth")
    read = read_controlnet(tmp_path / "a.pth")
    check_fit(read, diffusers_config(CONFIGS[name]))
    control = ControlNet(CONFIGS[name], read.copies)
    control.load_state_dict(read.state)
    given, latent = inputs(), torch.randn(2, 4, 8, 12)
    expected = official_forward(state, base, given, latent, 3)
    predicted = control(base, **given, control=latent)
    assert torch.allclose(predicted, expected, atol=1e-5)
    assert (predicted - base(**given)).abs().max() > 1e-3


def test_a_fresh_one_and_scale_zero_change_nothing_and_rows_have_their_own_scale():
    base, control = pair(ALPHA)
    given, latent = inputs(), torch.randn(2, 4, 8, 12)
    fresh = ControlNet(ALPHA, 2)
    fresh.copy_from(base)
    assert torch.equal(fresh.controlnet[1].copied_block.attn.qkv.weight, base.blocks[1].attn.qkv.weight)
    alone = base(**given)
    assert torch.allclose(fresh(base, **given, control=latent), alone, atol=1e-6)
    scales = torch.tensor([0.0, 0.7])[:, None, None]
    mixed = control(base, **given, control=latent, scale=scales)
    assert torch.allclose(mixed[:1], alone[:1], atol=1e-6)
    assert torch.allclose(mixed[1:], control(base, **given, control=latent, scale=0.7)[1:], atol=1e-5)
    context = control.encode_text(base, given["text"], given["text_mask"])
    modulation = base.embed_timestep(given["timestep"])
    assert torch.allclose(control.denoise(base, given["x_t"], modulation, context, None), alone, atol=1e-6)


def test_half_of_the_blocks_are_copied():
    assert [usual_copies(depth) for depth in (2, 8, 28)] == [1, 3, 13]
    with pytest.raises(UsageError):
        ControlNet(ALPHA, 4)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_form_holds_the_same_bits(name, tmp_path):
    base, control = pair(CONFIGS[name])
    write_official_control(base, control, tmp_path / "a.safetensors")
    first = read_controlnet(tmp_path / "a.safetensors")
    assert same(first.state, control.state_dict()) and same(first.base, first.base | base.state_dict())
    assert first.sample_size == CONFIGS[name].sample_size
    write_controlnet(first.state, tmp_path / "d", copies=2, sample_size=first.sample_size)
    folder = read_controlnet(tmp_path / "d")
    assert same(folder.state, first.state) and folder.sample_size == first.sample_size
    write_controlnet(folder.state, tmp_path / "b.pth", copies=2, base=first.base)
    again = read_controlnet(tmp_path / "b.pth")
    assert same(again.state, first.state) and same(again.base, first.base)
    for each in (first, folder, again):
        check_fit(each, diffusers_config(CONFIGS[name]))


def test_the_names_in_a_folder_are_those_of_the_research_project(tmp_path):
    from diffusers.models.attention import BasicTransformerBlock

    _, control = pair(ALPHA)
    write_controlnet(control.state_dict(), tmp_path / "d", copies=2)
    state = load_file(tmp_path / "d" / "diffusion_pytorch_model.safetensors")
    stock = BasicTransformerBlock(
        48, 4, 12, cross_attention_dim=48, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        attention_bias=True, norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    block = {f"{i}.transformer_block.{name}" for i in range(2) for name in stock.state_dict()}
    projections = {f"{i}.{p}_proj.{part}" for i, p in ((0, "before"), (0, "after"), (1, "after")) for part in PARTS}
    assert {name.removeprefix("controlnet_blocks.") for name in state} == block | projections
    assert json.loads((tmp_path / "d" / "config.json").read_text())["num_layers"] == 2
    stock.load_state_dict(
        {n.removeprefix(p): t for n, t in state.items() if n.startswith(p := "controlnet_blocks.1.transformer_block.")}
    )
    rng = torch.Generator().manual_seed(0)
    x, text, t0 = (torch.randn(*shape, generator=rng) for shape in ((1, 6, 48), (1, 3, 48), (1, 6, 48)))
    ours = control.controlnet[1].copied_block
    kv = ours.cross_attn.keys_and_values(text)
    expected = stock(x, encoder_hidden_states=text, timestep=t0.flatten(1))
    assert torch.allclose(ours(x, t0, *kv, None), expected, atol=1e-5)


def test_convert_goes_both_ways(tmp_path, capsys):
    base, control = pair(ALPHA)
    given = write_official_control(base, control, tmp_path / "a.pth")
    save_transformer(base.state_dict(), ALPHA, tmp_path / "base", None)
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "d"), "--to", "diffusers"]) == 0
    words = ["convert", str(tmp_path / "d"), str(tmp_path / "b.pth"), "--to", "official"]
    assert main([*words, "--parts", str(tmp_path / "base")]) == 0
    written = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], given[name]) for name in given if "pos_embed" not in name)
    assert main(["convert", str(tmp_path / "d"), str(tmp_path / "c"), "--to", "onnx"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["missing", "extra", "nan", "width", "no control", "class", "count"])
def test_a_damaged_one_is_one_sentence(damage, tmp_path):
    base, control = pair(ALPHA)
    state = control.state_dict()
    write_controlnet(state, tmp_path / "d", copies=2)
    path = tmp_path / "a.safetensors"
    if damage == "missing":
        del state["controlnet.1.copied_block.mlp.fc2.weight"]
    elif damage == "extra":
        state["controlnet.1.before_proj.weight"] = torch.zeros(48, 48)
    elif damage == "nan":
        state["controlnet.0.after_proj.bias"][3] = torch.nan
    elif damage == "width":
        state["controlnet.1.after_proj.weight"] = torch.zeros(48, 32)
    elif damage == "no control":
        state = base.state_dict()
    else:
        config = json.loads((tmp_path / "d" / "config.json").read_text())
        config |= {"_class_name": "UNet"} if damage == "class" else {"num_layers": 13}
        (tmp_path / "d" / "config.json").write_text(json.dumps(config))
        path = tmp_path / "d"
    if path.suffix:
        save_file(state, path)
    with pytest.raises(PixArtError):
        read_controlnet(path)
    assert is_controlnet(path) == (damage not in ("no control", "class"))


@pytest.mark.parametrize(
    "other",
    [{"width": 96}, {"depth": 2}, {"sample_size": 128}, {"qk_norm": True}],
)
def test_one_for_another_model_is_refused(other, tmp_path):
    base, control = pair(ALPHA)
    write_official_control(base, control, tmp_path / "a.pth")
    with pytest.raises(PixArtError):
        check_fit(read_controlnet(tmp_path / "a.pth"), diffusers_config(replace(ALPHA, **other)))
