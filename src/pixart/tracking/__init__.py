"""Metrics and images to Weights & Biases, trackio or TensorBoard, for training, generation and comparison."""
