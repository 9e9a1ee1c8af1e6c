"""The ONNX Runtime engine: draws a model folder that has graphs, on the CPU, without torch."""

import os
import platform
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

import pixart
from pixart.encoders.tokenizer import Tokenizer
from pixart.encoders.vae import check_pixels
from pixart.errors import PixArtError, UsageError
from pixart.model.positions import sincos_positions
from pixart.sampling.engine import Predict, check_block_cache
from pixart.sampling.memory import Memory
from pixart.sampling.model_folder import ModelFolder, fingerprint

# More image tokens than this in one call gain nothing on a CPU: the matrix products are large enough.
TOKENS_AT_ONCE = 1024


class Text(NamedTuple):
    """Keys and values (2·depth, 1, h, L, d) and their mask (1, L) int32."""

    keys_and_values: np.ndarray
    mask: np.ndarray


class OnnxEngine:
    """The graphs of a model folder in ONNX Runtime. See `pixart.sampling.engine.Engine`."""

    name = "onnx"
    memory = Memory()  # all parts are loaded, whole
    notices = ()

    def __init__(self, folder: ModelFolder, dtype: str = "float32", graphs: tuple[str, ...] | None = None):
        """Load from disk only, the three graphs that `dtype` ("float32" or "int8") needs, side by side.

        `graphs` are the file names in the folder, None its own: text, denoiser, decoder and the denoiser in int8.

        Raises:
            PixArtError: the graphs were made for other weights, or cannot be loaded.
        """
        self.folder = folder
        self.threads = _threads()
        self.dtype = dtype
        text, denoiser, decoder, denoiser_int8 = graphs or folder.graphs
        own, shared = fingerprint(folder.path, fast=folder.fast), fingerprint(folder.path)
        wanted = {text: own, denoiser_int8 if dtype == "int8" else denoiser: own, decoder: shared}
        with ThreadPoolExecutor(len(wanted) + 1) as pool:
            loading: list[Future] = [pool.submit(self._load, *graph) for graph in wanted.items()]
            tokenizer = pool.submit(
                Tokenizer, folder.path / "tokenizer", folder.path / "text_encoder", folder.max_tokens
            )
        self.tokenizer = tokenizer.result()
        self.max_tokens = self.tokenizer.max_tokens
        self.text, self.denoiser, self.decoder = (future.result() for future in loading)

    def _load(self, name: str, fingerprint_now: str):
        import onnxruntime

        path = self.folder.path / name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4
        # Each graph has threads of its own; those of one must not spin on the cores that the next one works on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        again = f"Write the graphs again with: pixart convert {self.folder.path} --to onnx"
        try:
            # A graph holds no weights: with others beside it, it would read wrong numbers from right places.
            if fingerprint_now.encode() not in path.read_bytes():
                raise PixArtError(f"{path} was made for other weights or configs than those beside it. {again}")
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except PixArtError:
            raise
        except Exception as error:  # the runtime has its own exception classes, one for each kind of damage
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PixArtError(f"{path} cannot be loaded: {reason} {again}") from None

    def read(self, text: str) -> tuple[Text, str]:
        ids, mask, cut = self.tokenizer.padded(text)
        mask = np.array([mask], np.int32)
        feed = {"tokens": np.array([ids], np.int64), "text_mask": mask}
        return Text(self.text.run(["text"], feed)[0], mask), cut

    def read_null(self, text: Text, whole: bool) -> Text:
        raise UsageError("The graphs take no null caption; draw with the engine torch, or without --null-text.")

    def pictures_at_once(self, tokens: int) -> int:
        # In int8 the largest value of a batch scales all of it, and a picture must not depend on its neighbours.
        return 1 if self.dtype == "int8" else max(1, TOKENS_AT_ONCE // tokens)

    def latents(self, noise: np.ndarray) -> np.ndarray:
        return noise

    def predictor(self, texts: list[Text], pictures: int, height: int, width: int, block_cache: int = 1) -> Predict:
        if block_cache > 1:
            check_block_cache(self.name)
        length = max(text.mask.shape[1] for text in texts)
        rows = [_lengthened(text, length) for text in texts for _ in range(pictures)]
        feed = {
            "text": np.concatenate([row.keys_and_values for row in rows], axis=1),
            "text_mask": np.concatenate([row.mask for row in rows]),
            "positions": self._positions(height, width),
        }
        if self.folder.transformer["use_additional_conditions"]:
            feed["size"] = np.array([[height, width, height / width]], np.float32)

        def predict(x_t: np.ndarray, timestep: int) -> list[np.ndarray]:
            feed["x_t"] = x_t
            feed["timestep"] = np.array([timestep], np.float32)
            return np.split(self.denoiser.run(["prediction"], feed)[0], len(texts))

        return predict

    def _positions(self, height: int, width: int) -> np.ndarray:
        config = self.folder.transformer
        patch, size = config["patch_size"], config["sample_size"]
        scale = config["interpolation_scale"] or max(size // 64, 1)
        token = self.folder.size_multiple  # pixels
        channels = config["num_attention_heads"] * config["attention_head_dim"]
        return sincos_positions(height // token, width // token, channels, size // patch, scale)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def decode(self, latent: np.ndarray) -> np.ndarray:
        pixels = self.decoder.run(["pixels"], {"latent": latent})[0]
        check_pixels(pixels, self.folder.path / "vae")
        pixels = np.clip(pixels[0] * np.float32(0.5) + np.float32(0.5), 0, 1).transpose(1, 2, 0)
        return (pixels * 255).round().astype(np.uint8)

    def provenance(self) -> dict[str, Any]:
        import onnxruntime

        return {
            "engine": self.name,
            "device": "cpu",
            "dtype": self.dtype,
            "memory": {},
            "threads": self.threads,
            "versions": {
                "pixart": pixart.__version__,
                "python": platform.python_version(),
                "onnxruntime": onnxruntime.__version__,
                "numpy": np.__version__,
            },
        }


def _threads() -> int:
    """As many as the cores that this process may use; OMP_NUM_THREADS sets another number, as it does for torch."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    cores = getattr(os, "sched_getaffinity", None)
    return len(cores(0)) if cores else os.cpu_count() or 1


def _lengthened(text: Text, length: int) -> Text:
    """Padded to `length` tokens, which the mask hides."""
    more = length - text.mask.shape[1]
    if not more:
        return text
    keys_and_values = np.pad(text.keys_and_values, [(0, 0)] * 3 + [(0, more), (0, 0)])
    return Text(keys_and_values, np.pad(text.mask, [(0, 0), (0, more)]))
