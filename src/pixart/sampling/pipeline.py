"""The one door to drawing, for the command line, training, evaluation and people who write Python."""

import functools
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pixart
from pixart.diffusion.guidance import guide
from pixart.encoders.text import TextEncoder
from pixart.encoders.vae import Decoder
from pixart.errors import PixArtError
from pixart.sampling.dpm_solver import Step
from pixart.sampling.image_files import pixel_hash
from pixart.sampling.model_folder import ModelFolder, hash_weights, open_model_folder
from pixart.sampling.noise import initial_noise
from pixart.sampling.request import SAMPLERS, Request, make_request
from pixart.sampling.schedule import Schedule, make_schedule

OnStep = Callable[[int, Step], None]
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

    def __init__(self, folder: ModelFolder):
        """Load all networks of a checked model folder, fp32 on the CPU, from disk only."""
        from pixart.checkpoints.diffusers import load_transformer

        self.folder = folder
        self.text_encoder = TextEncoder(
            folder.path / "text_encoder", folder.path / "tokenizer", folder.text_encoder_class
        )
        self.denoiser = load_transformer(folder.path / "transformer").float().eval().requires_grad_(False)
        self.decoder = Decoder(folder.path / "vae")
        self._check_fit()
        self._provenance: dict[str, Any] | None = None

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "Pipeline":
        """Open a model folder in the Diffusers layout; None opens the model that comes with the package.

        Raises PixArtError naming the first file that is missing or damaged.
        """
        return cls(open_model_folder(folder))

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
        width: int | None = None,
        height: int | None = None,
        sampler: str | None = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """Draw `num_images` pictures of each prompt, with the seeds `seed`, `seed + 1`, ...

        None means: the model folder's own value, else 20 steps, guidance scale 4.5, "dpm-solver" and the model's
        native size; for the seed, a random one. `on_step(index of the picture, Step)` is called after every step, and
        may raise to stop. Raises UsageError for what this model cannot draw.
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
            width=width,
            height=height,
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
        """Draw the pictures of a checked request one after the other, yielding each as soon as it is done.

        One at a time on purpose: matrix products of another batch size round differently on a CPU, and a picture
        must have the same bytes alone as among others. The networks are small or the steps long; neither gains much
        from batches on a CPU.
        """
        say = on_notice or (lambda notice: None)
        schedule = make_schedule(self.folder.scheduler, request.steps)
        index = 0
        # One for all prompts, and read only if one of them is steered away from it.
        null = functools.cache(lambda: self._encode(request.resolved_negative_prompt, "negative prompt", say))
        for prompt, resolved in zip(request.prompts, request.resolved_prompts, strict=True):
            text = self._encode(resolved, "prompt", say)
            if not resolved.strip():
                say("The prompt is empty: this is a picture drawn without any text.")
            elif not prompt.strip():
                say(f'The prompt is empty: only the words of the style are drawn, "{resolved}".')
            # The same text on both sides of the guidance would cancel out; so would scale 1.
            same = resolved.lower().strip() == request.resolved_negative_prompt.lower().strip()
            contexts = [text] if same or request.guidance_scale == 1.0 else [text, null()]
            denoise = self._guided_denoiser(contexts, request.guidance_scale)
            for seed in request.seeds:
                latent = self._latent(denoise, request, schedule, seed, index, on_step)
                image = self._image(latent)
                yield Picture(image, seed, self._settings(request, prompt, resolved, seed, image))
                index += 1

    def _guided_denoiser(self, contexts: list[Any], scale: float):
        """`denoise(x_t, timestep)` for one text, or guided away from a second: both are read before the first step."""
        import torch

        def denoise(x_t, timestep: int):
            modulation = self.denoiser.embed_timestep(torch.tensor([timestep]))
            predictions = [self.denoiser.denoise(x_t, modulation, context) for context in contexts]
            guided = guide(predictions[0], predictions[1], scale) if len(predictions) == 2 else predictions[0]
            return guided[:, : x_t.shape[1]]  # a learned variance, if there is one, is the second half

        return denoise

    def _encode(self, text: str, what: str, say: Callable[[str], None]):
        """The text as the denoiser's context; words over the limit are named."""
        import torch

        encoded = self.text_encoder.encode(text)
        if encoded.cut:
            shown = encoded.cut if len(encoded.cut) <= MAX_WORDS_SHOWN else encoded.cut[:MAX_WORDS_SHOWN] + " ..."
            say(
                f"The {what} is longer than the {self.text_encoder.max_tokens} tokens that the model reads; "
                f'these words were left out: "{shown}"'
            )
        with torch.inference_mode():
            return self.denoiser.encode_text(encoded.states, encoded.mask)

    def _latent(self, denoise, request: Request, schedule: Schedule, seed: int, index: int, on_step: OnStep | None):
        import torch

        factor = 2 ** (len(self.decoder.model.config.block_out_channels) - 1)
        shape = (self.denoiser.config.in_channels, request.height // factor, request.width // factor)
        x_t = torch.from_numpy(initial_noise(seed, shape))[None]
        solver = SAMPLERS[request.sampler](denoise, x_t, schedule)
        for _ in range(request.steps):
            # Not around the whole loop: the mode must not leak into the caller's code between steps.
            with torch.inference_mode():
                step = next(solver)
            if on_step is not None:
                on_step(index, step)
        if not torch.isfinite(step.x_t).all():
            raise PixArtError(
                f"The drawing with seed {seed} ended in numbers that are not finite; the weights in "
                f"{self.folder.path} may be damaged, or the guidance scale {request.guidance_scale:g} too high."
            )
        return step.x_t

    def _image(self, latent):
        from PIL import Image

        return Image.fromarray(self.decoder.decode(latent))

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
            "width": request.width,
            "height": request.height,
            "sampler": request.sampler,
            **self._read_provenance(),
            "pixels_sha256": pixel_hash(image),
        }

    def _read_provenance(self) -> dict[str, Any]:
        """What drew the picture, besides the request; hashing the weights takes a while, so once per pipeline."""
        if self._provenance is None:
            import diffusers
            import torch
            import transformers

            hashes = hash_weights(self.folder)
            self._provenance = {
                "model": self.folder.name,
                "model_hash": hashes[next(name for name in hashes if name.startswith("transformer/"))],
                "weights": hashes,
                "engine": "torch",
                "device": "cpu",
                "dtype": "float32",
                "threads": torch.get_num_threads(),
                "versions": {
                    "pixart": pixart.__version__,
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "diffusers": diffusers.__version__,
                    "transformers": transformers.__version__,
                    "numpy": np.__version__,
                },
            }
        return self._provenance

    def _check_fit(self) -> None:
        """Networks that were not trained together fail with a shape error deep inside; say it here instead."""
        denoiser, text, vae = self.denoiser.config, self.text_encoder.model.config, self.decoder.model.config
        width = getattr(text, "d_model", None) or text.hidden_size
        if denoiser.text_dim != width:
            raise PixArtError(
                f"The parts of {self.folder.path} do not fit: its transformer reads text states of width "
                f"{denoiser.text_dim}, and its text encoder gives {width}."
            )
        if denoiser.in_channels != vae.latent_channels:
            raise PixArtError(
                f"The parts of {self.folder.path} do not fit: its transformer has {denoiser.in_channels} latent "
                f"channels, and its autoencoder {vae.latent_channels}."
            )
