"""What saving is made of, also where the system lacks some of it."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from dnd_fast import InvalidInput, filesystem
from dnd_fast.filesystem import (
    REPLACED,
    TEMPORARY,
    exchange,
    link_missing,
    make_folder,
    opened,
    require_regular_files,
    sweep,
    temporary_folder,
    try_lock,
)


def folder(path, **files):
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)
    return path


class WithoutExchange:
    """A C library or a file system that cannot exchange two folders."""

    def __init__(self, error):
        if error is not None:
            self.renameat2 = lambda *arguments: ctypes.set_errno(error) or -1


@pytest.mark.parametrize("error", [None, errno.ENOSYS, errno.EINVAL, errno.EPERM])
def test_without_an_exchange_one_takes_the_others_place(tmp_path, monkeypatch, error):
    first, second = folder(tmp_path / "a", new="1"), folder(tmp_path / "b", old="2")
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: WithoutExchange(error))
    exchange(first, second)
    assert os.listdir(second) == ["new"]
    assert os.listdir(tmp_path) == ["b"]


def test_an_exchange(tmp_path):
    first, second = folder(tmp_path / "a", new="1"), folder(tmp_path / "b", old="2")
    exchange(first, second)
    assert (os.listdir(first), os.listdir(second)) == (["old"], ["new"])
    with pytest.raises(OSError, match="No such file"):
        exchange(first, tmp_path / "none")


def test_what_cannot_be_moved_stays(tmp_path, monkeypatch):
    """Without an exchange, and the second of the two renames fails."""
    second = folder(tmp_path / "b", old="2")
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: WithoutExchange(None))
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "none", second)
    assert os.listdir(second) == ["old"]
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_without_an_exchange_nothing_is_lost(tmp_path, monkeypatch, error):
    """Killed between the two moves, the next process puts back what was there; interrupted, this
    one does. Both once removed it."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: WithoutExchange(None))
    first, second = folder(tmp_path / "a", new="1"), folder(tmp_path / "b", old="2")
    rename = Path.rename

    def interrupted(source, target):
        if source == first:
            raise error
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(error):
        exchange(first, second)
    assert os.listdir(second) == ["old"]

    killed = tmp_path / f"{REPLACED}0"
    killed.mkdir()
    second.rename(killed / "b")
    sweep(tmp_path)
    assert os.listdir(second) == ["old"]
    folder(killed).joinpath("b").mkdir()  # killed after both moves: the new one stays
    sweep(tmp_path)
    assert os.listdir(second) == ["old"]
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_missing_entries_are_linked(tmp_path, monkeypatch):
    source = folder(tmp_path / "source", file="1", both="theirs")
    folder(source / "deep", file="2")
    folder(source / f"{TEMPORARY}1")
    (source / "link").symlink_to("nowhere")
    target = folder(tmp_path / "target", both="mine")
    link_missing(source, target)
    assert sorted(os.listdir(target)) == ["both", "deep", "file", "link"]
    assert (target / "both").read_text() == "mine"
    assert (target / "deep" / "file").samefile(source / "deep" / "file")
    assert os.readlink(target / "link") == "nowhere"

    monkeypatch.setattr(os, "link", lambda *args, **options: os.stat("/nowhere"))  # as FAT
    link_missing(source, folder(tmp_path / "other"))
    assert (tmp_path / "other" / "deep" / "file").read_text() == "2"
    assert os.readlink(tmp_path / "other" / "link") == "nowhere"


def test_what_dead_processes_left_is_swept(tmp_path):
    """And nothing that a living one has, or that only looks like it."""
    folder(tmp_path / f"{TEMPORARY}dead", half="x")
    victim = folder(tmp_path / "victim", precious="x")
    (tmp_path / f"{TEMPORARY}link").symlink_to(victim)
    (tmp_path / f"{TEMPORARY}file").write_text("x")
    with temporary_folder(tmp_path) as mine:
        assert not (tmp_path / f"{TEMPORARY}dead").exists()
        sweep(tmp_path)
        assert mine.is_dir()
    assert not mine.exists()
    assert os.listdir(victim) == ["precious"]


def test_a_folder_that_is_swept_before_it_is_locked(tmp_path, monkeypatch):
    """Another process may sweep in between; then there is a second one."""
    real, made = os.open, []

    def late(path, *arguments):
        if path.name.startswith(TEMPORARY) and not made:
            made.append(path)
            path.rmdir()
        return real(path, *arguments)

    monkeypatch.setattr(filesystem.os, "open", late)
    with temporary_folder(tmp_path) as path:
        assert path.is_dir()
        assert path not in made


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """As NFS: everything works, but nothing is swept."""

    def fails(descriptor):
        raise OSError(errno.EBADF, "no locks")

    monkeypatch.setattr(filesystem, "try_lock", fails)
    folder(tmp_path / f"{TEMPORARY}dead")
    with temporary_folder(tmp_path) as path:
        (path / "a").write_text("1")
    assert os.listdir(tmp_path) == [f"{TEMPORARY}dead"]


def test_locks(tmp_path):
    with opened(tmp_path) as first, opened(tmp_path) as second:
        assert try_lock(first)
        assert not try_lock(second)
    with opened(tmp_path) as third:
        assert try_lock(third)


def test_new_folders_outlast_a_failure_of_power(tmp_path, monkeypatch):
    synced, sync = [], filesystem.sync
    monkeypatch.setattr(filesystem, "sync", lambda path: synced.append(path) or sync(path))
    make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]
    make_folder(tmp_path / "a" / "b")
    assert len(synced) == 2


def test_folders_for_a_library_to_read(tmp_path):
    """It would wait for a pipe, and read a device or a text of terabytes into memory."""
    inner = folder(folder(tmp_path / "a", **{"model.safetensors": "x"}) / "tokenizer", file="x")
    with (tmp_path / "a" / "large.safetensors").open("wb") as file:
        file.truncate(1 << 40)
    require_regular_files(tmp_path / "a")
    (inner / "link").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError):
        require_regular_files(tmp_path / "a")
    (inner / "link").unlink()
    (inner / "device").symlink_to("/dev/zero")
    with pytest.raises(InvalidInput, match="device is a device or a pipe"):
        require_regular_files(tmp_path / "a")
    (inner / "device").unlink()
    os.mkfifo(inner / "pipe")
    with pytest.raises(InvalidInput, match="pipe is a device or a pipe"):
        require_regular_files(tmp_path / "a")
    (inner / "pipe").unlink()
    with (inner / "vocab.txt").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidInput, match=r"vocab\.txt has 1099511627776 bytes"):
        require_regular_files(tmp_path / "a")
