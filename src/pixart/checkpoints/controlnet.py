"""ControlNet files: the official ones of PixArt-δ, and the folder of Diffusers' research project, which is ours too.

An official file holds a ControlNet as `controlnet.<block>.copied_block.<names of a block>`, `before_proj`, `after_proj`
and its base as `base_model.<official names>`. The folder (huggingface/diffusers `examples/research_projects/pixart`,
`PixArtControlNetAdapterModel`; SimpleTuner's for PixArt-Σ has the same names) splits the fused layers and has no base;
ours says in its config.json also for which base it is.
"""

import importlib.util
import re
from dataclasses import dataclass, field, replace
from functools import partial
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pixart.checkpoints.diffusers import CONFIG_NAME, FORMAT_VERSION, MAX_SIZE, WEIGHTS_NAME, tensor_names
from pixart.checkpoints.hub import looks_like_hub_id, resolve
from pixart.checkpoints.official import POSITIONS, WRAPPERS, count_blocks, dims, read_states, write_state
from pixart.checkpoints.tensors import check_tensors, refuse_not_finite, save_tensors, shapes, widened
from pixart.errors import PixArtError, UsageError, shown
from pixart.files import file_hash, read_json_object, replacing, write_json
from pixart.pixels import canny
from pixart.weights import is_pickle, read_header

if TYPE_CHECKING:
    import torch

    from pixart.checkpoints.model_folder import ModelFolder
    from pixart.model.pixart import PixArtConfig

CLASS_NAME = "PixArtControlNetAdapterModel"
OURS, BASE, THEIRS = "controlnet.", "base_model.", "controlnet_blocks."
PIXELS_PER_LATENT = 8
CANNY = "canny"


@dataclass(frozen=True, eq=False)
class ControlNetFile:
    """A ControlNet as it was read: `state` by official names, `blocks` the sizes of what it copies.

    `sample_size` is that of its base's latents, where the file says it; `base` the base's tensors (official names) that
    an official file holds. With `edges`, the state of a `Hed` or CANNY, it is given the edges of an image.
    """

    source: str
    state: "dict[str, torch.Tensor]" = field(repr=False)
    blocks: "PixArtConfig"
    copies: int
    sample_size: int | None = None
    base: "dict[str, torch.Tensor]" = field(default_factory=dict, repr=False)
    sha256: str = ""
    edges: "dict[str, torch.Tensor] | str | None" = field(default=None, repr=False)

    def for_images(self) -> dict[str, Any]:
        """As image metadata has it; of a path the last name, since images are given away."""
        name = self.source if looks_like_hub_id(self.source) else Path(self.source).resolve().name
        return {"name": name, "sha256": self.sha256, "edges": "hed" if isinstance(self.edges, dict) else self.edges}

    def condition(self, pixels: np.ndarray) -> np.ndarray:
        """What it is given of an image, uint8 RGB (H, W, 3): the image itself, or its edges."""
        if self.edges is None:
            return pixels
        if self.edges == CANNY:
            return canny(pixels)
        from pixart.model.hed import edges

        return edges(self.edges, pixels)


def is_controlnet(path: Path) -> bool:
    """Whether a path is that of a ControlNet, by its config.json or the names of its tensors."""
    if path.is_dir():
        config = path / CONFIG_NAME
        return config.is_file() and read_json_object(config, nonfinite=True).get("_class_name") == CLASS_NAME
    if not path.is_file() or not (is_pickle(path) or path.suffix == ".safetensors"):
        return False
    names = read_states(path)["state_dict"] if is_pickle(path) else read_header(path)
    return any(WRAPPERS.sub("", name).startswith((OURS, THEIRS)) for name in names)


def read_controlnet(given: str | Path) -> ControlNetFile:
    """Read a ControlNet: an official file, a folder of Diffusers' research project or its file, or such a hub id.

    Raises:
        PixArtError: it is missing or damaged, holds numbers that are not finite, or is no ControlNet; lists missing,
            extra and misshapen tensors.
    """
    path = resolve(given, "transformer")
    about: dict[str, Any] = {}
    file = path
    if path.is_dir():
        about = read_json_object(path / CONFIG_NAME, nonfinite=True)
        if about.get("_class_name") != CLASS_NAME:
            raise PixArtError(f"{path} holds no ControlNet, but a {shown(about.get('_class_name'))}.")
        file = path / WEIGHTS_NAME
    state = {WRAPPERS.sub("", name).removeprefix("module."): t for name, t in read_states(file)["state_dict"].items()}
    refuse_not_finite(state, str(file))
    base = {name.removeprefix(BASE): tensor for name, tensor in state.items() if name.startswith(BASE)}
    state = widened({name: tensor for name, tensor in state.items() if not name.startswith(BASE)})
    of_diffusers = any(name.startswith(THEIRS) for name in state)
    blocks, copies = _sizes(state, THEIRS if of_diffusers else OURS, file)
    expected = _expected(blocks, copies)
    check_tensors(shapes(state), shapes(_to_diffusers(expected, copies) if of_diffusers else expected), str(file))
    if about.get("num_layers", copies) != copies:
        raise PixArtError(f"{path / CONFIG_NAME} says {shown(about['num_layers'])} blocks, and {file} has {copies}.")
    state = _to_official(state, copies) if of_diffusers else state
    size = about.get("sample_size")
    size = size if type(size) is int and 1 <= size <= MAX_SIZE else _sample_size(base)
    return ControlNetFile(str(given), state, blocks, copies, size, base, file_hash(file))


def controlnet_for(folder: "ModelFolder", given: str | Path, edges: str | Path | None = None) -> ControlNetFile:
    """As `read_controlnet`, and checked that it fits the model; `edges`: CANNY, or a file as ControlNetHED.pth."""
    if importlib.util.find_spec("torch") is None:
        raise PixArtError("A ControlNet needs torch, which is not installed: pip install 'pixart[torch]'")
    control = read_controlnet(given)
    check_fit(control, folder.transformer)
    if edges is None:
        return control
    if edges == CANNY and importlib.util.find_spec("cv2") is None:
        raise PixArtError("Canny's edges need OpenCV, which is not installed: pip install 'pixart[control]'")
    return replace(control, edges=CANNY if edges == CANNY else _read_hed(Path(edges)))


def check_fit(control: ControlNetFile, transformer: dict[str, Any]) -> None:
    """PixArtError where it is for another model than that of this transformer's config.json: says for which."""
    width, depth, size = (transformer[name] for name in ("cross_attention_dim", "num_layers", "sample_size"))
    compressed = [i for i in transformer.get("kv_compress_blocks", ()) if i < control.copies]
    theirs = {"width": control.blocks.width, "norms of queries and keys": control.blocks.qk_norm}
    ours = {"width": width, "norms of queries and keys": transformer.get("qk_norm", False)}
    theirs |= {"compressing blocks": [*control.blocks.kv_compress_blocks]}
    ours |= {"compressing blocks": compressed}
    if control.sample_size is not None:
        pixels = [f"{each * PIXELS_PER_LATENT} px" for each in (control.sample_size, size)]
        theirs, ours = theirs | {"images of": pixels[0]}, ours | {"images of": pixels[1]}
    wrong = [f"{name} {theirs[name]} instead of {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if control.copies >= depth:
        wrong.append(f"{control.copies} copied blocks, which need {control.copies + 1} instead of {depth}")
    if wrong:
        raise PixArtError(f"{control.source} is a ControlNet for another model than this one: {'; '.join(wrong)}.")


def write_controlnet(
    state: "dict[str, torch.Tensor]",
    dest: Path,
    *,
    copies: int,
    sample_size: int | None = None,
    base: "dict[str, torch.Tensor] | None" = None,
) -> None:
    """Write a ControlNet (official names), complete or not at all: a `.pth` or `.safetensors` file in the official
    form, with the `base` where it is given, which the official code needs; else a folder as Diffusers' project has it.

    Raises:
        PixArtError: the disk refuses.
    """
    if dest.suffix in (".pth", ".safetensors"):
        write_state({f"{BASE}{name}": tensor for name, tensor in (base or {}).items()} | state, dest)
        return
    config = {"_class_name": CLASS_NAME, "_diffusers_version": FORMAT_VERSION, "num_layers": copies}
    with replacing(dest) as folder:
        folder.mkdir(parents=True)
        save_tensors(_to_diffusers(state, copies), folder / WEIGHTS_NAME, None)
        write_json(folder / CONFIG_NAME, config | ({} if sample_size is None else {"sample_size": sample_size}))


def _read_hed(path: Path) -> "dict[str, torch.Tensor]":
    import torch

    from pixart.model.hed import Hed

    state = read_states(path)["state_dict"]
    with torch.device("meta"):
        check_tensors(shapes(state), shapes(Hed().state_dict()), str(path))
    refuse_not_finite(state, str(path))
    return {name: tensor.float() for name, tensor in state.items()}


def _sizes(state: "dict[str, torch.Tensor]", prefix: str, path: Path) -> "tuple[PixArtConfig, int]":
    """What is copied and how often, by the shapes. The number of heads is in no shape: that of the base counts."""
    from pixart.model.pixart import PixArtConfig

    if not any(name.startswith(prefix) for name in state):
        raise PixArtError(f"{path} holds no ControlNet: of its {len(state)} tensors, none begins with {OURS}.")
    copies = count_blocks(state, re.escape(prefix.removesuffix(".")), path)
    read = partial(dims, state, path=path)
    width = read(f"{prefix}0.after_proj.weight", count=2)[0]
    of_diffusers = prefix == THEIRS
    block = "transformer_block" if of_diffusers else "copied_block"
    first = f"{prefix}0.{block}."
    hidden = read(f"{first}{'ff.net.0.proj' if of_diffusers else 'mlp.fc1'}.weight", count=2)[0]
    attention = "attn1" if of_diffusers else "attn"
    compressing = {
        i: state[name].shape[-1]
        for i in range(copies)
        if (name := f"{prefix}{i}.{block}.{attention}.sr.weight") in state
    }
    try:
        blocks = PixArtConfig(
            width=width, depth=copies + 1, num_heads=1, mlp_ratio=hidden // width,
            qk_norm=f"{first}{attention}.q_norm.weight" in state,
            kv_compress=max(compressing.values(), default=1), kv_compress_blocks=tuple(compressing),
        )  # fmt: skip
    except UsageError as error:
        raise PixArtError(f"{path}: {error}") from None
    return blocks, copies


def _expected(blocks: "PixArtConfig", copies: int) -> "dict[str, torch.Tensor]":
    import torch

    from pixart.model.controlnet import ControlNet

    with torch.device("meta"):
        return ControlNet(blocks, copies).state_dict()


def _sample_size(base: "dict[str, torch.Tensor]") -> int | None:
    """Of the base in an official file, by its position grid; of patches of 2, as all official ones have."""
    grid = base.get(POSITIONS)
    if grid is not None and grid.dim() == 3:
        return 2 * isqrt(grid.shape[1])
    return 128 if "csize_embedder.mlp.0.weight" in base else None


def _names(copies: int) -> dict[str, list[str]]:
    """Official tensor name -> the Diffusers tensors that make it up."""
    names = {}
    for ours, theirs in tensor_names(copies).items():
        if found := re.fullmatch(r"blocks\.(\d+)\.(.+)", ours):
            start, block = f"transformer_blocks.{found[1]}.", f"{THEIRS}{found[1]}.transformer_block."
            names[f"{OURS}{found[1]}.copied_block.{found[2]}"] = [block + name.removeprefix(start) for name in theirs]
    projections = ["0.before_proj", *(f"{i}.after_proj" for i in range(copies))]
    return names | {f"{OURS}{p}.{part}": [f"{THEIRS}{p}.{part}"] for p in projections for part in ("weight", "bias")}


def _to_diffusers(state: "dict[str, torch.Tensor]", copies: int) -> "dict[str, torch.Tensor]":
    renamed = {}
    for ours, theirs in _names(copies).items():
        if ours in state:
            renamed.update(zip(theirs, state[ours].chunk(len(theirs)), strict=True))
    return renamed


def _to_official(state: "dict[str, torch.Tensor]", copies: int) -> "dict[str, torch.Tensor]":
    import torch

    return {
        ours: state[theirs[0]] if len(theirs) == 1 else torch.cat([state[name] for name in theirs])
        for ours, theirs in _names(copies).items()
        if theirs[0] in state
    }
