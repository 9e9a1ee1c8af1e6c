"""A PixArt transformer as the `transformer/` folder that Diffusers writes and reads, and back, without loss.

Two things in it are ours. `null_caption.safetensors`, which Diffusers does not look at, keeps the null caption of an
official checkpoint. And a network with PixArt-Σ's query and key norms or key-value compression, which Diffusers has no
class for, says so in its config by a `norm_type` of its own, so that Diffusers refuses it.

Inside, tensors have their official names: Diffusers splits the fused query-key-value layers and renames the rest
(huggingface/diffusers, `scripts/convert_pixart_alpha_to_diffusers.py`).
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.checkpoints.tensors import check_tensors, refuse_not_finite, save_tensors, shapes, widened
from pixart.errors import PixArtError, UsageError, shown
from pixart.files import read_json_object, write_json
from pixart.weights import OnBytes, map_tensors, read_headers, refuse_quantised, stream, weight_files

if TYPE_CHECKING:
    import torch

    from pixart.model.pixart import PixArt, PixArtConfig


CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
NULL_CAPTION_NAME = "null_caption.safetensors"
NULL_CAPTION = "y_embedder.y_embedding"  # its tensor, by the official name
NOT_TRAINED = "pos_embed.pos_embed"  # the position grid, which older versions of Diffusers wrote too
CLASS_NAMES = ("PixArtTransformer2DModel", "Transformer2DModel")  # the second is what the first releases wrote
SIGMA_NORM_TYPE = "ada_norm_single_sigma"
FORMAT_VERSION = "0.36.0"  # the oldest Diffusers that we support, written as the version that made the folder

# What a config.json must say for the network to be the one in model/pixart.py.
FIXED_SETTINGS = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_type": "default",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "norm_type": "ada_norm_single",
}
# The entries of a config.json that are sizes; the limit is far above that of any real network.
SIZES = (
    "attention_head_dim", "caption_channels", "cross_attention_dim", "in_channels", "num_attention_heads", "num_layers",
    "out_channels", "patch_size", "sample_size",
)  # fmt: skip
MAX_SIZE = 10_000
MAX_LAYERS = 200


def save_transformer(
    state: "dict[str, torch.Tensor]",
    config: "PixArtConfig",
    folder: Path | str,
    dtype: "torch.dtype | None",
    null_caption: "torch.Tensor | None" = None,
) -> None:
    """Write config.json and the weights of a PixArt (official names), in `dtype` (None: as they are), into `folder`.

    `null_caption` (L, T) is written beside them, as it is.

    Raises:
        UsageError: the network has a size that Diffusers cannot express.
        PixArtError: `state` is not the state dict of a PixArt of this config, or the disk refuses the weights.
    """
    if config.mlp_ratio != 4:
        raise UsageError(f"Diffusers knows only an mlp_ratio of 4, not {config.mlp_ratio}; this model cannot be saved.")
    check_tensors(shapes(state), official_shapes(config), "the state dict")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(to_diffusers_names(state, config.depth), folder / WEIGHTS_NAME, dtype)
    if null_caption is not None:
        save_tensors({NULL_CAPTION: null_caption}, folder / NULL_CAPTION_NAME, None)
    write_json(folder / CONFIG_NAME, diffusers_config(config))


def load_transformer(
    folder: Path | str,
    dtype: "torch.dtype | None" = None,
    device: "torch.device | str" = "cpu",
    on_bytes: OnBytes | None = None,
) -> "PixArt":
    """Read a `transformer/` folder into a PixArt with weights of `dtype` (fp32 if None), in evaluation mode.

    Each tensor goes from the file to its place on `device`; `on_bytes` is called with the bytes that were read.

    Raises:
        PixArtError: a file is missing or damaged, or holds another network; the message names the file.
    """
    import torch

    from pixart.model.pixart import PixArt

    config, paths = check_transformer(Path(folder))
    with torch.device("meta"):
        model = PixArt(config).to(dtype or torch.float32)
    places = to_diffusers_names(model.to_empty(device=device).state_dict(), config.depth)
    with torch.no_grad():
        for name, tensor in stream(paths, on_bytes):
            if name != NOT_TRAINED:
                places[name].copy_(tensor)
    return model.eval()


def assemble(config: "PixArtConfig", state: "dict[str, torch.Tensor]", dtype: "torch.dtype") -> "PixArt":
    """A PixArt in evaluation mode with the tensors `state` (official names), converted to `dtype` where they differ."""
    import torch

    from pixart.model.pixart import PixArt

    with torch.device("meta"):
        model = PixArt(config)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    return model.eval()


def check_transformer(folder: Path) -> "tuple[PixArtConfig, list[Path]]":
    """Config and weights files of a `transformer/` folder, in which every tensor is that of the config, by the headers.

    Raises:
        PixArtError: a file is missing or damaged, or holds another network; the message names the file.
    """
    import torch

    from pixart.model.pixart import PixArt

    config = read_config(folder / CONFIG_NAME)
    with torch.device("meta"):
        expected = to_diffusers_names(PixArt(config).state_dict(), config.depth)
    paths = weight_files(folder, WEIGHTS_NAME)
    refuse_quantised(paths)
    where = str(paths[0] if len(paths) == 1 else folder / f"{WEIGHTS_NAME}.index.json")
    found = {name: stored.shape for name, stored in read_headers(paths).items() if name != NOT_TRAINED}
    check_tensors(found, shapes(expected), where)
    return config, paths


def read_transformer(folder: Path | str) -> "tuple[PixArtConfig, dict[str, torch.Tensor]]":
    """Config and tensors (official names) of a `transformer/` folder as they are stored, for a conversion.

    Raises:
        PixArtError: as `check_transformer`; or there is NaN or infinity among the weights.
    """
    config, paths = check_transformer(Path(folder))
    state = {name: tensor for path in paths for name, tensor in map_tensors(path).items() if name != NOT_TRAINED}
    refuse_not_finite(state, str(folder))
    return config, to_official_names(widened(state), config.depth)


def read_null_caption(folder: Path | str, text_dim: int) -> "torch.Tensor | None":
    """The null caption (L, T) beside a transformer's weights; None where there is none.

    Raises:
        PixArtError: it is damaged, or of another width than the text states that the transformer reads.
    """
    path = Path(folder) / NULL_CAPTION_NAME
    if not path.is_file():
        return None
    state = map_tensors(path)
    caption = state.get(NULL_CAPTION)
    if caption is None or caption.dim() != 2 or caption.shape[1] != text_dim:
        raise PixArtError(f"{path} must hold {NULL_CAPTION} of {text_dim} columns; it holds {shapes(state)}.")
    refuse_not_finite(state, str(path))
    return widened(state)[NULL_CAPTION]


def diffusers_config(config: "PixArtConfig") -> dict:
    """config.json of a `PixArtTransformer2DModel` with the sizes of `config`."""
    sigma = {
        "norm_type": SIGMA_NORM_TYPE,
        "qk_norm": config.qk_norm,
        "kv_compress": config.kv_compress,
        "kv_compress_blocks": list(config.kv_compress_blocks),
    }
    settings = {
        "_class_name": CLASS_NAMES[0],
        "_diffusers_version": FORMAT_VERSION,
        **FIXED_SETTINGS,
        "attention_head_dim": config.width // config.num_heads,
        "caption_channels": config.text_dim,
        "cross_attention_dim": config.width,
        "dropout": 0.0,
        "in_channels": config.in_channels,
        "interpolation_scale": config.interpolation_scale,
        "norm_num_groups": 32,
        "num_attention_heads": config.num_heads,
        "num_embeds_ada_norm": 1000,
        "num_layers": config.depth,
        "out_channels": config.out_channels,
        "patch_size": config.patch_size,
        "sample_size": config.sample_size,
        "upcast_attention": False,
        "use_additional_conditions": config.micro_conditions,
    }
    return settings | sigma if config.qk_norm or config.kv_compress_blocks else settings


def read_config(path: Path) -> "PixArtConfig":
    """config.json of a `transformer/` folder -> PixArtConfig; PixArtError if it is not such a file."""
    from pixart.model.pixart import PixArtConfig

    settings = read_settings(path)
    sigma = settings if settings["norm_type"] == SIGMA_NORM_TYPE else {}
    try:
        return PixArtConfig(
            in_channels=settings["in_channels"],
            out_channels=settings["out_channels"],
            width=settings["cross_attention_dim"],
            depth=settings["num_layers"],
            num_heads=settings["num_attention_heads"],
            patch_size=settings["patch_size"],
            text_dim=settings["caption_channels"],
            sample_size=settings["sample_size"],
            interpolation_scale=settings.get("interpolation_scale"),
            micro_conditions=settings["use_additional_conditions"],
            qk_norm=sigma.get("qk_norm", False),
            kv_compress=sigma.get("kv_compress", 1),
            kv_compress_blocks=tuple(sigma.get("kv_compress_blocks", ())),
        )
    except UsageError as error:
        raise PixArtError(f"{path}: {error}") from error


def read_settings(path: Path) -> dict:
    """What config.json of a `transformer/` folder says, every size in it checked, without torch.

    Raises:
        PixArtError: the file is missing, damaged, or describes a network that pixart does not have.
    """
    settings = {"attention_type": "default"} | read_json_object(path, nonfinite=True)
    if settings.get("use_additional_conditions") is None:  # Diffusers' own default
        settings["use_additional_conditions"] = settings.get("sample_size") == 128

    def check(name: str, fits: bool, allowed: str) -> None:
        if not fits:
            raise PixArtError(f"{path} has {name} = {shown(settings.get(name))}; pixart reads only {allowed}.")

    def size(name: str, most: int) -> bool:
        value = settings.get(name)
        return type(value) is int and 1 <= value <= most

    sigma = settings.get("norm_type") == SIGMA_NORM_TYPE
    check("_class_name", settings.get("_class_name") in CLASS_NAMES, " and ".join(CLASS_NAMES))
    for name, value in FIXED_SETTINGS.items():
        check(name, settings.get(name) == value or (sigma and name == "norm_type"), repr(value))
    for name in SIZES:
        most = MAX_LAYERS if name == "num_layers" else MAX_SIZE
        check(name, size(name, most), f"a whole number from 1 to {most}")
    width = settings["num_attention_heads"] * settings["attention_head_dim"]
    check("cross_attention_dim", settings["cross_attention_dim"] == width, f"heads times their width, {width}")
    check("use_additional_conditions", isinstance(settings["use_additional_conditions"], bool), "true, false or null")
    scale = settings.get("interpolation_scale")
    fits = scale is None or (isinstance(scale, int | float) and 0 < scale < math.inf)
    check("interpolation_scale", fits, "null or a number above 0")
    if sigma:
        blocks = settings.get("kv_compress_blocks", [])
        check("qk_norm", isinstance(settings.get("qk_norm", False), bool), "true or false")
        check("kv_compress", size("kv_compress", MAX_SIZE) or "kv_compress" not in settings, "a number from 1")
        fits = isinstance(blocks, list) and all(type(block) is int for block in blocks)
        check("kv_compress_blocks", fits, "a list of numbers")
    return settings


def official_shapes(config: "PixArtConfig") -> dict[str, list[int]]:
    """Name and shape of every tensor in the state dict of a PixArt."""
    import torch

    from pixart.model.pixart import PixArt

    with torch.device("meta"):
        return shapes(PixArt(config).state_dict())


# Official name -> Diffusers names; a fused layer is the Diffusers layers stacked along dimension 0.
LAYERS = {
    "x_embedder.proj": ["pos_embed.proj"],
    "t_embedder.mlp.0": ["adaln_single.emb.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["adaln_single.emb.timestep_embedder.linear_2"],
    "t_block.1": ["adaln_single.linear"],
    "y_embedder.y_proj.fc1": ["caption_projection.linear_1"],
    "y_embedder.y_proj.fc2": ["caption_projection.linear_2"],
    "final_layer.linear": ["proj_out"],
}
MICRO_CONDITION_LAYERS = {
    "csize_embedder.mlp.0": ["adaln_single.emb.resolution_embedder.linear_1"],
    "csize_embedder.mlp.2": ["adaln_single.emb.resolution_embedder.linear_2"],
    "ar_embedder.mlp.0": ["adaln_single.emb.aspect_ratio_embedder.linear_1"],
    "ar_embedder.mlp.2": ["adaln_single.emb.aspect_ratio_embedder.linear_2"],
}
BLOCK_LAYERS = {
    "attn.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attn.proj": ["attn1.to_out.0"],
    "cross_attn.q_linear": ["attn2.to_q"],
    "cross_attn.kv_linear": ["attn2.to_k", "attn2.to_v"],
    "cross_attn.proj": ["attn2.to_out.0"],
    "mlp.fc1": ["ff.net.0.proj"],
    "mlp.fc2": ["ff.net.2"],
}
# Those that only some blocks have.
SIGMA_LAYERS = {
    "attn.q_norm": ["attn1.q_norm"],
    "attn.k_norm": ["attn1.k_norm"],
    "attn.sr": ["attn1.sr"],
    "attn.norm": ["attn1.norm"],
}
PARTS = ("weight", "bias")


def to_diffusers_names(state: "dict[str, torch.Tensor]", depth: int) -> "dict[str, torch.Tensor]":
    """Official state dict -> Diffusers state dict; fused tensors are split into views."""
    renamed = {}
    for ours, theirs in tensor_names(depth).items():
        if _is_needed(ours, ours in state):
            renamed.update(zip(theirs, state[ours].chunk(len(theirs)), strict=True))
    return renamed


def to_official_names(state: "dict[str, torch.Tensor]", depth: int) -> "dict[str, torch.Tensor]":
    """Diffusers state dict -> official state dict."""
    import torch

    return {
        ours: state[theirs[0]] if len(theirs) == 1 else torch.cat([state[name] for name in theirs])
        for ours, theirs in tensor_names(depth).items()
        if _is_needed(ours, theirs[0] in state)
    }


def tensor_names(depth: int) -> dict[str, list[str]]:
    """Official tensor name -> the Diffusers tensors that make it up, for all that `depth` blocks can have."""
    layers = LAYERS | MICRO_CONDITION_LAYERS
    tables = {"final_layer.scale_shift_table": ["scale_shift_table"]}
    for i in range(depth):
        for ours, theirs in (BLOCK_LAYERS | SIGMA_LAYERS).items():
            layers[f"blocks.{i}.{ours}"] = [f"transformer_blocks.{i}.{name}" for name in theirs]
        tables[f"blocks.{i}.scale_shift_table"] = [f"transformer_blocks.{i}.scale_shift_table"]
    return {f"{ours}.{part}": [f"{name}.{part}" for name in layers[ours]] for ours in layers for part in PARTS} | tables


def _is_needed(name: str, there: bool) -> bool:
    """Whether a tensor belongs to the state: those of the options only if they are there, all others always."""
    layer = name.rpartition(".")[0]
    return there or not (layer in MICRO_CONDITION_LAYERS or layer.endswith(tuple(f".{key}" for key in SIGMA_LAYERS)))
