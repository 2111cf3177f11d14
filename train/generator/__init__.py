"""Collections of adapters to a generator."""
