"""`pixart.Pipeline`: a loaded model that turns prompts into images."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
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
from pixart.pipeline.image_files import pixel_hash
from pixart.pipeline.networks import Networks, choose_runtime, load_networks
from pixart.pipeline.prompt_weights import have_weights
from pixart.pipeline.request import Request, check_text_states, control_for_images, make_request
from pixart.pipeline.settings import Settings
from pixart.runtime.memory import PLAIN, Memory

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

    def __init__(self, folder: ModelFolder, networks: Networks):
        """Of a checked model folder and its networks; see `from_pretrained` and `load_networks`."""
        self.folder, self.networks = folder, networks
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
        dtype: str = "auto",
        memory: Memory = PLAIN,
        device: str = "auto",
        loras: Iterable[LoraPath] = (),
        control: str | Path | None = None,
        control_hed: str | Path | None = None,
    ) -> "Pipeline":
        """Open a model folder in the Diffusers layout; None opens the model that comes with the package.

        Args:
            model: the model folder, or its id on the Hugging Face Hub; with `parts` also an official file.
            parts, ema, num_heads, image_size: for an official file; see `open_model_folder`.
            fast: use the folder's few-step model, without guidance.
            engine: "onnx" (ONNX Runtime on the CPU, for folders with graphs), "torch", or "auto": the first where it
                can be had.
            dtype: "float32"; "bfloat16" or "float16" (torch); "int8" (onnx: faster, not quite the same image); "auto":
                float32 for graphs, else what suits the device.
            memory: ways to generate in less memory and another text encoder, with torch; see
                `pixart.runtime.memory.Memory`.
            loras: adapters to generate with, see `set_loras`.
            control: a ControlNet to load beside it, with torch: an official file, or a folder as of Diffusers' research
                project; it acts where a call has a `control_image`.
            control_hed: ControlNetHED.pth of the PixArt repositories, which makes edges of each `control_image`.
            device: "cpu"; with torch also "cuda" or "mps"; "auto": the CPU for graphs, else the fastest there is.

        Raises:
            UsageError: engine, dtype and device do not go together, or are not to be had here.
            PixArtError: names the first file that is missing or damaged, or the extra to install.
        """
        how = OfficialFile(ema, num_heads, image_size)
        folder = open_model_folder(model, parts=parts, how=how, fast=fast, text_encoder=memory.text_encoder)
        found = check_loras(folder, loras)
        hed = None if control_hed is None else Path(control_hed)
        beside = None if control is None else controlnet_for(folder, control, hed)
        runtime = choose_runtime(folder, engine, dtype, memory, device, control=beside)
        pipeline = cls(folder, load_networks(folder, runtime, control=beside))
        pipeline.use(found)
        return pipeline

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
            on_step: `on_step(index of the image, Step)` is called after every step, and may raise to stop.
            settings: the fields of `pixart.pipeline.request.Settings`, where each is described: negative_prompt, style,
                seed, num_images, steps, guidance_scale, width, height, sampler and others. What is left out or None is
                the model folder's own value, else what suits the sampler ("dpm-solver": 20 steps, guidance scale 4.5).

        Raises:
            UsageError: this model cannot generate that.
        """
        given = {"image": image, "mask": mask, "outpaint": outpaint}
        given |= {"control_image": control_image, "control_scale": control_scale}
        request = make_request(self.folder, prompt, **given, **settings)
        notices: list[str] = []
        images = list(self.generate(request, on_step, notices.append))
        return Result(
            images=[generated.image for generated in images],
            seeds=[generated.seed for generated in images],
            settings=[generated.settings for generated in images],
            notices=notices,
        )

    def generate(
        self, request: Request, on_step: OnStep | None = None, on_notice: Callable[[str], None] | None = None
    ) -> Iterator[Generated]:
        """The images of a checked request, as many at once as the device takes, each yielded as soon as it is done."""
        say = on_notice or (lambda notice: None)
        finished = self._in_stages(self._finished(self._started(request, say), request, on_step, say))
        if request.upscale > 1:
            larger = request.enlarged
            again = self._in_stages(state for some in finished for state in self.core.enlarged(some, larger))
            finished = self._in_stages(self._finished(again, larger, on_step, say))
        for some in finished:
            for state, pixels in zip(some, self.core.decode(some), strict=True):
                yield self._generated(request, state, pixels)

    def begin(self, request: Request, say: Callable[[str], None]) -> list[State]:
        """All images of a request, prompt by prompt and seed by seed, for `Core.step` in any batches; then `finish`."""
        return list(self._started(request, say))

    def finish(self, request: Request, state: State) -> Generated | State:
        """The image of a state after its last step; or a new, larger state, where there is a second pass to come."""
        if state.request.upscale > 1:
            return next(self.core.enlarged([state], request.enlarged))
        return self._generated(request, state, self.core.decode([state])[0])

    def _started(self, request: Request, say: Callable[[str], None]) -> Iterator[State]:
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
        for conditioning in self._in_stages(self._conditionings(request, say)):
            for seed in request.seeds:
                yield self.core.start(request, conditioning, seed, source, control)

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

    def _generated(self, request: Request, state: State, pixels: Any) -> Generated:
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
