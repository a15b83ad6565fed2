"""Compute: device and precision, cached features, the training loop, early stopping, checkpoints."""
