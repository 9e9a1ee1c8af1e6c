"""FID, KID, precision and recall on features of Inception v3: how alike two folders of images are.

FID and KID are torchmetrics'. It has no precision and recall; torch-fidelity has, but wants torchvision, whose usual
build does not load beside a torch without CUDA. So these are written here, and the tests hold torch-fidelity's results.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pixart.errors import PixArtError, UsageError, reason_of
from pixart.evaluation.metrics.images import Folder, read

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
