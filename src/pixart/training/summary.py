"""What `pixart train RECIPE --dry-run` says beside the recipe: the parts, the network, the phases."""

from pathlib import Path

from pixart.training.batches import PATCH_SIZE
from pixart.training.chain import Stage
from pixart.training.objective import LATENT_SCALE
from pixart.training.planning.plan import build_network, network_config
from pixart.training.recipe import (
    DEFAULT_MODEL,
    AutoencoderRecipe,
    ClassRecipe,
    DecoderRecipe,
    FastRecipe,
    Recipe,
    TextRecipe,
    text_folders,
)


def summary(stage: Stage) -> list[str]:
    """Lines for a person. Opens no data; of what is not there yet, it counts with what the recipe expects."""
    recipe = stage.recipe
    kind = {
        AutoencoderRecipe: "autoencoder",
        ClassRecipe: "classes to pictures",
        TextRecipe: "text to pictures",
        DecoderRecipe: "decoder",
        FastRecipe: "fast denoiser",
    }
    lines = [f"{stage.name}: {kind[type(recipe)]}, into {recipe.run} ({_state(recipe.run)})"]
    lines += [f"  {name:<13} {path} ({_there(path)})" for name, path in _parts(recipe).items()]
    lines.append(f"  {'network':<13} {_network(recipe)}")
    return lines + _phases(recipe)


def _parts(recipe: Recipe) -> dict[str, Path]:
    names = ("data", "features", "text_encoder", "init")
    parts = {name.replace("_", " "): getattr(recipe, name, None) for name in names}
    if isinstance(recipe, ClassRecipe | TextRecipe | DecoderRecipe):
        parts["autoencoder"] = recipe.autoencoder
    if isinstance(recipe, FastRecipe):
        parts["teacher"] = recipe.teacher or DEFAULT_MODEL
    if isinstance(recipe, TextRecipe) and recipe.text_encoder is None:
        parts["text encoder"] = text_folders(recipe)[0]
    return {name: path for name, path in parts.items() if path is not None}


def _state(run: Path) -> str:
    if (run / "finished.json").is_file():
        return "finished"
    return "begun" if (run / "config.json").is_file() else "not begun"


def _there(path: Path) -> str:
    if (path / "config.json").is_file() and not list(path.glob("*.safetensors")):
        return f"a run, {_state(path)}"
    return "there" if path.exists() else "not there yet"


def _network(recipe: Recipe) -> str:
    import torch

    from pixart.model.dit import DiT
    from pixart.training.networks import expected_config, text_network

    with torch.device("meta"):
        if isinstance(recipe, FastRecipe):
            how = recipe.distillation
            told = f", as its teacher; {how.steps} steps for {how.teacher_steps} with guidance {how.guidance_scale:g}"
            if recipe.teacher is not None and not recipe.teacher.exists():
                return f"PixArt{told}"
            model = build_network(recipe, network_config(recipe))
        elif isinstance(recipe, DecoderRecipe):
            how, model = recipe.drawn, build_network(recipe, None)
            told = f"; {how.share:.0%} of the latents drawn in {how.steps} steps with guidance {how.guidance_scale:g}"
        elif not isinstance(recipe, ClassRecipe | TextRecipe):
            model, told = build_network(recipe, None), ""
        else:
            config, size = expected_config(recipe), recipe.model
            model = DiT(config) if isinstance(recipe, ClassRecipe) else text_network(recipe, config)
            told = f", width {size.width}, {size.depth} blocks, {size.num_heads} heads"
            told += ", micro-conditions" if size.micro_conditions else ""
            told += f"; predicts {'the velocity' if recipe.objective == 'flow' else 'eps and its variance'}"
    return f"{type(model).__name__}{told}; {sum(p.numel() for p in model.parameters()):,} parameters"


def _phases(recipe: Recipe) -> list[str]:
    lines, seen = [], 0
    for number, phase in enumerate(recipe.phases):
        seen += phase.steps * phase.batch_size
        tokens = ""
        if isinstance(recipe, ClassRecipe | TextRecipe):
            tokens = f", {(phase.size // LATENT_SCALE // PATCH_SIZE) ** 2:,} tokens each"
        crop = f", crops of {phase.crop} px" if phase.crop else ""
        lines.append(
            f"  {f'phase {number}':<13} {phase.steps:,} steps of {phase.batch_size:,} pictures at {phase.size} px"
            f"{tokens}{crop}: {phase.steps * phase.batch_size:,} pictures"
        )
    steps = sum(phase.steps for phase in recipe.phases)
    images = recipe.expected.images if isinstance(recipe, ClassRecipe | TextRecipe) else None
    epochs = f", {seen / images:,.1f} times over {images:,}" if images else ""
    return [*lines, f"  {'in all':<13} {steps:,} steps, {seen:,} pictures{epochs}"]
