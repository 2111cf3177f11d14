"""Numerical kernels of dnd-fast and the plain-PyTorch references they are held to.

Importing this package has no side effect: Python started in the repository root lets transformers
find this folder while it probes for Hugging Face's package of the same name.
"""
