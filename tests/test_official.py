"""Official checkpoints and PixArt-Σ's attention: read, written, refused, against stock Diffusers and plain sums."""

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from pixart.checkpoints.diffusers import load_transformer, read_null_caption, save_transformer
from pixart.checkpoints.official import NULL_CAPTION, POSITIONS, OfficialFile, read_official, write_official
from pixart.errors import PixArtError, UsageError
from pixart.model.block import Attention
from pixart.model.pixart import PixArt, PixArtConfig

SIZES = {"width": 48, "depth": 2, "num_heads": 16, "text_dim": 16, "in_channels": 4, "out_channels": 8}
VARIANTS = {
    "alpha 256": PixArtConfig(**SIZES, sample_size=32),
    "alpha 512": PixArtConfig(**SIZES, sample_size=64),
    "alpha 1024": PixArtConfig(**SIZES, sample_size=128, micro_conditions=True),
    "sigma 256": PixArtConfig(**SIZES, sample_size=32, interpolation_scale=0.5),
    "sigma 1024": PixArtConfig(**SIZES, sample_size=128),
    "sigma compressed": PixArtConfig(**SIZES, sample_size=32, qk_norm=True, kv_compress=2, kv_compress_blocks=(1,)),
}


def official_state(config: PixArtConfig, tokens: int = 120, seed: int = 0) -> dict[str, torch.Tensor]:
    """All tensors of an official file with random weights; the grid by the formula of the paper's code, in numpy."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        state = {
            name: torch.randn(tensor.shape, generator=generator) * 0.2
            for name, tensor in PixArt(config).state_dict().items()
        }
    side, quarter = config.sample_size // config.patch_size, config.width // 4
    place = torch.arange(side, dtype=torch.float64) / config.position_scale
    angles = place[:, None] / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    axis = torch.cat([angles.sin(), angles.cos()], 1)
    grid = torch.cat([axis[None].expand(side, -1, -1), axis[:, None].expand(-1, side, -1)], 2)  # column, then row
    state[POSITIONS] = grid.reshape(1, side * side, -1).float()
    state[NULL_CAPTION] = torch.randn(tokens, config.text_dim, generator=generator)
    return state


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_everything_is_inferred_and_nothing_lost(variant, tmp_path):
    config = VARIANTS[variant]
    state = official_state(config, tokens=300 if "sigma" in variant else 120)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "a.pth")
    checkpoint = read_official(tmp_path / "a.pth")
    assert checkpoint.config == config
    save_transformer(checkpoint.state, config, tmp_path / "t", None, checkpoint.null_caption)
    model = load_transformer(tmp_path / "t")
    assert model.config == config
    assert torch.equal(read_null_caption(tmp_path / "t", 16), state[NULL_CAPTION])
    for name in ("b.pth", "b.safetensors"):
        write_official(checkpoint, tmp_path / name)
        again = read_official(tmp_path / name)
        assert again.config == config and same(again.state, checkpoint.state)
        assert torch.equal(again.null_caption, state[NULL_CAPTION])
    written = torch.load(tmp_path / "b.pth", weights_only=True)["state_dict"]
    assert written.keys() == state.keys()
    assert torch.allclose(written[POSITIONS], state[POSITIONS], atol=1e-6)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "sigma compressed"])
@torch.no_grad()
def test_an_official_file_predicts_what_stock_diffusers_predicts(variant, tmp_path):
    from diffusers import PixArtTransformer2DModel

    config = VARIANTS[variant]
    save_file(official_state(config), tmp_path / "a.safetensors")
    checkpoint = read_official(tmp_path / "a.safetensors")
    save_transformer(checkpoint.state, config, tmp_path / "t", None, checkpoint.null_caption)
    stock = PixArtTransformer2DModel.from_pretrained(tmp_path / "t").eval()  # the null caption does not disturb it
    model = PixArt(config).eval()
    model.load_state_dict(checkpoint.state)
    generator = torch.Generator().manual_seed(1)
    x_t, text = torch.randn(2, 4, 16, 24, generator=generator), torch.randn(2, 7, 16, generator=generator)
    mask, when = torch.arange(7)[None] < torch.tensor([[3], [7]]), torch.tensor([999.0, 20.0])
    size = torch.tensor([[1024.0, 1024.0, 1.0], [512.0, 2048.0, 0.25]])
    conditions = {"resolution": size[:, :2], "aspect_ratio": size[:, 2:]}
    expected = stock(x_t, text, when, conditions, encoder_attention_mask=mask.long(), return_dict=False)[0]
    drawn = model(x_t, when, text, mask, size)
    assert (drawn - expected).norm() / expected.norm() < 1e-5


@torch.no_grad()
def test_sigmas_attention_is_what_it_says():
    torch.manual_seed(0)
    heads, rows, columns, width = 2, 4, 6, 16
    attention = Attention(width, heads, qk_norm=True, kv_compress=2)
    for parameter in attention.parameters():
        parameter.normal_(std=0.5)
    x = torch.randn(3, rows * columns, width)
    query, key, value = (x @ attention.qkv.weight.T + attention.qkv.bias).split(width, 2)
    query = F.layer_norm(query, (width,), attention.q_norm.weight, attention.q_norm.bias)
    key = F.layer_norm(key, (width,), attention.k_norm.weight, attention.k_norm.bias)

    def shrunk(tokens):
        grid, made = tokens.view(3, rows, columns, width), []
        for row in range(0, rows, 2):
            for column in range(0, columns, 2):
                window = grid[:, row : row + 2, column : column + 2]  # (3, 2, 2, width)
                kernel = attention.sr.weight[:, 0].permute(1, 2, 0)  # (2, 2, width)
                made.append((window * kernel).sum((1, 2)) + attention.sr.bias)
        return F.layer_norm(torch.stack(made, 1), (width,), attention.norm.weight, attention.norm.bias)

    key, value = shrunk(key), shrunk(value)
    parts = []
    for head in range(heads):
        own = slice(head * width // heads, (head + 1) * width // heads)
        scores = query[..., own] @ key[..., own].transpose(1, 2) / (width // heads) ** 0.5
        parts.append(scores.softmax(-1) @ value[..., own])
    expected = torch.cat(parts, 2) @ attention.proj.weight.T + attention.proj.bias
    assert (attention(x, (rows, columns)) - expected).norm() / expected.norm() < 1e-5
    with pytest.raises(ValueError, match="rows and columns"):
        attention(x)


def test_diffusers_refuses_what_it_has_no_class_for(tmp_path):
    from diffusers import PixArtTransformer2DModel

    config = VARIANTS["sigma compressed"]
    save_transformer(PixArt(config).state_dict(), config, tmp_path, torch.float32)
    with pytest.raises(NotImplementedError, match="norm_type"):
        PixArtTransformer2DModel.from_pretrained(tmp_path)


def test_the_average_is_taken_on_request_and_keeps_the_true_null_caption(tmp_path):
    config = VARIANTS["alpha 256"]
    raw, ema = official_state(config), official_state(config, seed=1)
    path = tmp_path / "both.pth"
    torch.save({"state_dict": raw, "state_dict_ema": {f"module.{name}": ema[name] for name in ema}}, path)
    plain, average = read_official(path), read_official(path, OfficialFile(ema=True))
    assert plain.has_ema and torch.equal(plain.state["x_embedder.proj.bias"], raw["x_embedder.proj.bias"])
    assert torch.equal(average.state["x_embedder.proj.bias"], ema["x_embedder.proj.bias"])
    assert torch.equal(average.null_caption, raw[NULL_CAPTION])
    torch.save(raw, path)
    with pytest.raises(UsageError, match="no moving average"):
        read_official(path, OfficialFile(ema=True))


def test_without_the_grid_the_size_must_be_said(tmp_path):
    state = official_state(VARIANTS["sigma 256"], tokens=300)
    del state[POSITIONS]
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="--image-size 256"):
        read_official(tmp_path / "a.safetensors")
    assert read_official(tmp_path / "a.safetensors", OfficialFile(image_size=256)).config == VARIANTS["sigma 256"]
    with pytest.raises(UsageError, match="not a multiple of 16"):
        read_official(tmp_path / "a.safetensors", OfficialFile(image_size=100))
    with pytest.raises(UsageError, match="--num-heads"):
        read_official(tmp_path / "a.safetensors", OfficialFile(image_size=256, num_heads=7))


def test_what_is_wrong_is_named(tmp_path):
    path = tmp_path / "a.pth"
    state = official_state(VARIANTS["alpha 256"])
    lacks = {name: tensor for name, tensor in state.items() if name != "blocks.1.mlp.fc2.bias"}
    for changed, *names in (
        (lacks | {"lora.up": torch.zeros(2)}, "blocks.1.mlp.fc2.bias", "lora.up"),
        (state | {"t_block.1.bias": torch.zeros(7)}, "t_block.1.bias", "[7]", "[288]"),
        (state | {"blocks.0.mlp.fc1.bias": torch.full((192,), torch.nan)}, "blocks.0.mlp.fc1.bias"),
        (state | {"y_embedder.embedding_table.weight": torch.zeros(3, 48)}, "--to reparameterized"),
        (state | {POSITIONS: torch.randn(1, 256, 48)}, POSITIONS),
        (state | {NULL_CAPTION: torch.zeros(120, 5)}, NULL_CAPTION),
        ({"optimizer": {"lr": 1}}, "optimizer"),
        ({"a": torch.zeros(1)}, "x_embedder"),
    ):
        torch.save(changed, path)
        with pytest.raises(PixArtError) as caught:
            read_official(path)
        assert "\n" not in str(caught.value) and all(name in str(caught.value) for name in (str(path), *names))
    torch.save(state, path)
    complete = path.read_bytes()
    (tmp_path / "a.safetensors").write_bytes(complete)
    for damaged in (complete[: len(complete) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(PixArtError):
            read_official(path)
    for other in ("a.safetensors", "nowhere.pth"):  # a pickle by the name of another format
        with pytest.raises(PixArtError):
            read_official(tmp_path / other)
