"""Puts an ONNX graph together whose weights stay in the model folder's safetensors files.

ONNX lets a tensor say "my bytes are in that file, from this offset, so many": a safetensors file is just such bytes, so
one copy of the weights serves torch and ONNX Runtime. The runtime refuses files outside the folder of the graph, which
is why the graphs lie at the root of the model folder.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pixart.checkpoints.fast import FAST
from pixart.errors import PixArtError
from pixart.weights import Stored, read_header

OPSET = 20  # the first with Gelu and its tanh form
FLOATS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16, "float32": TensorProto.FLOAT}
CONTRIB = "com.microsoft"  # ONNX Runtime's own operators


class Graph:
    """A graph being built. Values are named by the strings that `op`, `weight` and `constant` return."""

    def __init__(self, folder: Path, *, fast: bool = False):
        """`folder` is the model folder; weights are found in its safetensors files.

        `fast`: the transformer's are those of its fast denoiser.
        """
        self.folder, self.fast = folder, fast
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._headers: dict[str, dict[str, Stored]] = {}
        self._weights: dict[tuple[str, str, bool], str] = {}
        self._constants: dict[tuple, str] = {}

    def input(self, name: str, kind: type, shape: list[int | str]) -> str:
        """An input; letters in its shape are sizes that may change from call to call."""
        element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        self.inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def output(self, value: str, name: str, shape: list[int | str]) -> None:
        """Give a value out under `name`, in fp32."""
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def op(self, kind: str, inputs: list[str], attributes: dict | None = None, domain: str = "") -> str:
        """Add a node with one output and return that."""
        return self.split_op(kind, inputs, 1, attributes, domain)[0]

    def split_op(
        self, kind: str, inputs: list[str], outputs: int, attributes: dict | None = None, domain: str = ""
    ) -> list[str]:
        """Add a node with several outputs and return them."""
        names = [f"{kind.lower()}.{len(self.nodes)}.{i}" for i in range(outputs)]
        node = helper.make_node(kind, inputs, names, domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in (attributes or {}).items())
        self.nodes.append(node)
        return names

    def constant(self, value) -> str:
        """A small tensor that is no weight; Python floats become fp32, whole numbers int64."""
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant.{len(self._constants)}"
            self.initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def weight(self, file: str, tensor: str, *, as_stored: bool = False) -> str:
        """A tensor of a safetensors file of the folder, in fp32 unless `as_stored`.

        Half precision is cast by a node that ONNX Runtime computes once, when it loads the graph.

        Raises:
            PixArtError: the file has no such tensor, or not in floating point.
        """
        key = (file, tensor, as_stored)
        if key in self._weights:
            return self._weights[key]
        stored = self._header(file).get(tensor)
        kind = None if stored is None else FLOATS.get(stored.dtype)
        if kind is None:
            holds = "lacks" if stored is None else f"holds, as {stored.dtype},"
            raise PixArtError(
                f"{self.folder / self._place(file)} {holds} {tensor}; graphs need it in {' or '.join(sorted(FLOATS))}."
            )
        name = f"{Path(file).parent}/{tensor}"
        if not any(other[:2] == key[:2] for other in self._weights):
            proto = TensorProto(name=name, data_type=kind, dims=stored.shape, data_location=TensorProto.EXTERNAL)
            for field, value in (("location", self._place(file)), ("offset", stored.start), ("length", stored.size)):
                proto.external_data.add(key=field, value=str(value))
            self.initializers.append(proto)
        if not as_stored and kind != TensorProto.FLOAT:
            name = self.op("Cast", [name], {"to": TensorProto.FLOAT})
        self._weights[key] = name
        return name

    def shape_of(self, file: str, tensor: str) -> list[int]:
        """The stored shape of a weight; PixArtError where there is none."""
        if not self.has(file, tensor):
            raise PixArtError(f"{self.folder / file} has no tensor {tensor}.")
        return list(self._header(file)[tensor].shape)

    def has(self, file: str, tensor: str) -> bool:
        return tensor in self._header(file)

    def model(self) -> onnx.ModelProto:
        """The finished graph, checked by ONNX for operators, arity and names."""
        graph = helper.make_graph(self.nodes, "pixart", self.inputs, self.outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, producer_name="pixart", ir_version=9)

    # What the networks have in common.

    def linear(self, x: str, file: str, name: str) -> str:
        """x (M, in) -> (M, out), by `name.weight` (out, in) and `name.bias`, where there is one."""
        inputs = [x, self.weight(file, f"{name}.weight")]
        if self.has(file, f"{name}.bias"):
            inputs.append(self.weight(file, f"{name}.bias"))
        return self.op("Gemm", inputs, {"transB": 1})

    def stacked_linear(self, x: str, file: str, names: list[str]) -> str:
        """Several linear layers that read the same x (M, in), as one product: (M, sum of their outs)."""
        inputs = [x, self.op("Concat", [self.weight(file, f"{name}.weight") for name in names], {"axis": 0})]
        if self.has(file, f"{names[0]}.bias"):
            inputs.append(self.op("Concat", [self.weight(file, f"{name}.bias") for name in names], {"axis": 0}))
        return self.op("Gemm", inputs, {"transB": 1})

    def quantized_linear(self, x: str, file: str, name: str) -> str:
        """`linear` in 8-bit whole numbers: weights scaled by output, x by its largest value at run time.

        The weights stay as they are on disk; ONNX Runtime computes their 8-bit form once, when it loads the graph.
        """
        weight = self.weight(file, f"{name}.weight")  # (out, in)
        largest = self.op("ReduceMax", [self.op("Abs", [weight]), self.constant([1])], {"keepdims": 1})  # (out, 1)
        scale = self.op("Mul", [largest, self.constant(1 / 127)])
        steps = self.op("Round", [self.op("Div", [weight, scale])])
        whole = self.op("Cast", [self.op("Transpose", [steps], {"perm": [1, 0]})], {"to": TensorProto.INT8})
        inputs = [x, whole, self.reshape(scale, [-1]), "", self.weight(file, f"{name}.bias")]
        return self.op("DynamicQuantizeMatMul", inputs, domain=CONTRIB)

    def reshape(self, x: str, shape: list[int] | str) -> str:
        """To a shape as ONNX writes it (0 keeps the size of that place, -1 is what remains), or to a computed one."""
        return self.op("Reshape", [x, shape if isinstance(shape, str) else self.constant(shape)])

    def silu(self, x: str) -> str:
        return self.op("Mul", [x, self.op("Sigmoid", [x])])

    def _header(self, file: str) -> dict[str, Stored]:
        if file not in self._headers:
            self._headers[file] = read_header(self.folder / self._place(file))
        return self._headers[file]

    def _place(self, file: str) -> str:
        """Where in the folder the weights are that go by the name of `file`."""
        return f"{FAST}/{file}" if self.fast and file.startswith("transformer/") else file
