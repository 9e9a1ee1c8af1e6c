"""Class-conditional DiTs as others write them (facebook/DiT-XL-2-256): to the `DiT` of model/dit.py.

Two layouts are read: DiT's own, a `.pt` or safetensors file with the names of facebookresearch/DiT `models.py`, and the
folder of Diffusers' `DiTTransformer2DModel`. Diffusers keeps a copy of the timestep and class embedders in every block.
It also computes the sines of the timestep with another spacing than DiT was trained with (`downscale_freq_shift` 1) and
norms with eps 1e-5 before the MLP where its config says so; our network computes as DiT's own code does.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pixart.checkpoints.diffusers import MAX_SIZE, NOT_TRAINED, WEIGHTS_NAME
from pixart.checkpoints.official import (
    FIRST,
    NUM_HEADS,
    POSITIONS,
    Checkpoint,
    OfficialFile,
    count_blocks,
    dims,
    read_states,
    without_prefix,
)
from pixart.checkpoints.tensors import check_tensors, read_pickle, refuse_not_finite, shapes, widened
from pixart.config import shortened
from pixart.errors import PixArtError, UsageError
from pixart.files import read_json_object
from pixart.weights import map_tensors

if TYPE_CHECKING:
    import torch

    from pixart.model.dit import DiT

TABLE = "y_embedder.embedding_table.weight"
EMBEDDERS = "norm1.emb."
LAYERS = {
    "x_embedder.proj": ["pos_embed.proj"],
    "t_embedder.mlp.0": ["transformer_blocks.0.norm1.emb.timestep_embedder.linear_1"],
    "t_embedder.mlp.2": ["transformer_blocks.0.norm1.emb.timestep_embedder.linear_2"],
    "final_layer.adaLN_modulation.1": ["proj_out_1"],
    "final_layer.linear": ["proj_out_2"],
}
BLOCK_LAYERS = {
    "attn.qkv": ["attn1.to_q", "attn1.to_k", "attn1.to_v"],
    "attn.proj": ["attn1.to_out.0"],
    "mlp.fc1": ["ff.net.0.proj"],
    "mlp.fc2": ["ff.net.2"],
    "adaLN_modulation.1": ["norm1.linear"],
}


def is_dit(source: Path) -> bool:
    """Whether this is a class-conditional DiT, by its tensors' names or its config; False for what cannot be read."""
    folder = _diffusers_folder(source)
    if folder is None:
        return any(name.endswith(TABLE) for name in read_states(source)["state_dict"])
    try:
        return read_json_object(folder / "config.json").get("norm_type") == "ada_norm_zero"
    except PixArtError:
        return False


def _diffusers_folder(source: Path) -> Path | None:
    """The folder with config.json of a `source` in Diffusers' layout: a folder, or the weights file in one."""
    if source.is_dir():
        return source / "transformer" if (source / "transformer").is_dir() else source
    named = source.name.startswith("diffusion_pytorch_model.") and (source.parent / "config.json").is_file()
    return source.parent if named else None


def read_dit(source: Path, how: OfficialFile) -> "DiT":
    """Read a DiT, in fp32, from a file in its own layout or a folder of Diffusers.

    Args:
        source: the file; or the folder with config.json and the weights, or one that has it as `transformer/`. A
            pickle in such a folder is opened only where it is `source` itself.
        how: of a file; `ema` of a training checkpoint of DiT's own, `image_size` where it has no `pos_embed`.

    Raises:
        PixArtError: a file is missing or damaged, or holds another network; lists missing, extra, misshapen tensors.
    """
    import torch

    from pixart.model.dit import DiT, DiTConfig

    num_heads, image_size = how.num_heads or NUM_HEADS, how.image_size
    folder = _diffusers_folder(source)
    if folder is not None:
        where = str(source if source.is_file() else folder / WEIGHTS_NAME)
        state, num_heads, sample_size = _from_diffusers(folder, Path(where))
    else:
        states, where = read_states(source), str(source)
        if how.ema and "state_dict_ema" not in states:
            raise UsageError(f"{source} holds no moving average; leave --ema out.")
        state = without_prefix(states["state_dict_ema" if how.ema else "state_dict"])
        grid = state.pop(POSITIONS, None)
        if grid is None and image_size is None:
            raise UsageError(f"{source} has no {POSITIONS}; give --image-size, the side of its images in pixels.")
        patch = dims(state, FIRST, 4, source)[-1]
        sample_size = (
            image_size // 8 if image_size else round(dims({POSITIONS: grid}, POSITIONS, 3, source)[1] ** 0.5) * patch
        )
    if not {TABLE, FIRST, "final_layer.linear.weight", "blocks.0.mlp.fc1.weight"} <= state.keys():
        raise PixArtError(f"{where} holds no class-conditional DiT: of its {len(state)} tensors, none is {TABLE}.")
    refuse_not_finite(state, where)
    width, in_channels, patch_size = dims(state, FIRST, 4, source)[:3]
    state["y_embedders.0.embedding_table.weight"] = state.pop(TABLE)
    try:
        config = DiTConfig(
            class_counts=(dims(state, "y_embedders.0.embedding_table.weight", 2, source)[0] - 1,),
            in_channels=in_channels,
            out_channels=dims(state, "final_layer.linear.weight", 2, source)[0] // patch_size**2,
            width=width,
            depth=count_blocks(state, "blocks", source),
            num_heads=num_heads,
            patch_size=patch_size,
            mlp_ratio=dims(state, "blocks.0.mlp.fc1.weight", 2, source)[0] // width,
            sample_size=sample_size,
            interpolation_scale=1.0 if sample_size >= 128 else None,  # DiT counts its positions and never scales them
        )
    except UsageError as error:
        raise UsageError(f"{where}: {error} Give the number of heads with --num-heads.") from None
    with torch.device("meta"):
        model = DiT(config)
    check_tensors(shapes(state), shapes(model.state_dict()), where)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return model.eval()


def _from_diffusers(folder: Path, path: Path) -> "tuple[dict[str, torch.Tensor], int, int]":
    """State by DiT's own names, heads and sample size, of a `DiTTransformer2DModel` with the weights file `path`."""
    import torch

    settings = read_json_object(folder / "config.json")
    name = settings.get("_class_name")
    if name not in ("DiTTransformer2DModel", "Transformer2DModel") or settings.get("norm_type") != "ada_norm_zero":
        raise PixArtError(f"{folder / 'config.json'} describes {shortened(name)}, not a class-conditional DiT.")
    sizes = [settings.get(key) for key in ("num_attention_heads", "sample_size")]
    if not all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes):
        raise PixArtError(
            f"{folder / 'config.json'} needs num_attention_heads and sample_size, numbers from 1 to {MAX_SIZE}."
        )
    num_heads, sample_size = sizes
    if not path.is_file():
        pickles = sorted(folder.glob("*.bin"))
        also = f" {pickles[0]} is a pickle, which is opened only if you give that file itself." if pickles else ""
        raise PixArtError(f"{path} is missing; copy or download it.{also}")
    given = widened(read_pickle(path) if path.suffix == ".bin" else map_tensors(path))
    given.pop(NOT_TRAINED, None)
    depth = count_blocks(given, "transformer_blocks", path)
    layers = dict(LAYERS)
    for i in range(depth):
        layers |= {f"blocks.{i}.{ours}": [f"transformer_blocks.{i}.{n}" for n in t] for ours, t in BLOCK_LAYERS.items()}
    names = {f"{ours}.{part}": [f"{n}.{part}" for n in layers[ours]] for ours in layers for part in ("weight", "bias")}
    names[TABLE] = ["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]
    taken = {name for theirs in names.values() for name in theirs}
    copies = [name for name in given if EMBEDDERS in name and name not in taken]
    for name in copies:
        first = re.sub(r"blocks\.\d+\.", "blocks.0.", name)
        if first not in given or not torch.equal(given[name], given[first]):
            raise PixArtError(f"{path} has {name} unlike that of the first block; DiT has one for all blocks.")
    check_tensors({name: [] for name in given if name not in copies}, {name: [] for name in sorted(taken)}, str(path))
    state = {ours: torch.cat([given[name] for name in theirs]) for ours, theirs in names.items()}
    return state, num_heads, sample_size


def reparameterized(
    dit: "DiT", *, text_dim: int, timestep: float = 500.0, class_free: str = "null", seed: int = 0
) -> Checkpoint:
    """A PixArt to start training from: it equals `dit` without a class at `timestep` (PixArt-α, section 2.3).

    Args:
        text_dim: width of the text states that it will read, by fresh layers that `seed` decides.
        timestep: 0 to 1000; 500 suits DDPM, 775 a rectified flow.
        class_free: what the DiT sees without a class: "null" (timestep plus null class), or "timestep" alone.
    """
    import torch

    from pixart.model.pixart import PixArt, PixArtConfig
    from pixart.model.reparameterize import SHARED_SIZES, reparameterize

    sizes = {name: getattr(dit.config, name) for name in SHARED_SIZES if name != "position_scale"}
    config = PixArtConfig(text_dim=text_dim, interpolation_scale=dit.config.interpolation_scale, **sizes)
    torch.manual_seed(seed)
    pixart = PixArt(config)
    reparameterize(dit, pixart, timestep, class_free)
    return Checkpoint(config, pixart.state_dict(), None)
