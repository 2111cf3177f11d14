"""Embeddings to weight tokens."""
