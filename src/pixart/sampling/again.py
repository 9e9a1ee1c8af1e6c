"""Drawing a picture again from the record in its file: the model by its hash, engine, dtype and threads as they were.

The record is what a file says, and not trusted: whatever in it cannot be is refused in one sentence.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from pixart.checkpoints.hub import USERS_OFFLINE, looks_like_hub_id
from pixart.errors import PixArtError, UsageError, shown
from pixart.sampling.engine import choose_engine
from pixart.sampling.memory import PLAIN, Memory, check_memory
from pixart.sampling.model_folder import ModelFolder, hash_weights, open_model_folder, transformer_hash
from pixart.sampling.prompts import check_text
from pixart.sampling.request import Request, make_request
from pixart.sampling.restore import FIELDS

MAX_THREADS = 256
MAX_RESOLVED = 100_000  # characters of a prompt with the words of its style
# Of a record: what besides the request may change pixels.
CONDITIONS = ("weights", "engine", "device", "dtype", "memory", "threads", "versions", "bin")


@dataclass(frozen=True)
class Manner:
    """How to draw: the arguments of `Pipeline`, and the number of threads (None: as many as there are cores)."""

    engine: str
    dtype: str
    memory: Memory
    device: str
    threads: int | None


def find_model(record: dict[str, Any], model: str | None, parts: str | None) -> ModelFolder:
    """The model that drew a picture: `model` if it is named; else the shipped one, or one in the Hub's cache, by hash.

    Raises:
        PixArtError: it is neither of these, or the named one cannot be opened.
    """
    source = record.get("source")
    source, fast = source if isinstance(source, dict) else {}, record.get("fast") is True
    if model is not None:
        options = {"ema": source.get("ema") is True} if parts is not None else {}
        sizes = ("num_heads", "image_size") if parts is not None else ()
        options |= {name: source[name] for name in sizes if type(source.get(name)) is int}
        return open_model_folder(model, parts=parts, fast=fast, **options)
    wanted = _hashes(record)
    folder = _shipped(fast)
    if folder is not None and transformer_hash(hash_weights(folder)) == transformer_hash(wanted):
        return folder
    name = source.get("model")
    if isinstance(name, str) and len(name) < 200 and looks_like_hub_id(name):
        revision = source.get("revision")
        pinned = f"{name.partition('@')[0]}@{revision}" if isinstance(revision, str) else name
        with _hub_offline():
            try:
                folder = open_model_folder(pinned if looks_like_hub_id(pinned) else name, fast=fast)
                if transformer_hash(hash_weights(folder)) == transformer_hash(wanted):
                    return folder
            except PixArtError:
                pass  # not in the cache; a picture must not start a download
    raise PixArtError(
        f'It was drawn with the model "{shown(record.get("model"))}" (transformer '
        f"{shown(transformer_hash(wanted), 12)}), which is not the shipped one; name it with --model."
    )


def _shipped(fast: bool) -> ModelFolder | None:
    """The model that comes with the package; None where its fast denoiser is asked for and it has none."""
    folder = open_model_folder()
    if not fast:
        return folder
    return open_model_folder(fast=True) if folder.fast_settings else None


def request_of(record: dict[str, Any], folder: ModelFolder) -> Request:
    """What to draw, with the texts as the model got them, whatever has become of the styles since.

    Raises:
        UsageError: names the first setting that cannot be.
    """
    options = {}
    for key, (check, allowed) in FIELDS.items():
        if key in ("prompt", "negative_prompt", "style") or record.get(key) is None:
            continue
        options[key] = check(record[key])
        if options[key] is None:
            raise UsageError(f'Its {key.replace("_", " ")} is "{shown(record[key])}" and must be {allowed}.')
    texts = {}
    for key in ("resolved_prompt", "resolved_negative_prompt"):
        texts[key] = record.get(key)
        if not isinstance(texts[key], str) or len(texts[key]) > MAX_RESOLVED:
            raise UsageError(f"Its {key.replace('_', ' ')} is missing, or no text of at most {MAX_RESOLVED:,} letters.")
        for start in range(0, len(texts[key]), 10_000):
            check_text(texts[key][start : start + 10_000], key.replace("_", " "))
    request = make_request(folder, "", **options)
    return replace(
        request,
        prompts=(texts["resolved_prompt"],),
        resolved_prompts=(texts["resolved_prompt"],),
        resolved_negative_prompt=texts["resolved_negative_prompt"],
    )


def manner_of(record: dict[str, Any], folder: ModelFolder) -> Manner:
    """Engine, dtype, memory, device and threads of the record where they can be had here; else what can be."""
    engine, dtype = (record[key] if isinstance(record.get(key), str) else "auto" for key in ("engine", "dtype"))
    memory, device = _memory(record.get("memory")), _device(record.get("device"))
    threads = record.get("threads")
    threads = threads if type(threads) is int and 1 <= threads <= MAX_THREADS else None
    for wanted in (
        (engine, dtype, memory, device),
        ("auto", dtype, memory, device),
        ("auto", dtype, PLAIN, "cpu"),
        ("auto", "float32", PLAIN, "cpu"),
    ):
        try:
            engine = choose_engine(folder, *wanted)
        except PixArtError:
            if wanted[1:] == ("float32", PLAIN, "cpu") and wanted[0] == "auto":
                raise
            continue
        return Manner(engine, *wanted[1:], threads)
    raise AssertionError("the last way was taken or has raised")


@contextmanager
def with_threads(threads: int | None) -> Iterator[None]:
    """Both engines compute with so many threads; ONNX Runtime's read it when they load."""
    if threads is None:
        yield
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch = sys.modules.get("torch")  # if it comes later, it reads the environment too
    torch_before = torch.get_num_threads() if torch else None
    if torch:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
        if torch:
            torch.set_num_threads(torch_before)


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of two records of one picture, besides the request, is not the same; a phrase each."""
    found = []
    for key in CONDITIONS:
        old, new = then.get(key), now.get(key)
        if isinstance(new, dict) and isinstance(old, dict):
            names = {name: None for name in (*new, *old) if old.get(name) != new.get(name)}
            for name in list(names)[:20]:
                if key == "weights":
                    found.append(f"{shown(name)} is another file")
                else:
                    found.append(f"{shown(name)}: {_said(old, name)} then, {_said(new, name)} now")
        elif old is not None and old != new:  # an older record may not say
            found.append(f"{key}: {shown(old)} then, {shown(new)} now")
    return found


def _said(values: dict[str, Any], name: str) -> str:
    return shown(values[name]) if name in values else "nothing"


def _hashes(record: dict[str, Any]) -> dict[str, str]:
    hashes = record.get("weights")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise UsageError("Its settings do not say which weights drew it.")
    return hashes


def _memory(values: Any) -> Memory:
    known = {field.name: type(getattr(PLAIN, field.name)) for field in fields(Memory) if field.name != "text_states"}
    values = values if isinstance(values, dict) else {}
    try:
        return check_memory(Memory(**{key: value for key, value in values.items() if known.get(key) is type(value)}))
    except UsageError:
        return PLAIN


def _device(name: Any) -> str:
    if name != "cuda":
        return "cpu"
    try:
        import torch
    except ModuleNotFoundError:
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextmanager
def _hub_offline() -> Iterator[None]:
    before = os.environ.get(USERS_OFFLINE)
    os.environ[USERS_OFFLINE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[USERS_OFFLINE]
        else:
            os.environ[USERS_OFFLINE] = before
