"""The metrics that papers report: FID, KID, precision and recall on features of Inception v3, and CLIPScore.

FID and KID are those of torchmetrics. It has no precision and recall; torch-fidelity has, but wants torchvision, whose
usual build does not load beside a torch without CUDA. So these are written here, and the tests hold torch-fidelity's
results. CLIPScore is not that of torchmetrics, which takes models of a few names only and breaks with transformers 5.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pixart.data.pairs import ImageProblem
from pixart.errors import PixArtError, UsageError, reason_of
from pixart.evaluation.comparison import record
from pixart.files import file_hash
from pixart.images import open_image
from pixart.pipeline.image_files import read_settings

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
# Of our own images' settings, what decides their metrics and does not name the model.
SAMPLING = (
    *("steps", "guidance_scale", "guidance_interval", "guidance_rescale", "guidance_channels", "null_text", "sampler"),
    *("width", "height", "seed"),
)


@dataclass(frozen=True)
class Folder(Sequence):
    """Image files in the order of their names, each read when it is indexed, and a hash of their contents."""

    path: Path
    files: tuple[Path, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, which):
        return [read(file) for file in self.files[which]] if isinstance(which, slice) else read(self.files[which])


def open_folder(path: Path, most: int | None = None) -> Folder:
    """All images in a folder and its subfolders, the first `most` by name. Raises UsageError where there are none."""
    if most is not None and most < 1:
        raise UsageError(f"--num is {most}; give 1 or more.")
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder of images.")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and not file.name.startswith("."))
    if not files or len(files) < (most or 0):
        raise UsageError(
            f"{path} holds {len(files):,} images ({', '.join(ENDINGS)}); at least {most or 1:,} are needed."
        )
    files = files[:most]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(file.read_bytes())
    return Folder(path, tuple(files), digest.hexdigest())


def read(file: Path, size: int | None = None) -> Image.Image:
    """RGB on white; with `size` the middle square, brought to `size` pixels a side by Pillow's bicubic filter."""
    try:
        rgb = open_image(file.read_bytes()).image
    except (OSError, ImageProblem) as error:
        raise PixArtError(f"The image {file} cannot be read: {error}.") from None
    if size is None:
        return rgb
    side = min(rgb.size)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    return rgb.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BICUBIC)


def prompts_of(folder: Folder, given: Sequence[str] | None = None) -> list[str]:
    """One prompt for each image.

    `given` in the order of the images' names; else what our own images or their comparison hold, or the layout of
    GenEval (metadata.jsonl beside samples/) or T2I-CompBench ("PROMPT_000000.png"). Raises UsageError where there is
    none.
    """
    if given is not None:
        if len(given) != len(folder):
            raise UsageError(
                f"There are {len(given):,} prompts for the {len(folder):,} images in {folder.path}; give one for each, "
                "in the order of the images' names."
            )
        return list(given)
    if plan := _comparison_of(folder.path):
        return [plan.rows[int(file.stem.split("-")[0])].text for file in folder.files]
    return [_prompt(file) for file in folder.files]


def sampling_settings(folder: Folder) -> dict[str, Any]:
    """Steps, guidance, sampler, size and seeds of our own images, as the files or their comparison have them.

    A value that differs between images is a list; None stands for what is not known.
    """
    if plan := _comparison_of(folder.path):
        place = folder.path.resolve()
        used = record.outcome(place.parents[1], place.name).sampled.settings
        settings = [used | {"seed": seed} for seed in plan.seeds] if used else [{}]
    else:
        try:
            settings = [read_settings(file) for file in folder.files]
        except PixArtError:
            settings = [{}]
    found: dict[str, Any] = {}
    for name in SAMPLING:
        values = [json.loads(value) for value in sorted({json.dumps(one.get(name)) for one in settings})]
        found[name] = values if len(values) > 1 else values[0]
    if seeds := {one["seed"] for one in settings if isinstance(one.get("seed"), int)}:
        found["seed"] = f"{min(seeds)} to {max(seeds)}, {len(seeds)} of them"
    return found


def _comparison_of(folder: Path) -> record.Plan | None:
    """The plan of the comparison that made this folder, COMPARISON/models/NAME; None for other folders."""
    models = folder.resolve().parent
    there = models.name == "models" and (models.parent / record.PLAN).is_file()
    return record.read(models.parent) if there else None


def _prompt(file: Path) -> str:
    try:
        return str(read_settings(file)["resolved_prompt"])
    except (PixArtError, KeyError):
        pass
    beside = file.parent.parent / "metadata.jsonl"
    if file.parent.name == "samples" and beside.is_file():
        try:
            return str(json.loads(beside.read_text(encoding="utf-8").splitlines()[0])["prompt"])
        except (OSError, ValueError, KeyError, IndexError):
            raise UsageError(f"{beside} has no prompt; it should be a line of GenEval's evaluation_metadata.") from None
    words, _, number = file.stem.rpartition("_")
    if words and number.isdigit():
        return words
    raise UsageError(f"{file} holds no prompt, and its name is none either; give --prompts, a line for each image.")


FEATURES = 2048  # of Inception v3: with no more images than that, FID's covariances have no inverse
UNBIASED = 10_000  # under it, FID is well above what more images of the same model would give (arXiv 1911.07023)
FEWEST = 100  # images, for any of the others
SUBSETS, SUBSET = 100, 1000  # of KID, and images of each; with fewer images, half of them
SUBSETS_SEED = 2020
NEIGHBOUR = 3  # whose distance is the radius of an image's ball, in precision and recall
AT_ONCE = 32
WEIGHTS = "inception-2015-12-05.pt"
WHERE = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{WEIGHTS}"
METRICS = ("fid", "kid", "prc")


def find_weights(given: Path | None) -> Path:
    """Inception v3 as a TorchScript file: the given one, or torch's own cache. PixArtError says how to get it."""
    import torch

    path = given or Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not path.is_file():
        raise PixArtError(
            f"FID, KID, precision and recall need Inception v3, and {path} is not there; get {WHERE} and give it with "
            "--inception."
        )
    return path


def check_count(generated: int, real: int, metrics: tuple[str, ...]) -> list[str]:
    """What to know of metrics of so many images. Raises UsageError where there are too few for one of them."""
    fewest = min(generated, real)
    if fewest < FEWEST:
        raise UsageError(
            f"There are {generated:,} generated and {real:,} real images; FID, KID, precision and recall need "
            f"{FEWEST} of each."
        )
    if "fid" in metrics and fewest <= FEATURES:
        raise UsageError(
            f"FID needs more than {FEATURES:,} images of each kind, not {fewest:,}: its features have that many "
            "dimensions. KID (--metrics kid) is unbiased with fewer."
        )
    marks = []
    if "fid" in metrics and fewest < UNBIASED:
        marks.append(f"FID of {fewest:,} images is biased upwards; compare it with others of the same count only")
    if "prc" in metrics and fewest < UNBIASED:
        marks.append(f"precision and recall depend on the count, {generated:,} and {real:,}")
    return marks


def fidelity(
    images: Folder, real: Folder, metrics: tuple[str, ...], weights: Path, size: int, device: str = "cpu"
) -> dict[str, float]:
    """The metrics of two folders by name; the middle square of every image is brought to `size` pixels first.

    Raises:
        PixArtError: `weights` is not Inception v3. ModuleNotFoundError: torchmetrics is missing.
    """
    import torchmetrics  # noqa: F401  # before the features, which take long

    a, b = (features(folder, weights, size, device) for folder in (images, real))
    found: dict[str, float] = {}
    if "fid" in metrics:
        found["fid"] = frechet_distance(a, b)
    if "kid" in metrics:
        found["kid"], found["kid_std"] = kernel_inception_distance(a, b)
    if "prc" in metrics:
        found["precision"], found["recall"] = precision_recall(a, b)
    return found


def features(folder: Folder, weights: Path, size: int, device: str = "cpu") -> np.ndarray:
    """(N, 2048) float64: the last pooling layer of the Inception v3 in a TorchScript file, which resizes by itself.

    The file's module is called with uint8 (B, 3, H, W) and `return_features=True`, as StyleGAN2-ADA's does
    (metrics/metric_utils.py). Raises PixArtError where it is another file.
    """
    import torch

    try:
        network = torch.jit.load(weights, map_location=device).eval()
        found = []
        for start in range(0, len(folder.files), AT_ONCE):
            part = np.stack([np.asarray(read(file, size)) for file in folder.files[start : start + AT_ONCE]])
            with torch.inference_mode():
                pixels = torch.from_numpy(part).permute(0, 3, 1, 2).to(device)
                found.append(network(pixels, return_features=True).cpu().double().numpy())
        return np.concatenate(found)
    except (RuntimeError, ValueError, OSError, AttributeError) as error:
        raise PixArtError(f"{weights} is not Inception v3 as TorchScript ({reason_of(error)}); get {WHERE}") from error


def frechet_distance(images: np.ndarray, real: np.ndarray) -> float:
    """FID of features (N, D) and (M, D): arXiv 1706.08500, equation 6, by torchmetrics."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    return float(_measured(FrechetInceptionDistance, images, real))


def kernel_inception_distance(images: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """KID and its deviation over random subsets: arXiv 1801.01401, section 4, by torchmetrics.

    Which subsets is always the same for the same counts, and changes no other random numbers of torch.
    """
    import torch
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(SUBSET, min(len(images), len(real)) // 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SUBSETS_SEED)
        mean, deviation = _measured(KernelInceptionDistance, images, real, subsets=SUBSETS, subset_size=size)
    return float(mean), float(deviation)


def _measured(metric: Any, images: np.ndarray, real: np.ndarray, **settings: int) -> Any:
    """A metric of torchmetrics on features that are there already: its extractor passes them through."""
    import torch

    identity = torch.nn.Identity()
    identity.num_features = images.shape[1]
    with warnings.catch_warnings(action="ignore"):  # that it keeps all features in memory
        measured = metric(identity, **settings)
    measured.update(torch.from_numpy(images).double(), real=False)
    measured.update(torch.from_numpy(real).double(), real=True)
    return measured.compute()


def precision_recall(images: np.ndarray, real: np.ndarray) -> tuple[float, float]:
    """The share of generated features within a ball of a real one, and the reverse (arXiv 1904.06991, section 2)."""
    between = _distances(images, real)
    radius = [np.partition(_distances(x, x), NEIGHBOUR, axis=1)[:, NEIGHBOUR] for x in (images, real)]
    precision = (between <= radius[1]).any(axis=1).mean()
    recall = (radius[0] >= between.T).any(axis=1).mean()
    return float(precision), float(recall)


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2 * x @ y.T
    return np.sqrt(np.maximum(squares, 0))


CLIP_AT_ONCE = 16
CLIP = "openai/clip-vit-large-patch14"


class Clip:
    """A CLIP folder of transformers, or a hub id that is in the cache."""

    def __init__(self, source: str | Path, device: str = "cpu"):
        """Load it. Raises PixArtError where it is not there or damaged; says how to get it."""
        from transformers import CLIPModel, CLIPProcessor
        from transformers.utils import cached_file

        try:
            model, info = CLIPModel.from_pretrained(source, local_files_only=True, output_loading_info=True)
            if info["missing_keys"]:
                raise ValueError(f"it lacks {sorted(info['missing_keys'])[0]}")
            self.processor = CLIPProcessor.from_pretrained(source, local_files_only=True)
            folder = Path(cached_file(source, "config.json", local_files_only=True)).parent
        except Exception as error:  # a damaged folder can fail anywhere inside the library
            raise PixArtError(
                f"CLIP cannot be loaded from {source} ({reason_of(error)}); get it with: hf download {CLIP}, or give "
                "its folder."
            ) from error
        self.model = model.to(device).eval()
        files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
        self.sha256 = hashlib.sha256("".join(map(file_hash, files)).encode()).hexdigest()

    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """The score of each image with its own prompt, (N,), 0 to 100: the cosine of CLIP's two vectors, cut at 0.

        Times 100, as torchmetrics has it; Hessel et al. (arXiv 2104.08718), equation 1, multiply by 2.5 instead.
        """
        import torch

        longest = self.model.config.text_config.max_position_embeddings
        options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": longest}
        found = [np.zeros(0)]
        for start in range(0, len(images), CLIP_AT_ONCE):
            part, words = images[start : start + CLIP_AT_ONCE], list(prompts[start : start + CLIP_AT_ONCE])
            given = self.processor(text=words, images=part, **options).to(self.model.device)
            with torch.inference_mode():
                out = self.model(**given)
                found.append(torch.cosine_similarity(out.image_embeds, out.text_embeds).clamp(min=0).cpu().numpy())
        return 100 * np.concatenate(found)
