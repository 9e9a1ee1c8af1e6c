"""ControlNet: the official forward written out again, files of every form, generation, training, and bad input."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from photos import write_photos
from PIL import Image
from safetensors.torch import load_file, save_file

import pixart
from pixart.checkpoints.controlnet import check_fit, is_controlnet, read_controlnet, write_controlnet
from pixart.checkpoints.diffusers import PARTS, diffusers_config, read_config, save_transformer
from pixart.cli import main
from pixart.errors import PixArtError, UsageError
from pixart.model.controlnet import ControlNet, usual_copies
from pixart.model.hed import Hed
from pixart.model.hed import edges as hed_edges
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.pipeline.image_files import read_settings
from pixart.pipeline.request import make_request
from pixart.pixels import canny
from pixart.runtime.memory import Memory
from pixart.training import train
from pixart.training.batches import Phase
from pixart.training.ema import EmaConfig
from pixart.training.loop import LoopConfig
from pixart.training.optimizers import OptimizerConfig
from pixart.training.recipe import Recipe
from pixart.training.tasks.controlnet import ControlNetTraining
from pixart.training.trainable import Trainable

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


@pytest.fixture(scope="module")
def tiny_control(tiny_model, tmp_path_factory) -> Path:
    """A ControlNet for the tiny model of the tests, as a folder and, without the base, as an official file."""
    config = read_config(tiny_model / "transformer" / "config.json")
    place = tmp_path_factory.mktemp("control")
    state = scrambled(ControlNet(config, 1)).state_dict()
    write_controlnet(state, place / "control", copies=1, sample_size=config.sample_size)
    write_controlnet(state, place / "control.pth", copies=1)
    edges(0).save(place / "edges.png")
    return place / "control"


def edges(seed: int, size: tuple[int, int] = (80, 64)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 2, (6, 8), dtype=np.uint8) * 255
    return Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST).convert("RGB")


def pixels(result) -> np.ndarray:
    return np.stack([np.asarray(image, int) for image in result.images])


SMALL = {"width": 64, "height": 64, "steps": 3, "seed": 1}


def test_generation_follows_the_condition(tiny_model, tiny_control):
    pipe = pixart.Pipeline.from_pretrained(tiny_model, control=tiny_control)
    alone = pixart.Pipeline.from_pretrained(tiny_model, engine="torch")
    expected = pixels(alone("a red fox", **SMALL))
    assert abs(pixels(pipe("a red fox", **SMALL)) - expected).max() <= 1
    off = pipe("a red fox", control_image=edges(0), control_scale=0.0, **SMALL)
    assert abs(pixels(off) - expected).max() <= 1
    first = pipe("a red fox", control_image=edges(0), **SMALL)
    assert abs(pixels(first) - expected).mean() > 1
    assert abs(pixels(pipe("a red fox", control_image=edges(1), **SMALL)) - pixels(first)).mean() > 0.5
    assert (
        abs(pixels(pipe("a red fox", control_image=edges(0), control_scale=0.5, **SMALL)) - pixels(first)).mean() > 0.1
    )
    record = first.settings[0]["control"]
    assert record["name"] == "control" and record["scale"] == 1.0 and len(record["image_sha256"]) == 64
    # Several prompts and seeds share one pass and one encoded condition, and a second pass has it too.
    calls, encode = [], pipe.networks.encode_image
    pipe.networks.encode_image = lambda given: calls.append(given.shape) or encode(given)
    many = pipe(["a red fox", "a house"], num_images=2, control_image=edges(0), **SMALL)
    assert calls == [(64, 64, 3)] and abs(pixels(many)[0] - pixels(first)[0]).max() <= 1
    pipe("a red fox", control_image=edges(0), upscale=2, **SMALL)
    assert (128, 128, 3) in calls
    with pytest.raises(UsageError):
        alone("a red fox", control_image=edges(0), **SMALL)
    with pytest.raises(UsageError):
        pipe("a red fox", control_scale=0.5, **SMALL)


def test_a_batch_may_mix_images_with_and_without_control(tiny_model, tiny_control):
    pipe = pixart.Pipeline.from_pretrained(tiny_model, control=tiny_control)
    requests = [
        make_request(pipe.folder, "a red fox", control_image=edges(0), **SMALL),
        make_request(pipe.folder, "a house", **SMALL),
    ]
    expected = [np.asarray(next(pipe.generate(request)).image, int) for request in requests]
    states = [pipe.begin(request, print)[0] for request in requests]
    while not states[0].done:
        pipe.core.step(states)
    for image, wanted in zip(pipe.core.decode(states), expected, strict=True):
        assert abs(image.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("memory", [Memory(text_encoder_mode="streamed"), Memory(staged=True)])
def test_memory_options_do_not_change_it(memory, tiny_model, tiny_control):
    options = {"control_image": edges(0), **SMALL}
    pipe = pixart.Pipeline.from_pretrained(tiny_model, control=tiny_control, memory=memory)
    alike = pixart.Pipeline.from_pretrained(tiny_model, control=tiny_control)
    assert abs(pixels(pipe("a red fox", **options)) - pixels(alike("a red fox", **options))).mean() < 1


def test_the_command_line_takes_files_of_either_form(tiny_model, tiny_control, tmp_path, capsys):
    words = ["generate", "a red fox", "--model", str(tiny_model), "--size", "64x64", "--steps", "2", "--seed", "1"]
    image = ["--control-image", str(tiny_control.parent / "edges.png"), "--control-scale", "0.8"]
    for number, control in enumerate((tiny_control, tiny_control.with_suffix(".pth"))):
        output = str(tmp_path / f"{number}.png")
        assert main([*words, "--control", str(control), *image, "--output", output]) == 0
    made = [np.asarray(Image.open(tmp_path / f"{number}.png"), int) for number in (0, 1)]
    assert np.array_equal(*made)
    assert main(["verify", str(tmp_path / "0.png"), "--model", str(tiny_model)]) == 2
    capsys.readouterr()
    wrong = [
        ([*image], 2), (["--control", str(tiny_control)], 2), (["--control", "nothing.pth", *image], 1),
        (["--control", str(tiny_control), *image[:1], "nothing.png"], 2), (["--control", str(tiny_model), *image], 1),
        (["--control", str(tiny_control), *image[:3], "-1"], 2),
        (["--control", str(tiny_control), *image, "--engine", "onnx"], 2),
    ]  # fmt: skip
    for more, code in wrong:
        assert main([*words, *more]) == code, more
        err = capsys.readouterr().err.strip().splitlines()
        assert len(err) == 1 and err[0].startswith("pixart: "), more


def test_a_prompt_file_goes_on_where_it_was_stopped(tiny_model, tiny_control, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a red fox\na house\n")
    words = ["generate", "--prompts", str(tmp_path / "p.txt"), "--model", str(tiny_model), "--size", "64x64"]
    words += ["--steps", "2", "--output", str(tmp_path / "out"), "--control", str(tiny_control), "--control-image"]
    assert main([*words, str(tiny_control.parent / "edges.png")]) == 0
    assert main([*words, str(tiny_control.parent / "edges.png")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 2
    edges(4).save(tmp_path / "other.png")
    assert main([*words, str(tmp_path / "other.png")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_edges_are_found_as_the_official_network_finds_them(tiny_model, tiny_control, tmp_path, capsys):
    state = {name: 0.05 * torch.randn_like(t) for name, t in Hed().state_dict().items()}
    torch.save(state, tmp_path / "hed.pth")
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    h, maps = torch.from_numpy(image).permute(2, 0, 1)[None].float() - state["norm"], []
    for block, depth in enumerate((2, 2, 3, 3, 3), 1):
        h = F.max_pool2d(h, 2) if block > 1 else h
        for i in range(depth):
            weight, bias = (state[f"block{block}.convs.{i}.{part}"] for part in PARTS)
            h = F.relu(F.conv2d(h, weight, bias, padding=1))
        edge = F.conv2d(h, *(state[f"block{block}.projection.{part}"] for part in PARTS))
        maps.append(F.interpolate(edge, (48, 64), mode="bilinear", antialias=True))
    expected = torch.stack(maps).mean(0).sigmoid()[0, 0].numpy() * 255
    found = hed_edges(state, image)
    assert (
        found.shape == (48, 64, 3) and (found == found[..., :1]).all() and abs(found[..., 0] - expected).max() <= 0.51
    )
    own = pixart.Pipeline.from_pretrained(tiny_model, control=tiny_control, control_edges=tmp_path / "hed.pth")
    given = pixart.Pipeline.from_pretrained(tiny_model, control=tiny_control)
    square = Image.fromarray(image).resize((64, 64))
    made = Image.fromarray(hed_edges(state, np.asarray(square)))
    by_own = pixels(own("a red fox", control_image=square, **SMALL))
    assert np.array_equal(by_own, pixels(given("a red fox", control_image=made, **SMALL)))
    del state["norm"]
    torch.save(state, tmp_path / "hed.pth")
    with pytest.raises(PixArtError):
        pixart.Pipeline.from_pretrained(tiny_model, control=tiny_control, control_edges=tmp_path / "hed.pth")


def test_canny_finds_edges_of_the_condition_image(tiny_model, tiny_control, tmp_path):
    square = np.zeros((64, 64, 3), np.uint8)
    square[16:48, 16:48] = 255
    found = canny(square)
    on = np.argwhere(found[..., 0])
    assert found.shape == (64, 64, 3) and set(np.unique(found)) == {0, 255}
    assert on.min() in (15, 16) and on.max() in (47, 48) and not found[24:40, 24:40].any()
    words = ["generate", "a red fox", "--model", str(tiny_model), "--size", "64x64", "--steps", "2", "--seed", "1"]
    words += ["--control", str(tiny_control), "--control-image"]
    for name, pixels in (("image", square), ("edges", found)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    for number, more in enumerate((["image.png", "--control-edges", "canny"], ["edges.png"])):
        output = ["--output", str(tmp_path / f"made-{number}.png")]
        assert main([*words, str(tmp_path / more[0]), *more[1:], *output]) == 0
    made = [np.asarray(Image.open(tmp_path / f"made-{number}.png")) for number in (0, 1)]
    assert np.array_equal(*made)
    settings = read_settings(tmp_path / "made-0.png")["control"]
    assert settings["edges"] == "canny"


def test_a_controlnet_of_sigma_is_trained_and_generates(tiny_model, stores, tmp_path):
    """Norms of queries and keys, and compressed keys in a block that is copied and in one that is not."""
    config = read_config(tiny_model / "transformer" / "config.json")
    sigma = replace(config, depth=4, qk_norm=True, kv_compress=2, kv_compress_blocks=(0, 3))
    model = shutil.copytree(tiny_model, tmp_path / "sigma")
    shutil.rmtree(model / "transformer")
    save_transformer(scrambled(PixArt(sigma)).state_dict(), sigma, model / "transformer", None)
    task = ControlNetTraining(init=str(model), copies=2, validation=4)
    made = train(task, recipe(tmp_path / "run", stores, steps=2))
    read = read_controlnet(made)
    assert read.blocks.qk_norm and read.blocks.kv_compress_blocks == (0,)
    pipe = pixart.Pipeline.from_pretrained(model, control=made)
    assert pipe("a red fox", control_image=edges(0), **SMALL).images[0].size == (64, 64)
    with pytest.raises(PixArtError):
        pixart.Pipeline.from_pretrained(tiny_model, control=made)


@pytest.fixture(scope="module")
def stores(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """Features of forty photos, of their edges, and of some that do not belong to them."""
    place = tmp_path_factory.mktemp("stores")
    photos = write_photos(place / "photos")
    for name, wanted in (("edges", lambda i: True), ("few", lambda i: i % 2)):
        (place / name).mkdir()
        for i, path in enumerate(sorted(photos.glob("*.jpg"))):
            if wanted(i):
                Image.open(path).convert("L").point(lambda v: 255 * (v > 128)).convert("RGB").save(
                    place / name / path.name
                )
    words = ["--model", str(tiny_model), "--base-size", "64"]
    assert main(["data", "extract", str(photos), str(place / "features"), *words, "--flip"]) == 0
    for name, more in (("edges", ["--flip"]), ("few", ["--flip"]), ("edges", [])):
        dest = str(place / f"{name}-features{'' if more else '-plain'}")
        assert main(["data", "extract", str(place / name), dest, *words, "--labels-only", *more]) == 0
    return {
        "features": place / "features", "conditions": place / "edges-features", "few": place / "few-features",
        "plain": place / "edges-features-plain",
    }  # fmt: skip


def recipe(output: Path, stores: dict[str, Path], steps: int = 4, conditions: str | None = "conditions", **settings):
    common = {
        "loop": LoopConfig(precision="float32", log_every=1, save_every=2, validate_every=steps, device="cpu"),
        "optimizer": OptimizerConfig(learning_rate=2e-3, warmup_steps=1, weight_decay=0.03, decay_share=0.0),
        "ema": EmaConfig((0.0,)),
    }
    phase = Phase(steps, 8, features=stores["features"], conditions=stores[conditions] if conditions else None)
    return Recipe(output=output, phases=(phase,), **(common | settings))


def test_training_lowers_the_loss_resumes_and_ends_as_what_generates(tiny_model, stores, tmp_path, capsys):
    task = ControlNetTraining(init=str(tiny_model), validation=4)
    long = recipe(tmp_path / "long", stores, steps=24, loop=replace(recipe(tmp_path, stores).loop, validate_every=8))
    result = train(task, long)
    assert result == tmp_path / "long" / "controlnet"
    lines = [json.loads(line) for line in (result.parent / "metrics.jsonl").read_text().splitlines()]
    found = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(found) == 3 and found[-1] < found[0]
    names = load_file(tmp_path / "long" / "checkpoint-24" / "model.safetensors")
    assert all(name.startswith("controlnet.") for name in names)  # the base is not kept again
    pipe = pixart.Pipeline.from_pretrained(tiny_model, control=result)
    images = pixels(pipe("a red fox", control_image=edges(0), **SMALL))
    assert abs(images - pixels(pipe("a red fox", control_image=edges(1), **SMALL))).mean() > 0

    stopped, real = tmp_path / "stopped", ControlNetTraining.loss

    def once(model, batch):
        if not (stopped / "checkpoint-2").exists():
            return real(task, model, batch)
        raise KeyboardInterrupt

    short = recipe(stopped, stores)
    with pytest.raises(KeyboardInterrupt):
        train(ControlNetTraining(init=str(tiny_model), validation=4), short, loss=once)
    train(ControlNetTraining(init=str(tiny_model), validation=4), short)
    unbroken = train(ControlNetTraining(init=str(tiny_model), validation=4), recipe(tmp_path / "unbroken", stores))
    assert same(read_controlnet(stopped / "controlnet").state, read_controlnet(unbroken).state)


def test_an_adapter_of_it_is_merged_into_what_is_written(tiny_model, stores, tmp_path):
    first = train(ControlNetTraining(init=str(tiny_model), validation=4), recipe(tmp_path / "first", stores, steps=2))
    task = ControlNetTraining(init=str(tiny_model), validation=4, control=str(first))
    lora = Trainable(method="lora", layers=("controlnet.*",), rank=2)
    second = train(task, recipe(tmp_path / "second", stores, steps=2, trainable=lora))
    before, after = (read_controlnet(path).state for path in (first, second))
    name = "controlnet.0.copied_block.mlp.fc1"
    assert not torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
    assert torch.equal(before[f"{name}.bias"], after[f"{name}.bias"])


@pytest.mark.parametrize("conditions", [None, "few", "plain", "features"])
def test_conditions_that_do_not_belong_to_the_images_are_refused(conditions, tiny_model, stores, tmp_path):
    if conditions == "features":  # images are conditions of themselves; there is no fault in that
        assert ControlNetTraining(init=str(tiny_model)).build(
            recipe(tmp_path, stores, 2, conditions), torch.device("cpu")
        )
        return
    with pytest.raises(UsageError):
        train(ControlNetTraining(init=str(tiny_model), validation=4), recipe(tmp_path / "r", stores, 2, conditions))
