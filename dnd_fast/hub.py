"""What the Hugging Face hub has: its names, whether a model can be built, and a lock to load it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dnd_fast.errors import InvalidInput

MAX_LAYERS = 1000

# transformers changes its own state and PyTorch's while it loads: of two threads at once, one finds
# weights missing that are there.
LOADING = threading.RLock()


def split_revision(name: str) -> tuple[str, str | None]:
    """``"id@revision"`` -> ``("id", "revision")``, for a branch, a tag or a commit.

    The path of something that exists stays as it is, and so does a name without a revision.
    """
    place, mark, revision = name.rpartition("@")
    return (place, revision) if mark and not Path(name).exists() else (name, None)


def require_buildable(config: Mapping[str, Any], where: str) -> None:
    """Raise where a model's config has more layers than any model: building them would not end.

    It is the dictionary that is looked at: some classes of configs list their layers, too.

    Raises:
        InvalidInput: it has; the message begins with ``where``.
    """
    for name, value in _entries(config):
        is_number = isinstance(value, int) and re.search(r"(^|_)(layers?|depth)$", name)
        if is_number and value > MAX_LAYERS:
            raise InvalidInput(
                f"{where}: {name}={value} in its config, expected {MAX_LAYERS} at most; it is "
                "damaged."
            )


def _entries(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of a dictionary and of those in it."""
    for name, value in content.items():
        yield name, value
        if isinstance(value, dict):
            yield from _entries(value)
