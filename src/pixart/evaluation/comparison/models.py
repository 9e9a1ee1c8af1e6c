"""What is compared: a source, its settings, and which of four kinds it is."""

import dataclasses
import json
import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from pixart.config import unknown
from pixart.data.images import EXTENSIONS
from pixart.errors import PixArtError, UsageError
from pixart.runtime.memory import Memory

# "pixart" is drawn by our pipeline, "run" too once its checkpoint is a model folder, "diffusers" by Diffusers' own.
Kind = Literal["pixart", "run", "diffusers", "pictures"]
SHIPPED = "default"  # the word for the model in the package
PIXART_CLASSES = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
MAX_MODELS = 20


@dataclass(frozen=True)
class Settings:
    """What one model is drawn with; None leaves it to the model. Names and ranges are those of `Pipeline` and `Memory`.

    `checkpoint` and `ema` choose from a training run: the step and the decay of the moving average. `parts` is the
    model folder that an official file takes its encoders from, `text_states` a file of `pixart encode`.
    """

    steps: int | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    sampler: str | None = None
    binning: bool | None = None
    guidance_interval: tuple[int, int] | None = None
    guidance_rescale: float | None = None
    guidance_channels: int | None = None
    null_text: str | None = None
    engine: str | None = None
    dtype: str | None = None
    device: str | None = None
    staged: bool | None = None
    offload: bool | None = None
    text_encoder_8bit: bool | None = None
    decode: str | None = None
    text_encoder_dtype: str | None = None
    vae_dtype: str | None = None
    text_states: str | None = None
    checkpoint: int | None = None
    ema: float | None = None
    parts: str | None = None
    fast: bool | None = None

    def __post_init__(self):
        if isinstance(self.guidance_interval, list):  # as JSON and TOML have it
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


MEMORY = tuple(field.name for field in fields(Memory))
# What changes no byte of a picture (docs/memory.md): a comparison may go on with other ones, where memory ran out.
SAME_BYTES = ("staged", "offload", "text_states")
# What each kind can be told.
_DRAWING = ("steps", "guidance_scale", "negative_prompt", "width", "height", "dtype", "device", "offload")
_GUIDANCE = ("guidance_interval", "guidance_rescale", "guidance_channels", "null_text")
_OURS = (*_DRAWING, "sampler", "engine", "binning", *_GUIDANCE, *MEMORY)
KNOWN: dict[Kind, tuple[str, ...]] = {
    "pixart": (*dict.fromkeys(_OURS), "parts", "fast"),
    "run": (*dict.fromkeys(_OURS), "checkpoint", "ema"),
    "diffusers": _DRAWING,
    "pictures": (),
}
# How a name is made longer by a setting that tells two models of one source apart.
_SHOWN = {
    "steps": "{} steps",
    "guidance_scale": "guidance {:g}",
    "guidance_interval": "guidance at {0[0]} to {0[1]}",
    "guidance_rescale": "rescale {:g}",
    "guidance_channels": "{} guided channels",
    "null_text": "null text {}",
    "width": "{} px wide",
    "height": "{} px high",
    "text_encoder_dtype": "text encoder in {}",
    "vae_dtype": "decoder in {}",
    "decode": "{} decoding",
    "checkpoint": "step {}",
    "ema": "EMA {:g}",
}
_SHOWN_FLAGS = {"text_encoder_8bit": "8-bit text encoder"}


@dataclass(frozen=True)
class Model:
    """One column of the comparison. `name` is unique, and so is `folder`, the name of its folder."""

    name: str
    folder: str
    kind: Kind
    source: str
    settings: Settings


def read_models(sources: list[str], shared: Settings) -> list[Model]:
    """The models that the command line names, each as SOURCE[,key=value...] or, several at once, by a .toml or .json.

    Such a file has a table of models by name, each with `source` and its settings:
    `[models.fast]`, `source = "default"`, `steps = 8`. `shared` holds for every model that does not say otherwise.

    Raises:
        UsageError: no model of that kind, an unknown setting, fewer than one model, names that are used twice.
        PixArtError: a folder that is none of what can be compared.
    """
    found: list[tuple[str | None, str, Settings]] = []
    for source in sources:
        if source.endswith((".toml", ".json")) and Path(source).is_file():
            found += _from_file(Path(source))
        else:
            found.append(_from_words(source))
    if not 1 <= len(found) <= MAX_MODELS:
        raise UsageError(f"Give 1 to {MAX_MODELS} models to compare, not {len(found)}.")
    kinds = [kind_of(source) for _, source, _ in found]
    complete = [
        (given, source, kind, _check(source, kind, settings, shared))
        for (given, source, settings), kind in zip(found, kinds, strict=True)
    ]
    names = _names(complete)
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise UsageError(f'Two models are called "{doubles[0]}"; tell them apart by a setting or by name=.')
    folders: list[str] = []
    for name in names:
        plain = _plain(name)
        folders.append(plain if plain not in folders else f"{plain}-{len(folders) + 1}")
    return [
        Model(name, folder, kind, source, settings)
        for name, folder, (_, source, kind, settings) in zip(names, folders, complete, strict=True)
    ]


def kind_of(source: str) -> Kind:
    """Which kind of model `source` is: the shipped one's word, a file, a folder or a hub id.

    Raises UsageError where there is nothing, PixArtError where it is none of these.
    """
    if source == SHIPPED:
        return "pixart"
    path = Path(source)
    if path.is_file():
        return "pixart"
    if not path.is_dir():
        from pixart.checkpoints.hub import looks_like_hub_id, resolve

        if looks_like_hub_id(source):
            return kind_of(str(resolve(source, "configs")))
        raise UsageError(
            f'There is no model "{source}": give "{SHIPPED}" for the shipped one, a model folder, a run folder, a '
            "folder of pictures, or a hub id such as PixArt-alpha/PixArt-XL-2-512x512."
        )
    if (path / "model_index.json").is_file():
        return "pixart" if _pipeline_class(path) in PIXART_CLASSES else "diffusers"
    if is_run(path) or (is_run(path.parent) and re.fullmatch(r"checkpoint-\d+", path.name)):
        return "run"
    if any(file.suffix.lower() in EXTENSIONS for file in path.iterdir()):
        return "pictures"
    # GenEval keeps the pictures of a prompt in NUMBER/samples.
    if any(path.glob("[0-9]*/samples/*")):
        return "pictures"
    raise PixArtError(
        f"{path} is nothing that can be compared: it has no model_index.json (a model), no config.json beside "
        "checkpoint folders (a training run), and no pictures."
    )


def is_run(path: Path) -> bool:
    return (path / "config.json").is_file() and any(path.glob("checkpoint-*"))


def _pipeline_class(folder: Path) -> str:
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PixArtError(f"The model folder is damaged: {path} cannot be read ({error}).") from None
    name = index.get("_class_name") if isinstance(index, dict) else None
    if not isinstance(name, str):
        # A list would name a file of code to run.
        raise PixArtError(f"{path} names no pipeline of Diffusers, but {name!r}; code in model folders is not run.")
    return name


def _from_words(given: str) -> tuple[str | None, str, Settings]:
    """SOURCE[,key=value...]: what is behind a comma and has a `=` is a setting."""
    if Path(given).exists():
        return None, given, Settings()
    source, *rest = re.split(r",(?=[\w-]+=)", given)
    values: dict[str, Any] = {}
    for part in rest:
        key, _, value = part.partition("=")
        key = key.replace("-", "_")
        if key in values:
            raise UsageError(f'"{given}" gives {key} twice.')
        values[key] = value
    name = values.pop("name", None)
    return name, source, _settings(values, f'"{given}"', from_text=True)


def _from_file(path: Path) -> list[tuple[str | None, str, Settings]]:
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as {path.suffix[1:].upper()} ({error}).") from None
    models = table.get("models") if isinstance(table, dict) else None
    if not isinstance(models, dict) or set(table) != {"models"} or not models:
        raise UsageError(f'{path} must hold one table "models": a name for each model, with its source and settings.')
    found = []
    for name, values in models.items():
        where = f'{path}, model "{name}"'
        if not isinstance(values, dict) or not isinstance(values.get("source"), str):
            raise UsageError(f"{where}, needs a source.")
        rest = {key: value for key, value in values.items() if key != "source"}
        found.append((name, values["source"], _settings(rest, where, from_text=False)))
    return found


def _settings(values: dict[str, Any], where: str, *, from_text: bool) -> Settings:
    kinds = {field.name: field.type for field in fields(Settings)}
    read: dict[str, Any] = {}
    for key, value in values.items():
        if key not in kinds:
            raise UsageError(f"{where}: {unknown('setting', key, (*kinds, 'name'))}")
        if key == "guidance_interval":
            read[key] = _interval(value, where)
            continue
        kind = next(kind for kind in (bool, int, float, str) if kinds[key] == kind | None)
        try:
            if from_text and kind is bool:
                read[key] = {"true": True, "false": False}[value.lower()]
                continue
            if not from_text and type(value) not in ((int, float) if kind is float else (kind,)):
                raise ValueError
            read[key] = kind(value)
        except (ValueError, KeyError):
            what = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]
            raise UsageError(f"{where}: {key} must be {what}, not {value!r}.") from None
    return Settings(**read)


def _interval(value: Any, where: str) -> tuple[int, int]:
    """FROM-TO as two timesteps, or a list of the two; whether they can be is checked with the model."""
    ends = value.split("-") if isinstance(value, str) else value
    try:
        low, high = (int(end) if isinstance(value, str) else end for end in ends)
    except (TypeError, ValueError):
        raise UsageError(f"{where}: guidance_interval must be FROM-TO, such as 200-800, not {value!r}.") from None
    return low, high


def _check(source: str, kind: Kind, own: Settings, shared: Settings) -> Settings:
    """The model's own settings over the shared ones; what its kind cannot be told is refused, or left out if shared."""
    for key in own.given():
        if key not in KNOWN[kind]:
            able = ", ".join(KNOWN[kind]) or "nothing: its pictures are there already"
            what = {"pixart": "A PixArt model", "run": "A run", "diffusers": "A Diffusers pipeline"}.get(kind)
            raise UsageError(f"{what or 'A folder of pictures'} ({source}) cannot be told {key}; it takes {able}.")
    common = {key: value for key, value in shared.given().items() if key in KNOWN[kind]}
    return Settings(**(common | own.given()))


def _names(models: list[tuple[str | None, str, Kind, Settings]]) -> list[str]:
    """The names that were given; else the source's, with the settings that tell it from others of the same source."""
    names = []
    for given, source, _, settings in models:
        if given is not None:
            names.append(given.strip() or "model")
            continue
        alike = [other.given() for _, of, _, other in models if of == source]
        apart = {
            key: value for key, value in settings.given().items() if any(other.get(key) != value for other in alike)
        }
        shown = [_shown(key, value) for key, value in apart.items()]
        path = Path(source)
        last = path.resolve().name if path.exists() else source.split("/")[-1]
        if (path.is_dir() and last in ("model", "vae")) or re.fullmatch(r"checkpoint-\d+", last):
            last = f"{path.resolve().parent.name}/{last}"  # "model" says nothing; the run's name does
        names.append(", ".join(["pixart-default" if source == SHIPPED else last, *shown]))
    return names


def _shown(key: str, value: Any) -> str:
    """A setting as part of a name: 8 steps, int8, staged, not staged."""
    if isinstance(value, bool):
        return f"{'' if value else 'not '}{_SHOWN_FLAGS.get(key, key)}"
    return _SHOWN.get(key, "{}").format(Path(value).name if key in ("parts", "text_states") else value)


def _plain(name: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:60] or "model"
