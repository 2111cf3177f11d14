"""Tensors that took time to compute, kept on disk under a hash of all that they depend on."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dnd_fast.errors import InvalidInput
from dnd_fast.files import atomic_file, check_weights, read_safetensors, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
CACHE_BYTES = 20e9  # of a folder; then what was not used for longest goes


def cached(
    folder: str | Path,
    key: str,
    shapes: Mapping[str, Sequence[int]],
    compute: Callable[[], Mapping[str, Tensor]],
    *,
    what: str,
) -> Mapping[str, Tensor]:
    """Return tensors from a cache folder, or compute them and keep them there.

    A file that is damaged, or holds anything else than these names and shapes, is written anew.

    Args:
        folder: the cache, of at most ``CACHE_BYTES`` bytes.
        key: a text that differs between all tensors that differ.
        shapes: shapes by name.
        compute: makes the tensors, where they are not to be had.
        what: what they are, for names of files and messages.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    file = Path(folder) / f"{hashlib.sha256(key.encode()).hexdigest()}-{what}.safetensors"
    if file.is_file():
        try:
            tensors = read_safetensors(file, unchecked="refuse")
            check_weights(tensors)
            if {name: tuple(value.shape) for name, value in tensors.items()} != {
                name: tuple(shape) for name, shape in shapes.items()
            }:
                raise InvalidInput("it holds something else")
        except (InvalidInput, OSError) as error:
            logger.warning("%s is damaged (%s); the %s are computed again.", file, error, what)
        else:
            with suppress(OSError):  # the folder may be read-only
                os.utime(file)
            return tensors
    # As it will be read: products round otherwise with other strides.
    computed = {name: tensor.contiguous() for name, tensor in compute().items()}
    with atomic_file(file) as staged:
        write_safetensors(staged, computed)
    _evict(file)
    return computed


def _evict(newest: Path) -> None:
    """Remove what was not used for longest until the folder is small enough, or empty but for one.

    Others may do the same at the same time.
    """
    with suppress(FileNotFoundError):
        files = [(path.stat(), path) for path in newest.parent.glob("*.safetensors")]
        size = sum(status.st_size for status, _ in files)
        for status, path in sorted(files, key=lambda entry: entry[0].st_mtime_ns):
            if size > CACHE_BYTES and path != newest:
                path.unlink()
                size -= status.st_size
