"""A PixArt transformer as the `transformer/` folder that Diffusers writes and reads, and back, without loss.

Only tensor names differ between the two: Diffusers splits the fused query-key-value layers and renames the rest
(huggingface/diffusers, `scripts/convert_pixart_alpha_to_diffusers.py`).
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.errors import PixArtError, UsageError

if TYPE_CHECKING:
    import torch

    from pixart.model.pixart import PixArt, PixArtConfig

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
CLASS_NAMES = ("PixArtTransformer2DModel", "Transformer2DModel")  # the second is what the first releases wrote
FORMAT_VERSION = "0.36.0"  # the oldest Diffusers that we support, written as the version that made the folder

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
    "attention_head_dim",
    "caption_channels",
    "cross_attention_dim",
    "in_channels",
    "num_attention_heads",
    "num_layers",
    "out_channels",
    "patch_size",
    "sample_size",
)
MAX_SIZE = 10_000


def tensor_names(depth: int, micro_conditions: bool = False) -> dict[str, list[str]]:
    """Official tensor name -> the Diffusers tensors that make it up, for a network of `depth` blocks."""
    layers = LAYERS | MICRO_CONDITION_LAYERS if micro_conditions else dict(LAYERS)
    tables = {"final_layer.scale_shift_table": ["scale_shift_table"]}
    for i in range(depth):
        for ours, theirs in BLOCK_LAYERS.items():
            layers[f"blocks.{i}.{ours}"] = [f"transformer_blocks.{i}.{name}" for name in theirs]
        tables[f"blocks.{i}.scale_shift_table"] = [f"transformer_blocks.{i}.scale_shift_table"]
    parts = ("weight", "bias")
    return {f"{ours}.{part}": [f"{name}.{part}" for name in layers[ours]] for ours in layers for part in parts} | tables


def to_diffusers_names(state: "dict[str, torch.Tensor]", depth: int) -> "dict[str, torch.Tensor]":
    """Official state dict -> Diffusers state dict; fused tensors are split into views."""
    renamed = {}
    for ours, theirs in tensor_names(depth, "csize_embedder.mlp.0.weight" in state).items():
        renamed.update(zip(theirs, state[ours].chunk(len(theirs)), strict=True))
    return renamed


def to_official_names(state: "dict[str, torch.Tensor]", depth: int) -> "dict[str, torch.Tensor]":
    """Diffusers state dict -> official state dict."""
    import torch

    names = tensor_names(depth, "adaln_single.emb.resolution_embedder.linear_1.weight" in state)
    return {
        ours: state[theirs[0]] if len(theirs) == 1 else torch.cat([state[name] for name in theirs])
        for ours, theirs in names.items()
    }


def save_transformer(
    state: "dict[str, torch.Tensor]", config: "PixArtConfig", folder: Path | str, dtype: "torch.dtype"
) -> None:
    """Write config.json and the weights of a PixArt (official names), in `dtype`, into `folder`.

    Raises:
        UsageError: the network has a size that Diffusers cannot express.
        PixArtError: `state` is not the state dict of a PixArt of this config, or the disk refuses the weights.
    """
    if config.mlp_ratio != 4:
        raise UsageError(f"Diffusers knows only an mlp_ratio of 4, not {config.mlp_ratio}; this model cannot be saved.")
    check_tensors(
        {name: list(tensor.shape) for name, tensor in state.items()}, official_shapes(config), "the state dict"
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    renamed = to_diffusers_names(state, config.depth)
    save_tensors(renamed, folder / WEIGHTS_NAME, dtype)
    part = folder / f"{CONFIG_NAME}.part"
    part.write_text(json.dumps(diffusers_config(config), indent=2, sort_keys=True) + "\n")
    part.replace(folder / CONFIG_NAME)


def save_tensors(tensors: "dict[str, torch.Tensor]", path: Path, dtype: "torch.dtype") -> None:
    """Write a safetensors file whole or not at all: floating-point tensors in `dtype`, others as they are.

    Raises:
        PixArtError: the disk refuses, for example because it is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in tensors.items()
    }
    part = path.with_name(f"{path.name}.part")
    try:
        save_file(stored, part, metadata={"format": "pt"})
        part.chmod(0o644)  # safetensors makes it private, and a service may run as another user
        part.replace(path)
    except (SafetensorError, OSError) as error:  # a full disk is the first of the two
        part.unlink(missing_ok=True)
        raise PixArtError(f"{path} cannot be written ({error}); make room or choose another place.") from error


def load_transformer(folder: Path | str, dtype: "torch.dtype | None" = None) -> "PixArt":
    """Read a `transformer/` folder into a PixArt with weights of `dtype` (fp32 if None), in evaluation mode.

    Raises:
        PixArtError: a file is missing or damaged, or holds another network; the message names the file.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from pixart.model.pixart import PixArt

    folder = Path(folder)
    config = read_config(folder / CONFIG_NAME)
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        pickles = sorted(folder.glob("*.bin"))
        hint = f" ({pickles[0].name} is a pickle, which pixart does not open)" if pickles else ""
        raise PixArtError(f"{path} is missing{hint}; copy the whole model folder again.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PixArtError(f"{path} is damaged ({error}); copy or download it again.") from error

    with torch.device("meta"):
        model = PixArt(config)
    expected = to_diffusers_names(model.state_dict(), config.depth)
    check_tensors(
        {name: list(tensor.shape) for name, tensor in state.items()},
        {name: list(tensor.shape) for name, tensor in expected.items()},
        str(path),
    )
    state = {name: tensor.to(dtype or torch.float32) for name, tensor in state.items()}
    model.load_state_dict(to_official_names(state, config.depth), assign=True)
    return model.eval()


def diffusers_config(config: "PixArtConfig") -> dict:
    """config.json of a `PixArtTransformer2DModel` with the sizes of `config`."""
    return {
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


def read_config(path: Path) -> "PixArtConfig":
    """config.json of a `transformer/` folder -> PixArtConfig; PixArtError if it is not such a file."""
    from pixart.model.pixart import PixArtConfig

    settings = read_settings(path)
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
        )
    except UsageError as error:
        raise PixArtError(f"{path}: {error}") from error


def read_settings(path: Path) -> dict:
    """What config.json of a `transformer/` folder says, every size in it checked, without torch.

    Raises:
        PixArtError: the file is missing, damaged, or describes a network that pixart does not have.
    """
    if not path.is_file():
        raise PixArtError(f"The model folder is not complete: {path} is missing.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise PixArtError(f"The model folder is damaged: {path} cannot be read as JSON ({error}).") from error
    if not isinstance(settings, dict) or settings.get("_class_name") not in CLASS_NAMES:
        found = settings.get("_class_name") if isinstance(settings, dict) else type(settings).__name__
        raise PixArtError(f"{path} describes {found!r}, not a PixArt transformer ({' or '.join(CLASS_NAMES)}).")
    settings.setdefault("attention_type", "default")
    if settings.get("use_additional_conditions") is None:  # Diffusers' own default
        settings["use_additional_conditions"] = settings.get("sample_size") == 128
    for name, value in FIXED_SETTINGS.items():
        if settings.get(name) != value:
            raise PixArtError(f"{path} has {name} = {settings.get(name)!r}; pixart reads only {value!r}.")
    if not isinstance(settings["use_additional_conditions"], bool):
        raise PixArtError(
            f"{path} has use_additional_conditions = {settings['use_additional_conditions']!r}; it must be true, false "
            "or null."
        )
    for name in SIZES:
        value = settings.get(name)
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise PixArtError(f"{path} has {name} = {value!r}; it must be a whole number from 1 to {MAX_SIZE}.")
    width = settings["num_attention_heads"] * settings["attention_head_dim"]
    if settings["cross_attention_dim"] != width:
        raise PixArtError(f"{path} has cross_attention_dim = {settings['cross_attention_dim']}; it must be {width}.")
    scale = settings.get("interpolation_scale")
    if scale is not None and not (isinstance(scale, int | float) and 0 < scale < math.inf):
        raise PixArtError(f"{path} has interpolation_scale = {scale!r}; it must be null or a number above 0.")
    return settings


def official_shapes(config: "PixArtConfig") -> dict[str, list[int]]:
    """Name and shape of every tensor in the state dict of a PixArt."""
    import torch

    from pixart.model.pixart import PixArt

    with torch.device("meta"):
        return {name: list(tensor.shape) for name, tensor in PixArt(config).state_dict().items()}


def check_tensors(found: dict[str, list[int]], expected: dict[str, list[int]], where: str) -> None:
    """PixArtError with a short list of what is missing, unexpected or of another shape in `where`."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    complaints = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unexpected", extra), ("of another shape", misshapen))
        if names
    ]
    if complaints:
        raise PixArtError(f"{where} does not hold the tensors that the config asks for ({'; '.join(complaints)}).")
