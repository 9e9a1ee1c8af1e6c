"""The model folder: written and read back without loss, read by stock Diffusers, refused when damaged."""

import contextlib
import json
import resource
import shutil

import pytest
import torch

from pixart.checkpoints.diffusers import (
    load_transformer,
    save_tensors,
    save_transformer,
    to_diffusers_names,
    to_official_names,
)
from pixart.checkpoints.folder import write_model_folder
from pixart.errors import PixArtError, UsageError
from pixart.model.pixart import PixArt, PixArtConfig

TINY = PixArtConfig(width=32, depth=2, num_heads=2, text_dim=16)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "apple", "3d", ","]


def random_pixart(config: PixArtConfig = TINY) -> PixArt:
    torch.manual_seed(0)
    model = PixArt(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An intact `transformer/` folder, in fp32."""
    folder = tmp_path_factory.mktemp("intact") / "transformer"
    save_transformer(random_pixart().state_dict(), TINY, folder, torch.float32)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "transformer")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_names_go_both_ways_without_loss():
    state = random_pixart().state_dict()
    assert same(to_official_names(to_diffusers_names(state, TINY.depth), TINY.depth), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saving_and_loading_loses_nothing(tmp_path, dtype):
    config = PixArtConfig(width=32, depth=2, num_heads=2, text_dim=16, out_channels=16, interpolation_scale=0.5)
    state = {name: tensor.to(dtype) for name, tensor in random_pixart(config).state_dict().items()}
    save_transformer(state, config, tmp_path, dtype)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    model = load_transformer(tmp_path)
    assert model.config == config
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values())
    assert same(model.state_dict(), {name: tensor.float() for name, tensor in state.items()})
    assert same(load_transformer(tmp_path, dtype).state_dict(), state)


def test_micro_conditions_are_told_by_the_config_and_survive(tmp_path):
    config = PixArtConfig(width=48, depth=1, num_heads=2, text_dim=16, sample_size=128, micro_conditions=True)
    state = random_pixart(config).state_dict()
    assert same(to_official_names(to_diffusers_names(state, config.depth), config.depth), state)
    save_transformer(state, config, tmp_path, torch.float32)
    assert json.loads((tmp_path / "config.json").read_text())["use_additional_conditions"] is True
    model = load_transformer(tmp_path)
    assert model.config == config and same(model.state_dict(), state)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('_conditions": true', '_conditions": null'))
    assert load_transformer(tmp_path).config == config  # as Diffusers decides where the config leaves it open
    (tmp_path / "config.json").write_text(text.replace('_conditions": true', '_conditions": 3'))
    with pytest.raises(PixArtError, match="use_additional_conditions"):
        load_transformer(tmp_path)


@torch.no_grad()
def test_stock_diffusers_reads_ours_and_we_read_theirs(saved, tmp_path):
    from diffusers import PixArtTransformer2DModel

    stock = PixArtTransformer2DModel.from_pretrained(saved).eval()
    stock.save_pretrained(tmp_path)
    model = load_transformer(tmp_path)
    assert same(model.state_dict(), random_pixart().state_dict())
    ours, theirs = (json.loads((folder / "config.json").read_text()) for folder in (saved, tmp_path))
    kept = {name for name in theirs if name not in ("_diffusers_version", "_name_or_path")}
    assert {name: ours[name] for name in kept} == {name: theirs[name] for name in kept}
    x_t, text, timestep = torch.randn(1, 8, 16, 16), torch.randn(1, 3, 16), torch.tensor([500])
    expected = stock(x_t, text, timestep, encoder_attention_mask=torch.ones(1, 3), return_dict=False)[0]
    drawn = model(x_t, timestep, text, torch.ones(1, 3, dtype=torch.bool))
    assert (drawn - expected).norm() / expected.norm() < 1e-5


def test_the_older_class_name_is_read_too(copy):
    edit_config(copy, _class_name="Transformer2DModel", attention_type=None)
    settings = json.loads((copy / "config.json").read_text())
    del settings["attention_type"], settings["use_additional_conditions"]
    (copy / "config.json").write_text(json.dumps(settings))
    assert load_transformer(copy).config == TINY


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"use_additional_conditions": True}, "not a multiple of 3"),
        ({"norm_type": "ada_norm_zero"}, "norm_type"),
        ({"num_layers": "two"}, "num_layers"),
        ({"num_layers": 0}, "num_layers"),
        ({"patch_size": -2}, "patch_size"),
        ({"num_attention_heads": 10**12}, "num_attention_heads"),
        ({"in_channels": True}, "in_channels"),
        ({"caption_channels": None}, "caption_channels"),
        ({"sample_size": 33}, "sample size of 33"),
        ({"cross_attention_dim": 31}, "cross_attention_dim"),
        ({"interpolation_scale": 0}, "interpolation_scale"),
    ],
)
def test_a_config_of_another_network_is_refused(copy, changes, complaint):
    edit_config(copy, **changes)
    with pytest.raises(PixArtError, match=complaint) as caught:
        load_transformer(copy)
    assert str(copy / "config.json") in str(caught.value)


def test_missing_and_damaged_files_are_named(copy):
    weights, config = copy / "diffusion_pytorch_model.safetensors", copy / "config.json"
    whole = weights.read_bytes()
    for damaged in (whole[:-1000], whole[:4], b"", b"\xff" * 1000):
        weights.write_bytes(damaged)
        with pytest.raises(PixArtError) as caught:
            load_transformer(copy)
        assert str(weights) in str(caught.value)
    weights.rename(copy / "diffusion_pytorch_model.bin")
    with pytest.raises(PixArtError, match=r"diffusion_pytorch_model\.bin"):
        load_transformer(copy)
    config.write_text('{"_class_name": ')
    with pytest.raises(PixArtError, match=r"config\.json"):
        load_transformer(copy)
    config.unlink()
    with pytest.raises(PixArtError, match=r"config\.json"):
        load_transformer(copy)


def test_wrong_tensors_are_listed(copy):
    from safetensors.torch import load_file, save_file

    path = copy / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    del state["proj_out.bias"]
    state["extra.weight"] = torch.zeros(1)
    state["scale_shift_table"] = torch.zeros(2, 8)
    save_file(state, path)
    with pytest.raises(PixArtError) as caught:
        load_transformer(copy)
    for complaint in (
        str(path),
        "proj_out.bias",
        "extra.weight",
        "scale_shift_table is [2, 8] instead of [2, 32]",
    ):
        assert complaint in str(caught.value)
    edit_config(copy, num_layers=4)
    with pytest.raises(PixArtError):
        load_transformer(copy)


def test_what_cannot_be_saved_is_refused(tmp_path):
    config = PixArtConfig(width=32, depth=1, num_heads=2, text_dim=16, mlp_ratio=2)
    with pytest.raises(UsageError):
        save_transformer(PixArt(config).state_dict(), config, tmp_path, torch.float32)
    with pytest.raises(PixArtError):
        save_transformer({}, TINY, tmp_path, torch.float32)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """All that a model folder is made of, tiny and random."""
    from diffusers import AutoencoderKL
    from transformers import BertConfig, BertModel, BertTokenizerFast

    text_folder = tmp_path_factory.mktemp("text")
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 128}
    BertModel(BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes)).save_pretrained(text_folder)
    (text_folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast.from_pretrained(text_folder).save_pretrained(text_folder)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=8,
        norm_num_groups=2,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    return {
        "transformer_state": random_pixart().state_dict(),
        "config": TINY,
        "vae": vae,
        "text_encoder_folder": text_folder,
        "tokenizer_folder": text_folder,
        "dtype": torch.float16,
        "styles": {"3D": {"prompt": "{prompt}, 3D", "negative_prompt": ""}},
    }


def test_stock_pipeline_draws_from_our_folder(parts, tmp_path):
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline
    from safetensors.torch import load_file

    dest = tmp_path / "models" / "tiny"
    write_model_folder(dest, **parts)
    assert [path.name for path in dest.parent.iterdir()] == ["tiny"]  # no temporary folder left
    assert json.loads((dest / "styles.json").read_text()) == parts["styles"]
    for weights in dest.rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(weights).values() if tensor.is_floating_point()} == {torch.float16}

    pipe = PixArtAlphaPipeline.from_pretrained(dest)
    assert isinstance(pipe.scheduler, DPMSolverMultistepScheduler)
    assert pipe.scheduler.config.prediction_type == "flow_prediction"
    assert pipe.text_encoder.dtype == pipe.transformer.dtype == pipe.vae.dtype == torch.float32
    assert pipe.tokenizer("a red apple, 3D").input_ids == [2, 5, 6, 7, 9, 8, 3]
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red apple, 3D", num_inference_steps=2).images[0]
    assert image.size == (256, 256)
    assert min(low for low, _ in image.getextrema()) < max(high for _, high in image.getextrema())


def test_parts_that_do_not_fit_are_refused(parts, tmp_path):
    dest = tmp_path / "model"
    wrong_text = PixArtConfig(width=32, depth=2, num_heads=2, text_dim=17)
    wrong_size = PixArtConfig(width=32, depth=2, num_heads=2, text_dim=16, sample_size=16)
    wrong_latent = PixArtConfig(width=32, depth=2, num_heads=2, text_dim=16, in_channels=4)
    for config in (wrong_text, wrong_size, wrong_latent):
        with pytest.raises(UsageError):
            write_model_folder(dest, **(parts | {"config": config}))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(PixArtError, match=r"config\.json"):
        write_model_folder(dest, **(parts | {"text_encoder_folder": empty}))
    with pytest.raises(PixArtError, match=r"tokenizer\.json"):
        write_model_folder(dest, **(parts | {"tokenizer_folder": empty}))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # nothing half-written
    (empty / "mine.txt").touch()
    with pytest.raises(UsageError):
        write_model_folder(empty, **parts)


@contextlib.contextmanager
def disk_with_room_for(size: int):
    """No file can grow over `size` bytes: what a full disk says comes from the system, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [100, 10_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(parts, tmp_path, room):
    with disk_with_room_for(room), pytest.raises(PixArtError) as caught:
        write_model_folder(tmp_path / "model", **parts)
    assert "\n" not in str(caught.value)
    with disk_with_room_for(room), pytest.raises(PixArtError, match=r"weights\.safetensors"):
        save_tensors({"a": torch.zeros(10_000)}, tmp_path / "weights.safetensors", torch.float32)
    assert list(tmp_path.iterdir()) == []
