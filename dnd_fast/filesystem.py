"""What saving is made of: temporary folders, locks, and folders that change places at once.

And what may be read: regular files, since a pipe is waited for and a device read without end.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dnd_fast.errors import InvalidInput

TEMPORARY = ".dnd-fast-"  # what names of temporary folders begin with
REPLACED = f"{TEMPORARY}replaced-"  # and of those that hold what is about to be replaced
TEXT_BYTES = 1 << 28  # of a file that is read whole, at most
TEXTS = (".json", ".jinja", ".txt", ".model")


@contextmanager
def temporary_folder(parent: Path, prefix: str = TEMPORARY) -> Iterator[Path]:
    """Yield a new folder, and remove it at the end; first remove those of dead processes."""
    make_folder(parent)
    sweep(parent)
    path, descriptor = _new_locked_folder(parent, prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def sweep(parent: Path) -> None:
    """Remove the temporary folders of processes that were killed; what they took away returns.

    A lock shows that a folder's process is alive. The system lets go of it when the process dies.
    """
    for path in parent.glob(f"{TEMPORARY}*"):
        with suppress(OSError), opened(path) as descriptor:
            if try_lock(descriptor):
                for entry in path.iterdir() if path.name.startswith(REPLACED) else ():
                    if not os.path.lexists(parent / entry.name):
                        entry.rename(parent / entry.name)
                shutil.rmtree(path, ignore_errors=True)


def _new_locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = parent / f"{prefix}{secrets.token_hex(8)}"
        path.mkdir()
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # swept before it was locked
            continue
        try:
            mine = try_lock(descriptor) and is_open_as(path, descriptor)
        except OSError:  # some file systems have no locks; nothing is swept there
            mine = True
        if mine:
            return path, descriptor
        os.close(descriptor)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep a folder from being swept, whatever its name becomes; others who want it wait."""
    while True:
        with opened(path) as descriptor:
            wait_for_lock(descriptor)
            if is_open_as(path, descriptor):  # else it was exchanged meanwhile
                yield
                return


def exchange(first: Path, second: Path) -> None:
    """Exchange two folders at once; without such a system call ``first`` is moved to ``second``.

    Of a process that is killed between these two moves, :func:`sweep` puts ``second`` back.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        at_cwd, flag = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        if renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), flag) == 0:
            return
        error = ctypes.get_errno()
        if error not in (errno.ENOSYS, errno.EINVAL, errno.EPERM):
            raise OSError(error, os.strerror(error), str(second))
    with temporary_folder(second.parent, REPLACED) as aside:
        replaced = aside / second.name
        try:
            second.rename(replaced)
            first.rename(second)
        except BaseException:  # Ctrl-C, too
            if replaced.exists() and not second.exists():
                replaced.rename(second)
            raise


def link_missing(source: Path, target: Path) -> None:
    """Put what one folder has and another one lacks into that, too."""
    for entry in source.iterdir():
        place = target / entry.name
        if entry.name.startswith(TEMPORARY) or os.path.lexists(place):
            continue
        if entry.is_dir() and not entry.is_symlink():
            place.mkdir()
            link_missing(entry, place)
            shutil.copystat(entry, place)
        else:
            _link(entry, place)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # on another file system, or on one without links
        shutil.copy2(source, target, follow_symlinks=False)


def make_folder(folder: Path) -> None:
    """Make a folder and those that it is in, so that they outlast a failure of power."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def require_regular(path: Path, limit: int | None = None) -> None:
    """Raise unless there is a regular file, or a folder, of at most ``limit`` bytes.

    Raises:
        OSError: there is no such file.
        InvalidInput: it is a device, a pipe or the like, or larger.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise InvalidInput(f"{path} is a device or a pipe; give a regular file.")
    if limit is not None and status.st_size > limit:
        raise InvalidInput(
            f"{path} has {status.st_size} bytes; at most {limit} are read of such a file."
        )


def require_regular_files(folder: Path) -> None:
    """Raise unless all that is in a folder, for a library to read, is regular and texts are short.

    Raises:
        OSError: the folder cannot be read, or a link in it leads nowhere.
        InvalidInput: as :func:`require_regular`.
    """
    for path in folder.rglob("*"):
        require_regular(path, TEXT_BYTES if path.suffix in TEXTS else None)


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk."""
    with opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield the descriptor of a file or folder that is open to be read."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def is_open_as(path: Path, descriptor: int) -> bool:
    """Whether it is still what was opened, not something of the same name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def wait_for_lock(descriptor: int) -> None:
    """Lock what is open, once others have let go of it; on a file system without locks, do not."""
    import fcntl

    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_lock(descriptor: int) -> bool:
    """Lock what is open, until it is closed or the process dies; False where another one has."""
    import fcntl  # which Windows has not, where files can still be read

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
