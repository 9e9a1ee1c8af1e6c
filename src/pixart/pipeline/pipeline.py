"""`pixart.Pipeline`: a loaded model that turns prompts into images."""

import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pixart
from pixart.checkpoints.adapters import Lora, check_loras
from pixart.checkpoints.controlnet import controlnet_for
from pixart.checkpoints.model_folder import ModelFolder, open_model_folder, transformer_hash, weight_hashes
from pixart.checkpoints.official import OfficialFile
from pixart.config import plain
from pixart.diffusion.solvers import Step
from pixart.encoders.text_states import read_head
from pixart.errors import UsageError
from pixart.pipeline.bins import fit
from pixart.pipeline.core import Conditioning, Core, State
from pixart.pipeline.given_noise import GivenNoise, given_noise
from pixart.pipeline.image_files import pixel_hash
from pixart.pipeline.networks import Networks, choose_runtime, load_networks
from pixart.pipeline.prompt_weights import have_weights
from pixart.pipeline.request import Request, check_text_states, control_for_images, make_request
from pixart.pipeline.settings import Settings
from pixart.runtime.device import DTYPES
from pixart.runtime.memory import PLAIN, Memory
from pixart.tracking.generations import log_call

LoraPath = str | Path | tuple[str | Path, float]
OnStep = Callable[[int, Step], None]
T = TypeVar("T")
# Of a request, in an image's settings: each image has one seed of its own.
RECORDED = tuple(field.name for field in fields(Settings) if field.name != "num_images")
MAX_SHOWN = 300  # characters of cut text that a notice repeats


@dataclass(frozen=True)
class Generated:
    """One image: RGB as a PIL image, its seed, and every setting needed to generate it again."""

    image: Any
    seed: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """All images of one call, prompt by prompt, seed by seed. `notices` are sentences that a person should read."""

    images: list[Any]
    seeds: list[int]
    settings: list[dict[str, Any]]
    notices: list[str]


class Pipeline:
    """A loaded model. Calls share nothing but its weights, so one request cannot disturb another."""

    def __init__(
        self,
        folder: ModelFolder,
        networks: Networks,
        dtype: str = "auto",
        memory: Memory = PLAIN,
        compile: bool = False,
    ):
        """Of a checked model folder and its networks; see `from_pretrained` and `load_networks`.

        `dtype`, `memory` and `compile` are what was asked for, which `to` asks for again on another device.
        """
        self.folder, self.networks = folder, networks
        self.dtype, self.memory, self.compile = dtype, memory, compile
        self.core = Core(folder, networks)
        self.loras: tuple[Lora, ...] = ()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        parts: str | Path | None = None,
        ema: bool = False,
        num_heads: int | None = None,
        image_size: int | None = None,
        fast: bool = False,
        engine: str = "auto",
        dtype: Any = "auto",
        torch_dtype: Any = None,
        memory: Memory = PLAIN,
        device: Any = "auto",
        compile: bool = False,
        loras: Iterable[LoraPath] = (),
        control: str | Path | None = None,
        control_edges: str | Path | None = None,
    ) -> "Pipeline":
        """Open a model folder in the Diffusers layout; None opens the model that comes with the package.

        Args:
            model: the model folder, or its id on the Hugging Face Hub; with `parts` also an official file.
            parts, ema, num_heads, image_size: for an official file; see `open_model_folder`.
            fast: use the folder's few-step model, without guidance.
            engine: "onnx" (ONNX Runtime on the CPU, for folders with graphs), "torch", or "auto": the first where it
                can be had.
            dtype: "float32"; "bfloat16" or "float16" (torch); "int8" (onnx: faster, not quite the same image); "auto":
                float32 for graphs, else what suits the device. Also a torch.dtype.
            torch_dtype: the same, by Diffusers' name.
            memory: ways to generate in less memory and another text encoder, with torch; see
                `pixart.runtime.memory.Memory`.
            loras: adapters to generate with, see `set_loras`.
            control: a ControlNet to load beside it, with torch: an official file, or a folder as of Diffusers' research
                project; it acts where a call has a `control_image`.
            control_edges: makes edges of each `control_image`: "canny", or ControlNetHED.pth of the PixArt
                repositories.
            device: "cpu"; with torch also "cuda" or "mps"; "auto": the CPU for graphs, else the fastest there is.
                Also a torch.device.
            compile: with torch, compile the denoiser for each size of image; docs/generate.md says when it pays.

        Raises:
            UsageError: engine, dtype and device do not go together, or are not to be had here.
            PixArtError: names the first file that is missing or damaged, or the extra to install.
        """
        if torch_dtype is not None and dtype != "auto":
            raise UsageError("dtype and torch_dtype are the same; leave one of them out.")
        dtype, device = dtype_name(dtype if torch_dtype is None else torch_dtype), str(device)
        how = OfficialFile(ema, num_heads, image_size)
        folder = open_model_folder(model, parts=parts, how=how, fast=fast, text_encoder=memory.text_encoder)
        found = check_loras(folder, loras)
        beside = None if control is None else controlnet_for(folder, control, control_edges)
        runtime = choose_runtime(folder, engine, dtype, memory, device, control=beside, compile=compile)
        pipeline = cls(folder, load_networks(folder, runtime, control=beside), dtype, memory, compile)
        pipeline.use(found)
        return pipeline

    def to(self, device: Any = None, dtype: Any = None) -> "Pipeline":
        """Load the model again on another device or in another dtype, as in Diffusers, where it is not there yet.

        `from_pretrained` has chosen the fastest device by itself, but for folders with graphs: those stay on the CPU.

        Args:
            device: "cpu", "cuda" or "mps", or a torch.device.
            dtype: a torch.dtype or its name; may be given alone: `to(torch.float32)`.

        Raises:
            UsageError: that device or dtype is not to be had here; the pipeline is as before.
        """
        if dtype is None and dtype_name(device) in DTYPES:
            device, dtype = None, device
        now = self.networks.provenance()["device"]
        kind, _, index = str(device or now).partition(":")
        dtype = self.dtype if dtype is None else dtype_name(dtype)
        if kind != now or dtype != self.dtype:
            control = self.networks.control
            runtime = choose_runtime(
                self.folder, "auto", dtype, self.memory, kind, control=control, compile=self.compile
            )
            if index not in ("", str(runtime.device.index)):
                raise UsageError(
                    f"The GPU with most free memory is used; for another, set CUDA_VISIBLE_DEVICES={index}."
                )
            loras, self.loras, self.dtype = self.loras, (), dtype
            self.networks = load_networks(self.folder, runtime, control=control)
            self.core = Core(self.folder, self.networks)
            self.use(loras)
            self.__dict__.pop("provenance", None)
        return self

    def enable_model_cpu_offload(self) -> None:
        """On a GPU: keep each network in the computer's memory while it does not work. Nothing else on a CPU."""
        self._hold(replace(self.memory, offload=True))

    def enable_sequential_cpu_offload(self) -> None:
        """Keep only the network in memory that works, and load it again for each call: the least memory."""
        self._hold(replace(self.memory, staged=True))

    def enable_vae_tiling(self) -> None:
        """Decode in overlapping tiles that are blended; needed for large images on small GPUs only."""
        self._hold(replace(self.memory, decode="tiled"))

    def enable_vae_slicing(self) -> None:
        """Nothing to do: as many images are decoded at once as the memory takes, by itself."""

    def enable_attention_slicing(self) -> None:
        """Nothing to do: attention is torch's fused one, which never holds its whole matrix."""

    def _hold(self, memory: Memory) -> None:
        """Hold the networks in this way from now on, where torch computes them; graphs know no other way."""
        self.memory = memory
        if self.networks.name == "torch":
            self.networks.hold(memory)
            self.__dict__.pop("provenance", None)

    def set_loras(self, loras: Iterable[LoraPath]) -> None:
        """Generate with these adapters (LoRA, DoRA, LoKr, LoHa; safetensors files or folders) and no others.

        Each is a path, "path:strength" or (path, strength); the model stays loaded. docs/lora.md lists the dialects.

        Raises:
            PixArtError: one cannot be read, or is for another model; those that were in use stay.
        """
        self.use(check_loras(self.folder, loras))

    def use(self, loras: tuple[Lora, ...]) -> None:
        """As `set_loras`, of adapters that `check_loras` has read."""
        if self.networks.memory.text_states is not None and any(lora.adapter.text_layers for lora in loras):
            raise UsageError("An adapter changes the text encoder, which a file of text states takes the place of.")
        if loras or self.loras:
            self.networks.set_loras(loras)
        self.loras = loras

    def __call__(
        self,
        prompt: str | list[str],
        *,
        image: Any = None,
        mask: Any = None,
        outpaint: bool = False,
        control_image: Any = None,
        control_scale: float | None = None,
        generator: Any = None,
        latents: Any = None,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Result:
        """Generate `num_images` images of each prompt, with the seeds `seed`, `seed + 1`, ...

        Args:
            image: a path or PIL image to start from; `strength` says how far from it.
            mask: a path or PIL image, white where `image` is to be generated anew; the rest stays.
            outpaint: `image` stays, in the middle of width x height, and what is around it is generated.
            control_image: a path or PIL image for the ControlNet that was loaded, such as edges.
            control_scale: how much of its effect is added, 1 if left out.
            generator: a torch.Generator, or a list with one for each image, in place of `seed`: the latents that
                Diffusers begins with. Unlike a seed, it is used up: such an image's file cannot be verified.
            latents: the noise itself, (images, C, h, w), prompt by prompt.
            on_step: `on_step(index of the image, Step)` is called after every step, and may raise to stop.
            settings: the fields of `pixart.pipeline.request.Settings`, where each is described: negative_prompt, style,
                seed, num_images, steps, guidance_scale, width, height, sampler and others; also by Diffusers' names,
                num_images_per_prompt, num_inference_steps and use_resolution_binning. What is left out or None is
                the model folder's own value, else what suits the sampler ("dpm-solver": 20 steps, guidance scale 4.5).

        Raises:
            UsageError: this model cannot generate that.
        """
        given = {"image": image, "mask": mask, "outpaint": outpaint}
        given |= {"control_image": control_image, "control_scale": control_scale}
        request = make_request(self.folder, prompt, **given, **settings)
        noise = None
        if generator is not None or latents is not None:
            if generator is not None and settings.get("seed") is not None:
                raise UsageError("A generator takes the place of the seed; leave one of the two out.")
            images = len(request.prompts) * request.num_images
            dtype = self.dtype if self.dtype in DTYPES else "float32"  # as the stock pipeline, loaded without a dtype
            noise = given_noise(generator, latents, images, self.core.latent_shape(request), dtype)
        notices: list[str] = []
        begun = time.monotonic()
        images = list(self.generate(request, on_step, notices.append, noise))
        log_call(images, time.monotonic() - begun)
        return Result(
            images=[generated.image for generated in images],
            seeds=[generated.seed for generated in images],
            settings=[generated.settings for generated in images],
            notices=notices,
        )

    def generate(
        self,
        request: Request,
        on_step: OnStep | None = None,
        on_notice: Callable[[str], None] | None = None,
        noise: GivenNoise | None = None,
    ) -> Iterator[Generated]:
        """The images of a checked request, as many at once as the device takes, each yielded as soon as it is done.

        `noise` takes the place of that of the seeds.
        """
        say = on_notice or (lambda notice: None)
        finished = self._in_stages(self._finished(self._started(request, say, noise), request, on_step, say))
        if request.upscale > 1:
            larger = request.enlarged
            again = self._in_stages(state for some in finished for state in self.core.enlarged(some, larger))
            finished = self._in_stages(self._finished(again, larger, on_step, say))
        for some in finished:
            for state, pixels in zip(some, self.core.decode(some), strict=True):
                yield self._generated(request, state, pixels, noise)

    def begin(self, request: Request, say: Callable[[str], None]) -> list[State]:
        """All images of a request, prompt by prompt and seed by seed, for `Core.step` in any batches; then `finish`."""
        return list(self._started(request, say))

    def finish(self, request: Request, state: State) -> Generated | State:
        """The image of a state after its last step; or a new, larger state, where there is a second pass to come."""
        if state.request.upscale > 1:
            return next(self.core.enlarged([state], request.enlarged))
        return self._generated(request, state, self.core.decode([state])[0])

    def preview(self, request: Request, step: Step) -> Any:
        """What an image looks like after a step, at its full size, as PIL; in the thread that owns the networks.

        None where the memory that is free is not enough for it, which the request need not suffer from.
        """
        from PIL import Image

        try:
            return fit(Image.fromarray(self.networks.decode(step.x_0)[0]), request.height, request.width)
        except MemoryError:
            return None

    def _started(
        self, request: Request, say: Callable[[str], None], noise: GivenNoise | None = None
    ) -> Iterator[State]:
        self._check_text_states(request)
        if request.control is not None and self.networks.control is None:
            raise UsageError("An image for a ControlNet was given, and no ControlNet was loaded; load one too.")
        if request.bin and (request.bin.height, request.bin.width) != (request.height, request.width):
            say(
                f"Generated at {request.bin.width} x {request.bin.height}, which the model was trained at, and fitted "
                f"to {request.width} x {request.height}; without binning, that size itself is generated."
            )
        if request.guidance_scale == 1.0 and request.resolved_negative_prompt:
            say(
                f'Without guidance (scale 1), the negative prompt "{request.resolved_negative_prompt}" changes '
                "nothing; give a larger guidance scale."
            )
        if not request.prompt_weights and have_weights((*request.prompts, request.negative_prompt)):
            say("Weights such as (word:1.2) are read as words; with --prompt-weights (prompt_weights) they count.")
        source = None
        if request.image is not None:
            source = self.core.source(request, request.image.fitted(request.image_height, request.image_width, say))
        control = self.core.control(request, say)
        number = itertools.count()
        for conditioning in self._in_stages(self._conditionings(request, say)):
            for seed in request.seeds:
                seed, own = (seed, None) if noise is None else noise.of(next(number), seed)
                yield self.core.start(request, conditioning, seed, source, control, own)

    def _in_stages(self, work: Iterator[T]) -> Iterator[T]:
        """All of it before what follows begins, where the networks take turns in memory; else piece by piece."""
        if not self.networks.memory.staged:
            yield from work
            return
        done = list(work)
        while done:
            yield done.pop(0)  # and with a text goes what the denoiser made of it

    def _conditionings(self, request: Request, say: Callable[[str], None]) -> Iterator[Conditioning]:
        negative: tuple[Any, str] | None = None
        reported = False
        for index, prompt in enumerate(request.prompts):
            conditioning = self.core.encode_prompt(request, index, negative)
            self._report_text(conditioning.resolved, conditioning.cut, "prompt", say)
            if not conditioning.resolved.strip():
                say("The prompt is empty: this image is generated without any text.")
            elif not prompt.strip():
                say(f'The prompt is empty: only the words of the style count, "{conditioning.resolved}".')
            if conditioning.unconditional is not None and request.null_text == "encoded":
                negative = conditioning.unconditional, conditioning.unconditional_cut
                if not reported:
                    self._report_text(request.resolved_negative_prompt, negative[1], "negative prompt", say)
                    reported = True
            yield conditioning

    def _report_text(self, text: str, cut: str, what: str, say: Callable[[str], None]) -> None:
        if cut:
            shown = cut if len(cut) <= MAX_SHOWN else cut[:MAX_SHOWN] + " ..."
            say(
                f"The {what} is longer than the {self.networks.max_tokens} tokens that the model reads; "
                f'these words were left out: "{shown}"'
            )
        if not text.isascii() and (unknown := self.core.tokenizer.unknown(text.lower().strip())):
            shown = " ".join(unknown)[:MAX_SHOWN]
            say(f'The text encoder does not know "{shown}", and reads it as an unknown word; name it in English.')

    def _finished(
        self, started: Iterator[State], request: Request, on_step: OnStep | None, say: Callable[[str], None]
    ) -> Iterator[list[State]]:
        """The states, finished, in batches; one batch may hold several prompts."""
        first, at_once = 0, None
        while True:
            states = []
            for state in started:
                states.append(state)
                at_once = at_once or self.core.images_at_once(request)
                if len(states) >= at_once:
                    break
            if not states:
                return
            limit = self.core.most_images
            while not states[0].done:
                for index, step in enumerate(self.core.step(states)):
                    if on_step is not None:
                        on_step(first + index, step)
            if self.core.most_images != limit:
                at_once = self.core.most_images
                say(f"Memory ran out with {len(states)} images at once; generating {at_once} at once.")
            yield states
            first += len(states)

    def _check_text_states(self, request: Request) -> None:
        """A file of text states is for one text encoder; those of another would give another image."""
        path = self.networks.memory.text_states
        if path is None:
            return
        check_text_states(self.folder, request, path)
        mine = {name: value for name, value in self._hashes.items() if name.startswith("text_encoder/")}
        if read_head(path)[0].encoder != mine:
            raise UsageError(
                f"{path} was made with another text encoder than that of {self.folder.name}; write one for this model "
                "with pixart encode --model."
            )

    def _generated(self, request: Request, state: State, pixels: Any, noise: GivenNoise | None = None) -> Generated:
        from PIL import Image

        image = Image.fromarray(pixels)
        start = None if state.source is None else state.source.image
        if start is not None:
            image = start.pasted(image)
        image = fit(image, request.height * request.upscale, request.width * request.upscale)
        settings = {
            "format": 1,
            "prompt": state.conditioning.prompt,
            "resolved_prompt": state.conditioning.resolved,
            "resolved_negative_prompt": request.resolved_negative_prompt,
            **{name: plain(getattr(request, name)) for name in RECORDED},
            "seed": state.seed,
            **({"noise": noise.source} if noise else {}),
            "bin": plain(request.bin),
            "image": None if start is None else start.hashes,
            **self.provenance,
            **({"loras": [lora.for_images() for lora in self.loras]} if self.loras else {}),
            **({"control": control_for_images(self.networks.control, request)} if request.control else {}),
            "pixels_sha256": pixel_hash(image),
        }
        return Generated(image, state.seed, settings)

    @functools.cached_property
    def _hashes(self) -> dict[str, str]:
        return weight_hashes(self.folder)

    @functools.cached_property
    def provenance(self) -> dict[str, Any]:
        """What makes the images, besides the request: model, hashes of its weights, engine, dtype, versions."""
        networks = self.networks.provenance()
        return {
            "model": self.folder.name,
            "fast": self.folder.fast,
            "source": self.folder.source.for_images(),
            "model_hash": transformer_hash(self._hashes),
            "weights": self._hashes,
            **networks,
            "versions": {"pixart": pixart.__version__, **networks["versions"]},
        }


def dtype_name(dtype: Any) -> str:
    """ "float16" of "float16" and of torch.float16."""
    return str(dtype).removeprefix("torch.")
