"""Names of what the Hugging Face hub has."""

from __future__ import annotations

from pathlib import Path


def split_revision(name: str) -> tuple[str, str | None]:
    """``"id@revision"`` -> ``("id", "revision")``, for a branch, a tag or a commit.

    The path of something that exists stays as it is, and so does a name without a revision.
    """
    place, mark, revision = name.rpartition("@")
    return (place, revision) if mark and not Path(name).exists() else (name, None)
