"""The networks of a model folder as ONNX graphs, which draw without torch."""
