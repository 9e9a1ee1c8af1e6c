"""Sampling in four operations: encode, start, step, decode. Everything that generates an image goes through them.

    conditioning = core.encode(request)[0]
    states = [core.start(request, conditioning, seed) for seed in request.seeds]
    while not all(state.done for state in states):
        core.step([state for state in states if not state.done])
    images = core.decode(states)

A state is one image on its way: latent, position in its own schedule, solver history, noise stream. States are
independent, so a batch may hold images of different prompts, at different steps, with different guidance; they only
need latents of one shape.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixart.checkpoints.model_folder import ModelFolder
from pixart.diffusion.guidance import guided
from pixart.diffusion.noise import noise_stream
from pixart.diffusion.solvers import SAMPLERS, Solver, Step, schedule_for
from pixart.encoders.tokenizer import Tokenizer
from pixart.errors import PixArtError
from pixart.pipeline.image_input import FittedImage
from pixart.pipeline.networks import Networks
from pixart.pipeline.prompt_weights import read_weights
from pixart.pipeline.request import Request


@dataclass(frozen=True)
class Conditioning:
    """A prompt, with and without its style, as the denoiser takes it; `unconditional` None means no guidance."""

    prompt: str
    resolved: str
    text: Any
    unconditional: Any | None
    cut: str = ""  # the words that were left out, being over the limit
    unconditional_cut: str = ""


@dataclass(frozen=True, eq=False)
class Source:
    """A clean latent (1, C, h, w) to start from, noised to the level of the step `first`, with which sampling begins.

    Where `mask` (1, 1, h, w) is 0, it is put back at the noise level of every step.
    """

    latent: Any
    first: int
    mask: Any | None = None
    image: FittedImage | None = None


@dataclass(frozen=True, eq=False)
class Control:
    """What a ControlNet is given: the latent (1, C, h, w) of a condition image, and how much of its effect is added."""

    latent: Any
    scale: float


@dataclass(eq=False)
class State:
    """One image on its way from noise (`x_t` of shape (1, C, h, w)) to a clean latent."""

    request: Request
    conditioning: Conditioning
    seed: int
    x_t: Any
    solver: Solver
    source: Source | None = None
    noise: Any = None  # with a source: what it was noised with
    control: Control | None = None

    @property
    def done(self) -> bool:
        return self.solver.done

    @property
    def is_guided(self) -> bool:
        """Whether the next step is guided; outside the request's interval, half of the work is saved."""
        low, high = self.request.guidance_interval
        return self.conditioning.unconditional is not None and low <= self.solver.timestep <= high


class Core:
    """The four operations on one model's networks. Calls share nothing but the weights."""

    def __init__(self, folder: ModelFolder, networks: Networks):
        self.folder, self.networks = folder, networks
        self.most_images: int | None = None  # of a pass, once memory ran out
        self._condition: tuple[Any, Any, Any] = (None, None, None)  # an image for a ControlNet, its size and its latent

    def encode(self, request: Request) -> list[Conditioning]:
        """The texts of a request, encoded: a conditioning for each prompt."""
        return [self.encode_prompt(request, index) for index in range(len(request.prompts))]

    def encode_prompt(self, request: Request, index: int, negative: tuple[Any, str] | None = None) -> Conditioning:
        """One prompt of a request. `negative` is the negative prompt, where an earlier call has encoded it."""
        resolved = request.resolved_prompts[index]
        self.networks.prepare(request.texts)
        text, cut = self._encode_text(request, resolved)
        unconditional, unconditional_cut = None, ""
        # The same text on both sides of the guidance would cancel out; so would scale 1.
        same = resolved.lower().strip() == request.resolved_negative_prompt.lower().strip()
        if request.guidance_scale != 1.0 and request.null_text != "encoded":
            unconditional = self.networks.unconditional(text, request.null_text == "caption-all")
        elif request.guidance_scale != 1.0 and not same:
            negative = negative or self._encode_text(request, request.resolved_negative_prompt)
            unconditional, unconditional_cut = negative
        return Conditioning(request.prompts[index], resolved, text, unconditional, cut, unconditional_cut)

    def _encode_text(self, request: Request, text: str) -> tuple[Any, str]:
        if not request.prompt_weights:
            return self.networks.encode(text)
        weighted = read_weights(text)
        encoded, cut = self.networks.encode(weighted.text)
        return self.networks.weighted(encoded, weighted.of_tokens(self.tokenizer)), cut

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.folder.tokenizer, self.folder.text_encoder, self.folder.max_tokens)

    def start(
        self,
        request: Request,
        conditioning: Conditioning,
        seed: int,
        source: Source | None = None,
        control: Control | None = None,
    ) -> State:
        """A new image: noise of the request's size from `seed`; with a `source`, that latent with the noise."""
        factor = self.folder.vae_factor
        shape = (self.folder.transformer["in_channels"], request.image_height // factor, request.image_width // factor)
        noise = noise_stream(seed, shape)
        schedule = schedule_for(request.sampler, self.folder.scheduler, request.steps)

        def fresh_noise() -> Any:
            return self.networks.latents(noise()[None])

        x_t = eps = fresh_noise()
        first = 0 if source is None else source.first
        if source is not None and (first or source.mask is None):  # as in Diffusers: with a mask, all of it anew
            x_t = schedule.noised(source.latent, eps, first)
        solver = SAMPLERS[request.sampler].solver(schedule, fresh_noise, first)
        return State(request, conditioning, seed, x_t, solver, source, None if source is None else eps, control)

    def control(self, request: Request, say: Callable[[str], None] = lambda notice: None) -> Control | None:
        """The condition image of a request, encoded at the size that is generated; once for all of its images.

        As the official recipe has it, with three channels from -1 to 1; but of the posterior the mean, not a sample, so
        that the same image gives the same latent.
        """
        if request.control is None:
            return None
        size = (request.image_height, request.image_width)
        if self._condition[0] is not request.control or self._condition[1] != size:
            pixels = request.control.fitted(*size, say).pixels
            if (hed := self.networks.control.hed) is not None:
                from pixart.model.hed import edges

                pixels = edges(hed, pixels)
            self._condition = request.control, size, self._encode_image(pixels)
        return Control(self._condition[2], request.control_scale)

    def source(self, request: Request, image: FittedImage) -> Source:
        """The image that a request starts from, encoded. Raises PixArtError where it does not fit the device."""
        mask = image.latent_mask(self.folder.vae_factor)
        mask = None if mask is None else self.networks.latents(mask)
        return Source(self._encode_image(image.pixels), request.first_step, mask, image)

    def enlarged(self, states: Sequence[State], larger: Request) -> Iterator[State]:
        """Finished states as new ones of a larger size, for a second pass."""
        from PIL import Image

        control = self.control(larger)
        for state, pixels in zip(states, self.decode(states), strict=True):
            size = (larger.image_width, larger.image_height)
            image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
            given = None if state.source is None else state.source.image
            source = Source(self._encode_image(np.asarray(image)), larger.first_step, image=given)
            yield self.start(larger, state.conditioning, state.seed, source, control)

    def _encode_image(self, pixels: np.ndarray) -> Any:
        try:
            return self.networks.encode_image(pixels)
        except MemoryError:
            height, width = pixels.shape[:2]
            raise PixArtError(
                f"An image of {width} x {height} pixels does not fit the memory of this device."
            ) from None

    def step(self, states: Sequence[State]) -> list[Step]:
        """One denoising step of every state, in one pass of the network; returns what the solvers give, in order.

        Both halves of guidance are rows of that pass. Where the rows do not fit the device, the batch is halved, and
        stays so.

        Raises:
            ValueError: the latents are not of one shape.
            PixArtError: not even one image fits the device.
        """
        if len({tuple(state.x_t.shape) for state in states}) != 1:
            raise ValueError("states of one step must have latents of one shape")
        try:
            predictions = self._predict(states)
        except MemoryError:
            if len(states) == 1:
                height, width = states[0].request.image_height, states[0].request.image_width
                raise PixArtError(
                    f"One image of {width} x {height} pixels does not fit the free memory of this device; generate a "
                    "smaller one, or see docs/memory.md."
                ) from None
            half = len(states) // 2
            self.most_images = half
            return [*self.step(states[:half]), *self.step(states[half:])]
        steps = []
        for state, prediction in zip(states, predictions, strict=True):
            step = state.solver.step(state.x_t, prediction)
            source = state.source
            if source is not None and source.mask is not None:
                known = source.latent
                if not state.done:
                    known = state.solver.schedule.noised(known, state.noise, state.solver.position)
                step = step._replace(x_t=source.mask * step.x_t + (1 - source.mask) * known)
            state.x_t = step.x_t
            steps.append(step)
        return steps

    def _predict(self, states: Sequence[State]) -> list[Any]:
        """The (guided) prediction (1, out_channels, h, w) for each state."""
        with_guidance = [index for index, state in enumerate(states) if state.is_guided]
        texts = [state.conditioning.text for state in states]
        texts += [states[index].conditioning.unconditional for index in with_guidance]
        controls = [state.control for state in states]
        controlled = {"controls": controls} if any(controls) else {}
        predictions = self.networks.denoise(
            stack([state.x_t for state in states]),
            [state.solver.timestep for state in states],
            texts,
            [*range(len(states)), *with_guidance],
            **controlled,
        )
        result = [predictions[row : row + 1] for row in range(len(states))]
        for row, index in enumerate(with_guidance, len(states)):
            request = states[index].request
            result[index] = guided(
                result[index],
                predictions[row : row + 1],
                request.guidance_scale,
                request.guidance_rescale,
                request.guidance_channels,
            )
        return result

    def images_at_once(self, request: Request) -> int:
        """How many images of a request to denoise in one pass."""
        rows = 1 if request.guidance_scale == 1.0 else 2
        count = self.networks.images_at_once(rows, request.image_height, request.image_width)
        return min(count, self.most_images or count)

    def decode(self, states: Sequence[State]) -> list[np.ndarray]:
        """The images of finished states, uint8 RGB (H, W, 3) each.

        Raises:
            PixArtError: an image ended in numbers that are not finite, or does not fit the device.
        """
        latents = stack([state.x_t for state in states])
        for state, latent in zip(states, self.networks.to_numpy(latents), strict=True):
            if not np.isfinite(latent).all():
                raise PixArtError(
                    f"The image with seed {state.seed} ended in numbers that are not finite: weights in "
                    f"{self.folder.path} are damaged, or the guidance scale {state.request.guidance_scale:g} is too "
                    "high, or the dtype too narrow; copy the model again, lower the scale, or give the dtype float32."
                )
        try:
            return self.networks.decode(latents)
        except MemoryError:
            raise PixArtError(
                "The decoder does not fit the free memory of this device; choose to decode tiled."
            ) from None


def stack(arrays: Sequence[Any]) -> Any:
    """Arrays (1, ...) of one kind as one (B, ...)."""
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays)
    import torch

    return torch.cat(list(arrays))
