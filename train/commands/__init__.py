"""The commands that train and evaluate; :mod:`dnd_fast.cli` registers them."""
