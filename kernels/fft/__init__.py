"""Convolution in a transform domain, in plain PyTorch: the algorithm, on any device."""
