"""Reading and writing files so that nothing is half-written and damage is named."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnd_fast.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of ``path``; on success its files become ``path``'s.

    A new folder appears by one rename. In an existing folder each file is replaced by one rename
    and other files stay. On any error nothing at ``path`` has changed and the sibling is gone.

    Raises:
        OSError: the parent cannot be written, ``path`` is a file, or the disk is full.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; give a folder to write to.")
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield staged
        for file in staged.iterdir():
            _sync(file)
        if path.exists():
            for file in staged.iterdir():
                file.replace(path / file.name)
            _sync(path)
        else:
            staged.chmod(0o777 & ~_umask())
            staged.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: not JSON, or not an object.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} holds a {type(content).__name__}, expected an object.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: the file is truncated or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InvalidInput(
            f"{path} is truncated or not a safetensors file ({error}); fetch or write it again."
        ) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
