"""Generating an image again from the record in its file: the same model, engine, dtype and threads, if they are here.

The record is what a file says, and not trusted: whatever in it cannot be is refused in one sentence.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

from pixart.checkpoints.hub import USERS_OFFLINE, looks_like_hub_id
from pixart.checkpoints.model_folder import ModelFolder, open_model_folder, transformer_hash, weight_hashes
from pixart.errors import PixArtError, UsageError, shown
from pixart.pipeline.networks import Runtime, choose_runtime
from pixart.pipeline.prompts import check_text
from pixart.pipeline.request import Request, make_request
from pixart.pipeline.restore import FIELDS
from pixart.runtime.memory import PLAIN, Memory, check_memory

MAX_THREADS = 256
MAX_RESOLVED = 100_000  # characters of a prompt with the words of its style
# Of a record: what besides the request may change pixels.
CONDITIONS = ("weights", "engine", "device", "dtype", "arithmetic", "memory", "threads", "versions", "bin")


def find_model(record: dict[str, Any], model: str | None, parts: str | None) -> ModelFolder:
    """The model of an image: `model` if it is named; else the shipped one, or one in the Hub's cache, by hash.

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
    if folder is not None and transformer_hash(weight_hashes(folder)) == transformer_hash(wanted):
        return folder
    name = source.get("model")
    if isinstance(name, str) and len(name) < 200 and looks_like_hub_id(name):
        revision = source.get("revision")
        pinned = f"{name.partition('@')[0]}@{revision}" if isinstance(revision, str) else name
        with _hub_offline():
            try:
                folder = open_model_folder(pinned if looks_like_hub_id(pinned) else name, fast=fast)
                if transformer_hash(weight_hashes(folder)) == transformer_hash(wanted):
                    return folder
            except PixArtError:
                pass  # not in the cache; an image file must not start a download
    raise PixArtError(
        f'It was generated with the model "{shown(record.get("model"))}" (transformer '
        f"{shown(transformer_hash(wanted), 12)}), which is not the shipped one; name it with --model."
    )


def _shipped(fast: bool) -> ModelFolder | None:
    """The model that comes with the package; None where its few-step model is wanted and it has none."""
    folder = open_model_folder()
    if not fast:
        return folder
    return open_model_folder(fast=True) if folder.fast_settings else None


def request_of(record: dict[str, Any], folder: ModelFolder) -> Request:
    """The request of a record, with the texts as the model got them, whatever has become of the styles since.

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


def runtime_of(record: dict[str, Any], folder: ModelFolder) -> tuple[Runtime, int | None]:
    """Engine, dtype, memory and device of the record where they are to be had here, else what is; and its threads."""
    engine, dtype, device = (
        record[key] if isinstance(record.get(key), str) else "auto" for key in ("engine", "dtype", "device")
    )
    memory = _memory(record.get("memory"))
    threads = record.get("threads")
    threads = threads if type(threads) is int and 1 <= threads <= MAX_THREADS else None
    for wanted in (
        (engine, dtype, memory, device),
        ("auto", dtype, memory, device),
        ("auto", dtype, PLAIN, "cpu"),
        ("auto", "float32", PLAIN, "cpu"),
    ):
        try:
            return choose_runtime(folder, *wanted), threads
        except PixArtError as error:
            refusal = error
    raise refusal


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
    """What of two records of one image, besides the request, is not the same; a phrase each."""
    found = []
    for key in CONDITIONS:
        old, new = then.get(key), now.get(key)
        if isinstance(new, dict) and isinstance(old, dict):
            names = {name: None for name in (*new, *old) if old.get(name) != new.get(name)}
            for name in list(names)[:20]:
                if key == "weights":
                    found.append(f"{shown(name)} is another file")
                else:
                    found.append(f"{shown(name)}: {_value(old, name)} then, {_value(new, name)} now")
        elif old is not None and old != new:  # an older record may not say
            found.append(f"{key}: {shown(old)} then, {shown(new)} now")
    return found


def _value(values: dict[str, Any], name: str) -> str:
    return shown(values[name]) if name in values else "nothing"


def _hashes(record: dict[str, Any]) -> dict[str, str]:
    hashes = record.get("weights")
    if not isinstance(hashes, dict) or not all(isinstance(value, str) for value in hashes.values()):
        raise UsageError("Its settings do not name its weights.")
    return hashes


def _memory(values: Any) -> Memory:
    known = {field.name: type(getattr(PLAIN, field.name)) for field in fields(Memory) if field.name != "text_states"}
    values = values if isinstance(values, dict) else {}
    try:
        return check_memory(Memory(**{key: value for key, value in values.items() if known.get(key) is type(value)}))
    except UsageError:
        return PLAIN


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
