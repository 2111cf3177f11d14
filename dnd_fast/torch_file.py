"""Files that ``torch.save`` has written, read without trusting them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from dnd_fast.errors import InvalidInput
from dnd_fast.filesystem import require_regular


def read_torch(path: str | Path) -> Any:
    """Return what ``torch.save`` has written: tensors, numbers, texts, and mappings of these.

    Raises:
        OSError: there is no such file.
        InvalidInput: the file is damaged or compressed, no regular file, or holds other objects.
    """
    require_regular(Path(path))
    with open(path, "rb") as file:
        try:
            _check_archive(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
        except InvalidInput:
            raise
        except Exception as error:  # of many types; some advise to load it unsafely
            raise InvalidInput(
                f"{path} is damaged, or holds objects beside tensors, which could run code and are "
                "never loaded. Fetch it again, or have its state dict alone saved."
            ) from error


def _check_archive(file: BinaryIO) -> None:
    """Check what torch does not: checksums of members, and that they are as large as they lie."""
    if not zipfile.is_zipfile(file):  # as of torch before 1.6
        return
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members) or (
            sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size
        ):
            raise InvalidInput(
                f"{file.name} is compressed, which torch.save never does; save it anew."
            )
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} does not have its CRC")
