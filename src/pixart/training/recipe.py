"""Recipes: a TOML file becomes one of five plain dataclasses, strictly. Unknown keys and wrong types are refused.

Each part of a recipe is the dataclass that stands beside the code it configures; this file only names the parts.
"""

import dataclasses
import difflib
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from pixart.data.dropped import ALLOWED
from pixart.diffusion.timesteps import Timesteps
from pixart.encoders.autoencoder import AutoencoderConfig
from pixart.errors import PixArtError, UsageError
from pixart.tracking.tracker import TrackingConfig
from pixart.training.batches import Phase, Sampling
from pixart.training.decoding import DecoderRecipe
from pixart.training.distillation import FastRecipe
from pixart.training.loop import LoopConfig
from pixart.training.objective import ObjectiveName
from pixart.training.optimizers.optimizer import OptimizerConfig
from pixart.training.samples import SamplesConfig
from pixart.training.structure import structure

RECIPES = Path(__file__).parent.parent / "recipes"
DEFAULT_MODEL = Path(__file__).parent.parent / "default_model"
SAMPLE_SIZES = (32, 64, 128)  # of the latent: what the stock pipeline draws


@dataclass(frozen=True)
class Denoiser:
    """The size of the network. The published XL/2 is width 1152, depth 28, num_heads 16.

    `sample_size` is the side of the latent at which positions count 0, 1, 2, ...: 32, 64 or 128, the only ones that the
    stock pipeline draws. `micro_conditions`: the network is told the picture's original size and its aspect ratio; the
    stock pipeline tells models of sample_size 128 only, and needs a width that is a multiple of 3.
    """

    width: int = 256
    depth: int = 8
    num_heads: int = 4
    sample_size: int = 32
    micro_conditions: bool = False

    def __post_init__(self):
        if min(self.width, self.depth, self.num_heads) < 1:
            raise UsageError(
                f"model: width {self.width}, depth {self.depth} and num_heads {self.num_heads} must be at least 1."
            )
        if self.width % self.num_heads or self.width % 4:
            raise UsageError(
                f"model: width {self.width} must be a multiple of 4 and of num_heads, which is {self.num_heads}."
            )
        if self.sample_size not in SAMPLE_SIZES:
            raise UsageError(f"model: sample_size {self.sample_size} must be one of 32, 64 and 128.")
        if self.micro_conditions and self.sample_size != 128:
            raise UsageError(
                f"model: micro_conditions need sample_size 128, not {self.sample_size}: the stock pipeline tells no "
                "other model the size."
            )
        if self.micro_conditions and self.width % 3:
            raise UsageError(f"model: with micro_conditions, width {self.width} must be a multiple of 3.")


@dataclass(frozen=True)
class Expected:
    """What `--dry-run` and `pixart plan` count with while data and encoders are not there to ask.

    `images` is the size of the data set, None where that is not known; `text_tokens` the length that captions have.
    """

    latent_channels: int = 8
    text_dim: int = 384
    text_tokens: int = 32
    classes: int = 100
    images: int | None = None

    def __post_init__(self):
        if min(self.latent_channels, self.text_dim, self.text_tokens, self.classes, self.images or 1) < 1:
            raise UsageError("expected: every figure must be at least 1.")


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Train the VAE on pictures: a fresh one, or that of `init`, a finished run or the folder of a VAE."""

    run: Path
    data: Path
    cache: Path
    phases: tuple[Phase, ...]
    init: Path | None = None
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self):
        check_common(self.phases, 0.0)
        check_all_tokens(self.phases)
        if self.autoencoder.anchor_weight and not self.init:
            raise UsageError(
                "autoencoder: anchor_weight holds the latents near those of the autoencoder that training starts from; "
                "give it with init, or leave it out."
            )


@dataclass(frozen=True)
class ClassRecipe:
    """Stage 1, pixel dependency: a class-conditional DiT on cached latents.

    It learns from `data`, pictures that are encoded into `cache` as training begins, by the kinds of `classes` that the
    data knows; or from `features`, a folder that `pixart data extract` made of class folders, where at most the share
    `allow_dropped` of the pictures was dropped.
    """

    run: Path
    autoencoder: Path
    phases: tuple[Phase, ...]
    data: Path | None = None
    cache: Path | None = None
    features: Path | None = None
    allow_dropped: float = ALLOWED
    classes: tuple[str, ...] = ("subgroup", "style")
    class_dropout: float = 0.1
    init: Path | None = None
    objective: ObjectiveName = "flow"
    min_snr_gamma: float | None = None
    model: Denoiser = field(default_factory=Denoiser)
    expected: Expected = field(default_factory=Expected)
    timesteps: Timesteps = field(default_factory=Timesteps)
    sampling: Sampling = field(default_factory=Sampling)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self):
        check_common(self.phases, self.class_dropout)
        check_all_tokens(self.phases)
        check_denoising(self)
        if not self.classes:
            raise UsageError("classes must name at least one kind: subgroup, group or style.")
        if self.model.micro_conditions:
            raise UsageError("model: micro_conditions belong to the text stages; the DiT of stage 1 has none.")
        if self.sampling.extra_splits:
            raise UsageError("sampling: extra_splits are for text stages; classes know no colours.")


@dataclass(frozen=True)
class TextRecipe:
    """Stages 2 and 3: the text-to-image denoiser. `init` is the run or model folder that it starts from.

    It learns from `data` and `cache`, or from `features`, as stage 1 does. `flow_shift` and `guidance_scale` go into
    the model folder, for drawing: above 1, flow_shift spends more of the steps at high noise; guidance_scale is what
    `pixart` draws with unless told otherwise.
    """

    run: Path
    autoencoder: Path
    phases: tuple[Phase, ...]
    data: Path | None = None
    cache: Path | None = None
    features: Path | None = None
    allow_dropped: float = ALLOWED
    init: Path | None = None
    reparameterize_timestep: float = 775.0
    caption_dropout: float = 0.1
    text_encoder: Path | None = None
    flow_shift: float = 1.0
    guidance_scale: float | None = None
    objective: ObjectiveName = "flow"
    min_snr_gamma: float | None = None
    model: Denoiser = field(default_factory=Denoiser)
    expected: Expected = field(default_factory=Expected)
    timesteps: Timesteps = field(default_factory=Timesteps)
    sampling: Sampling = field(default_factory=Sampling)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)

    def __post_init__(self):
        check_common(self.phases, self.caption_dropout)
        check_denoising(self)
        if not 0.01 <= self.flow_shift <= 100:
            raise UsageError(f"flow_shift is {self.flow_shift}; it must be from 0.01 to 100.")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale <= 50:
            raise UsageError(f"guidance_scale is {self.guidance_scale}; it must be from 0 to 50.")
        if not 0 <= self.reparameterize_timestep <= 1000:
            raise UsageError(f"reparameterize_timestep is {self.reparameterize_timestep}; it must be from 0 to 1000.")
        if self.model.micro_conditions and self.features is None:
            raise UsageError("model: micro_conditions need features, which know the size that each picture had.")


Recipe = AutoencoderRecipe | ClassRecipe | TextRecipe | DecoderRecipe | FastRecipe
KINDS: dict[str, type] = {
    "autoencoder": AutoencoderRecipe,
    "class": ClassRecipe,
    "text": TextRecipe,
    "decoder": DecoderRecipe,
    "fast": FastRecipe,
}


def check_common(phases: tuple[Phase, ...], dropout: float) -> None:
    """What the recipes share. Raises UsageError."""
    if not phases:
        raise UsageError("A recipe needs at least one [[phases]] table: how many steps at which picture size.")
    if not 0 <= dropout < 1:
        raise UsageError(f"The dropout of the condition is {dropout}; it must be from 0 to below 1.")


def check_all_tokens(phases: tuple[Phase, ...]) -> None:
    """Raises UsageError where a recipe that is not of a text stage spares tokens."""
    if any(phase.route_share or phase.mask_share for phase in phases):
        raise UsageError('route_share and mask_share are for recipes of kind "text"; leave them out of this one.')


def check_denoising(recipe: ClassRecipe | TextRecipe) -> None:
    """What the recipes of a denoiser share. Raises UsageError."""
    if not 0 <= recipe.allow_dropped <= 1:
        raise UsageError(f"allow_dropped is {recipe.allow_dropped}; it is a share, from 0 to 1.")
    if (recipe.data is None or recipe.cache is None) == (recipe.features is None) or (recipe.data and recipe.features):
        raise UsageError(
            "A recipe needs either data and cache (pictures that are encoded as training begins) or features (a folder "
            "that pixart data extract made)."
        )
    if recipe.min_snr_gamma is not None and (recipe.objective != "ddpm" or not recipe.min_snr_gamma > 0):
        raise UsageError(
            f"min_snr_gamma is {recipe.min_snr_gamma}; it must be above 0, and is there for objective 'ddpm' only."
        )
    sampling = recipe.sampling
    if recipe.features and (sampling.style_weights or sampling.skin_tone_weight != 1 or sampling.extra_splits):
        raise UsageError("sampling: style_weights, skin_tone_weight and extra_splits are for data, not for features.")


def names() -> list[str]:
    """The recipes that come with the package, as `pixart train` takes them."""
    return [name for name in _shipped() if chain(name) is None]


def chains() -> list[str]:
    """The chains of recipes that come with the package."""
    return [name for name in _shipped() if chain(name) is not None]


def load(name: str) -> Recipe:
    """Read a recipe by its name in the package (`paper/stage2_align_256`) or by the path of a TOML file.

    Raises:
        UsageError: no such recipe, an unknown kind or key, or a value of the wrong type.
    """
    path, table = _read(name)
    kind = table.pop("kind", None)
    if kind not in KINDS:
        raise UsageError(f"{path}: kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
    try:
        return structure(table, KINDS[kind], path.name)
    except UsageError as error:
        said = str(error)
        raise error if path.name in said else UsageError(f"{path.name}: {said}") from None


def chain(name: str) -> list[str] | None:
    """The names of the recipes of a chain, in order; None if `name` is a recipe.

    Recipes of a chain that are files are named by their path from the file of the chain.

    Raises:
        UsageError: there is neither a recipe nor a chain of that name, or the chain is not one.
    """
    path, table = _read(name)
    if table.get("kind") != "chain":
        return None
    stages = table.get("stages")
    if set(table) != {"kind", "stages"} or not isinstance(stages, list) or not stages or len(set(stages)) < len(stages):
        raise UsageError(f"{path}: a chain has stages, a list of different recipes, and nothing else.")
    return [str(path.parent / stage) if str(stage).endswith(".toml") else str(stage) for stage in stages]


def _shipped() -> list[str]:
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.toml"))


def _read(name: str) -> tuple[Path, dict]:
    """The TOML file behind a name, and what it says. Raises UsageError."""
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(name, _shipped(), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"No recipe {name!r}.{hint} The recipes are: {', '.join(_shipped())}; or give a .toml file.")
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None


def text_folders(recipe: TextRecipe) -> tuple[Path, Path]:
    """Text encoder and tokenizer: those of the recipe, or the shipped ones."""
    encoder = recipe.text_encoder or DEFAULT_MODEL / "text_encoder"
    return encoder, encoder.parent / "tokenizer"


def to_json(recipe: Recipe) -> dict:
    """The recipe as plain JSON values, with its kind: what `config.json` in a run folder holds."""

    def plain(value: object) -> object:
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    kind = next(name for name, cls in KINDS.items() if isinstance(recipe, cls))
    return {"kind": kind, **plain(recipe)}


def from_run(run: Path) -> Recipe:
    """The recipe that a run folder was made with.

    Raises:
        PixArtError: the folder has no readable config.json.
    """
    import json

    path = run / "config.json"
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        kind = KINDS[table.pop("kind")]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise PixArtError(f"{run} is not a run folder: {path} cannot be read ({error}).") from None
    if "denoiser" in table:  # what the table was called before it had the name of its override, --model.width
        table["model"] = table.pop("denoiser")
    if "bf16" in table.get("loop", {}):  # before there was fp16
        table["loop"]["precision"] = "bf16" if table["loop"].pop("bf16") else "fp32"
    return structure(table, kind, str(path))
