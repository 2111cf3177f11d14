"""Processes that end, or find the disk full, at a chosen event of what they write.

Events are the calls that change a file system's names or wait for the disk. Each is two points,
just before it and just after it.
"""

import builtins
import errno
import io
import mmap
import os
import shutil
import signal
import sys
import time
import traceback
from functools import wraps

from dnd_fast import files
from dnd_fast.filesystem import TEMPORARY

CALLS = "rename replace link symlink unlink remove rmdir mkdir chmod fsync ftruncate write".split()
NO_SPACE = {"link", "symlink", "mkdir", "rename", "replace", "fsync", "write", "open", "exchange"}
FAILED, FULL = 3, 4
os.fsync = lambda descriptor: None  # no power is lost here, and the disk need not be waited for
SHARED = mmap.mmap(-1, 8)  # the points that a child has passed


class Watch:
    """Counts points in this process, and acts at one of them."""

    def __init__(self, act, at=None, names=None):
        self.act, self.at, self.names, self.passed = act, at, names, 0
        for name in CALLS:
            setattr(os, name, self.around(name, getattr(os, name)))
        files.exchange = self.around("exchange", files.exchange)
        shutil.rmtree = self.around("rmtree", shutil.rmtree)
        os.open = self.around("open", os.open, lambda path, flags, *_, **__: flags & 3)
        builtins.open = io.open = self.around("open", io.open, for_writing)

    def point(self, name):
        if self.names is not None and name not in self.names:
            return
        if self.passed == self.at:
            self.act()
        self.passed += 1
        SHARED[:8] = self.passed.to_bytes(8, "little")

    def around(self, name, call, counts=lambda *_, **__: True):
        @wraps(call)
        def watched(*arguments, **options):
            if not counts(*arguments, **options):
                return call(*arguments, **options)
            self.point(name)
            result = call(*arguments, **options)
            if self.names is None:
                self.point(name)
            return result

        for kind in (os.supports_dir_fd, os.supports_follow_symlinks):
            if call in kind:
                kind.add(watched)
        return watched


def for_writing(file, mode="r", *_, **__):
    return isinstance(file, str | os.PathLike) and set(mode) & set("wax+")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def no_space():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def start(action):
    """Do it in a forked process; returns its id."""
    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        action()
        code = 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG) or "too large" in str(error):
            code = FULL
        else:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def end_of(child):
    """The exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def finish(action):
    assert end_of(start(action)) == 0, "it failed when nothing was in its way"


def killed_at(action, point):
    """Do it in a process that is killed at a point; False where it never came so far."""

    def watched():
        Watch(kill, point)
        action()

    code = end_of(start(watched))
    assert code in (0, -signal.SIGKILL), f"it ended with {code}"
    return code != 0


def killed_after(action, seconds):
    """Do it in a process that is killed after some time; False where it was quicker."""
    child = start(action)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return end_of(child) != 0


def full_at(action, point):
    """Do it where one call finds the disk full; returns whether it failed."""

    def watched():
        Watch(no_space, point, NO_SPACE)
        action()

    code = end_of(start(watched))
    assert code in (0, FULL), f"it ended with {code}"
    return code == FULL


def points_of(action, names=None):
    """How many points there are."""

    def watched():
        Watch(kill, names=names)
        action()

    finish(watched)
    return int.from_bytes(SHARED[:8], "little")


def seconds_of(action):
    started = time.perf_counter()
    finish(action)
    return time.perf_counter() - started


def whole(root):
    """Everything that is below a folder, left-overs included."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def visible(root):
    """What a reader sees: left-overs are not."""
    return {name: content for name, content in whole(root).items() if TEMPORARY not in name}
