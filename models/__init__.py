"""PyTorch: trainable operators, detectors, training, quantization, evaluation, export."""
