"""Official PixArt checkpoints: the `.pth` files of its repositories, and safetensors files with their names.

A `.pth` holds `{"state_dict": ..., "state_dict_ema": ..., ...}` or the state dict alone (PixArt-alpha
`diffusion/utils/checkpoint.py`). Two of its tensors are not weights: `pos_embed`, the fixed position grid, which says
for which size the network counts its positions, and `y_embedder.y_embedding`, the null caption, which training never
changes and guidance needs.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pixart.checkpoints.diffusers import (
    CONFIG_NAME,
    MAX_LAYERS,
    MAX_SIZE,
    NULL_CAPTION,
    WEIGHTS_NAME,
    official_shapes,
    read_null_caption,
    read_transformer,
)
from pixart.checkpoints.tensors import (
    check_tensors,
    read_pickle,
    refuse_not_finite,
    refuse_not_floats,
    save_tensors,
    shapes,
    widened,
    writing,
)
from pixart.config import shortened, shown
from pixart.encoders.tokenizer import SIGMA_TOKENS
from pixart.errors import PixArtError, UsageError
from pixart.weights import is_pickle, map_tensors, stored_dtypes, weight_files

if TYPE_CHECKING:
    import torch

    from pixart.model.pixart import PixArtConfig


POSITIONS = "pos_embed"
FIRST = "x_embedder.proj.weight"  # the first tensor of every PixArt and DiT
WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # anywhere in a name
NUM_HEADS = 16  # of every released network; the shapes do not tell
# Scale of the positions by image size, where no grid says it (PixArt-sigma `configs`); PixArt-α has Diffusers' rule.
SIGMA_SCALES = {256: 0.5, 512: 1.0, 1024: 2.0, 2048: 4.0}
PIXELS_PER_LATENT = 8
# What the released files are called by: PixArt-XL-2-512x512, PixArt-XL-2-1024-MS, PixArt-Sigma-XL-2-2K-MS.
NAMED_SIZES = re.compile(r"-(256x256|512x512|512-MS|1024-MS|2K-MS)(?![\dK])")


@dataclass(frozen=True)
class OfficialFile:
    """What is to be said of an official file, since it holds two or does not tell; `image_size` in pixels."""

    ema: bool = False
    """Of an official file: the moving average that it holds."""
    num_heads: Annotated[int | None, shown("N", "16")] = None
    """Of an official file: the one size that its tensors do not tell."""
    image_size: Annotated[int | None, shown("PIXELS", "by pos_embed")] = None
    """Of an official file without pos_embed: side of the images that it was trained on."""

    def __post_init__(self):
        sizes = (("--num-heads", self.num_heads, MAX_SIZE), ("--image-size", self.image_size, 8 * MAX_SIZE))
        for name, value, most in sizes:
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"{name} is {value}; give a number from 1 to {most:,}.")


PLAIN = OfficialFile()


@dataclass(frozen=True)
class Checkpoint:
    """A PixArt: `state` by official names, without the null caption (L, T), which stands apart.

    Numbers are as they are stored, but for float8, which is read as bfloat16; `dtypes` are those of the file.
    """

    config: "PixArtConfig"
    state: "dict[str, torch.Tensor]"
    null_caption: "torch.Tensor | None"
    has_ema: bool = False  # the file holds a moving average as well
    files: tuple[Path, ...] = ()  # that hold the weights
    dtypes: tuple[str, ...] = ()


def read_official(path: Path, how: OfficialFile = PLAIN) -> Checkpoint:
    """Read an official checkpoint; sizes and options are inferred from its tensors.

    Args:
        path: a pickle (`.pth` or any other name but `.safetensors`) or a safetensors file.
        how: its `num_heads` is the one size that no shape tells. The null caption of the moving average (`ema`) is that
            of the weights beside it: the official training averages trained weights only, so the average's own null
            caption was never more than noise. `image_size` is needed only where the file has no `pos_embed` and not the
            name of a released one.

    Raises:
        PixArtError: the file is missing, damaged, or holds another network; lists missing, extra and misshapen tensors.
        UsageError: `num_heads` or `image_size` does not fit, or is needed; or there is no moving average.
    """
    states = read_states(path)
    if how.ema and "state_dict_ema" not in states:
        raise UsageError(f"{path} holds no moving average (state_dict_ema); leave --ema out.")
    state = _without_prefix(states["state_dict_ema" if how.ema else "state_dict"], path)
    if how.ema:
        plain = _without_prefix(states["state_dict"], path)
        state = {name: plain[name] if name == NULL_CAPTION and name in plain else state[name] for name in state}
    refuse_not_finite(state, str(path))
    dtypes = tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}))
    state = widened(state)
    null_caption, positions = state.pop(NULL_CAPTION, None), state.pop(POSITIONS, None)
    config = _infer(state, null_caption, positions, how, path)
    check_tensors(shapes(state), official_shapes(config), str(path))
    if null_caption is not None and (null_caption.dim() != 2 or null_caption.shape[1] != config.text_dim):
        raise PixArtError(f"{path} has {NULL_CAPTION} of {list(null_caption.shape)}, not [tokens, {config.text_dim}].")
    return Checkpoint(config, state, null_caption, "state_dict_ema" in states, (path,), dtypes)


def read_states(path: Path) -> "dict[str, dict[str, torch.Tensor]]":
    """The state dicts of a file: "state_dict", and "state_dict_ema" where it has one.

    Raises:
        PixArtError: the file is missing or damaged, or holds no state dict.
    """
    import torch

    if not path.is_file():
        raise PixArtError(f"{path} is not there, or not a file.")
    if path.suffix == ".safetensors" or not is_pickle(path):
        return {"state_dict": map_tensors(path)}
    loaded = read_pickle(path)
    names = {"state_dict": "state_dict", "state_dict_ema": "state_dict_ema"}
    names |= {"model": "state_dict", "ema": "state_dict_ema"}  # those of DiT's training (facebookresearch/DiT train.py)
    names |= {"module": "state_dict"}  # DeepSpeed's
    found = {names[name]: value for name, value in loaded.items() if name in names and isinstance(value, dict)}
    found.setdefault("state_dict", found.get("state_dict_ema", loaded))
    for state in found.values():
        other = [
            shortened(str(name), 100)
            for name, tensor in state.items()
            if not (isinstance(name, str) and isinstance(tensor, torch.Tensor))
        ]
        if other or not state:
            raise PixArtError(f"{path} holds no state dict: {', '.join(other[:3]) or 'nothing'} is not a named tensor.")
        refuse_not_floats(state, str(path))
    return found


def write_official(checkpoint: Checkpoint, path: Path) -> None:
    """Write a `.pth` ({"state_dict": ...}) or, by the suffix, a safetensors file, complete or not at all.

    Raises:
        PixArtError: the disk refuses.
    """
    write_state(official_state(checkpoint), path)


def official_state(checkpoint: Checkpoint) -> "dict[str, torch.Tensor]":
    """All tensors of an official file: with the null caption where there is one, and the position grid made again."""
    state = dict(checkpoint.state)
    if checkpoint.null_caption is not None:
        state[NULL_CAPTION] = checkpoint.null_caption
    return state | {POSITIONS: position_grid(checkpoint.config)}


def write_state(state: "dict[str, torch.Tensor]", path: Path) -> None:
    """As `write_official`, of any state dict."""
    import torch

    if path.suffix == ".safetensors":
        save_tensors(state, path, None)
        return
    with writing(path) as part:
        torch.save({"state_dict": {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}}, part)


def position_grid(config: "PixArtConfig") -> "torch.Tensor":
    """The official `pos_embed`: (1, N, D) float32, N the tokens of an image of the network's own size."""
    import torch

    from pixart.model.embed import sincos_positions

    side = config.sample_size // config.patch_size
    grid = sincos_positions(side, side, config.width, side, config.position_scale, torch.device("cpu"), torch.float32)
    return grid[None]


def _without_prefix(state: "dict[str, torch.Tensor]", path: Path) -> "dict[str, torch.Tensor]":
    """Names without what wrappers put before them all: `module.`, `model.diffusion_model.`, ..."""
    short = without_prefix(state)
    if FIRST not in short:
        hint = ""
        if "pos_embed.proj.weight" in state and (path.parent / "config.json").is_file():
            hint = f"; its names are those of Diffusers: give the folder that it lies in, {path.parent}"
        elif "pos_embed.proj.weight" in state:
            hint = (
                "; its names are those of Diffusers, which do not tell all sizes: put it into a folder as "
                "diffusion_pytorch_model.safetensors, with the transformer/config.json of its model beside it, and "
                "give that folder"
            )
        raise PixArtError(f"{path} holds no PixArt: of its {len(state)} tensors, none is {FIRST}{hint}.")
    return short


def without_prefix(state: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """`state` by the names of the bare network: DataParallel, FSDP, torch.compile and others make them longer.

    What stands before every name is known by that before the one tensor that every PixArt and DiT has.
    """
    state = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    found = [name for name in state if name.endswith(FIRST)]
    prefix = found[0].removesuffix(FIRST) if len(found) == 1 else ""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _infer(
    state: "dict[str, torch.Tensor]",
    null_caption: "torch.Tensor | None",
    positions: "torch.Tensor | None",
    how: OfficialFile,
    path: Path,
) -> "PixArtConfig":
    from pixart.model.pixart import PixArtConfig

    if "y_embedder.embedding_table.weight" in state:
        raise PixArtError(
            f"{path} is a class-conditional DiT; a PixArt to start from is made of it with: pixart convert {path} DEST "
            "--to reparameterized"
        )
    width, in_channels, patch_size = dims(state, "x_embedder.proj.weight", 4, path)[:3]
    depth = count_blocks(state, "blocks", path)
    patches = dims(state, "final_layer.linear.weight", 2, path)[0]
    compressing = {
        int(match[1]): tensor.shape[-1]
        for name, tensor in state.items()
        if (match := re.fullmatch(r"blocks\.(\d{1,3})\.attn\.sr\.weight", name))
    }
    if len(set(compressing.values())) > 1:
        raise PixArtError(f"{path} compresses keys and values by several factors: {sorted(set(compressing.values()))}.")
    sample_size, scale = _positions(positions, null_caption, patch_size, how.image_size, path)
    try:
        return PixArtConfig(
            in_channels=in_channels,
            out_channels=patches // patch_size**2,
            width=width,
            depth=depth,
            num_heads=how.num_heads or NUM_HEADS,
            patch_size=patch_size,
            mlp_ratio=dims(state, "blocks.0.mlp.fc1.weight", 2, path)[0] // width,
            text_dim=dims(state, "y_embedder.y_proj.fc1.weight", 2, path)[1],
            sample_size=sample_size,
            interpolation_scale=None if scale == max(sample_size // 64, 1) else scale,
            micro_conditions="csize_embedder.mlp.0.weight" in state,
            qk_norm="blocks.0.attn.q_norm.weight" in state,
            kv_compress=next(iter(compressing.values()), 1),
            kv_compress_blocks=tuple(sorted(compressing)),
        )
    except UsageError as error:
        raise UsageError(f"{path}: {error} Give the number of heads with --num-heads.") from None


def count_blocks(state: "dict[str, torch.Tensor]", blocks: str, path: Path) -> int:
    """How many blocks the names count, as `blocks`.0 and so on; a network is built from it, so it has a limit."""
    numbered = re.compile(rf"{blocks}\.(\d{{1,9}})\.")
    count = 1 + max((int(match[1]) for name in state if (match := numbered.match(name))), default=0)
    if count > MAX_LAYERS:
        raise PixArtError(f"{path} has a tensor of block {count - 1}; no network has more than {MAX_LAYERS} blocks.")
    return count


def dims(state: "dict[str, torch.Tensor]", name: str, count: int, path: Path) -> tuple[int, ...]:
    if name not in state:
        raise PixArtError(f"{path} holds no PixArt: of its {len(state)} tensors, none is {name}.")
    if state[name].dim() != count:
        raise PixArtError(f"{path} has {name} of shape {list(state[name].shape)}, where {count} dimensions are needed.")
    if 0 in state[name].shape:
        raise PixArtError(f"{path} has {name} of shape {list(state[name].shape)}, which holds no numbers.")
    return tuple(state[name].shape)


def _positions(
    grid: "torch.Tensor | None",
    null_caption: "torch.Tensor | None",
    patch_size: int,
    image_size: int | None,
    path: Path,
) -> tuple[int, float]:
    """Sample size and interpolation scale: read off the grid, or what is usual at `image_size`."""
    import torch

    from pixart.model.embed import sincos_positions

    if grid is None and image_size is None and (named := NAMED_SIZES.search(path.name)):
        image_size = 2048 if named[1].startswith("2K") else int(re.split("[x-]", named[1])[0])
    if grid is None and image_size is None:
        raise UsageError(
            f"{path} has no {POSITIONS}, and its other tensors do not tell what size it was trained on; give "
            "--image-size 256, 512, 1024 or 2048."
        )
    if image_size is not None:
        if image_size < 1 or image_size % (PIXELS_PER_LATENT * patch_size):
            raise UsageError(f"--image-size {image_size} is not a multiple of {PIXELS_PER_LATENT * patch_size}.")
        sample_size = image_size // PIXELS_PER_LATENT
        sigma = null_caption is not None and len(null_caption) == SIGMA_TOKENS
        return sample_size, (SIGMA_SCALES if sigma else {}).get(image_size, float(max(sample_size // 64, 1)))
    side = math.isqrt(grid.shape[1]) if grid.dim() == 3 else 0
    if side < 2 or side * side != grid.shape[1] or grid.shape[2] % 4:
        raise PixArtError(f"{path} has a {POSITIONS} of shape {list(grid.shape)}, which is not a square grid.")
    # The second column is at 1 / scale, and its first frequency is 1: sine and cosine of that very angle.
    quarter = grid.shape[2] // 4
    angle = math.atan2(float(grid[0, 1, 0]), float(grid[0, 1, quarter]))
    scale = round(1 / angle, 3) if angle > 1e-3 else 1.0
    made = sincos_positions(side, side, grid.shape[2], side, scale, torch.device("cpu"), torch.float32)
    if not torch.allclose(grid[0].float(), made, atol=0.02):  # wide enough for bf16
        raise PixArtError(
            f"{path} has a {POSITIONS} that is not the sine-cosine grid; give --image-size to set it aside."
        )
    return side * patch_size, scale


def transformer_folder(source: Path) -> Path:
    """The folder in `source` with a transformer's config.json: its `transformer/`, or itself, else PixArtError."""
    for folder in (source / "transformer", source):
        if (folder / CONFIG_NAME).is_file():
            return folder
    raise PixArtError(f"{source} holds no transformer: there is no {source / 'transformer' / CONFIG_NAME}.")


def read_source(source: Path, how: OfficialFile = PLAIN) -> Checkpoint:
    """Read a PixArt; only an official file takes `how`.

    Raises:
        PixArtError: `source` is not there, damaged, or something else.
        UsageError: `how` is given and the source says it itself.
    """
    if not source.is_dir():
        return read_official(source, how)
    if how != PLAIN:
        raise UsageError("--num-heads, --ema and --image-size are for official files; a folder says its own sizes.")
    folder = transformer_folder(source)
    config, state = read_transformer(folder)
    files = tuple(weight_files(folder, WEIGHTS_NAME))
    return Checkpoint(config, state, read_null_caption(folder, config.text_dim), False, files, stored_dtypes(files))
