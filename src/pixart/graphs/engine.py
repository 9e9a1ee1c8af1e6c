"""ONNX Runtime: the networks of a model folder that has graphs, on the CPU, without torch."""

import platform
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pixart.checkpoints.adapters import Lora, changes, diffusers_layers, in_dtype, read_tensor
from pixart.checkpoints.model_folder import ModelFolder, fingerprint
from pixart.encoders.tokenizer import Tokenizer
from pixart.encoders.vae import to_bytes
from pixart.errors import PixArtError, UsageError, reason_of
from pixart.model.deltas import merged
from pixart.model.positions import sincos_positions
from pixart.runtime.device import find_cpu, threads
from pixart.runtime.memory import PLAIN
from pixart.runtime.plan import rows_at_once
from pixart.weights import read_headers

ONNX_TYPES = {"float32": 1, "float16": 10, "bfloat16": 16}  # onnx.TensorProto's numbers


class Text(NamedTuple):
    """Keys and values (2·depth, 1, h, L, d) and their mask (1, L) int32."""

    keys_and_values: np.ndarray
    mask: np.ndarray


class GraphNetworks:
    """The graphs of a model folder. See `pixart.pipeline.networks.Networks`."""

    name = "onnx"
    memory = PLAIN  # everything is loaded

    def __init__(self, folder: ModelFolder, *, int8: bool = False, graphs: tuple[str, ...] | None = None):
        """Load from disk only, the three graphs that are needed, side by side; the encoder when an image is given.

        `graphs` are the file names in the folder, None its own: text, denoiser, decoder, denoiser in int8, encoder.

        Raises:
            PixArtError: the graphs were made for other weights, or cannot be loaded.
        """
        self.folder, self.int8, self.threads = folder, int8, threads()
        text, denoiser, decoder, denoiser_int8, self.encoder = graphs or folder.graphs
        self.loras: tuple[Lora, ...] = ()
        self.control = None  # which only torch computes
        own, shared = fingerprint(folder.path, fast=folder.fast), fingerprint(folder.path)
        wanted = {text: own, denoiser_int8 if int8 else denoiser: own, decoder: shared}
        self._adaptable = list(wanted.items())[:2]
        with ThreadPoolExecutor(len(wanted) + 1) as pool:
            loading: list[Future] = [pool.submit(self._load, *graph) for graph in wanted.items()]
            tokenizer = pool.submit(Tokenizer, folder.tokenizer, folder.text_encoder, folder.max_tokens)
        self.tokenizer = tokenizer.result()
        self.max_tokens = self.tokenizer.max_tokens
        self.text, self.denoiser, self.decoder = (future.result() for future in loading)

    def set_loras(self, loras: Sequence[Lora]) -> None:
        if tuple(loras) != self.loras:
            weights = merged_weights(self.folder, loras)
            self.text, self.denoiser = (self._load(*graph, weights) for graph in self._adaptable)
            self.loras = tuple(loras)

    def _load(self, name: str, fingerprint_now: str, weights: Mapping[str, Any] = MappingProxyType({})):
        """A graph; `weights` take the place of those that it would read from its files."""
        import onnxruntime

        path = self.folder.path / name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4
        # Each graph has threads of its own; those of one must not spin on the cores that the next one works on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # On processors without VNNI, products of 8-bit numbers saturate in 16 bits unless weights get 7 (issue 18).
        options.add_session_config_entry("session.x64quantprecision", "1")
        again = f"Write the graphs again with: pixart convert {self.folder.path} --to onnx"
        try:
            # A graph holds no weights: with others beside it, it would read wrong numbers from right places.
            graph = path.read_bytes()
            taken = {key: value for key, value in weights.items() if key.encode() in graph}
            if taken:
                options.add_external_initializers(list(taken), list(taken.values()))
            if fingerprint_now.encode() not in graph:
                raise PixArtError(f"{path} was made for other weights or configs than those beside it. {again}")
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except PixArtError:
            raise
        except Exception as error:  # the runtime has its own exception classes, one for each kind of damage
            raise PixArtError(f"{path} cannot be loaded: {reason_of(error)}. {again}") from None

    def prepare(self, texts: Sequence[str]) -> None:
        pass  # each is encoded alone, so that its states do not depend on the others

    def encode(self, text: str) -> tuple[Text, str]:
        ids, mask, cut = self.tokenizer.padded(text)
        mask = np.array([mask], np.int32)
        feed = {"tokens": np.array([ids], np.int64), "text_mask": mask}
        return Text(self.text.run(["text"], feed)[0], mask), cut

    def weighted(self, text: Text, weights: Sequence[float]) -> Text:
        raise UsageError("The graphs take no prompt weights; give --engine torch, or leave --prompt-weights out.")

    def unconditional(self, text: Text, full: bool) -> Text:
        raise UsageError("The graphs take no null caption; give --engine torch, or leave --null-text out.")

    def latents(self, noise: np.ndarray) -> np.ndarray:
        return noise

    def denoise(
        self, x_t: np.ndarray, timesteps: Sequence[float], texts: Sequence[Text], images: Sequence[int]
    ) -> np.ndarray:
        if self.int8 and len(x_t) > 1:  # the largest value of a batch scales all of it
            prediction = [None] * len(images)
            for image, timestep in enumerate(timesteps):
                mine = [row for row, of in enumerate(images) if of == image]
                own = self.denoise(x_t[image : image + 1], [timestep], [texts[row] for row in mine], [0] * len(mine))
                for row, part in zip(mine, own, strict=True):
                    prediction[row] = part
            return np.stack(prediction)
        factor = self.folder.vae_factor
        height, width = x_t.shape[2] * factor, x_t.shape[3] * factor
        length = max(text.mask.shape[1] for text in texts)
        texts = [_lengthened(text, length) for text in texts]
        feed = {
            "x_t": x_t,
            "timestep": np.array(timesteps, np.float32),
            "text": np.concatenate([text.keys_and_values for text in texts], axis=1),
            "text_mask": np.concatenate([text.mask for text in texts]),
            "rows": np.array(images, np.int64),
            "positions": self._positions(height, width),
        }
        if self.folder.transformer["use_additional_conditions"]:
            feed["size"] = np.array([[height, width, height / width]] * len(x_t), np.float32)
        return self.denoiser.run(["prediction"], feed)[0]

    def _positions(self, height: int, width: int) -> np.ndarray:
        config, token = self.folder.transformer, self.folder.size_multiple
        size = config["sample_size"]
        scale = config["interpolation_scale"] or max(size // 64, 1)
        channels = config["num_attention_heads"] * config["attention_head_dim"]
        return sincos_positions(height // token, width // token, channels, size // config["patch_size"], scale)

    def images_at_once(self, rows: int, height: int, width: int) -> int:
        if self.int8:
            return 1
        config, tokens = self.folder.transformer, height * width // self.folder.size_multiple**2
        channels = config["num_attention_heads"] * config["attention_head_dim"]
        return max(1, rows_at_once(find_cpu(), tokens=tokens, width=channels, number_bytes=4) // rows)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        return array

    def decode(self, latents: np.ndarray) -> list[np.ndarray]:
        pixels = [self.decoder.run(["pixels"], {"latent": latent[None]})[0] for latent in latents]
        return [to_bytes(each, self.folder.path / "vae")[0] for each in pixels]

    def encode_image(self, pixels: np.ndarray) -> np.ndarray:
        encoder = self._load(self.encoder, fingerprint(self.folder.path))
        pixels = np.float32(1 / 127.5) * pixels.transpose(2, 0, 1) - np.float32(1)
        return encoder.run(["latent"], {"pixels": pixels[None]})[0]

    def provenance(self) -> dict[str, Any]:
        import onnxruntime

        return {
            "engine": self.name,
            "device": "cpu",
            "dtype": "int8" if self.int8 else "float32",
            "memory": {},
            "threads": self.threads,
            "versions": {
                "python": platform.python_version(),
                "onnxruntime": onnxruntime.__version__,
                "numpy": np.__version__,
            },
        }


def merged_weights(folder: ModelFolder, loras: Sequence[Lora]) -> dict[str, Any]:
    """The weights that adapters change, by their names in graphs, in the dtype of the folder, as the runtime's arrays.

    Products of the few changed weights are so as fast as those of the model.
    """
    from onnxruntime import OrtValue

    result = {}
    for part, text in (("transformer", False), ("text_encoder", True)):
        place = folder.path / part if text else folder.transformer_folder
        stored = read_headers(path for path in folder.weights if path.parent == place)
        for layer, deltas in changes(loras, text=text).items():
            names = [f"{name}.weight" for name in ([layer] if text else diffusers_layers(layer))]
            new = merged(np.concatenate([read_tensor(stored[name]) for name in names]), deltas)
            for name, rows in zip(names, np.split(new, len(names)), strict=True):
                dtype = stored[name].dtype
                array = OrtValue.ortvalue_from_numpy_with_onnx_type(in_dtype(rows, dtype), ONNX_TYPES[dtype])
                result[f"{part}/{name}"] = array
    return result


def _lengthened(text: Text, length: int) -> Text:
    """Padded to `length` tokens, which the mask hides."""
    more = length - text.mask.shape[1]
    if not more:
        return text
    keys_and_values = np.pad(text.keys_and_values, [(0, 0)] * 3 + [(0, more), (0, 0)])
    return Text(keys_and_values, np.pad(text.mask, [(0, 0), (0, more)]))
