"""Is this folder a vision-language model that can be loaded? Asked before torch is, and answered in one sentence."""

import json
from pathlib import Path

from pixart.errors import PixArtError

_PROCESSOR = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "spiece.model")
_INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> None:
    """Raise PixArtError unless `folder` holds a config, an image processor, a tokenizer and all safetensors weights."""
    config = _read_json(folder, "config.json", "a model folder of transformers")
    if not isinstance(config.get("model_type"), str):
        raise PixArtError(f"{folder / 'config.json'} names no model_type; give a model folder of transformers.")
    missing = _missing_weights(folder)
    if missing:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        also = f" {pickles[0]} is a pickle, which is not opened; convert it to safetensors." if pickles else ""
        raise PixArtError(f"{folder} is only half there: it has no {missing}.{also}")
    if not any((folder / name).is_file() for name in _PROCESSOR):
        raise PixArtError(f"{folder} has no {_PROCESSOR[1]}, so it does not say how it wants its pictures.")
    if not any((folder / name).is_file() for name in _TOKENIZER):
        raise PixArtError(f"{folder} is only half there: it has no tokenizer ({_TOKENIZER[0]}).")


def _missing_weights(folder: Path) -> str | None:
    if (folder / "model.safetensors").is_file():
        return None
    if not (folder / _INDEX).is_file():
        return "model.safetensors"
    shards = _read_json(folder, _INDEX, "the list of the weights").get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        return f"weight_map in {_INDEX}"
    absent = sorted({name for name in shards.values() if not (folder / name).is_file()})
    return f"{absent[0]} ({len(absent)} of its files are missing)" if absent else None


def _read_json(folder: Path, name: str, what: str) -> dict:
    try:
        read = json.loads((folder / name).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise PixArtError(f"{folder} has no {name}; give {what}.") from None
    except (OSError, ValueError) as error:
        raise PixArtError(f"{folder / name} cannot be read ({error}); fetch the model again.") from None
    if not isinstance(read, dict):
        raise PixArtError(f"{folder / name} is no JSON object; fetch the model again.")
    return read
