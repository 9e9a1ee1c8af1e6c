"""Models from the Hugging Face Hub, through huggingface_hub: its cache, its offline switch, its token.

Only a hub id that somebody typed reaches the network, and only the files that are read are fetched: JSON, tokenizer,
safetensors and graphs; never a pickle, and of weights in several precisions one.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pixart.checkpoints.diffusers import CONFIG_NAME, NULL_CAPTION_NAME, WEIGHTS_NAME
from pixart.checkpoints.known import known_model
from pixart.errors import PixArtError, reason_of

# `parts` are what an official file lacks; `without texts`: without the text encoder's weights.
Wanted = Literal["model", "model without texts", "transformer", "parts", "parts without texts", "configs", "adapter"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
RUNS = "runs"  # where trainings write, often before the folder is there
FILE_ENDS = (".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".gguf")
OFFLINE = "HF_HUB_OFFLINE"
USERS_OFFLINE = "PIXART_HF_HUB_OFFLINE"  # the user's own setting, once the other is set for the libraries
TRUE = ("1", "ON", "YES", "TRUE")

SMALL_FILES = [
    *("model_index.json", "styles.json", "pixart.json", "hashes.json", "README.md", "LICENSE*", CONFIG_NAME),
    *(f"{part}/*.json" for part in ("text_encoder", "transformer", "vae")),
    *(f"{part}/*{end}" for part in ("scheduler", "tokenizer") for end in (".json", ".txt", ".model")),
]
WEIGHT_STEMS = {"text_encoder/": "model", "transformer/": "diffusion_pytorch_model", "vae/": "diffusion_pytorch_model"}
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"]
WANTED_WEIGHTS: dict[Wanted, tuple[str, ...]] = {
    "model": ("text_encoder/", "transformer/", "vae/"),
    "model without texts": ("transformer/", "vae/"),
    "transformer": ("transformer/",),
    "parts": ("text_encoder/", "vae/"),
    "parts without texts": ("vae/",),
    "configs": (),
}


def looks_like_hub_id(source: str | Path) -> bool:
    """Whether `source` is a text that names a model on the Hub: org/name or org/name@revision.

    A `Path` never is one: it comes from a program, and only what somebody typed may reach the network. Neither is what
    is here, nor what is missing here: a name in a folder that is here, a run, a file. With a revision, or as the name
    of a released model, it is meant for the Hub all the same.
    """
    if not isinstance(source, str) or not HUB_ID.fullmatch(source) or Path(source).exists():
        return False
    known = known_model(source)
    if "@" in source or (known is not None and known.name == source):
        return True
    place = source.split("/")[0]
    return not (place == RUNS or Path(place).is_dir() or source.lower().endswith(FILE_ENDS))


def resolve(source: str | Path, wanted: Wanted = "model") -> Path:
    """A path stays itself, there or not; a hub id becomes the folder in the cache that holds what is `wanted`.

    Raises:
        PixArtError: no such repository, no network and not in the cache, a download that broke off.
    """
    if not looks_like_hub_id(source):
        return Path(source)
    folder = Path(_download(str(source), wanted, tqdm_class=_bar()))
    files = ("model_index.json", CONFIG_NAME, f"transformer/{CONFIG_NAME}")
    if wanted != "adapter" and not any((folder / name).exists() for name in files):
        raise PixArtError(
            f"{source} on the Hub holds no model in the layout of Diffusers: there is no model_index.json."
        )
    return folder


def revision_of(folder: Path) -> str | None:
    """The commit of a folder that `resolve` gave: the cache calls its folders by it."""
    return folder.name if folder.parent.name == "snapshots" else None


def left_to_fetch(hub_id: str, wanted: Wanted = "model") -> int | None:
    """Bytes of what is `wanted` that are not in the cache; None where the Hub cannot be asked."""
    try:
        return sum(file.file_size for file in _download(hub_id, wanted, dry_run=True) if file.will_download)
    except PixArtError:
        return None


def patterns(wanted: Wanted) -> list[str]:
    """What is fetched of a repository, as `snapshot_download` takes it.

    A repository of a transformer alone has its files at the root.
    """
    if wanted == "adapter":
        return ADAPTER_FILES
    places = WANTED_WEIGHTS[wanted]
    chosen = [*SMALL_FILES]
    for place in (*places, "") if "transformer/" in places else places:
        stem = place + WEIGHT_STEMS.get(place, "diffusion_pytorch_model")
        chosen += [f"{stem}.safetensors", f"{stem}-[0-9]*-of-[0-9]*.safetensors"]
    if "transformer/" in places:
        chosen += [f"transformer/{NULL_CAPTION_NAME}", f"{WEIGHTS_NAME}.index.json"]
    return [*chosen, "*.onnx"] if wanted == "model" else chosen


def cached_models() -> dict[str, int]:
    """The repositories of models in the Hub's cache on this machine, and the bytes that each takes."""
    try:
        from huggingface_hub import CacheNotFound, scan_cache_dir
    except ModuleNotFoundError:
        return {}
    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return {}
    return {repo.repo_id: repo.size_on_disk for repo in cache.repos if repo.repo_type == "model"}


def keep_libraries_offline() -> None:
    """From here on the libraries do not ask the network by themselves; `resolve` does as the user has set it."""
    os.environ.setdefault(USERS_OFFLINE, os.environ.get(OFFLINE, ""))
    os.environ[OFFLINE] = "1"


def _download(hub_id: str, wanted: Wanted, **options):
    """What `snapshot_download` gives; its exceptions become sentences."""
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "huggingface_hub":
            raise
        raise PixArtError(
            f"{hub_id} is no folder here, and to fetch it from the Hub huggingface_hub is needed: pip install "
            "'pixart[torch]'"
        ) from None
    name, _, revision = hub_id.partition("@")
    sentences = {
        errors.GatedRepoError: f"{name} wants its terms accepted first: do so at {constants.ENDPOINT}/{name}, and give "
        "your token in HF_TOKEN.",
        errors.RevisionNotFoundError: f"{name} has no revision {revision}; give a branch, tag or commit of it.",
        errors.RepositoryNotFoundError: f"{hub_id} is neither a folder here nor a repository on the Hub that you may "
        "read; look at the spelling, and for a private one give your token in HF_TOKEN.",
        errors.LocalEntryNotFoundError: f"{hub_id} is no folder here, not in the cache {constants.HF_HUB_CACHE}, and "
        f"the Hub cannot be reached; unset {OFFLINE} if it is set, try again with a network, or give a folder.",
    }
    with _users_offline_setting():
        try:
            return snapshot_download(name, revision=revision or None, allow_patterns=patterns(wanted), **options)
        except Exception as error:  # every way in which a network can fail has its own class, in several libraries
            cause: BaseException | None = error
            while cause is not None:
                for kind, sentence in sentences.items():
                    if isinstance(cause, kind):
                        raise PixArtError(sentence) from None
                cause = cause.__cause__
            raise PixArtError(
                f"The download of {name} broke off ({reason_of(error)}); run the same again, and it goes on where it "
                "stopped."
            ) from None


@contextmanager
def _users_offline_setting() -> Iterator[None]:
    """huggingface_hub reads its offline switch once, as it is imported, perhaps after `keep_libraries_offline`."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if USERS_OFFLINE in os.environ:
        constants.HF_HUB_OFFLINE = os.environ[USERS_OFFLINE].upper() in TRUE
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _bar() -> type:
    """A bar on a terminal, and nothing elsewhere."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *arguments, name: str | None = None, disable: bool | None = None, **options):
            super().__init__(*arguments, disable=None, **options)

    return Bar
