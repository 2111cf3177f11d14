"""Data sets to collections of LoRA adapters."""
