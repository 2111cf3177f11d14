"""Reading and writing files so that nothing is half-written and damage is named.

A save is one event. What is written lies in a temporary folder beside its place until all of it is
on the disk; then one system call puts it there. A process that is killed at any moment leaves what
was there before or what it has written, and never some of both; what is left of its temporary
folder goes when something is next written beside it. Where the system cannot exchange two folders
in one call (it is not Linux, or the file system lacks it, as NFS does), a folder that is replaced
is missing for an instant.

Tensor files carry a SHA-256 of their content, which is checked whenever they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dnd_fast.errors import InvalidInput
from dnd_fast.filesystem import (
    TEXT_BYTES,
    exchange,
    held,
    is_open_as,
    link_missing,
    make_folder,
    opened,
    require_regular,
    sweep,
    sync,
    temporary_folder,
    try_lock,
)

if TYPE_CHECKING:
    from torch import Tensor

CHECKSUM = "sha256"
DEPTH = 50  # of values in a file
T = TypeVar("T")


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder; on success its files become those of ``path``, all at once.

    Files that ``path`` has and the temporary folder has not stay: they are linked into it. Of a
    link to a folder, the folder is replaced. On any error nothing at ``path`` has changed and the
    temporary folder is gone. Files and a new folder get the mode that the umask says.

    Raises:
        OSError: the parent cannot be written, ``path`` is a file, a mount point or the current
            folder, one of the files is a folder there, or the disk is full.
    """
    path = Path(path).resolve()
    _require_replaceable(path)
    with temporary_folder(path.parent) as staged:
        yield staged
        mode = staged.stat().st_mode
        for file in [*staged.rglob("*"), staged]:
            if file.is_file():
                file.chmod(mode & 0o666)  # safetensors writes files that only their owner can read
            sync(file)
        if not _appeared(staged, path):
            with held(path):  # in whose place another process would see a dead one's folder
                for file in staged.iterdir():
                    _require_no_folder(path / file.name)
                staged.chmod(path.stat().st_mode & 0o7777)
                link_missing(path, staged)
                exchange(staged, path)
                link_missing(staged, path)  # what others have put there meanwhile
        sync(path.parent)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a path to write a file to; on success that file becomes ``path`` by one rename.

    Raises:
        OSError: ``path`` is a folder or a device, its folder cannot be written, or the disk is
            full.
    """
    path = Path(path)
    _require_no_folder(path)
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is no regular file; give another path to write to.")
    require_no_file(path.parent)
    with temporary_folder(path.parent) as folder:
        staged = folder / path.name
        yield staged
        staged.chmod(folder.stat().st_mode & 0o666)
        sync(staged)
        staged.replace(path)
        sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, at first by one rename: no half of it is ever taken for the whole.

    Raises:
        OSError: there is none, or its parent cannot be written.
    """
    with temporary_folder(path.parent) as doomed:
        path.rename(doomed)


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes out of a folder; the system lets go of it when this one dies.

    Raises:
        InvalidInput: another one is at work in it; the message calls it ``what``.
        OSError: the folder cannot be written, or its ``.lock`` is a link.
    """
    make_folder(folder)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(folder / ".lock", flags, 0o666)
    try:
        if not try_lock(descriptor):
            raise InvalidInput(
                f"another {what} is at work in {folder}; wait for it, or give another folder."
            )
        sweep(folder)
        yield
    finally:
        os.close(descriptor)


def read_unchanged(folder: Path, read: Callable[[], T]) -> T:
    """Return what ``read`` makes of a folder's files, none of them older or newer than the others.

    Where somebody has replaced the folder meanwhile, it is read again.
    """
    while True:
        with opened(folder) as descriptor:
            try:
                result = read()
            except (OSError, InvalidInput):
                if is_open_as(folder, descriptor):
                    raise
            else:
                if is_open_as(folder, descriptor):
                    return result


def read_bytes(path: str | Path, limit: int = TEXT_BYTES) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: there is no such file, or it is a folder.
        InvalidInput: it is a device, a pipe or the like, or larger than ``limit`` bytes.
    """
    path = Path(path)
    require_regular(path, limit)
    return path.read_bytes()


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError: there is no such file, or it is a folder.
        InvalidInput: not JSON, or not an object; or as :func:`read_bytes`.
    """
    content = parse_json(read_bytes(path), str(path))
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} holds a {type(content).__name__}, expected an object.")
    return content


def parse_json(text: bytes | str, where: str) -> Any:
    """What a JSON text says.

    Raises:
        InvalidInput: it is not JSON, or nested beyond reason; the message begins with ``where``.
    """
    try:
        content = json.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where} is not valid JSON: {error}") from error
    check_depth(content, where)
    return content


def check_depth(content: Any, where: str) -> None:
    """Raise where values are nested so deeply that printing or copying them would fail.

    Raises:
        InvalidInput: they are; the message begins with ``where``.
    """
    containers = [content] if isinstance(content, dict | list) else []
    for _ in range(DEPTH):
        values = chain.from_iterable(c.values() if isinstance(c, dict) else c for c in containers)
        containers = [value for value in values if isinstance(value, dict | list)]
    if containers:
        raise InvalidInput(f"{where} is nested more than {DEPTH} levels deep; it is damaged.")


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


def read_safetensors(
    path: str | Path, *, unchecked: Literal["accept", "warn", "refuse"] = "accept"
) -> dict[str, Tensor]:
    """All tensors of a safetensors file, after checking its checksum.

    Args:
        path: the file.
        unchecked: what to do with a file that has no checksum, as others and earlier versions
            write them.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: the file is truncated, damaged or not safetensors.
    """
    path = Path(path)
    metadata, tensors = _read_safetensors(path, with_tensors=True)
    expected = metadata.pop(CHECKSUM, None)
    if expected is None and unchecked == "refuse":
        raise InvalidInput(f"{path} has no checksum; write it again.")
    if expected is None and unchecked == "warn":
        warn_unchecked(path)
    if expected is not None and expected != hash_tensors(tensors, metadata):
        raise InvalidInput(
            f"{path} is damaged: its content does not have the SHA-256 {expected} that it had when "
            "it was written. Fetch or write it again."
        )
    return tensors


def read_metadata(path: str | Path) -> dict[str, str]:
    """The texts that :func:`write_safetensors` put beside the tensors.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: the file is truncated or not safetensors.
    """
    return _read_safetensors(Path(path), with_tensors=False)[0]


def _read_safetensors(
    path: Path, *, with_tensors: bool
) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file.")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys() if with_tensors else ()
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise InvalidInput(
            f"{path} is truncated or not a safetensors file ({error}); fetch or write it again."
        ) from error
    except MemoryError as error:
        raise OSError(f"{path} is too large for the memory: {error}") from error


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, wherever they are, however strided or shared, some texts, and a checksum.

    Raises:
        OSError: ``path`` cannot be written, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    dense = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
    shares = Counter(value.untyped_storage().data_ptr() for value in dense.values())
    for key, value in dense.items():
        if shares[value.untyped_storage().data_ptr()] > 1:  # which safetensors may refuse
            dense[key] = value.clone()
    about = {"format": "pt", **(metadata or {})}
    try:
        save_file(dense, path, metadata=about | {CHECKSUM: hash_tensors(dense, about)})
    except SafetensorError as error:  # so it reports a full disk
        raise OSError(f"{path.name} cannot be written: {error}") from error
    _sort_texts(path)


def _sort_texts(path: Path) -> None:
    """Put the texts of a safetensors file in order: its library writes them in a random one."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        file.seek(8)
        file.write(
            json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        )


def warn_unchecked(path: Path) -> None:
    """Warn that a file has no checksum."""
    warnings.warn(
        f"{path} comes from an earlier version, and has no checksum: damaged values would go "
        "unnoticed.",
        stacklevel=3,
    )


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; errors as :func:`read_bytes`."""
    require_regular(Path(path))
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> str:
    """SHA-256 over names, dtypes, shapes and values, and some texts."""
    import torch

    digest = hashlib.sha256(json.dumps(about or {}, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_weights(tensors: Mapping[str, Any], where: str = "") -> None:
    """Raise unless all values are dense tensors of finite floating-point numbers.

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
        if tensor.layout != torch.strided or tensor.is_meta:
            found = "without values (on the meta device)" if tensor.is_meta else "sparse"
            raise InvalidInput(f"{where}{name} is {found}, expected a dense tensor.")
        # Both show in the extremes, which take a twentieth of the time of tensor.isfinite().all().
        if tensor.numel() and not torch.stack(tensor.detach().aminmax()).isfinite().all():
            raise InvalidInput(f"{where}{name} holds NaN or infinity; it is damaged.")


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


def _require_replaceable(folder: Path) -> None:
    require_no_file(folder)
    for what, is_it in (
        ("a mount point", os.path.ismount(folder)),
        ("where this process works", Path.cwd().is_relative_to(folder)),
    ):
        if is_it:
            raise OSError(f"{folder} is {what} and cannot be replaced; give a folder in it.")


def require_no_file(folder: Path) -> None:
    """Raise NotADirectoryError where a file is in the way of a folder or of one above it."""
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(f"{parent} is a file; give a folder to write to.")


def _require_no_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; move it away.")
