"""Models from the Hugging Face Hub, through huggingface_hub: its cache, its offline switch, its token.

Only a hub id that somebody typed reaches the network, and only the files that are read are fetched: JSON, tokenizer,
safetensors and graphs, of weights in several forms one, and never a pickle.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pixart.checkpoints.diffusers import CONFIG_NAME, NULL_CAPTION_NAME, WEIGHTS_NAME
from pixart.errors import PixArtError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
WEIGHTS = {"text_encoder": "model.safetensors", "transformer": WEIGHTS_NAME, "vae": WEIGHTS_NAME}
ROOT_FILES = (
    "model_index.json",
    "styles.json",
    "pixart.json",
    "hashes.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    CONFIG_NAME,
)
SMALL_SUFFIXES = (".json", ".txt", ".model")  # configs, indices and tokenizers
# Whose weights are fetched, by what they are for.
WANTED = {
    "model": ("text_encoder", "transformer", "vae"),
    "transformer": ("transformer",),
    "parts": ("text_encoder", "vae"),  # what an official file lacks
    "configs": (),
}
OFFLINE = "HF_HUB_OFFLINE"
USERS_OFFLINE = "PIXART_HF_HUB_OFFLINE"  # what the person said, once we have set the other for the libraries
TRUE = ("1", "ON", "YES", "TRUE")


def looks_like_hub_id(source: str | Path) -> bool:
    """Whether `source` is a text of the form org/name or org/name@revision, and nothing of that name is here.

    A `Path` never is one: it comes from a program, and only what somebody typed may reach the network.
    """
    return isinstance(source, str) and bool(HUB_ID.fullmatch(source)) and not Path(source).exists()


def resolve(source: str | Path, wanted: str = "model") -> Path:
    """A path stays itself, there or not; a hub id becomes the folder in the cache that holds what is `wanted`.

    Args:
        source: a path, or "org/name", or "org/name@revision".
        wanted: "model", "transformer", "parts" (everything but the transformer's weights) or "configs" (no weights).

    Raises:
        PixArtError: no such repository, no network and not in the cache, a download that broke off.
    """
    return fetch(str(source), wanted) if looks_like_hub_id(source) else Path(source)


def revision_of(folder: Path) -> str | None:
    """The commit of a folder that `fetch` gave: the cache calls its folders by it."""
    return folder.name if folder.parent.name == "snapshots" else None


def fetch(hub_id: str, wanted: str = "model", say: Callable[[str], None] | None = None) -> Path:
    """The snapshot folder of a hub id; see `resolve`. `say` gets what a person should know (None: to stderr)."""
    say = say or (lambda sentence: print(sentence, file=sys.stderr, flush=True))
    name, _, revision = hub_id.partition("@")
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "huggingface_hub":
            raise
        raise PixArtError(
            f"{hub_id} is no folder here, and to fetch it from the Hub huggingface_hub is needed: pip install "
            "'pixart[torch]'"
        ) from None
    cache = Path(constants.HF_HUB_CACHE)
    with _as_the_person_wishes():
        try:
            listing = HfApi().model_info(name, revision=revision or None, files_metadata=True)
        except GatedRepoError:
            raise PixArtError(
                f"{name} wants its terms accepted first: do so at {constants.ENDPOINT}/{name}, and give your token "
                "in HF_TOKEN."
            ) from None
        except RevisionNotFoundError:
            raise PixArtError(
                f"{name} has no revision {revision}; give one of its branches, tags or commits."
            ) from None
        except RepositoryNotFoundError:
            raise PixArtError(
                f"{hub_id} is neither a folder here nor a repository on the Hub that you may read; look at the "
                "spelling, and for a private one give your token in HF_TOKEN."
            ) from None
        except Exception as error:  # every way in which a network can fail has its own class, in several libraries
            return _cached(hub_id, cache, error, say)
        sizes = {file.rfilename: file.size or 0 for file in listing.siblings or []}
        files = needed(list(sizes), wanted)
        if not files:
            raise PixArtError(
                f"{name} on the Hub holds no model in the layout of Diffusers: there is no model_index.json."
            )
        folder = cache / f"models--{name.replace('/', '--')}" / "snapshots" / str(listing.sha)
        missing = [file for file in files if not (folder / file).exists()]
        remembered = folder.parent.parent / "refs" / (revision or "main")
        if not missing and (revision == listing.sha or _text(remembered) == listing.sha):
            return folder
        if missing:
            total = sum(sizes[file] for file in missing)
            say(f"Fetching {len(missing)} files of {name}, {_readable(total)}, into {cache}.")
        try:
            # By the branch's name, so that the cache remembers what it stood for.
            fetched = snapshot_download(name, revision=revision or None, allow_patterns=files, tqdm_class=_bar())
        except Exception as error:
            raise PixArtError(
                f"The download of {name} broke off ({_reason(error)}); run the same again, and it goes on where it "
                "stopped."
            ) from None
    return Path(fetched)


def left_to_fetch(hub_id: str) -> int | None:
    """Bytes of a whole model that are not in the cache; None if the Hub cannot be asked and something is missing."""
    from huggingface_hub import HfApi

    name, _, revision = hub_id.partition("@")
    folder = fetch(hub_id, "configs", say=lambda sentence: None)
    with _as_the_person_wishes():
        try:
            listing = HfApi().model_info(name, revision=revision or None, files_metadata=True)
        except Exception:  # as in `fetch`
            return 0 if _is_whole(folder) else None
    sizes = {file.rfilename: file.size or 0 for file in listing.siblings or []}
    return sum(sizes[file] for file in needed(list(sizes), "model") if not (folder / file).exists())


def needed(names: list[str], wanted: str) -> list[str]:
    """Which files of a repository are fetched for what is `wanted`, one of WANTED."""
    chosen = []
    for name in names:
        path = PurePosixPath(name)
        folder = path.parent.name if len(path.parts) == 2 else ""
        in_part = folder in (*WEIGHTS, "scheduler", "tokenizer") and path.suffix in SMALL_SUFFIXES
        if name in ROOT_FILES or in_part or (wanted == "model" and len(path.parts) == 1 and path.suffix == ".onnx"):
            chosen.append(name)
    # A repository of a transformer alone has its files at the root.
    places = [(part, f"{part}/") for part in WANTED[wanted]] + [("transformer", "")] * ("transformer" in WANTED[wanted])
    for part, prefix in places:
        whole = prefix + WEIGHTS[part]
        shard = re.compile(re.escape(whole.removesuffix(".safetensors")) + r"-\d+-of-\d+\.safetensors")
        chosen += [whole] if whole in names else [name for name in names if shard.fullmatch(name)]
    null_caption = f"transformer/{NULL_CAPTION_NAME}"
    return chosen + [null_caption] * ("transformer" in WANTED[wanted] and null_caption in names)


def keep_libraries_offline() -> None:
    """From here on the libraries do not ask the network by themselves; `fetch` does as the person has set it."""
    os.environ.setdefault(USERS_OFFLINE, os.environ.get(OFFLINE, ""))
    os.environ[OFFLINE] = "1"


def _is_whole(folder: Path) -> bool:
    places = [folder / part / name for part, name in WEIGHTS.items()]
    return all(place.exists() or place.with_name(f"{place.name}.index.json").exists() for place in places)


def _cached(hub_id: str, cache: Path, error: Exception, say: Callable[[str], None]) -> Path:
    """What an earlier download left in the cache, whole or not; who reads the folder names what is missing."""
    from huggingface_hub import constants

    name, _, revision = hub_id.partition("@")
    stored = cache / f"models--{name.replace('/', '--')}"
    folder = stored / "snapshots" / (_text(stored / "refs" / (revision or "main")) or revision)
    offline = constants.HF_HUB_OFFLINE
    if folder.name == "snapshots" or not folder.is_dir():
        why = "HF_HUB_OFFLINE says not to fetch it" if offline else f"the Hub cannot be reached ({_reason(error)})"
        fix = "unset it" if offline else "try again with a network"
        raise PixArtError(
            f"{hub_id} is no folder here and not in the cache {cache}, and {why}; {fix}, or give the path of a folder."
        )
    if not offline:
        say(f"The Hub cannot be reached ({_reason(error)}); {name} is taken as it lies in the cache.")
    return folder


@contextmanager
def _as_the_person_wishes() -> Iterator[None]:
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


def _text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _readable(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
