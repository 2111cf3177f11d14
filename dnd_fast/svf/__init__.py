"""Transformer²: experts that scale singular values, and models that adapt themselves with them."""
