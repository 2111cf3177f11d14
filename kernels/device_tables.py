"""Tables that were measured on a device, one JSON file each: the user's own, and the package's.

What a machine measures goes to the user's cache folder, never into the installed package, which
carries tables of some devices. Entries of the user's table count before the package's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_dir

from dnd_fast.kernels.device import device_name, table_name

TABLE_BYTES = 1 << 26


def cache_folder() -> Path:
    """The folder that the environment variable ``DND_FAST_CACHE`` names, else the user's cache."""
    return Path(os.environ.get("DND_FAST_CACHE") or user_cache_dir("dnd-fast"))


@dataclass(frozen=True)
class DeviceTables:
    """Tables of one kind.

    Attributes:
        packaged: Folder in the package; one of the same name is in the cache folder.
        content: What a table calls its entries.
    """

    packaged: Path
    content: str

    def path(self, device: torch.device | str, *, packaged: bool = False) -> Path:
        """File of a device's table, which may not exist: the user's, or the package's."""
        folder = self.packaged if packaged else cache_folder() / self.packaged.name
        return folder / table_name(device)

    def load(self, device: torch.device | str) -> dict[str, Any]:
        """Entries of a device's tables; empty where there is neither.

        Raises:
            ValueError: A table is damaged.
        """
        entries: dict[str, Any] = {}
        for packaged in (True, False):
            entries |= self._read(self.path(device, packaged=packaged))
        return entries

    def save(
        self,
        device: torch.device | str,
        entries: Mapping[str, Any],
        *,
        packaged: bool = False,
        **about: object,
    ) -> Path:
        """Add entries to a device's table, all of them or, after a failure, none.

        Processes that add to one table wait for one another.

        Args:
            device: Device that they were measured on.
            entries: New entries, which replace old ones of the same key.
            packaged: Write the package's table, to be committed, instead of the user's.
            about: What else the table says of the device.

        Returns:
            The file.

        Raises:
            ValueError: The table that is there is damaged.
        """
        path = self.path(device, packaged=packaged)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(path.parent):
            entries = dict(sorted({**self._read(path), **entries}.items()))
            table = {"device": device_name(device), **about, self.content: entries}
            _replace(path, json.dumps(table, indent=2) + "\n")
        return path

    def _read(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            return {}
        if path.stat().st_size > TABLE_BYTES:
            raise ValueError(f"{path} is no table of {self.content!r}: it is too large. Delete it.")
        try:
            entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))[self.content]
            if not isinstance(entries, dict):
                raise TypeError(f"found a {type(entries).__name__}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{path} is no table of {self.content!r} ({error}): delete it, and measure again."
            ) from error
        return entries


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process writes there, and keep others waiting."""
    import fcntl  # which Windows has not, where tables can still be read

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Replace a file by one rename; what a process that was killed has left goes."""
    staged = path.with_name(f".dnd-fast-{path.name}")
    staged.unlink(missing_ok=True)
    try:
        with staged.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
