"""The networks of a model folder as ONNX graphs, which need no torch."""
