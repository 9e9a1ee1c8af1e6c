"""Adapters: files of every dialect, equal to PEFT and LyCORIS on the stock transformer, and trained ones."""

import copy
import json
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel
from lycoris import LycorisNetwork, create_lycoris
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

import pixart
from pixart.checkpoints.adapters import Lora, layer_shapes, read_adapter, write_adapter
from pixart.checkpoints.adapters import check_fit as check_all
from pixart.checkpoints.diffusers import official_shapes, to_official_names
from pixart.cli import main
from pixart.errors import PixArtError, UsageError
from pixart.model.adapters import adapted, attach, detach, merge
from pixart.model.pixart import PixArt, PixArtConfig
from pixart.runtime.memory import Memory

EXACT = 1e-5
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2"]
ALL = [*TARGETS, "pos_embed.proj", "linear", "proj_out", "linear_1", "linear_2"]


@pytest.fixture(scope="module")
def stock() -> PixArtTransformer2DModel:
    """Diffusers' own transformer with micro-conditions, so that every layer that an adapter can change is there."""
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=48, sample_size=16, patch_size=2, caption_channels=24, use_additional_conditions=True,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def config(stock) -> dict:
    return dict(stock.config)


def check_fit(adapter, name: str, transformer: dict, text: dict) -> None:
    check_all([Lora(name, 1.0, adapter)], transformer, text)


def ours(stock) -> PixArt:
    sizes = {"in_channels": 4, "out_channels": 8, "width": 48, "depth": 2, "num_heads": 3, "text_dim": 24}
    model = PixArt(PixArtConfig(**sizes, sample_size=16, micro_conditions=True))
    model.load_state_dict(to_official_names(stock.state_dict(), 2))
    return model.eval()


@torch.no_grad()
def predicted(model: torch.nn.Module) -> torch.Tensor:
    """The prediction of the stock transformer, of one that PEFT has wrapped, or of ours."""
    rng = torch.Generator().manual_seed(1)
    x_t, text = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 5, 24, generator=rng)
    timestep, mask = torch.tensor([300.0, 700.0]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    size, ratio = torch.tensor([[128.0, 128.0], [64.0, 128.0]]), torch.tensor([[1.0], [0.5]])
    if isinstance(model, PixArt):
        return model(x_t, timestep, text, mask, torch.cat([size, ratio], 1))
    added = {"resolution": size, "aspect_ratio": ratio}
    kept = {"timestep": timestep, "encoder_attention_mask": mask, "added_cond_kwargs": added}
    return model(x_t, encoder_hidden_states=text, **kept).sample


def scrambled(model: torch.nn.Module) -> None:
    """Numbers that change the prediction; an adapter is made so that it changes nothing at first."""
    rng = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=rng)
            parameter.data = parameter.data * (1 + 0.2 * noise) if "magnitude" in name else 0.2 * noise


PEFT = {
    "lora": peft.LoraConfig(r=4, lora_alpha=7, target_modules=ALL),
    "dora": peft.LoraConfig(r=4, lora_alpha=8, target_modules=ALL, use_dora=True),
    "rslora": peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["to_q", "to_k"], use_rslora=True,
        rank_pattern={"attn1.to_q": 2}, alpha_pattern={"attn2.to_k": 3},
    ),
    "lokr": peft.LoKrConfig(r=4, alpha=6, target_modules=TARGETS),
    "lokr of full factors": peft.LoKrConfig(r=400, alpha=300, target_modules=TARGETS),
    "loha": peft.LoHaConfig(r=4, alpha=6, target_modules=TARGETS),
}  # fmt: skip
LYCORIS = {
    "lora": {"algo": "lora"},
    "loha": {"algo": "loha"},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr of two products": {"algo": "lokr", "factor": 4, "decompose_both": True, "linear_dim": 1},
    "lokr of full factors": {"algo": "lokr", "linear_dim": 1000},
    "dora": {"algo": "lora", "dora_wd": True},
    "dora over columns": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
}


def with_peft(stock, kind: str, folder: Path) -> torch.Tensor:
    """Write an adapter as PEFT does; returns what PEFT predicts with it."""
    model = peft.get_peft_model(copy.deepcopy(stock), PEFT[kind])
    scrambled(model)
    model.save_pretrained(folder)
    return predicted(model.eval())


def with_lycoris(stock, kind: str, file: Path) -> torch.Tensor:
    """The same as SimpleTuner does it, with LyCORIS."""
    model, settings = copy.deepcopy(stock), {"linear_dim": 4, "linear_alpha": 3} | LYCORIS[kind]
    convolutions = kind != "dora over columns"
    LycorisNetwork.apply_preset({
        "target_module": ["Attention", "FeedForward", *(["PatchEmbed"] if convolutions else [])],
        "enable_conv": convolutions,
    })  # fmt: skip
    network = create_lycoris(model, 1.0, **settings)
    network.apply_to()
    scrambled(network)
    network.eval().save_weights(file, torch.float32, {})
    return predicted(model)


def with_ours(stock, source: Path, **options) -> torch.Tensor:
    model = ours(stock)
    attach(model, read_adapter(source).layers, **options)
    return predicted(model)


@pytest.mark.parametrize("kind", PEFT)
def test_what_peft_writes_does_here_what_it_does_there(kind, stock, config, tmp_path):
    expected = with_peft(stock, kind, tmp_path / "peft")
    adapter = read_adapter(tmp_path / "peft")
    check_fit(adapter, "it", config, {})
    assert not adapter.notices
    model = ours(stock)
    before = predicted(model)
    assert (before - expected).abs().max() > 1e-3
    attach(model, adapter.layers)
    assert (predicted(model) - expected).abs().max() < EXACT
    merged = copy.deepcopy(model)
    merge(merged)
    assert (predicted(merged) - expected).abs().max() < EXACT and not adapted(merged)
    detach(model)
    assert torch.equal(predicted(model), before) and model.state_dict().keys() == ours(stock).state_dict().keys()


@pytest.mark.parametrize("kind", LYCORIS)
def test_what_lycoris_writes_does_here_what_it_does_there(kind, stock, config, tmp_path):
    expected = with_lycoris(stock, kind, tmp_path / "it.safetensors")
    check_fit(read_adapter(tmp_path / "it.safetensors"), "it", config, {})
    assert (with_ours(stock, tmp_path / "it.safetensors") - expected).abs().max() < EXACT


@pytest.mark.parametrize("form", ["diffusers", "peft", "comfyui", "official", "kohya", "lycoris"])
@pytest.mark.parametrize("kind", ["lora", "dora", "rslora", "loha"])
def test_every_form_goes_round(kind, form, stock, tmp_path):
    expected = with_peft(stock, kind, tmp_path / "peft")
    adapter = read_adapter(tmp_path / "peft")
    if (kind, form) == ("loha", "peft"):
        with pytest.raises(UsageError):
            write_adapter(adapter, tmp_path / "it", form)
        assert not (tmp_path / "it").exists()
        return
    written = tmp_path / ("it" if form == "peft" else "it.safetensors")
    write_adapter(adapter, written, form)
    assert (with_ours(stock, written) - expected).abs().max() < EXACT
    back = tmp_path / "back.safetensors"
    write_adapter(read_adapter(written), back, "diffusers")
    assert (with_ours(stock, back) - expected).abs().max() < EXACT


def test_peft_reads_what_is_written_for_it(stock, tmp_path):
    expected = with_peft(stock, "dora", tmp_path / "peft")
    write_adapter(read_adapter(tmp_path / "peft"), tmp_path / "again", "peft")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(stock), tmp_path / "again")
    assert (predicted(model.eval()) - expected).abs().max() < EXACT


def test_a_fused_adapter_is_split_and_joined_without_a_change(stock, tmp_path):
    """Rank and numbers come back: query, key and value share their lora_A then."""
    rng = torch.Generator().manual_seed(3)
    fused = {
        "blocks.0.attn.qkv.lora_A.weight": torch.randn(4, 48, generator=rng),
        "blocks.0.attn.qkv.lora_B.weight": torch.randn(144, 4, generator=rng),
        "blocks.1.cross_attn.kv_linear.lora_A.weight": torch.randn(2, 48, generator=rng),
        "blocks.1.cross_attn.kv_linear.lora_B.weight": torch.randn(96, 2, generator=rng),
    }
    save_file(fused, tmp_path / "fused.safetensors")
    write_adapter(read_adapter(tmp_path / "fused.safetensors"), tmp_path / "split.safetensors")
    split = load_file(tmp_path / "split.safetensors")
    assert len(split) == 10
    assert torch.equal(split["transformer.transformer_blocks.0.attn1.to_k.lora_B.weight"],
                       fused["blocks.0.attn.qkv.lora_B.weight"][48:96])  # fmt: skip
    write_adapter(read_adapter(tmp_path / "split.safetensors"), tmp_path / "joined.safetensors", "official")
    joined = load_file(tmp_path / "joined.safetensors")
    assert all(torch.equal(joined[name], tensor) for name, tensor in fused.items())
    assert joined["blocks.0.attn.qkv.alpha"] == 4


def renamed(folder: Path, file: Path, name, *, alpha: float | None = None, metadata: dict | None = None) -> Path:
    """A PEFT adapter under the names of another writer; `name(module, kind)` gives the key."""
    tensors = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        module, _, kind = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        tensors[name(module, kind)] = tensor
        if alpha is not None:
            tensors[name(module, "alpha")] = torch.tensor(alpha)
    save_file(tensors, file, metadata)
    return file


def flat(prefix: str):
    endings = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}
    return lambda module, kind: f"{prefix}{module.replace('.', '_')}.{endings.get(kind, kind)}"


def test_alpha_is_found_where_each_writer_has_it(stock, tmp_path):
    expected = with_peft(stock, "lora", tmp_path / "peft")  # alpha 7 of rank 4
    folder, file = tmp_path / "peft", tmp_path / "it.safetensors"
    plain = lambda prefix: lambda module, kind: f"{prefix}{module}.{kind}.weight"  # noqa: E731
    settings = {"transformer.r": 4, "transformer.lora_alpha": 7}
    for options in (
        {"name": flat("lora_transformer_"), "alpha": 7.0},  # OneTrainer before 2026
        {"name": flat("lycoris_"), "alpha": 7.0},
        {"name": plain("transformer."), "metadata": {"lora_adapter_metadata": json.dumps(settings)}},  # SimpleTuner
        {"name": plain("base_model.model."), "metadata": {"lora_adapter_metadata": json.dumps({"lora_alpha": 7})}},
    ):
        renamed(folder, file, **options)
        assert not read_adapter(file).notices
        assert (with_ours(stock, file) - expected).abs().max() < EXACT
    # The official script's second copy: its alpha is in the folder above, else PEFT's 8 is a guess, which is said.
    copy_ = folder / "transformer_lora" / "pytorch_lora_weights.safetensors"
    copy_.parent.mkdir()
    renamed(folder, copy_, plain("unet.base_model.model."))
    assert not read_adapter(copy_).notices and (with_ours(stock, copy_) - expected).abs().max() < EXACT
    renamed(folder, file, plain("unet.base_model.model."))
    guessed = read_adapter(file)
    assert guessed.notices and next(iter(guessed.layers.values()))[0].scale == 8 / 4
    # No alpha at all in the names of Diffusers: the scale is folded in.
    renamed(folder, file, plain("transformer."))
    assert not read_adapter(file).notices and next(iter(read_adapter(file).layers.values()))[0].scale == 1


def test_strength_and_several_at_once(stock, tmp_path):
    """Changes of the weights add up, DoRA's too, and a strength of 0 is the model itself."""
    with_peft(stock, "lora", tmp_path / "a")
    with_peft(stock, "dora", tmp_path / "b")
    model = ours(stock)
    before = predicted(model)
    for name, strength in (("a", 0.3), ("b", 0.6)):
        attach(model, read_adapter(tmp_path / name).layers, strength)
    together = predicted(model)
    weights = dict(ours(stock).state_dict())
    for name, strength in (("a", 0.3), ("b", 0.6)):
        alone = ours(stock)
        attach(alone, read_adapter(tmp_path / name).layers)
        merge(alone)
        change = {key: tensor - ours(stock).state_dict()[key] for key, tensor in alone.state_dict().items()}
        weights = {key: tensor + strength * change[key] for key, tensor in weights.items()}
    summed = ours(stock)
    summed.load_state_dict(weights)
    assert (predicted(summed) - together).abs().max() < EXACT
    assert torch.equal(with_ours(stock, tmp_path / "b", strength=0.0), before)


def test_shapes_are_those_of_the_network(stock, config):
    expected = official_shapes(ours(stock).config)
    for name, (rows, columns) in layer_shapes(config).items():
        assert expected[f"{name}.weight"][0] == rows and np.prod(expected[f"{name}.weight"][1:]) == columns


def saved(path: Path, tensors: dict) -> Path:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
    return path


def test_what_is_no_adapter_for_this_model_is_refused(stock, config, tmp_path):
    with_peft(stock, "lora", tmp_path / "peft")
    good = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    first = "base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight"
    file = tmp_path / "it.safetensors"
    bad = {
        "a key that nothing takes": good | {"base_model.model.nowhere.lora_A.weight": torch.ones(4, 48)},
        "another architecture": {"unet.down_blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 48)},
        "a full weight": good | {"base_model.model.proj_out.modules_to_save.weight": torch.ones(2)},
        "NaN": good | {first: torch.full_like(good[first], torch.nan)},
        "rank 0": good | {first: torch.ones(0, 48), first.replace("lora_A", "lora_B"): torch.ones(48, 0)},
        "a layer by two names": good | {name.replace("base_model.model", "transformer"): t for name, t in good.items()},
        "half of a pair": {name: tensor for name, tensor in good.items() if name != first},
        "ranks that differ": good | {first: torch.ones(3, 48)},
        "whole numbers": good | {first: torch.ones(4, 48, dtype=torch.int8)},
        "nothing": {},
    }
    for tensors in bad.values():
        with pytest.raises(PixArtError):
            read_adapter(saved(file, tensors))
    for content in (b"", b"PK\x03\x04", b"\x80\x04.", file.read_bytes()[:-3]):
        file.write_bytes(content)
        with pytest.raises(PixArtError):
            read_adapter(file)
    torch.save(good, tmp_path / "adapter_model.bin")
    for place in (tmp_path / "adapter_model.bin", tmp_path / "none", tmp_path):
        with pytest.raises(PixArtError):
            read_adapter(place)
    few_rows = {f"transformer.transformer_blocks.0.ff.net.0.proj.lora_{k}.weight": torch.ones(48, 48) for k in "AB"}
    with pytest.raises(PixArtError):
        check_fit(read_adapter(saved(file, few_rows)), "it", config, {})
    wide = read_adapter(tmp_path / "peft")
    for other in ({"cross_attention_dim": 96}, {"num_layers": 1}, {"use_additional_conditions": False}):
        with pytest.raises(PixArtError):
            check_fit(wide, "it", config | other, {})
    text = {"text_encoder.encoder.layer.0.attention.self.query.lora_A.weight": torch.ones(2, 8),
            "text_encoder.encoder.layer.0.attention.self.query.lora_B.weight": torch.ones(8, 2)}  # fmt: skip
    adapter = read_adapter(saved(file, text))
    check_fit(adapter, "it", config, {"encoder.layer.0.attention.self.query": (8, 8)})
    with pytest.raises(PixArtError):
        check_fit(adapter, "it", config, {"encoder.layer.0.attention.self.query": (16, 16)})


@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_text_encoders_take_lora_as_in_peft(kind, flattened, tmp_path):
    torch.manual_seed(0)
    if kind == "t5":
        sizes = {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "feed_forward_proj": "gated-gelu",
        }
        encoder, targets = T5EncoderModel(T5Config(vocab_size=20, **sizes)), ["q", "k", "v", "o", "wi_0", "wo"]
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        encoder, targets = BertModel(BertConfig(vocab_size=20, **sizes)), ["query", "key", "value", "output.dense"]
    tokens = torch.arange(10)[None]
    wrapped = peft.get_peft_model(copy.deepcopy(encoder), peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets))
    scrambled(wrapped)
    wrapped.save_pretrained(tmp_path)
    place = flat("lora_te1_") if flattened else lambda module, kind: f"text_encoder.{module}.{kind}.weight"
    adapter = read_adapter(renamed(tmp_path, tmp_path / "it.safetensors", place))
    with torch.no_grad():
        expected, before = wrapped.eval()(tokens)[0], encoder.eval()(tokens)[0]
        attach(encoder, adapter.text_layers)
        assert (encoder(tokens)[0] - expected).abs().max() < EXACT < (before - expected).abs().max()


# From the command line, with a model folder.


@pytest.fixture(scope="module")
def style(tiny_model, tmp_path_factory) -> Path:
    """An adapter for the tiny model, transformer and text encoder, that changes its images visibly."""
    rng, tensors = np.random.default_rng(4), {}
    blocks = (f"transformer_blocks.{name}" for name in ("0.attn1.to_q", "0.attn2.to_v", "1.ff.net.2"))
    text = (f"text_encoder.encoder.layer.{name}" for name in ("0.attention.self.query", "1.output.dense"))
    for name in (*(f"transformer.{name}" for name in (*blocks, "caption_projection.linear_1")), *text):
        part, _, module = name.partition(".")
        weights = next((tiny_model / part).glob("*.safetensors"))
        rows, columns = load_file(weights)[f"{module}.weight"].shape
        shapes = {"lora_A": (2, columns), "lora_B": (rows, 2)}
        tensors |= {f"{name}.{k}.weight": torch.from_numpy(rng.normal(0, 0.5, s)).float() for k, s in shapes.items()}
    return saved(tmp_path_factory.mktemp("adapters") / "style.safetensors", tensors)


def image(model: Path, **options) -> np.ndarray:
    pipe = pixart.Pipeline.from_pretrained(model, **({"engine": "torch", "dtype": "float32"} | options))
    return np.asarray(pipe("a red fox", seed=1, width=64, height=64, steps=2).images[0]).astype(int)


def test_a_merged_model_is_the_model_with_its_adapter(style, tiny_model, tmp_path):
    """Also for stock Diffusers; and what the adapter does not change keeps its bits."""
    assert main(["merge", str(tiny_model), str(tmp_path / "merged"), "--lora", f"{style}:0.7"]) == 0
    for part in ("transformer", "text_encoder"):
        before, after = (load_file(next((m / part).glob("*.safetensors"))) for m in (tiny_model, tmp_path / "merged"))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert before.keys() == after.keys() and len(changed) == (4 if part == "transformer" else 2)
    assert np.abs(image(tmp_path / "merged") - image(tiny_model)).mean() > 1
    theirs = PixArtAlphaPipeline.from_pretrained(tmp_path / "merged")
    assert theirs.transformer.config.num_layers == 2
    for wrong in ([str(style)], [f"{style}:x"], [f"{style}:1e9"], [], [str(tmp_path / "none")]):
        flags = ["--lora", *wrong] if wrong else []
        dest = tmp_path / ("merged" if wrong == [str(style)] else "other")
        assert main(["merge", str(tiny_model), str(dest), *flags]) in (1, 2)
    assert not (tmp_path / "other").exists()


def test_info_says_what_an_adapter_is(style, capsys):
    assert main(["info", str(style), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "adapter (lora)" and facts["layers"] == 4 and facts["text_encoder_layers"] == 2


def test_convert_writes_the_forms_of_adapters(style, tiny_model, tmp_path, capsys):
    assert main(["convert", str(style), str(tmp_path / "c.safetensors"), "--to", "comfyui"]) == 0
    assert "diffusion_model.blocks.0.attn.qkv.lora_A.weight" in load_file(tmp_path / "c.safetensors")
    assert main(["convert", str(tmp_path / "c.safetensors"), str(tmp_path / "d.safetensors"), "--to", "diffusers"]) == 0
    back, first = load_file(tmp_path / "d.safetensors"), load_file(style)  # back, with zeros for to_k and to_v
    assert all(torch.equal(back[name], tensor) for name, tensor in first.items())
    assert not any(back[name].any() for name in back.keys() - first.keys() if "lora_B" in name)
    for source, form in ((style, "onnx"), (style, "peft"), (tiny_model, "comfyui"), (style, "reparameterized")):
        assert main(["convert", str(source), str(tmp_path / "no"), "--to", form]) in (1, 2)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("options", [{}, {"memory": Memory(staged=True)}, {"engine": "onnx"}, {"dtype": "bfloat16"}])
def test_adapters_change_between_calls_while_the_model_stays(options, style, tiny_model_with_graphs, tmp_path):
    model = tiny_model_with_graphs
    plain, strong = image(model, **options), image(model, loras=[f"{style}:0.7"], **options)
    assert np.abs(strong - plain).mean() > 1
    assert main(["merge", str(model), str(tmp_path / "merged"), "--lora", f"{style}:0.7"]) == 0
    merged = image(tmp_path / "merged", **options | {"engine": "torch"})
    assert np.abs(strong - merged).mean() < (3 if options.get("dtype") == "bfloat16" else 0.5)
    pipe = pixart.Pipeline.from_pretrained(model, **({"engine": "torch", "dtype": "float32"} | options))

    def again(loras: list) -> tuple[np.ndarray, dict]:
        pipe.set_loras(loras)
        result = pipe("a red fox", seed=1, width=64, height=64, steps=2)
        return np.asarray(result.images[0]).astype(int), result.settings[0]

    (first, settings), (none, plain_settings), (half, _) = again([(style, 0.7)]), again([]), again([(style, 0.3)])
    assert np.array_equal(first, strong) and np.array_equal(none, plain) and not np.array_equal(half, first)
    assert settings["loras"][0]["strength"] == 0.7 and settings["loras"][0]["name"] == style.name
    assert "loras" not in plain_settings
    with pytest.raises(PixArtError):
        pipe.set_loras([style, tmp_path / "none.safetensors"])
    assert np.array_equal(np.asarray(pipe("a red fox", seed=1, width=64, height=64, steps=2).images[0]), half)


def test_cached_texts_are_those_of_the_adapter_in_use(style, tiny_model, tmp_path):
    """The adapter changes the text encoder, so its texts are other files of the cache."""
    cached = {"memory": Memory(text_cache=tmp_path / "texts")}
    for loras in ([], [style], [f"{style}:0.5"], []):
        expected = image(tiny_model, loras=loras)
        assert np.array_equal(image(tiny_model, loras=loras, **cached), expected)
        assert np.array_equal(image(tiny_model, loras=loras, **cached), expected)  # from the cache


def test_generate_and_verify_take_adapters(style, tiny_model_with_graphs, tmp_path, capsys):
    words = ["--model", str(tiny_model_with_graphs), "--seed", "1", "--steps", "2", "--width", "64", "--height", "64"]
    both = ["--lora", f"{style}:0.3", "--lora", f"{style}:0.4"]
    assert main(["generate", *words, *both, "a red fox", "--output", f"{tmp_path}/a.png"]) == 0
    verify = ["verify", f"{tmp_path}/a.png", "--model", str(tiny_model_with_graphs)]
    assert main(verify) == 2 and main([*verify, *both]) == 0 and main([*verify, *both[:2]]) == 1
    assert main(["generate", "a red fox", *words, "--lora", str(tmp_path), "--output", f"{tmp_path}/b.png"]) == 1
    assert not (tmp_path / "b.png").exists()
