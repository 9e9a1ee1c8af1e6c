"""Adapter files of any trainer <-> changes of our layers' weights, without torch; docs/lora.md lists the dialects.

Inside, an adapter is a list of `Delta` for each layer by its official name. Files name either these, with fused query,
key and value, or the layers of Diffusers, which are rows of ours: splitting and joining is exact, or refused.
"""

import contextlib
import json
import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pixart.checkpoints.diffusers import BLOCK_LAYERS, LAYERS, MICRO_CONDITION_LAYERS
from pixart.checkpoints.hub import looks_like_hub_id, resolve
from pixart.checkpoints.tensors import writing
from pixart.config import shortened
from pixart.encoders.text_files import WEIGHTS
from pixart.errors import PixArtError, UsageError
from pixart.files import file_hash, parse_json, read_json_object, replacing, write_json
from pixart.model.deltas import LOHA, LOKR, LORA, MAGNITUDE, Delta, shape
from pixart.weights import Stored, header_bytes, is_pickle, read_header, read_headers, weight_files

if TYPE_CHECKING:
    from pixart.checkpoints.model_folder import ModelFolder

MAX_BYTES = 4 << 30
SHOWN = 5
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"  # header entry of Diffusers and SimpleTuner
PEFT_ALPHA = 8  # what PEFT takes where a script sets none, as PixArt's own do
Form = Literal["diffusers", "peft", "comfyui", "official", "kohya", "lycoris"]

# By torch's names, from the widest on: the format's name, and numpy's type; bfloat16 is read as its 16 bits.
DTYPES = {
    "float64": ("F64", np.float64), "float32": ("F32", np.float32), "float16": ("F16", np.float16),
    "bfloat16": ("BF16", np.uint16),
}  # fmt: skip
# The end of a key, which says what the tensor is, and our name of it.
KINDS = {
    "lora_A": "lora_A", "lora_down": "lora_A", "lora.down": "lora_A",
    "lora_B": "lora_B", "lora_up": "lora_B", "lora.up": "lora_B",
    "lora_magnitude_vector": MAGNITUDE, "dora_scale": MAGNITUDE, "alpha": "alpha",
    **{name: name for name in (*LOHA, *LOKR)},
}  # fmt: skip
KEY = re.compile(rf"(.+)\.({'|'.join(map(re.escape, KINDS))})(?:\.default)?(?:\.weight)?")
UNUSED = "_aux."  # in names of the state of OneTrainer's optimizer
TRANSFORMER = re.compile(
    r"(?:(?:model\.)?diffusion_model\.|(?:unet\.)?base_model\.model\.|transformer\.|lora_unet_|lora_transformer_|lycoris_)?"
)
TEXT = re.compile(r"(?:text_encoder\.|text_encoders\.\w+\.transformer\.|lora_te1?_)(?:base_model\.model\.)?")
# Layers of the two text encoders, "#" the number of the block (transformers' T5EncoderModel and BertModel).
TEXT_LAYERS = (
    *(f"encoder.block.#.layer.0.SelfAttention.{name}" for name in "qkvo"),
    *(f"encoder.block.#.layer.1.DenseReluDense.{name}" for name in ("wi", "wi_0", "wi_1", "wo")),
    *(f"encoder.layer.#.attention.self.{name}" for name in ("query", "key", "value")),
    *(f"encoder.layer.#.{name}.dense" for name in ("attention.output", "intermediate", "output")),
)
# Parts of names that other architectures have, for the sentence that refuses one.
OTHERS = {
    "down_blocks": "a U-Net such as Stable Diffusion's", "input_blocks": "a U-Net such as Stable Diffusion's",
    "single_transformer_blocks": "FLUX", "double_blocks": "FLUX", "joint_blocks": "Stable Diffusion 3",
    "controlnet": "a ControlNet", "bundle_emb": "an embedding of new words",
}  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """What a file changes, by layer of the transformer (official names) and of the text encoder (its own names).

    `notices` are sentences that a person should read; `dtype` is that of the file, `header` its metadata.
    """

    layers: dict[str, tuple[Delta, ...]]
    text_layers: dict[str, tuple[Delta, ...]]
    notices: tuple[str, ...] = ()
    dtype: str = "float32"
    header: dict[str, str] | None = None

    @property
    def kind(self) -> str:
        """ "lora", "loha" or "lokr", with "+dora"; of mixed ones the first."""
        tensors = next(iter((self.layers | self.text_layers).values()))[0].tensors
        name = next(name for name, kind in (("lora", LORA), ("loha", LOHA), ("lokr", LOKR)) if {*kind} & {*tensors})
        return f"{name}+dora" if MAGNITUDE in tensors else name


@dataclass(frozen=True)
class Lora:
    """An adapter of any kind in use: its path or hub id, and how strong it is."""

    source: str
    strength: float
    adapter: Adapter = field(repr=False, compare=False)
    sha256: str = ""

    def for_images(self) -> dict[str, Any]:
        """As image metadata has it; of a path the last name, since images are given away."""
        name = self.source if looks_like_hub_id(self.source) else Path(self.source).resolve().name
        return {"name": name, "strength": self.strength, "sha256": self.sha256}


Changes = dict[str, list[tuple[Delta, float]]]  # with their strengths, by layer


def is_adapter(path: Path) -> bool:
    """Whether a path is that of an adapter, told by the names of its tensors, not of a model."""
    if path.is_dir():
        return any((path / name).is_file() for name in (PEFT_CONFIG, PEFT_WEIGHTS, DIFFUSERS_WEIGHTS))
    if not path.is_file() or is_pickle(path) or path.suffix != ".safetensors":
        return False
    return any(KEY.fullmatch(name) for name in read_header(path))


def read_adapter(path: Path | str) -> Adapter:
    """Read an adapter: a safetensors file, or a folder with one, such as PEFT's.

    Raises:
        PixArtError: it is missing, damaged or a pickle, has numbers that are not finite, a rank of 0, tensors that do
            not fit each other, or keys that no layer of a PixArt takes; these are listed.
    """
    path = _weights_of(Path(path))
    arrays, header, dtype = read_arrays(path)
    by_peft = any("base_model.model." in key for key in arrays)
    configs = {name: _config(path, header, name, by_peft) for name in ("transformer", "text_encoder")}
    modules: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    unknown, guessed = [], False
    for key, array in arrays.items():
        if UNUSED in key:
            continue
        found = KEY.fullmatch(key)
        place = _place(found[1]) if found else None
        if place is None:
            unknown.append(key)
        else:
            modules.setdefault((place[0], found[1]), {})[KINDS[found[2]]] = array
    if unknown:
        raise PixArtError(_refusal(path, unknown))
    layers: dict[str, dict[str, list[Delta]]] = {"transformer": {}, "text_encoder": {}}
    for (part, module), tensors in modules.items():
        _, layer, index = _place(module)
        config = configs[part] or ({"lora_alpha": PEFT_ALPHA} if by_peft else {})
        guessed |= by_peft and not configs[part] and "alpha" not in tensors
        layers[part].setdefault(layer, []).append(_delta(path, module, tensors, index, config))
    if not modules:
        raise PixArtError(f"{path} holds no adapter: there is no tensor in it.")
    guess = (
        f"{path} does not say its scale (alpha); {PEFT_ALPHA} over the rank is a guess, PEFT's value where none is set."
    )
    by_part = [{name: tuple(sorted(d, key=lambda d: d.start)) for name, d in part.items()} for part in layers.values()]
    for name, deltas in [item for part in by_part for item in part.items()]:
        if any(first.stop > second.start for first, second in pairwise(deltas)):
            raise PixArtError(f"{path} changes {name} twice, by two names of it; leave one of them out.")
    return Adapter(*by_part, (guess,) if guessed else (), dtype, header)


def read_loras(given: Iterable[str | Path | tuple[str | Path, float]]) -> tuple[Lora, ...]:
    """Adapters by path or hub id, "path:strength" or (path, strength); the strength is 1 where it is left out.

    Raises:
        UsageError: a strength is no number from -100 to 100. PixArtError: as `read_adapter`, or as `hub.resolve`.
    """
    loras = []
    for each in given:
        source, strength = each if isinstance(each, tuple) else (each, 1.0)
        if isinstance(each, str) and not Path(each).exists():
            start, _, end = each.rpartition(":")
            with contextlib.suppress(ValueError):
                source, strength = start, float(end)
        if type(strength) not in (int, float) or not abs(strength) <= 100:
            raise UsageError(f"The strength of an adapter is a number from -100 to 100, not {strength!r}.")
        if not str(source):
            raise UsageError("The name of an adapter is empty; give a safetensors file, or a folder with one.")
        file = _weights_of(resolve(source, "adapter"))
        loras.append(Lora(str(source), float(strength), read_adapter(file), file_hash(file)))
    return tuple(loras)


def check_loras(folder: "ModelFolder", given: Iterable[str | Path | tuple[str | Path, float]]) -> tuple[Lora, ...]:
    """As `read_loras`, and checked that they fit the model."""
    loras = read_loras(given)
    if loras:
        check_fit(loras, folder.transformer, linear_shapes(folder.text_encoder))
    return loras


def find_loras(place: Path, folder: "ModelFolder") -> dict[str, Lora]:
    """The adapters in a folder that fit a model, by their names. Raises PixArtError for one that is damaged."""
    if not place.is_dir():
        raise PixArtError(f"There is no folder {place}; give one with adapters.")
    found: dict[str, Lora] = {}
    text = linear_shapes(folder.text_encoder)
    for path in sorted(path for path in place.iterdir() if is_adapter(path)):
        lora = read_loras([(path, 1.0)])[0]
        with contextlib.suppress(PixArtError):  # it is for another model
            check_fit([lora], folder.transformer, text)
            found[path.stem] = lora
    return found


def changes(loras: Iterable[Lora], *, text: bool = False) -> Changes:
    """What adapters change of the transformer, or of the text encoder, by layer."""
    found: Changes = {}
    for lora in loras:
        for name, deltas in (lora.adapter.text_layers if text else lora.adapter.layers).items():
            found.setdefault(name, []).extend((delta, lora.strength) for delta in deltas)
    return found


def check_fit(loras: Iterable[Lora], transformer: dict[str, Any], text: dict[str, tuple[int, int]]) -> None:
    """PixArtError if one of the adapters is for another model: says for which.

    `transformer` is the config.json of the model's, `text` the shapes of its text encoder's linear layers.
    """
    for lora in loras:
        if wrong := _misfits(lora.adapter.layers, layer_shapes(transformer)):
            width, depth = transformer["cross_attention_dim"], transformer["num_layers"]
            raise PixArtError(
                f"{lora.source} does not fit this model, which has width {width} and {depth} blocks: it is for "
                f"{made_for(lora.adapter)} ({wrong})."
            )
        if wrong := _misfits(lora.adapter.text_layers, text):
            raise PixArtError(f"{lora.source} is for another text encoder than this model's ({wrong}).")


def linear_shapes(text_encoder: Path) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers of a text encoder, a folder or a file, by name, from its files' headers."""
    return {
        name.removesuffix(".weight"): entry.shape
        for name, entry in read_headers(weight_files(text_encoder, WEIGHTS)).items()
        if name.endswith(".weight") and len(entry.shape) == 2
    }


def layer_shapes(transformer: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """(out, in) of every layer that an adapter may change, by official name; kernels are flattened."""
    width, patch = transformer["cross_attention_dim"], transformer["patch_size"] ** 2
    embedder = {"mlp.0": (width, 256), "mlp.2": (width, width)}
    small = {"mlp.0": (width // 3, 256), "mlp.2": (width // 3, width // 3)}
    block = {
        "attn.qkv": (3 * width, width), "attn.proj": (width, width), "cross_attn.q_linear": (width, width),
        "cross_attn.kv_linear": (2 * width, width), "cross_attn.proj": (width, width), "mlp.fc1": (4 * width, width),
        "mlp.fc2": (width, 4 * width),
    }  # fmt: skip
    sizes = {
        "x_embedder.proj": (width, transformer["in_channels"] * patch), "t_block.1": (6 * width, width),
        "y_embedder.y_proj.fc1": (width, transformer["caption_channels"]), "y_embedder.y_proj.fc2": (width, width),
        "final_layer.linear": (patch * transformer["out_channels"], width),
    }  # fmt: skip
    sizes |= {f"t_embedder.{name}": size for name, size in embedder.items()}
    if transformer["use_additional_conditions"]:
        sizes |= {f"{part}.{name}": size for part in ("csize_embedder", "ar_embedder") for name, size in small.items()}
    blocks = range(transformer["num_layers"])
    return sizes | {f"blocks.{i}.{name}": size for i in blocks for name, size in block.items()}


def write_adapter(
    adapter: Adapter, dest: Path, form: Form = "diffusers", *, header: dict[str, str] | None = None
) -> None:
    """Write an adapter: a safetensors file, or with "peft" a folder; complete or not at all.

    "diffusers" and "peft" name the layers of Diffusers and have the scale folded into the weights; "lycoris" flattens
    these names; "comfyui", "official" and "kohya" have fused layers and keep alpha. Numbers keep their dtype where it
    holds them exactly, else they are float32.

    Raises:
        UsageError: the form cannot hold this adapter exactly.
        PixArtError: the disk refuses.
    """
    fused = form in ("comfyui", "official", "kohya")
    prefix, text_prefix = {
        "diffusers": ("transformer.", "text_encoder."), "peft": ("base_model.model.", ""),
        "comfyui": ("diffusion_model.", "text_encoders.t5xxl.transformer."), "official": ("", "text_encoder."),
        "kohya": ("lora_unet_", "lora_te1_"), "lycoris": ("lycoris_", "lora_te_"),
    }[form]  # fmt: skip
    if form == "peft" and (adapter.text_layers or adapter.kind not in ("lora", "lora+dora")):
        raise UsageError("A PEFT folder holds LoRA and DoRA of the transformer only; choose another form.")
    arrays: dict[str, np.ndarray] = {}
    for layer, deltas in adapter.layers.items():
        theirs = diffusers_layers(layer)
        if fused:
            _put(arrays, prefix, layer, joined(layer, deltas, len(theirs)), form)
            continue
        for part in [part for delta in deltas for part in split(layer, delta, len(theirs))]:
            _put(arrays, prefix, theirs[part.start // (part.stop - part.start)], part, form)
    for layer, (delta,) in adapter.text_layers.items():
        _put(arrays, text_prefix, layer, delta, form)
    metadata = {"format": "pt", **(adapter.header or {}), **(header or {})}
    metadata.pop(METADATA, None)
    if form != "peft":
        with writing(dest) as partial:
            _write(arrays, partial, adapter.dtype, metadata)
        return
    with replacing(dest) as folder:
        folder.mkdir()
        _write(arrays, folder / PEFT_WEIGHTS, adapter.dtype, metadata)
        write_json(folder / PEFT_CONFIG, _peft_config(arrays))


def diffusers_layers(layer: str) -> list[str]:
    """The Diffusers layers that make up one of ours."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
    if found:
        return [f"transformer_blocks.{found[1]}.{name}" for name in BLOCK_LAYERS[found[2]]]
    return (LAYERS | MICRO_CONDITION_LAYERS)[layer]


def parts_of(layer: str) -> int:
    """How many layers of Diffusers one of ours is; 1 where it is none."""
    return next((len(theirs) for name, theirs in BLOCK_LAYERS.items() if layer.endswith(f".{name}")), 1)


def split(layer: str, delta: Delta, parts: int) -> list[Delta]:
    """A change of a layer that is `parts` layers of Diffusers as changes of these; one of a part is returned as it is.

    Raises:
        UsageError: they cannot be written apart: a LoKr over all rows, or DoRA's norms over columns.
    """
    if parts == 1 or not _is_whole(delta, parts):
        return [delta]
    tensors, size = delta.tensors, (delta.stop - delta.start) // parts
    by_row = {"lora_B", "hada_w1_a", "hada_w2_a", MAGNITUDE, "lokr_w1" if "lokr_w1" in tensors else "lokr_w1_a"}
    if any(len(array) % parts for name, array in tensors.items() if name in by_row):  # norms of columns are one row
        raise UsageError(
            f"This {'DoRA over columns' if MAGNITUDE in tensors else 'LoKr'} changes all of {layer} at once, which has "
            "no exact form by the names of Diffusers; choose comfyui."
        )
    pieces = {name: np.split(array, parts) for name, array in tensors.items() if name in by_row}
    return [
        Delta(
            part * size,
            (part + 1) * size,
            {name: pieces[name][part] if name in pieces else array for name, array in tensors.items()},
            delta.scale,
        )
        for part in range(parts)
    ]


def joined(layer: str, deltas: tuple[Delta, ...], parts: int) -> Delta:
    """The changes of a layer's rows as one of all rows: of the rank of one where they share lora_A, else of the sum.

    Raises:
        UsageError: there is no such form: LoKr, DoRA of some of the rows, or over columns.
    """
    if parts == 1 or _is_whole(deltas[0], parts):
        return deltas[0]
    norms = [delta.tensors[MAGNITUDE] for delta in deltas if MAGNITUDE in delta.tensors]
    kinds = {tuple(sorted(delta.tensors.keys() - {MAGNITUDE})) for delta in deltas}
    if kinds not in ({LORA}, {LOHA}) or (norms and (len(norms) < parts or any(len(norm) == 1 for norm in norms))):
        raise UsageError(f"What the adapter changes of {layer} has no exact form by official names; choose diffusers.")
    rows = deltas[0].stop - deltas[0].start
    scales = {delta.scale for delta in deltas}
    scale = scales.pop() if len(scales) == 1 else 1.0
    tensors = {}
    for up, down in (LORA[::-1],) if kinds == {LORA} else (LOHA[:2], LOHA[2:]):
        downs = [delta.tensors[down] for delta in deltas]
        shared = all(np.array_equal(downs[0], other) for other in downs[1:])
        ranks = [0 if shared else len(array) for array in downs]
        tensors[down] = downs[0] if shared else np.concatenate(downs)
        tensors[up] = np.zeros((rows * parts, len(tensors[down])), np.float32)
        for number, delta in enumerate(deltas):
            factor = delta.scale / scale if up != "hada_w2_a" else 1.0
            columns = slice(sum(ranks[:number]), sum(ranks[:number]) + len(downs[number]))
            tensors[up][delta.start : delta.stop, columns] = delta.tensors[up] * np.float32(factor)
    if norms:
        tensors[MAGNITUDE] = np.concatenate(norms)
    return Delta(0, rows * parts, tensors, scale)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], str]:
    """All tensors of a safetensors file as fp32, its header's metadata, and the widest of their dtypes by its name.

    Raises:
        PixArtError: it is missing, damaged, or holds other numbers than these.
    """
    if path.stat().st_size > MAX_BYTES:
        raise PixArtError(f"{path} is longer than {MAX_BYTES:,} bytes, which is the most that an adapter may have.")
    arrays, stored = {}, read_header(path)
    for name, entry in stored.items():
        if entry.dtype not in DTYPES:
            has = f"{shortened(name, 100)} in {entry.dtype}"
            raise PixArtError(f"{path} holds {has}; an adapter is in one of {', '.join(DTYPES)}.")
        arrays[name] = read_tensor(entry)
    found = {entry.dtype for entry in stored.values()}
    header = parse_json(header_bytes(path), str(path)).get("__metadata__", {})
    return arrays, header, next((name for name in DTYPES if name in found), "float32")


def read_tensor(stored: Stored) -> np.ndarray:
    """A tensor of one of `DTYPES` as fp32."""
    kind = np.dtype(DTYPES[stored.dtype][1])
    numbers = np.fromfile(stored.path, kind, stored.size // kind.itemsize, offset=stored.start)
    if stored.dtype == "bfloat16":
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32).reshape(stored.shape)


def in_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """fp32 numbers rounded to one of `DTYPES`; bfloat16 as its 16 bits."""
    array = np.ascontiguousarray(array, np.float32) if array.ndim else array.astype(np.float32)
    if dtype == "bfloat16":
        bits = array.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)  # to the nearest, ties to even
    return array.astype(DTYPES[dtype][1])


def _weights_of(path: Path) -> Path:
    """The safetensors file that is meant by a path. PixArtError where there is none."""
    if path.is_dir():
        names = (PEFT_WEIGHTS, DIFFUSERS_WEIGHTS)
        file = next((path / name for name in names if (path / name).is_file()), None)
        pickles = sorted(path.glob("*.bin"))
        if file is None and pickles:
            raise PixArtError(f"{pickles[0]} is a pickle, which pixart does not open; save it as safetensors.")
        if file is None:
            raise PixArtError(f"{path} holds no adapter: neither {' nor '.join(names)} is in it.")
        return file
    if not path.is_file():
        raise PixArtError(f"The adapter {path} is not there; give a safetensors file, or a folder with one.")
    if is_pickle(path):
        raise PixArtError(f"{path} is a pickle, which pixart does not open; save it as safetensors.")
    return path


def _config(path: Path, header: dict[str, str], part: str, by_peft: bool) -> dict[str, Any]:
    """What is known of alpha and rank: from the file's header, a JSON file of its name, or PEFT's config beside it."""
    if METADATA in header:
        config = parse_json(header[METADATA], f"the header of {path}")
        config = config if isinstance(config, dict) else {}
        return {key.removeprefix(f"{part}."): value for key, value in config.items()}
    beside = [path.with_suffix(".json"), path.with_suffix(".config.json")]
    beside += [path.parent / PEFT_CONFIG] if by_peft else []
    if by_peft and path.parent.name == "transformer_lora":  # the official script's second copy
        beside.append(path.parent.parent / PEFT_CONFIG)
    for place in beside:
        with contextlib.suppress(PixArtError):  # a file of that name may be anything
            config = read_json_object(place)
            if "lora_alpha" in config or "alpha" in config:
                return config
    return {}


@cache
def _places() -> dict[str, tuple[str, str, int]]:
    """Part of the model, layer, and which part of that, by every spelling of a layer; "#" is a number."""
    table = {}
    for layer, theirs in (LAYERS | MICRO_CONDITION_LAYERS).items():
        table |= {layer: ("transformer", layer, 0)}
        table |= {name: ("transformer", layer, i) for i, name in enumerate(theirs)}
    for layer, theirs in BLOCK_LAYERS.items():
        ours = f"blocks.#.{layer}"
        table |= {ours: ("transformer", ours, 0)}
        table |= {f"transformer_blocks.#.{name}": ("transformer", ours, i) for i, name in enumerate(theirs)}
    for name in TEXT_LAYERS:
        table[name] = ("text_encoder", name, 0)
    return table | {name.replace(".", "_"): place for name, place in table.items()}


def _place(module: str) -> tuple[str, str, int] | None:
    """Part of the model, layer, and which part of that, that a file's name of a module means."""
    for prefix, part in ((TEXT, "text_encoder"), (TRANSFORMER, "transformer")):
        name = module[prefix.match(module).end() :] if prefix.match(module) else module
        block = re.search(r"(?:(?<=blocks[._])|(?<=encoder[._]block[._])|(?<=encoder[._]layer[._]))\d{1,4}", name)
        number = block[0] if block else ""
        found = _places().get(name[: block.start()] + "#" + name[block.end() :] if block else name)
        if found is not None and found[0] == part and (part == "transformer" or prefix.match(module)):
            return part, found[1].replace("#", number), found[2]
    return None


def _delta(path: Path, module: str, tensors: dict[str, np.ndarray], part: int, config: dict[str, Any]) -> Delta:
    """One module of a file. PixArtError where its tensors are none of an adapter."""
    alpha = tensors.pop("alpha", None)
    where = f"{path}: {shortened(module, 100)}"
    bad = [name for name, array in tensors.items() if not np.isfinite(array).all()]
    if bad or (alpha is not None and not (alpha.size == 1 and np.isfinite(alpha).all())):
        raise PixArtError(f"{where} has numbers that are not finite; take another checkpoint of this adapter.")
    if MAGNITUDE in tensors:  # of PEFT (out,) or, for a convolution, (1, out, 1, 1); of others (out, 1) or (1, in)
        norms = tensors[MAGNITUDE]
        tensors[MAGNITUDE] = norms if norms.ndim == 2 else norms.reshape(-1, 1)
    tensors = {name: array.reshape(len(array), -1) for name, array in tensors.items() if array.size}
    try:
        rows, _ = shape(tensors)
    except ValueError as error:
        raise PixArtError(f"{where} is no adapter of rank 1 or more: it has {error}.") from None
    return Delta(part * rows, (part + 1) * rows, tensors, _scale(module, tensors, alpha, config, where))


def _scale(
    module: str, tensors: dict[str, np.ndarray], alpha: np.ndarray | None, config: dict[str, Any], where: str
) -> float:
    """By the file's own alpha, else the config's, else 1; over the rank, or its root (rsLoRA, arXiv 2312.03732)."""
    rank = _rank(tensors)
    if alpha is not None:
        return float(alpha.reshape(())) / rank if rank else 1.0  # LyCORIS takes no alpha for two full factors
    value = _by_pattern(config.get("alpha_pattern"), module) or config.get("lora_alpha", config.get("alpha"))
    if value is None:
        return 1.0
    rank = rank or _by_pattern(config.get("rank_pattern"), module) or config.get("r", 1)
    if any(type(number) not in (int, float) or not 0 < abs(number) < 1e6 for number in (value, rank)):
        raise PixArtError(f"{where} has an alpha of {value!r} and a rank of {rank!r}, which no adapter has.")
    return value / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Any, module: str) -> Any:
    """PEFT's rank_pattern and alpha_pattern, by the end of a module's name; regular expressions are taken literally."""
    patterns = patterns if isinstance(patterns, dict) else {}
    ends = [key for key in patterns if f".{module}".endswith(f".{key.lstrip('^').removesuffix('$')}")]
    return patterns[ends[0]] if ends else None


def _refusal(path: Path, keys: list[str]) -> str:
    listed = ", ".join(shortened(key, 100) for key in keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
    other = next((what for mark, what in OTHERS.items() if any(mark in key for key in keys)), None)
    hint = f"it looks like one of {other}" if other else "no layer of a PixArt takes them"
    return f"{path} has {len(keys)} tensors that are not applied, so none is ({listed}): {hint}."


def _misfits(layers: dict[str, tuple[Delta, ...]], expected: dict[str, tuple[int, int]]) -> str:
    """The first layer that is not there or has another shape, in words; empty where all fit."""
    for name, deltas in layers.items():
        if name not in expected:
            return f"there is no {name}"
        rows, columns = expected[name]
        for delta in deltas:
            found = shape(delta.tensors)
            if found[1] != columns or found[0] not in (rows, rows // parts_of(name)) or delta.stop > rows:
                return f"{name} is {rows} x {columns}, the adapter's {found[0]} x {found[1]}"
    return ""


def made_for(adapter: Adapter) -> str:
    """The width and depth of the transformer that an adapter is for, in words."""
    blocks = [int(name.split(".")[1]) for name in adapter.layers if name.startswith("blocks.")]
    widths = [
        shape(d[0].tensors)[1] for name, d in adapter.layers.items() if name.endswith(("qkv", "q_linear", "mlp.fc1"))
    ]
    width, depth = (widths or [None])[0], max(blocks, default=-1) + 1
    named = " (PixArt XL/2)" if (width, depth) == (1152, 28) else ""
    return f"width {width or 'unknown'} and at least {depth} blocks{named}"


def _is_whole(delta: Delta, parts: int) -> bool:
    """Whether a change is one of all rows of a fused layer of so many square parts."""
    rows, columns = shape(delta.tensors)
    return rows == parts * columns


def _put(arrays: dict[str, np.ndarray], prefix: str, layer: str, delta: Delta, form: str) -> None:
    """One module of a file to write."""
    flat = form in ("kohya", "lycoris")
    module = prefix + (layer.replace(".", "_") if flat else layer)
    names = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"} if flat else {}
    names |= {} if flat else {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
    folded = form in ("diffusers", "peft")
    names[MAGNITUDE] = "lora_magnitude_vector" if folded else "dora_scale"
    tensors, rank = dict(delta.tensors), _rank(delta.tensors)
    if folded or rank is None:  # LyCORIS reads no alpha of two full factors
        up = next(name for name in ("lora_B", "hada_w1_a", "lokr_w1", "lokr_w1_a") if name in tensors)
        tensors[up] = tensors[up] * np.float32(delta.scale)
    if not folded:
        arrays[f"{module}.alpha"] = np.array(delta.scale * rank if rank else 1.0, np.float32)
    if layer in ("x_embedder.proj", "pos_embed.proj"):  # a convolution, its kernel 2 x 2 in every PixArt
        kernels = {"lora_A": (-1, 2, 2), "lora_B": (-1, 1, 1), "lokr_w2": (-1, 2, 2)}
        tensors |= {name: a.reshape(len(a), *kernels[name]) for name, a in tensors.items() if name in kernels}
        if MAGNITUDE in tensors:
            tensors[MAGNITUDE] = tensors[MAGNITUDE].reshape((1, -1, 1, 1) if folded else (-1, 1, 1, 1))
    elif folded and len(tensors.get(MAGNITUDE, ())) > 1:
        tensors[MAGNITUDE] = tensors[MAGNITUDE].reshape(-1)
    arrays |= {f"{module}.{names.get(name, name)}": array for name, array in tensors.items()}


def _rank(tensors: dict[str, np.ndarray]) -> int | None:
    """None for a LoKr of two full factors."""
    return next((tensors[n].shape[1] for n in ("lora_B", "hada_w1_a", "lokr_w2_a", "lokr_w1_a") if n in tensors), None)


def _write(arrays: dict[str, np.ndarray], path: Path, dtype: str, metadata: dict[str, str]) -> None:
    """In `dtype` what that holds exactly, the rest as float32."""
    header: dict[str, Any] = {"__metadata__": metadata}
    parts, offset = [], 0
    for name, array in sorted(arrays.items()):
        rounded = in_dtype(np.asarray(array), dtype)
        exact = rounded.astype(np.float32) if dtype != "bfloat16" else rounded.astype(np.uint32) << 16
        kind = dtype if np.array_equal(exact.view(np.uint32), in_dtype(array, "float32").view(np.uint32)) else "float32"
        array = in_dtype(array, kind)
        parts.append(array.tobytes())
        place = [offset, offset := offset + len(parts[-1])]
        header[name] = {"dtype": DTYPES[kind][0], "shape": list(array.shape), "data_offsets": place}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.writelines([struct.pack("<Q", len(head)), head, *parts])


def _peft_config(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """adapter_config.json: alpha is the rank, since the scale is folded in."""
    ranks = {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(array)
        for key, array in arrays.items()
        if key.endswith("lora_A.weight")
    }
    rank = max(ranks.values())
    others = {module: own for module, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA", "r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others,
        "target_modules": sorted(ranks), "use_dora": any("magnitude" in key for key in arrays), "bias": "none",
        "base_model_name_or_path": None, "task_type": None, "inference_mode": True,
    }  # fmt: skip
