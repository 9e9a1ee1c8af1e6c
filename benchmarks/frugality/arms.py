"""What is compared: three arms, how two of them were tuned, and the steps that lead from the first to the last.

Every arm trains the same network from nothing on the same data and features with the same batches. They differ in what
a recipe may choose: the objective, the noise levels, the optimiser's figures, the average.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from pixart.training.optimizers.optimizer import OptimizerConfig

from pixart.diffusion.timesteps import Timesteps
from pixart.training import recipe as recipes
from pixart.training.batches import Phase
from pixart.training.loop import LoopConfig
from pixart.training.recipe import ClassRecipe, TextRecipe

SIZE, BATCH = 64, 64
UNIFORM = Timesteps(sampler="uniform")
# PixArt_xl2_img256_*.py and PixArt_xl2_internal.py: 2e-5 by the root rule of `auto_lr`, whose base is a batch of 256.
OFFICIAL = OptimizerConfig(
    learning_rate=2e-5 * (BATCH / 256) ** 0.5,
    weight_decay=0.03,
    betas=(0.9, 0.999),
    eps=1e-10,
    warmup_steps=1000,
    decay_share=0.0,
    clip=0.01,
)
TUNED = OptimizerConfig(learning_rate=2e-3, weight_decay=0.01, betas=(0.9, 0.99), warmup_steps=50, decay_share=0.35)
SHORT_EMA = 0.98


@dataclass(frozen=True)
class Arm:
    """One way to train. With `init` it starts from the given run of stage 1, whose FLOPs are not counted.

    With `stage1_share` it first trains a stage 1 of its own, with this share of its FLOPs.
    """

    objective: str
    timesteps: Timesteps
    optimizer: OptimizerConfig
    ema_decay: float
    min_snr_gamma: float | None = None
    init: bool = False
    stage1_share: float = 0.0


OFFICIAL_ARM = Arm("ddpm", UNIFORM, OFFICIAL, 0.9999)


def at_rate(rate: float, config: OptimizerConfig = TUNED) -> OptimizerConfig:
    return dataclasses.replace(config, learning_rate=rate)


# Four trials each: three rates, and the best known weighting of noise levels at the middle one.
TUNING = {
    "tuned": {
        "rate 1e-3": Arm("ddpm", UNIFORM, at_rate(1e-3), SHORT_EMA),
        "rate 2e-3": Arm("ddpm", UNIFORM, at_rate(2e-3), SHORT_EMA),
        "rate 4e-3": Arm("ddpm", UNIFORM, at_rate(4e-3), SHORT_EMA),
        "rate 2e-3, min-SNR 5": Arm("ddpm", UNIFORM, at_rate(2e-3), SHORT_EMA, min_snr_gamma=5.0),
    },
    "ours": {
        "rate 1e-3": Arm("flow", UNIFORM, at_rate(1e-3), SHORT_EMA),
        "rate 2e-3": Arm("flow", UNIFORM, at_rate(2e-3), SHORT_EMA),
        "rate 4e-3": Arm("flow", UNIFORM, at_rate(4e-3), SHORT_EMA),
        "rate 2e-3, logit-normal": Arm("flow", Timesteps(), at_rate(2e-3), SHORT_EMA),
    },
}

# One change after the other, from the official recipe to ours.
WATERFALL = {
    "official recipe": OFFICIAL_ARM,
    "+ rate 2e-3, clip 1, beta2 0.99": Arm(
        "ddpm", UNIFORM, dataclasses.replace(TUNED, warmup_steps=1000, decay_share=0.0), 0.9999
    ),
    "+ short average": Arm("ddpm", UNIFORM, dataclasses.replace(TUNED, warmup_steps=1000, decay_share=0.0), SHORT_EMA),
    "+ short warm-up": Arm("ddpm", UNIFORM, dataclasses.replace(TUNED, decay_share=0.0), SHORT_EMA),
    "+ decay to zero": Arm("ddpm", UNIFORM, TUNED, SHORT_EMA),
    "+ rectified flow": Arm("flow", UNIFORM, TUNED, SHORT_EMA),
    "+ logit-normal levels": Arm("flow", Timesteps(), TUNED, SHORT_EMA),
    "+ start from stage 1": Arm("flow", Timesteps(), TUNED, SHORT_EMA, init=True),
}

# Is stage 1 worth its compute? The same FLOPs in all, beside the arm "ours", which has none.
STAGE1_SHARES = {"half": 0.5, "a quarter": 0.25}


@dataclass(frozen=True)
class Places:
    """Where data, features, autoencoder and the stage-1 run are, and where the runs go."""

    data: Path
    cache: Path
    autoencoder: Path
    stage1: Path
    runs: Path


def recipe_of(arm: Arm, places: Places, *, name: str, steps: int, seed: int, points: int) -> TextRecipe:
    """`stage2.toml` of projects/emoji, with what the arm chooses; the error is measured at that many points."""
    base = recipes.load("projects/emoji/recipes/stage2.toml")
    loop = LoopConfig(
        seed=seed,
        ema_decay=arm.ema_decay,
        log_every=50,
        evaluate_every=max(1, steps // points),
        save_every=max(1, steps // 4),
    )
    return dataclasses.replace(
        base,
        run=places.runs / name,
        data=places.data,
        cache=places.cache,
        autoencoder=places.autoencoder,
        init=places.stage1 if arm.init else None,
        phases=(Phase(steps, SIZE, BATCH),),
        objective=arm.objective,
        min_snr_gamma=arm.min_snr_gamma,
        timesteps=arm.timesteps,
        optimizer=arm.optimizer,
        loop=loop,
        samples=dataclasses.replace(base.samples, prompts=()),
    )


def stage1_recipe(arm: Arm, places: Places, *, name: str, steps: int, seed: int) -> ClassRecipe:
    """`stage1.toml` of projects/emoji with the arm's objective, levels, optimiser and average."""
    return dataclasses.replace(
        recipes.load("projects/emoji/recipes/stage1.toml"),
        run=places.runs / name,
        data=places.data,
        cache=places.cache,
        autoencoder=places.autoencoder,
        phases=(Phase(steps, SIZE, BATCH),),
        objective=arm.objective,
        timesteps=arm.timesteps,
        optimizer=arm.optimizer,
        loop=LoopConfig(seed=seed, ema_decay=arm.ema_decay, evaluate_every=steps, save_every=max(1, steps // 4)),
    )
