"""Figures and pictures to Weights & Biases, trackio or TensorBoard: one small face for training, drawing, evaluation."""
