"""The one door to drawing, for the command line, training, evaluation and people who write Python."""

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pixart.diffusion.guidance import guided
from pixart.encoders.text_states import read_head
from pixart.encoders.tokenizer import Tokenizer
from pixart.errors import PixArtError, UsageError
from pixart.sampling.bins import fit
from pixart.sampling.dpm_solver import Step
from pixart.sampling.engine import Engine, check_block_cache, open_engine
from pixart.sampling.image_files import pixel_hash
from pixart.sampling.memory import PLAIN, Memory
from pixart.sampling.model_folder import ModelFolder, hash_weights, open_model_folder, transformer_hash
from pixart.sampling.noise import noise_stream
from pixart.sampling.request import Request, check_text_states, make_request
from pixart.sampling.samplers import SAMPLERS, schedule_for
from pixart.sampling.schedule import Schedule

OnStep = Callable[[int, Step], None]
T = TypeVar("T")
MAX_WORDS_SHOWN = 300  # characters of cut text that a notice repeats


@dataclass(frozen=True)
class Picture:
    """One drawn picture: an RGB PIL image, its seed, and every setting needed to draw it again."""

    image: Any
    seed: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Result:
    """All pictures of one call, prompt by prompt, seed by seed. `notices` says what a person should know."""

    images: list[Any]
    seeds: list[int]
    settings: list[dict[str, Any]]
    notices: list[str]


class Pipeline:
    """A loaded model. Calls share nothing but its weights, so one request cannot disturb another."""

    def __init__(
        self,
        folder: ModelFolder,
        *,
        engine: str | Engine = "auto",
        dtype: str = "float32",
        memory: Memory = PLAIN,
        device: str = "cpu",
    ):
        """Load the networks of a checked model folder, from disk only, by the name of an engine; or take one loaded."""
        self.folder = folder
        self.engine = open_engine(folder, engine, dtype, memory, device) if isinstance(engine, str) else engine
        self._provenance: dict[str, Any] | None = None
        # Reading all weights once more takes a while, and nobody needs their hashes before the first picture is done.
        self._hashes = ThreadPoolExecutor(1).submit(hash_weights, folder)

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
        dtype: str = "float32",
        memory: Memory = PLAIN,
        device: str = "cpu",
    ) -> "Pipeline":
        """Open a model folder in the Diffusers layout; None opens the model that comes with the package.

        Args:
            model: the model folder, or its id on the Hugging Face Hub; with `parts` also an official file.
            parts, ema, num_heads, image_size: for an official file; see `open_model_folder`.
            fast: draw with the folder's fast denoiser, in its few steps and without guidance.
            engine: "onnx" (ONNX Runtime on the CPU, for folders with graphs), "torch", or "auto": the first where it
                can be had.
            dtype: of the denoiser: "float32"; "int8" (onnx: faster, not quite the same picture); "bfloat16" (torch).
            memory: ways to draw in less memory, with torch; see `pixart.sampling.memory.Memory` and docs/memory.md.
            device: "cpu", or with torch "cuda".

        Raises:
            PixArtError: names the first file that is missing or damaged, or the extra to install.
        """
        given = {"parts": parts, "ema": ema, "num_heads": num_heads, "image_size": image_size}
        folder = open_model_folder(model, fast=fast, **given)
        return cls(folder, engine=engine, dtype=dtype, memory=memory, device=device)

    def __call__(
        self,
        prompt: str | list[str],
        *,
        negative_prompt: str = "",
        style: str | None = None,
        seed: int | None = None,
        num_images: int = 1,
        steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[int, int] = (0, 1000),
        guidance_rescale: float = 0.0,
        guidance_channels: int | None = None,
        null_text: str = "encoded",
        block_cache: int = 1,
        width: int | None = None,
        height: int | None = None,
        binning: bool | None = None,
        sampler: str | None = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """Draw `num_images` pictures of each prompt, with the seeds `seed`, `seed + 1`, ...

        None means: the model folder's own value, else what suits the sampler ("dpm-solver": 20 steps, guidance scale
        4.5), and the model's native size; for the seed, a random one. The null text is asked at timesteps inside
        `guidance_interval` only (0 is clean, 1000 noise; arXiv 2404.07724); `guidance_rescale` from 0 to 1 brings the
        guided prediction back to the deviation of the unguided one (arXiv 2305.08891, section 3.4).
        `guidance_channels` guides the first channels of the latent only, as the official IDDPM script does with 3;
        `null_text` "caption" or "caption-all" guides away from the null caption of an official checkpoint, under the
        prompt's mask or whole, and not from the encoded empty text.
        `block_cache` N computes the middle blocks at every Nth step only and guesses what they add at the others:
        faster, and not quite the same picture; with the engine torch (see `pixart.sampling.block_cache`).
        `binning` draws at the official size of the nearest shape and fits the picture to the size that was asked for,
        as stock Diffusers does; None does so for models that predict eps, and not for flow models.
        `on_step(index of the picture, Step)` is called after every step, and may raise to stop. Raises UsageError for
        what this model cannot draw.
        """
        request = make_request(
            self.folder,
            prompt,
            negative_prompt=negative_prompt,
            style=style,
            seed=seed,
            num_images=num_images,
            steps=steps,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            guidance_channels=guidance_channels,
            null_text=null_text,
            block_cache=block_cache,
            width=width,
            height=height,
            binning=binning,
            sampler=sampler,
        )
        notices: list[str] = []
        pictures = list(self.draw(request, on_step, notices.append))
        return Result(
            images=[picture.image for picture in pictures],
            seeds=[picture.seed for picture in pictures],
            settings=[picture.settings for picture in pictures],
            notices=notices,
        )

    def draw(
        self, request: Request, on_step: OnStep | None = None, on_notice: Callable[[str], None] | None = None
    ) -> Iterator[Picture]:
        """Draw the pictures of a checked request, yielding each as soon as it is done.

        As many at once as the engine can without changing a byte of any of them. Steps of pictures that are drawn
        together are reported in turn.
        """
        say = on_notice or (lambda notice: None)
        self._check_text_states(request)
        if request.block_cache > 1:
            check_block_cache(self.engine.name)
        said = set()

        def tell() -> None:
            for notice in self.engine.notices:
                if notice not in said:
                    said.add(notice)
                    say(notice)

        tell()
        if request.bin and (request.bin.height, request.bin.width) != (request.height, request.width):
            say(
                f"Drawn at the bin {request.bin.width} x {request.bin.height}, which the model knows, and fitted to "
                f"{request.width} x {request.height}; --no-binning draws that size itself."
            )
        if request.guidance_scale == 1.0 and request.resolved_negative_prompt:
            say(
                f'Without guidance (scale 1), the negative prompt "{request.resolved_negative_prompt}" changes '
                "nothing; give a larger --guidance-scale."
            )
        texts = self._in_stages(self._texts(request, say))
        for prompt, resolved, seed, latent in self._in_stages(self._latents(texts, request, on_step)):
            image = fit(self._image(latent), request.height, request.width)
            yield Picture(image, seed, self._settings(request, prompt, resolved, seed, image))
        tell()  # the engine may have found something out

    def _in_stages(self, work: Iterator[T]) -> Iterator[T]:
        """All of it before what follows begins, where the networks take turns in memory; else piece by piece."""
        if not self.engine.memory.staged:
            yield from work
            return
        done = list(work)
        while done:
            yield done.pop(0)  # and with a text goes what the denoiser made of it

    def _texts(self, request: Request, say: Callable[[str], None]) -> Iterator[tuple[str, str, list[Any]]]:
        """For every prompt: itself, with its style, and the one or two texts that the denoiser is asked with."""
        # One for all prompts, and read only if one of them is steered away from it.
        negative = functools.cache(lambda: self._read(request.resolved_negative_prompt, "negative prompt", say))
        for prompt, resolved in zip(request.prompts, request.resolved_prompts, strict=True):
            text = self._read(resolved, "prompt", say)
            if not resolved.strip():
                say("The prompt is empty: this is a picture drawn without any text.")
            elif not prompt.strip():
                say(f'The prompt is empty: only the words of the style are drawn, "{resolved}".')
            # The same text on both sides of the guidance would cancel out; so would scale 1.
            same = resolved.lower().strip() == request.resolved_negative_prompt.lower().strip()
            if request.guidance_scale == 1.0 or (same and request.null_text == "encoded"):
                texts = [text]
            elif request.null_text == "encoded":
                texts = [text, negative()]
            else:
                texts = [text, self.engine.read_null(text, request.null_text == "caption-all")]
            yield prompt, resolved, texts

    def _latents(
        self, read: Iterator[tuple[str, str, list[Any]]], request: Request, on_step: OnStep | None
    ) -> Iterator[tuple[str, str, int, Any]]:
        """For every picture: its prompt, that with its style, its seed and its clean latent (1, C, h, w)."""
        schedule = schedule_for(request.sampler, self.folder.scheduler, request.steps)
        index = 0
        for prompt, resolved, texts in read:
            at_once = self.engine.pictures_at_once(len(texts) * self._tokens(request))
            for start in range(0, len(request.seeds), at_once):
                seeds = request.seeds[start : start + at_once]
                latents = self._draw_latents(texts, request, schedule, seeds, index, on_step)
                for seed, latent in zip(seeds, latents, strict=True):
                    yield prompt, resolved, seed, latent
                index += len(seeds)

    def _check_text_states(self, request: Request) -> None:
        """A file of text states is for one text encoder; the states of another would draw something else."""
        path = self.engine.memory.text_states
        if path is None:
            return
        check_text_states(self.folder, request, path)
        made = read_head(path)[0].encoder
        mine = {name: value for name, value in self._hashes.result().items() if name.startswith("text_encoder/")}
        if made != mine:
            raise UsageError(
                f"{path} was made with another text encoder than that of {self.folder.name}; write one for this model "
                "with pixart encode --model."
            )

    def _read(self, text: str, what: str, say: Callable[[str], None]) -> Any:
        """The text as the denoiser takes it; words over the limit are named."""
        read, cut = self.engine.read(text)
        if cut:
            shown = cut if len(cut) <= MAX_WORDS_SHOWN else cut[:MAX_WORDS_SHOWN] + " ..."
            say(
                f"The {what} is longer than the {self.engine.max_tokens} tokens that the model reads; "
                f'these words were left out: "{shown}"'
            )
        if not text.isascii() and (unknown := self._tokenizer.unknown(text.lower().strip())):
            shown = " ".join(unknown)[:MAX_WORDS_SHOWN]
            say(f'The text encoder does not know "{shown}", and reads it as an unknown word; name it in English.')
        return read

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        path = self.folder.path
        return Tokenizer(path / "tokenizer", path / "text_encoder", self.folder.max_tokens)

    def _tokens(self, request: Request) -> int:
        return request.drawn_height * request.drawn_width // self.folder.size_multiple**2

    def _draw_latents(
        self,
        texts: list[Any],
        request: Request,
        schedule: Schedule,
        seeds: tuple[int, ...],
        index: int,
        on_step: OnStep | None,
    ) -> list[Any]:
        """The clean latents (1, C, h, w) of pictures that are drawn together; `index` is the first one's."""
        factor = self.folder.vae_factor
        shape = (self.folder.transformer["in_channels"], request.drawn_height // factor, request.drawn_width // factor)
        size = (len(seeds), request.drawn_height, request.drawn_width)
        low, high = request.guidance_interval
        guided_before, predict = None, None

        def denoise(x_t, timestep: int):
            nonlocal guided_before, predict
            guiding = len(texts) > 1 and low <= timestep <= high
            if guiding != guided_before:  # a new one each time, since a block cache is for steps without a gap
                guided_before = guiding
                predict = self.engine.predictor(texts if guiding else texts[:1], *size, request.block_cache)
            if not guiding:
                return predict(x_t, timestep)[0]
            return guided(
                *predict(x_t, timestep), request.guidance_scale, request.guidance_rescale, request.guidance_channels
            )

        streams = [noise_stream(seed, shape) for seed in seeds]

        def fresh_noise():
            return self.engine.latents(np.stack([draw() for draw in streams]))

        solve = SAMPLERS[request.sampler].solve
        for step in solve(denoise, fresh_noise(), schedule, fresh_noise):
            if step.index == 0:  # damaged weights show at once; no need to draw to the end
                for i, seed in enumerate(seeds):
                    self._refuse_not_finite(step.x_t[i : i + 1], seed, request)
            if on_step is not None:
                for i in range(len(seeds)):
                    on_step(index + i, Step(step.index, step.x_t[i : i + 1], step.x_0[i : i + 1]))
        latents = [step.x_t[i : i + 1] for i in range(len(seeds))]
        for seed, latent in zip(seeds, latents, strict=True):
            self._refuse_not_finite(latent, seed, request)
        return latents

    def _refuse_not_finite(self, latent: Any, seed: int, request: Request) -> None:
        if not np.isfinite(self.engine.to_numpy(latent)).all():
            self._hashes.result()  # names the file and the tensors, if it is the weights
            raise PixArtError(
                f"The drawing with seed {seed} ended in numbers that are not finite, though the weights in "
                f"{self.folder.path} are; take a lower guidance scale than {request.guidance_scale:g}, or float32."
            )

    def _image(self, latent):
        from PIL import Image

        try:
            return Image.fromarray(self.engine.decode(latent))
        except PixArtError:
            self._hashes.result()  # names the file and the tensors, if it is the weights
            raise

    def _settings(self, request: Request, prompt: str, resolved: str, seed: int, image) -> dict[str, Any]:
        return {
            "format": 1,
            "prompt": prompt,
            "negative_prompt": request.negative_prompt,
            "style": request.style,
            "resolved_prompt": resolved,
            "resolved_negative_prompt": request.resolved_negative_prompt,
            "seed": seed,
            "steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "guidance_interval": list(request.guidance_interval),
            "guidance_rescale": request.guidance_rescale,
            "guidance_channels": request.guidance_channels,
            "null_text": request.null_text,
            "block_cache": request.block_cache,
            "width": request.width,
            "height": request.height,
            "binning": request.bin is not None,
            "bin": asdict(request.bin) if request.bin else None,
            "sampler": request.sampler,
            **self._read_provenance(),
            "pixels_sha256": pixel_hash(image),
        }

    def _read_provenance(self) -> dict[str, Any]:
        """What drew the picture, besides the request; hashing the weights takes a while, so once per pipeline."""
        if self._provenance is None:
            hashes = self._hashes.result()
            self._provenance = {
                "model": self.folder.name,
                "fast": self.folder.fast,
                "source": self.folder.source.for_pictures(),
                "model_hash": transformer_hash(hashes),
                "weights": hashes,
                **self.engine.provenance(),
            }
        return self._provenance
