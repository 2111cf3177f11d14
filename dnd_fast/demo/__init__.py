"""The embedded default: a tiny base model, a generator trained for it, and its tasks."""
