"""What a training will need, before it is paid for: memory, hours, energy, money and CO2, here and on other machines.

FLOPs and memory are worked out from the sizes of the network (flops.py). Hours on this machine come from a few real
steps of the recipe's own network on random data (speed.py); on other machines from a data sheet and an assumed
utilisation (hardware.py). Making features, evaluation and the start of the program are not in it, and the tokens that
routing or masking spares are not taken off.
"""

from dataclasses import dataclass

from pixart.training.planning.flops import FP32, forward_flops, training_flops, training_memory
from pixart.training.planning.hardware import Hardware

OPERATIONS_PER_BLOCK = 100  # assumed: forward and backward of a block, without torch.compile; forward is a third


@dataclass(frozen=True)
class Work:
    """One phase of a recipe: so many steps on pictures of one size. FLOPs are those of training, memory in bytes.

    `operations` is how many a GPU is told to start in one step.
    """

    size: int
    steps: int
    batch_size: int
    flops_per_image: int
    state_bytes: int
    image_bytes: int
    operations: int

    @property
    def images(self) -> int:
        return self.steps * self.batch_size

    @property
    def flops(self) -> int:
        return self.images * self.flops_per_image

    def memory(self, processors: int = 1) -> int:
        """Bytes on each of so many processors that share the batch and hold the state each (DDP)."""
        return self.state_bytes + -(-self.batch_size // processors) * self.image_bytes


@dataclass(frozen=True)
class Bill:
    """What some work costs on some hardware. Hours are those of one processor."""

    images: int
    flops: float
    memory: int
    hours: float
    kwh: float
    usd: float
    co2_kg: float

    def __add__(self, other: "Bill") -> "Bill":
        return Bill(
            self.images + other.images,
            self.flops + other.flops,
            max(self.memory, other.memory),
            self.hours + other.hours,
            self.kwh + other.kwh,
            self.usd + other.usd,
            self.co2_kg + other.co2_kg,
        )


def bill(work: Work, hardware: Hardware, *, grid: float, processors: int = 1) -> Bill:
    """`grid` is in g CO2 per kWh. Processors draw their full power all the time; the building is not in it.

    `processors` share each batch; hours, energy and money are those of all of them together.
    """
    arithmetic = work.flops / (hardware.peak * hardware.utilisation)
    seconds = max(arithmetic, work.steps * work.operations * hardware.launch * processors)
    return priced(work.images, work.flops, work.memory(processors), seconds / 3600, hardware, grid=grid)


def priced(images: int, flops: float, memory: int, hours: float, hardware: Hardware, *, grid: float) -> Bill:
    """The bill for hours that are known."""
    kwh = hours * hardware.watts / 1000
    return Bill(images, flops, memory, hours, kwh, hours * hardware.price, kwh * grid / 1000)


def network_config(recipe):
    """The denoiser's config as training will build it, without opening the data; None where none is trained."""
    from pixart.training.networks import expected_config
    from pixart.training.recipe import ClassRecipe, FastRecipe, TextRecipe

    if isinstance(recipe, FastRecipe):
        from pixart.checkpoints.diffusers import read_config
        from pixart.training.fast_stage import teacher_folder

        return read_config(teacher_folder(recipe) / "transformer" / "config.json")
    return expected_config(recipe) if isinstance(recipe, ClassRecipe | TextRecipe) else None


def text_tokens(recipe) -> int:
    """What the captions of a batch are padded to; 0 where there are none."""
    from pixart.training.recipe import DecoderRecipe, Expected, FastRecipe, TextRecipe

    if isinstance(recipe, FastRecipe | DecoderRecipe):
        return Expected.text_tokens
    return recipe.expected.text_tokens if isinstance(recipe, TextRecipe) else 0


def build_network(recipe, config):
    """The recipe's network with fresh weights, on torch's default device."""
    from pixart.encoders import autoencoder
    from pixart.model.dit import DiT, DiTConfig
    from pixart.model.pixart import PixArt
    from pixart.training.decoding import Decoder
    from pixart.training.recipe import DecoderRecipe

    if isinstance(recipe, DecoderRecipe):
        return Decoder(autoencoder.build(_decoded(recipe)))
    if config is None:
        return autoencoder.Reconstruction(autoencoder.build(recipe.autoencoder))
    return DiT(config) if isinstance(config, DiTConfig) else PixArt(config)


def random_inputs(recipe, side: int, count: int, device=None) -> tuple:
    """What the network of a recipe without a denoiser takes: pixels; or latents, a decoder's."""
    import numpy as np
    import torch

    from pixart.training.recipe import DecoderRecipe

    if isinstance(recipe, DecoderRecipe):
        return (torch.randn(count, _decoded(recipe).latent_channels, side // 8, side // 8, device=device),)
    pixels = torch.rand(count, 3, side, side, device=device) * 2 - 1
    return pixels, np.random.default_rng(0)


def works(recipe, *, fused_attention: bool = True) -> list[Work]:
    """The phases of a recipe, with what they take."""
    import torch

    from pixart.training.recipe import FastRecipe

    config, tokens, found = network_config(recipe), text_tokens(recipe), []
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_network(recipe, config).parameters())
    blocks = _levels(recipe) if config is None else config.depth
    operations = OPERATIONS_PER_BLOCK * (blocks + 1)
    drawing = drawing_config(recipe)
    if drawing and recipe.drawn.share:
        operations += drawing_passes(recipe) * OPERATIONS_PER_BLOCK // 3 * (drawing.depth + 1)
    for phase in recipe.phases:
        side = phase.crop or phase.size
        if config is None:
            flops, (state, image) = counted_flops(recipe, side), _counted_memory(recipe, parameters, side)
            if drawing:
                flops += drawing_flops(recipe, drawing, side)
                state += FP32 * _parameters(drawing)
        else:
            flops = training_flops(config, side // 8, tokens, again=recipe.loop.checkpoint_activations)
            options = {
                "bf16": recipe.loop.precision != "fp32",
                "fused_attention": fused_attention,
                "again": recipe.loop.checkpoint_activations,
            }
            none = training_memory(parameters, config, side // 8, 0, tokens, **options).total
            one = training_memory(parameters, config, side // 8, 1, tokens, **options).total
            state, image = none, one - none
            if isinstance(recipe, FastRecipe):
                flops = recipe.distillation.flops(config, side // 8, tokens)
                state, image = state + FP32 * parameters, image * recipe.distillation.steps
        found.append(Work(phase.size, phase.steps, phase.batch_size, flops, state, image, operations))
    return found


def _levels(recipe) -> int:
    """About how many blocks' worth of operations an autoencoder or its decoder has."""
    from pixart.training.recipe import DecoderRecipe

    if isinstance(recipe, DecoderRecipe):
        return 2 * len(_decoded(recipe).block_out_channels)
    return 4 * len(recipe.autoencoder.block_out_channels)


def _decoded(recipe):
    """The sizes of the autoencoder whose decoder is trained; the shipped one's until it is there."""
    import dataclasses
    import json

    from pixart.encoders.autoencoder import AutoencoderConfig

    try:
        said = json.loads((recipe.autoencoder / "config.json").read_text(encoding="utf-8"))
        names = [field.name for field in dataclasses.fields(AutoencoderConfig) if field.name in said]
        return AutoencoderConfig(**{name: said[name] for name in names})
    except (OSError, ValueError, TypeError):
        return AutoencoderConfig()


def drawing_config(recipe):
    """The config of the denoiser that draws a decoder's latents, the shipped one's until it is there; else None."""
    from pixart.checkpoints.diffusers import read_config
    from pixart.errors import PixArtError
    from pixart.training.decoder_stage import drawing_folder
    from pixart.training.recipe import DEFAULT_MODEL, DecoderRecipe

    if not isinstance(recipe, DecoderRecipe):
        return None
    try:
        return read_config(drawing_folder(recipe) / "transformer" / "config.json")
    except PixArtError:
        return read_config(DEFAULT_MODEL / "transformer" / "config.json")


def drawing_passes(recipe) -> int:
    """How often a latent passes through the denoiser that draws it, for guidance twice a step."""
    return 2 * recipe.drawn.steps


def drawing_flops(recipe, config, side: int) -> int:
    """FLOPs of drawing the latents of a decoder's batch, for each of its pictures, of which a share is drawn."""
    forward = forward_flops(config, side // 8, text_tokens(recipe))
    return round(recipe.drawn.share * drawing_passes(recipe) * forward)


def _parameters(config) -> int:
    import torch

    from pixart.model.pixart import PixArt

    with torch.device("meta"):
        return sum(p.numel() for p in PixArt(config).parameters())


def counted_flops(recipe, side: int) -> int:
    """FLOPs of one picture in a training step of a network that is no denoiser, counted by torch on empty tensors."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_network(recipe, None)(*random_inputs(recipe, side, 1))
    return 3 * counter.get_total_flops()


def _counted_memory(recipe, parameters: int, side: int) -> tuple[int, int]:
    """Bytes of the state (weights, gradients, AdamW, EMA) and for each picture: what torch keeps for the way back."""
    import torch

    kept: dict[int, int] = {}

    def keep(tensor):
        kept[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
        alive.append(tensor)  # so that no two have the same id
        return tensor

    alive: list = []
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        build_network(recipe, None)(*random_inputs(recipe, side, 1))
    return 20 * parameters, max(0, sum(kept.values()) - 4 * parameters)
