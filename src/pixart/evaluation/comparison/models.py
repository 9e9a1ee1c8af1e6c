"""What is compared: a source, its settings, and which of four kinds it is."""

import dataclasses
import json
import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pixart.config import plain, read_toml, shortened, structure
from pixart.errors import PixArtError, UsageError
from pixart.files import read_json, read_json_object
from pixart.images import EXTENSIONS

# "pixart" and "run" (once its checkpoint is a model folder) are sampled by our pipeline, "diffusers" by Diffusers' own.
Kind = Literal["pixart", "run", "diffusers", "images"]
SHIPPED = "default"  # the name of the model in the package
PIXART_CLASSES = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
MAX_MODELS = 20


@dataclass(frozen=True)
class Settings:
    """What one model samples with; None leaves it to the model. Names and ranges are those of `pixart.Pipeline`."""

    steps: int | None = None
    """Number of denoising steps."""
    guidance_scale: float | None = None
    """Strength of classifier-free guidance."""
    negative_prompt: str | None = None
    """What to guide away from."""
    style: str | None = None
    """One of the model's styles."""
    width: int | None = None
    """Width of the images in pixels."""
    height: int | None = None
    """Height of the images in pixels."""
    sampler: str | None = None
    """As in pixart generate."""
    binning: bool | None = None
    """Whether to generate at the official size of the nearest shape and fit the image, as in pixart generate."""
    guidance_interval: tuple[int, int] | None = None
    """Timesteps at which guidance acts; for one model FROM-TO."""
    guidance_rescale: float | None = None
    """From 0 to 1: takes back the oversaturation of strong guidance."""
    guidance_channels: int | None = None
    """Guide the first channels of the latent only."""
    null_text: str | None = None
    """What guidance leads away from, as in pixart generate: encoded, caption, caption-all."""
    batch_size: int | None = None
    """Most images at once; left out, as many as suit the device (1 for pipelines of Diffusers)."""
    engine: str | None = None
    """onnx, torch, or auto."""
    dtype: str | None = None
    """auto, float32, bfloat16 or float16; int8 with onnx."""
    device: str | None = None
    """cpu; with torch also cuda or mps; or auto."""
    staged: bool | None = None
    """Load the networks one after another, for less memory."""
    offload: bool | None = None
    """On a GPU: keep networks that do not work in the computer's memory."""
    text_encoder_8bit: bool | None = None
    """Keep the text encoder's linear layers in 8 bits."""
    decode: str | None = None
    """whole or tiled."""
    text_encoder_dtype: str | None = None
    """float32, bfloat16 or float16."""
    vae_dtype: str | None = None
    """float32, bfloat16 or float16."""
    text_states: str | None = None
    """Take the texts from a file of pixart encode."""
    checkpoint: int | None = None
    """Of a run: the step."""
    ema: float | None = None
    """Of a run: the decay of the moving average."""
    parts: str | None = None
    """Of an official file: the model folder that it takes its encoders from."""
    fast: bool | None = None
    """Use the few-step model of the folder."""

    def __post_init__(self):
        if self.batch_size is not None and not 1 <= self.batch_size <= 256:
            raise UsageError(f"batch_size is {self.batch_size}; it must be from 1 to 256.")

    def given(self) -> dict[str, Any]:
        """The settings that are not left to the model, as JSON values."""
        return {name: value for name, value in plain(self).items() if value is not None}


NAMES = tuple(field.name for field in dataclasses.fields(Settings))
FOR_RUNS = ("checkpoint", "ema")
KNOWN: dict[Kind, tuple[str, ...]] = {
    "pixart": tuple(name for name in NAMES if name not in FOR_RUNS),
    "run": tuple(name for name in NAMES if name not in ("parts", "fast")),
    "diffusers": (
        *("steps", "guidance_scale", "negative_prompt", "width", "height"),
        *("batch_size", "dtype", "device", "offload"),
    ),
    "images": (),
}


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
    `[models.short]`, `source = "default"`, `steps = 8`. `shared` holds for every model that does not say otherwise.

    Raises:
        UsageError: no model of that kind, an unknown setting, fewer than one model, names that are used twice.
        PixArtError: a folder that is none of what can be compared.
    """
    tables = [table for source in sources for table in _tables(source)]
    if not 1 <= len(tables) <= MAX_MODELS:
        raise UsageError(f"Give 1 to {MAX_MODELS} models to compare, not {len(tables)}.")
    models = [_model(where, dict(table), shared) for where, table in tables]
    names = [model.name or _name(model, models) for model in models]
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UsageError(f'Two models are called "{name}"; tell them apart by a setting or by name=.')
    folders = [re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:60] or "model" for name in names]
    folders = [f"{folder}-{i}" if folder in folders[:i] else folder for i, folder in enumerate(folders)]
    return [
        dataclasses.replace(model, name=name, folder=folder)
        for model, name, folder in zip(models, names, folders, strict=True)
    ]


def kind_of(source: str) -> Kind:
    """Which kind of model `source` is: the shipped one's name, a file, a folder or a hub id.

    Raises UsageError where there is nothing, PixArtError where it is none of these.
    """
    path = Path(source)
    if source == SHIPPED or path.is_file():
        return "pixart"
    if not path.is_dir():
        from pixart.checkpoints.hub import looks_like_hub_id, resolve

        if looks_like_hub_id(source):
            return kind_of(str(resolve(source, "configs")))
        raise UsageError(
            f'There is no model "{shortened(source)}": give "{SHIPPED}" for the shipped one, a model folder, a run '
            "folder, a folder of images, or a hub id such as PixArt-alpha/PixArt-XL-2-512x512."
        )
    index = path / "model_index.json"
    if index.is_file():
        name = read_json_object(index).get("_class_name")
        if not isinstance(name, str):  # a list would name a file of code to run
            raise PixArtError(f"{index} names no pipeline of Diffusers but {name!r}; code in model folders is not run.")
        return "pixart" if name in PIXART_CLASSES else "diffusers"
    if (path / "config.json").is_file() and any(path.glob("checkpoint-*")):
        return "run"
    if any(file.suffix.lower() in EXTENSIONS for file in path.iterdir()):
        return "images"
    raise PixArtError(
        f"{path} is nothing that can be compared: it has no model_index.json (a model), no config.json beside "
        "checkpoint folders (a training run; one checkpoint is RUN,checkpoint=STEP), and no images."
    )


def _tables(given: str) -> list[tuple[str, dict[str, Any]]]:
    """(where it is from, source, settings and perhaps name) of the models of one argument."""
    path = Path(given)
    if path.suffix not in (".toml", ".json") or not path.is_file():
        return [(f'"{shortened(given)}"', _from_words(given))]
    table = read_toml(path) if path.suffix == ".toml" else read_json(path)
    models = table.get("models") if isinstance(table, dict) else None
    if not isinstance(models, dict) or set(table) != {"models"} or not models:
        raise UsageError(f'{path} must hold one table "models": a name for each model, with its source and settings.')
    for name, values in models.items():
        if not isinstance(values, dict) or not isinstance(values.get("source"), str):
            raise UsageError(f'{path}, model "{shortened(name)}", needs a source.')
    return [(f'{path}, model "{shortened(name)}"', values | {"name": name}) for name, values in models.items()]


def _from_words(given: str) -> dict[str, Any]:
    """SOURCE[,key=value...]: what is behind a comma and has a `=` is a setting, its value as in TOML or a bare text."""
    if Path(given).exists():
        return {"source": given}
    source, *rest = re.split(r",(?=[\w-]+=)", given)
    values: dict[str, Any] = {"source": source}
    for part in rest:
        key, _, text = part.partition("=")
        key = key.replace("-", "_")
        if key in values:
            raise UsageError(f'"{shortened(given)}" gives {key} twice.')
        values[key] = text if key == "name" else _value(text)
    return values


def _value(text: str) -> Any:
    if ends := re.fullmatch(r"(\d+)-(\d+)", text):  # an interval
        return [int(end) for end in ends.groups()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _model(where: str, table: dict[str, Any], shared: Settings) -> Model:
    source, name = table.pop("source"), table.pop("name", "")
    kind, own = kind_of(source), structure(table, Settings, where).given()
    if refused := [key for key in own if key not in KNOWN[kind]]:
        known = ", ".join(KNOWN[kind]) or "no settings: its images are there already"
        raise UsageError(f"{where}: a source of the kind {kind} does not take {refused[0]}; it takes {known}.")
    common = {key: value for key, value in shared.given().items() if key in KNOWN[kind]}
    return Model(name, "", kind, source, structure(common | own, Settings, where))


def _name(model: Model, models: list[Model]) -> str:
    """The source's name, with the settings that tell it from others of the same source."""
    alike = [other.settings.given() for other in models if other.source == model.source]
    apart = {k: v for k, v in model.settings.given().items() if any(other.get(k) != v for other in alike)}
    path = Path(model.source)
    last = path.resolve().name if path.exists() else model.source.split("/")[-1]
    if path.is_dir() and last in ("model", "vae"):
        last = f"{path.resolve().parent.name}/{last}"  # "model" says nothing; the run's name does
    shown = [v if isinstance(v, str) else f"{k.replace('_', ' ')} {json.dumps(v)}" for k, v in apart.items()]
    return ", ".join(["pixart-default" if model.source == SHIPPED else last, *shown])
