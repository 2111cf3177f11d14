"""The real-model benchmark: small tasks in natural language, skill times answer format."""
