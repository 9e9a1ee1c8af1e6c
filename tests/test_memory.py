"""Generating in less memory: networks in turn, 8-bit texts, tiles, stored texts; which of them keep every pixel."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pixart
from pixart.checkpoints.model_folder import open_model_folder
from pixart.cli import main
from pixart.encoders.kept import KeptLinear
from pixart.encoders.text import TextEncoder
from pixart.encoders.text_states import read_head
from pixart.encoders.vae import Decoder
from pixart.errors import PixArtError, UsageError
from pixart.runtime.memory import Memory

SMALL = {"seed": 3, "width": 64, "height": 64, "steps": 2}
PROMPTS = ["a red apple", "a green fox, flat"]


def opened(folder, **memory):
    return pixart.Pipeline.from_pretrained(folder, dtype="float32", device="cpu", memory=Memory(**memory))


@pytest.fixture(scope="module")
def plain(tiny_model):
    return pixart.Pipeline.from_pretrained(tiny_model, engine="torch", dtype="float32", device="cpu")


def pixels(result) -> list[np.ndarray]:
    return [np.asarray(image).astype(int) for image in result.images]


def furthest(first, second) -> int:
    return max(int(np.abs(a - b).max()) for a, b in zip(pixels(first), pixels(second), strict=True))


def test_in_stages_one_network_is_there_at_a_time_and_every_pixel_is_the_same(tiny_model, plain):
    pipe = opened(tiny_model, staged=True)
    assert pipe.networks.loaded == ()
    seen = []
    given = {**SMALL, "num_images": 2, "negative_prompt": "blurry", "on_step": lambda index, step: seen.append(here())}

    def here():
        return pipe.networks.loaded

    staged = pipe(PROMPTS, **given)
    assert set(seen) == {("denoiser",)} and len(seen) == 8
    assert here() == ("decoder",)
    usual = plain(PROMPTS, **given | {"on_step": None})
    assert furthest(staged, usual) == 0 and staged.seeds == usual.seeds
    assert [one["memory"] for one in staged.settings] == [{"staged": True}] * 4
    assert [one["prompt"] for one in staged.settings] == [one["prompt"] for one in usual.settings]
    again = pipe(PROMPTS, **given)  # everything is loaded once more
    assert furthest(again, usual) == 0


def test_offloading_moves_one_network_at_a_time(tiny_model):
    """Without a GPU the moves are watched on torch's "meta" device, which takes weights and cannot give them back."""
    from pixart.pipeline.torch_networks import TorchNetworks, device_of
    from pixart.runtime.device import Precision, find_cpu

    precision = Precision("float32", "float32", "")
    networks = TorchNetworks(open_model_folder(tiny_model), find_cpu(), precision, Memory(offload=True))
    others = networks.denoiser, networks.decoder
    networks.device = torch.device("meta")
    assert device_of(networks.text_encoder).type == "meta"
    assert [device_of(other).type for other in others] == ["cpu", "cpu"]
    with pytest.raises(NotImplementedError, match="meta"):  # the text encoder is to leave before another may come
        networks.decoder  # noqa: B018
    assert [device_of(other).type for other in others] == ["cpu", "cpu"]


def test_tiles_are_those_of_stock_diffusers(tmp_path, tiny_model):
    vae = shutil.copytree(tiny_model / "vae", tmp_path / "vae")
    usual, tiled = Decoder(vae), Decoder(vae, tiled=True)
    latent = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 8, 40, 35), np.float32))
    expected, found = usual.decode(latent).astype(int), tiled.decode(latent).astype(int)
    assert expected.std() > 20, "a grey image would prove nothing"
    usual.model.enable_tiling()
    assert np.array_equal(usual.decode(latent), found)
    assert np.abs(expected - found).max() > 1


def test_several_latents_are_decoded_as_each_alone_and_the_scaling_factor_is_undone(tmp_path, tiny_model):
    vae = shutil.copytree(tiny_model / "vae", tmp_path / "vae")
    latents = torch.randn(3, 8, 8, 12, generator=torch.Generator().manual_seed(1))
    plain = Decoder(vae).decode(latents)
    assert plain.shape == (3, 64, 96, 3)
    for latent, image in zip(latents, plain, strict=True):
        assert np.abs(Decoder(vae).decode(latent[None])[0].astype(int) - image).max() <= 1
    config = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert np.abs(Decoder(vae).decode(0.5 * latents).astype(int) - plain).max() <= 1


def write_t5(folder, tiny_model, dtype=torch.float32):
    """A T5 of a shape like the released one's, saved by transformers."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(5)
    config = T5Config(
        vocab_size=128, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    model = T5EncoderModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.to(dtype).save_pretrained(folder / "text_encoder")
    shutil.copytree(tiny_model / "tokenizer", folder / "tokenizer")


@pytest.mark.parametrize("kind", ["T5EncoderModel", "BertModel"])
def test_an_8_bit_text_encoder_is_near_the_true_one_and_small(tmp_path, tiny_model, kind):
    folder = tiny_model
    if kind == "T5EncoderModel":
        folder = tmp_path
        write_t5(folder, tiny_model)
    places = (folder / "text_encoder", folder / "tokenizer", kind)
    true, small = TextEncoder(*places), TextEncoder(*places, eight_bit=True)
    for text in ("a red apple", "a green fox and a black house, flat"):
        expected, found = true.encode(text), small.encode(text)
        real = expected.mask[0]
        error = (found.states - expected.states)[:, real].norm() / expected.states[:, real].norm()
        assert 0 < error < 0.1  # random weights; 0.025 for the shipped encoder
        assert torch.equal(found.mask, expected.mask) and found.states.dtype == torch.float32
    layers = [module for module in small.model.modules() if isinstance(module, KeptLinear)]
    linear = [module for module in true.model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(layers) == len(linear) and not any(isinstance(m, torch.nn.Linear) for m in small.model.modules())
    assert {layer.kept.dtype for layer in layers} == {torch.int8}
    for layer, original in zip(layers, linear, strict=True):  # rounding to the nearest of 255 steps, no more
        exact = original.weight
        assert ((layer.kept * layer.scale[:, None] - exact).abs() <= 0.501 * layer.scale[:, None]).all()
    assert not any(tensor.is_meta for tensor in [*small.model.parameters(), *small.model.buffers()])


def relative(found, expected):
    return (found - expected).norm() / expected.norm()


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "float8_e4m3fn", "scaled"])
@pytest.mark.parametrize("streamed", [True, False])
def test_t5_is_read_as_comfyui_users_have_it_streamed_or_loaded(tmp_path, tiny_model, stored, streamed):
    """One file without an index, in any float; in float8 also with a scale for every weight."""
    write_t5(tmp_path, tiny_model)
    places = (tmp_path / "text_encoder", tmp_path / "tokenizer", "T5EncoderModel")
    path = tmp_path / "text_encoder" / "model.safetensors"
    state, dtype = load_file(path), getattr(torch, stored, torch.float8_e4m3fn)
    linear = {name for name, tensor in state.items() if tensor.dim() == 2 and ".block." in name and "bias" not in name}
    numbers = {name: tensor.to(dtype) if name in linear else tensor for name, tensor in state.items()}
    save_file({name: tensor.float() for name, tensor in numbers.items()}, path)
    expected = TextEncoder(*places).encode_all(["a red apple", "an owl"])
    path.unlink()
    if stored == "scaled":
        for name in linear:
            numbers[name.removesuffix("weight") + "scale_weight"] = torch.tensor(0.5)
            numbers[name] = (numbers[name].float() * 2).to(dtype)
        numbers["scaled_fp8"] = torch.empty(0, dtype=dtype)
    save_file(numbers, path.with_name("t5xxl_any.safetensors"))
    counts = []
    encoder = TextEncoder(
        *places, dtype="float32", arithmetic="float32", streamed=streamed,
        on_bytes=counts.append,
    )  # fmt: skip
    for found, true in zip(encoder.encode_all(["a red apple", "an owl"]), expected, strict=True):
        assert relative(found.states, true.states) < 1e-4 and torch.equal(found.mask, true.mask)
    assert sum(counts) > 0
    if streamed:
        kept = [module for module in encoder.model.modules() if isinstance(module, KeptLinear)]
        assert kept and all(module.kept.dtype == dtype for module in kept)
        assert encoder.file_bytes == sum(counts)
        alone = encoder.encode("an owl").states
        assert relative(alone, expected[1].states) < 1e-4 and sum(counts) == 2 * encoder.file_bytes


def test_layers_of_a_streamed_text_encoder_work_on_the_device_and_stay_in_the_file(tmp_path, tiny_model, monkeypatch):
    """Without a GPU on torch's "meta" device, which refuses to compute with tensors that lie elsewhere."""
    monkeypatch.setattr("pixart.encoders.kept.SMALL", 1000)
    write_t5(tmp_path, tiny_model)
    places = (tmp_path / "text_encoder", tmp_path / "tokenizer", "T5EncoderModel")
    encoder = TextEncoder(*places, dtype="float16", arithmetic="float32", device="meta", streamed=True)
    states = encoder.model(inputs_embeds=torch.empty(1, 16, 64, device="meta"))[0]
    assert (states.device.type, states.dtype, states.shape) == ("meta", torch.float32, (1, 16, 64))
    kept = [module.kept.device.type for module in encoder.model.modules() if isinstance(module, KeptLinear)]
    assert kept == ["cpu"] * 14


def test_a_streamed_text_encoder_gives_the_same_image_and_reads_its_file_once(tiny_model, plain):
    pipe = opened(tiny_model, text_encoder_mode="streamed")
    read = []
    pipe.networks.text_encoder.encode_all, encode = (
        lambda texts: read.append(texts) or encode(texts),
        (pipe.networks.text_encoder.encode_all),
    )
    result = pipe(PROMPTS, **SMALL)
    assert len(read) == 1 and {*PROMPTS} < {*read[0]}
    assert furthest(result, plain(PROMPTS, **SMALL)) <= 1
    assert result.settings[0]["memory"] == {"text_encoder_mode": "streamed"}


@pytest.mark.parametrize("held", ["loaded", "streamed"])
def test_cached_texts_are_not_encoded_again(tiny_model, tmp_path, plain, held):
    def generated():
        pipe = opened(tiny_model, text_encoder_mode=held, text_cache=tmp_path / "texts")
        read, encode = [], pipe.networks.text_encoder.encode_all
        pipe.networks.text_encoder.encode_all = lambda texts: read.extend(texts) or encode(texts)
        return pipe(PROMPTS, **SMALL), read

    first, read = generated()
    assert {*read} == {*PROMPTS, ""} and furthest(first, plain(PROMPTS, **SMALL)) <= 1
    next((tmp_path / "texts").iterdir()).write_bytes(b"damaged")
    again, read = generated()
    assert len(read) == 1 and furthest(first, again) <= 1
    assert again.settings[0]["memory"] == ({} if held == "loaded" else {"text_encoder_mode": "streamed"})


def test_an_8_bit_text_encoder_with_a_weight_missing_is_refused(folder):
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.endswith("intermediate.dense.weight"))
    del state[name]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(PixArtError, match=r"lacks weights.*intermediate.dense.weight"):
        TextEncoder(folder / "text_encoder", folder / "tokenizer", "BertModel", eight_bit=True)


@pytest.mark.parametrize(
    "memory",
    [
        {"text_encoder_8bit": True},
        {"text_encoder_dtype": "bfloat16"},
        {"vae_dtype": "bfloat16"},
        {"decode": "tiled"},
        {"text_encoder_8bit": True, "text_encoder_dtype": "bfloat16", "decode": "tiled", "staged": True},
    ],
)
def test_what_may_change_bytes_is_named_recorded_and_near(tiny_model, plain, memory):
    pipe = opened(tiny_model, **memory)
    result = pipe("a red apple", **SMALL)
    assert result.settings[0]["memory"] == memory
    assert Memory(**result.settings[0]["memory"]).chosen == pipe.networks.memory.chosen
    difference = np.abs(pixels(result)[0] - pixels(plain("a red apple", **SMALL))[0])
    assert difference.mean() < 12, "another picture"
    dtypes = {name: next(part.model.parameters()).dtype for name, part in kept_parts(pipe)}
    for name, dtype in dtypes.items():
        assert dtype == getattr(torch, memory.get(f"{'vae' if name == 'decoder' else name}_dtype", "float32"))


def kept_parts(pipe):
    return [(name, part) for name, part in pipe.networks._loaded.items() if name != "denoiser"]


def encode_to(path, folder, *options):
    assert main(["encode", *PROMPTS, "--model", str(folder), "--output", str(path), *options]) == 0


def test_stored_texts_give_the_same_image_without_a_text_encoder(tiny_model, plain, tmp_path, capsys):
    path = tmp_path / "texts.safetensors"
    encode_to(path, tiny_model, "--negative-prompt", "Blurry", "--style", "3D")
    assert capsys.readouterr().out.strip() == str(path)
    head, width = read_head(path)
    assert head.prompts == ("a red apple, 3d", "a green fox, flat, 3d") and width == 32
    pipe = opened(tiny_model, text_states=path)
    assert not isinstance(pipe.networks.text_encoder, TextEncoder)
    given = {**SMALL, "negative_prompt": "blurry", "style": "3D"}
    result = pipe(PROMPTS, **given)
    assert furthest(result, plain(PROMPTS, **given)) == 0
    assert result.settings[0]["memory"] == {"text_encoder_dtype": "float32"}
    small = ["--steps", "1", "--seed", "1", "--dtype", "float32"]
    command = ["generate", "--model", str(tiny_model), "--text-states", str(path), *small]
    assert main([*command, "--output", str(tmp_path)]) == 2
    assert "holds several prompts" in capsys.readouterr().err
    options = ["--guidance-scale", "1", "--staged", "--output", str(tmp_path), "--json"]
    assert main([*command, "a red apple, 3D", *options]) == 0
    assert json.loads(capsys.readouterr().out)["memory"] == {"staged": True, "text_encoder_dtype": "float32"}
    assert main([*command, "an owl", *options]) == 2
    assert "an owl" in capsys.readouterr().err


def test_a_file_of_one_prompt_needs_no_prompt_and_tells_how_it_was_made(tiny_model, tmp_path, capsys):
    path = tmp_path / "one.safetensors"
    options = ["--model", str(tiny_model), "--output", str(path), "--text-encoder-8bit"]
    assert main(["encode", "a fox", *options]) == 0
    assert main(["encode", "a fox", *options]) == 2
    assert "exists already" in capsys.readouterr().err
    command = ["generate", "--model", str(tiny_model), "--steps", "1", "--width", "64", "--height", "64"]
    assert main([*command, "--text-states", str(path), "--output", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt"] == "a fox"
    assert record["memory"] == {"text_encoder_8bit": True, "text_encoder_dtype": "float32"}
    assert main(command) == 2
    assert "There is no prompt" in capsys.readouterr().err


def test_stored_texts_of_another_model_are_refused(tiny_model, folder, tmp_path):
    path = tmp_path / "texts.safetensors"
    encode_to(path, tiny_model)
    state = load_file(folder / "text_encoder" / "model.safetensors")
    name = next(name for name in state if name.endswith("word_embeddings.weight"))
    state[name] = state[name] + 0.1
    save_file(state, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match="another text encoder than that of"):
        opened(folder, text_states=path)("a red apple", **SMALL)
    transformer = folder / "transformer" / "null_caption.safetensors"
    save_file({"y_embedder.y_embedding": torch.zeros(300, 32)}, transformer)
    with pytest.raises(UsageError, match="up to 120 tokens of width 32, and this model reads 300"):
        opened(folder, text_states=path)("a red apple", **SMALL)


@pytest.mark.parametrize("damage", ["cut", "other", "head", "not finite", "away"])
def test_damaged_files_of_texts_are_one_sentence(tiny_model, tmp_path, damage):
    path = tmp_path / "texts.safetensors"
    encode_to(path, tiny_model)
    state, head = load_file(path), read_head(path)[0]
    kind, words = PixArtError, "damaged"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "other":
        words = "holds no text states"
        save_file({"a": torch.zeros(1)}, path)
    elif damage == "head":
        save_file(state, path, metadata={"format": "pixart text states 1", "head": json.dumps({"texts": 3})})
    elif damage == "not finite":
        state["states.0"][:] = torch.nan
        metadata = {"format": "pixart text states 1", "head": json.dumps(vars(head))}
        save_file(state, path, metadata=metadata)
    else:
        kind, words = UsageError, "There is no file"
        path.unlink()
    with pytest.raises(kind, match=words):
        opened(tiny_model, text_states=path)("a red apple", **SMALL)


def test_encode_refuses_what_it_cannot_write(tiny_model, tmp_path):
    assert main(["encode", "a", "--model", str(tiny_model)]) == 2
    assert main(["encode", "a", "--model", str(tiny_model), "--output", str(tmp_path / "no" / "a.safetensors")]) == 2
    assert main(["encode", "a", "--model", str(tiny_model), "--output", str(tmp_path / "a.txt")]) == 2
