"""Weight tokens to LoRA adapters, and adapters on models."""
