"""Names of what the Hugging Face hub has, and the lock under which transformers loads it."""

from __future__ import annotations

import threading
from pathlib import Path

# transformers changes its own state and PyTorch's while it loads: of two threads at once, one finds
# weights missing that are there.
LOADING = threading.RLock()


def split_revision(name: str) -> tuple[str, str | None]:
    """``"id@revision"`` -> ``("id", "revision")``, for a branch, a tag or a commit.

    The path of something that exists stays as it is, and so does a name without a revision.
    """
    place, mark, revision = name.rpartition("@")
    return (place, revision) if mark and not Path(name).exists() else (name, None)
