"""Figures and pictures to Weights & Biases, trackio or TensorBoard: one face for training, drawing and evaluation."""
