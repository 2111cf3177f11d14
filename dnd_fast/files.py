"""Reading and writing files so that nothing is half-written and damage is named."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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
        OSError: the parent cannot be written, ``path`` is a file, one of the files is a folder
            there, or the disk is full.
    """
    path = Path(path)
    require_no_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield staged
        umask = _umask()
        staged.chmod(0o777 & ~umask)
        for file in staged.iterdir():
            file.chmod(0o666 & ~umask)  # safetensors writes files that only their owner can read
            _sync(file)
            _require_no_folder(path / file.name)
        if not _appeared(staged, path):
            for file in staged.iterdir():
                file.replace(path / file.name)
            _sync(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _appeared(staged: Path, path: Path) -> bool:
    """Rename a folder to ``path``, unless there is one, also since a moment ago."""
    if path.exists():
        return False
    try:
        staged.rename(path)
    except OSError:
        if path.is_dir():
            return False
        raise
    return True


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a file to write, in a folder beside ``path``; on success one rename makes it ``path``.

    What a killed process has left in that folder goes the next time.

    Raises:
        OSError: ``path`` is a folder, its folder cannot be written, or the disk is full.
    """
    _require_no_folder(path)
    require_no_file(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.staged")  # of its own: safetensors, too, stages files
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    staged = folder / path.name
    try:
        yield staged
        _sync(staged)
        staged.replace(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_no_file(folder: Path) -> None:
    """Raise NotADirectoryError where a file is in the way of a folder or of one above it."""
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(f"{parent} is a file; give a folder to write to.")


def _require_no_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; move it away.")


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes out of a folder; the system lets go of it when this one dies.

    Raises:
        InvalidInput: another one is at work in it; the message calls it ``what``.
    """
    import fcntl  # which Windows has not, where generators can still be loaded

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InvalidInput(
                f"another {what} is at work in {folder}; wait for it, or give another folder."
            ) from error
        yield


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: not JSON, or not an object.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} holds a {type(content).__name__}, expected an object.")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON with a final newline.

    Raises:
        InvalidInput: there is something in it that JSON does not have.
    """
    try:
        text = json.dumps(content, indent=2)
    except TypeError as error:
        raise InvalidInput(f"{path.name} cannot hold this: {error}.") from error
    path.write_text(text + "\n", encoding="utf-8")


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
        raise FileNotFoundError(f"{path} does not exist or is no file.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InvalidInput(
            f"{path} is truncated or not a safetensors file ({error}); fetch or write it again."
        ) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that :func:`write_safetensors` put beside the tensors.

    Raises:
        InvalidInput: the file is truncated or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise InvalidInput(f"{path} is truncated or not a safetensors file ({error}).") from error


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, wherever they are and however strided, and some texts beside them.

    Raises:
        OSError: ``path`` cannot be written, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    dense = {key: value.contiguous().cpu() for key, value in tensors.items()}
    try:
        save_file(dense, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # so it reports a full disk
        raise OSError(f"{path.name} cannot be written: {error}") from error


def check_weights(tensors: Mapping[str, Any], where: str = "") -> None:
    """Raise unless all values are tensors of finite floating-point numbers.

    Raises:
        InvalidInput: the message names the first that is not, after ``where``.
    """
    import torch

    for name, tensor in tensors.items():
        kind = tensor.dtype if isinstance(tensor, torch.Tensor) else f"a {type(tensor).__name__}"
        if kind not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise InvalidInput(
                f"{where}{name} is {kind}, expected a tensor of floating-point numbers in 16, 32 "
                "or 64 bits."
            )
        # Both show in the extremes, which take a twentieth of the time of tensor.isfinite().all().
        if tensor.numel() and not torch.stack(tensor.detach().aminmax()).isfinite().all():
            raise InvalidInput(f"{where}{name} holds NaN or infinity; it is damaged.")


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
