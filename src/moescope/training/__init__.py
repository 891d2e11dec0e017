"""Building and training mixtures of experts: routing rules, losses, capacity, kernels."""
