"""Evaluation of generators: what they make against everything else one could do."""
