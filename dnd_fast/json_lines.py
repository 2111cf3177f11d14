"""Files of JSON, one object a line, that are only ever added to."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnd_fast.filesystem import wait_for_lock

BLOCK = 1 << 16


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line: all of it or, on an error, nothing.

    Half a line, which a process left that was killed while it wrote, goes first. Several processes
    and threads may add to one file; they wait for one another.

    Raises:
        OSError: the file cannot be written, or the disk is full.
    """
    line = json.dumps(record).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        wait_for_lock(descriptor)
        size = os.fstat(descriptor).st_size
        last = _last_line(descriptor, size)
        if last and _is_json(last):  # an editor may have left out its end
            line = b"\n" + line
        elif last:
            size -= len(last)
            os.ftruncate(descriptor, size)
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    """The objects of a file, without half a line that a process left which was killed.

    Raises:
        ValueError: another line is not JSON.
        OSError: there is no such file.
    """
    *lines, last = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in [*lines, last] if line is not last or _is_json(line)]


def _last_line(descriptor: int, size: int) -> bytes:
    """What comes after the last end of a line."""
    found = b""
    while size and b"\n" not in found:
        start = max(0, size - BLOCK)
        found = os.pread(descriptor, size - start, start) + found
        size = start
    return found.rpartition(b"\n")[2]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
