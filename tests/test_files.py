"""Files and folders: all or nothing when writing, damage named when reading."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dnd_fast import InvalidInput, files
from dnd_fast.files import (
    atomic_file,
    atomic_folder,
    locked,
    read_json,
    read_safetensors,
    read_unchanged,
    remove_folder,
    write_json,
)
from dnd_fast.filesystem import TEMPORARY, sweep

from .bad_input import contents


def texts(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_new_folder_appears_at_the_end(tmp_path):
    """Another process never sees a folder with half of its files."""
    target = tmp_path / "deep" / "new"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
        assert folder.parent == target.parent  # another file system has no atomic rename
    assert texts(target) == {"a": "1"}
    assert os.listdir(target.parent) == ["new"]


def test_a_new_folder_is_readable_by_others(tmp_path):
    """A temporary folder is private; what becomes of it must obey the umask instead."""
    old = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "new") as folder:
            (folder / "a").write_text("1")
            save_file({"x": torch.ones(1)}, folder / "b")  # which is private at first, too
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(old)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "new" / "a").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "new" / "b").stat().st_mode & 0o777 == 0o640


def test_another_process_that_is_quicker(tmp_path, monkeypatch):
    """It writes the folder just after this one has seen that there is none."""
    target, rename = tmp_path / "new", Path.rename

    def late(staged, path):
        path.mkdir()
        (path / "a").write_text("theirs")
        return rename(staged, path)

    monkeypatch.setattr(Path, "rename", late)
    with atomic_folder(target) as folder:
        (folder / "a").write_text("mine")
    assert texts(target) == {"a": "mine"}
    assert os.listdir(tmp_path) == ["new"]


def test_an_existing_folder_keeps_foreign_files(tmp_path):
    target = tmp_path / "old"
    target.mkdir()
    (target / "a").write_text("old")
    (target / "notes").write_text("mine")
    with atomic_folder(target) as folder:
        assert texts(folder) == {}
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
        assert texts(target) == {"a": "old", "notes": "mine"}
    assert texts(target) == {"a": "new", "b": "new", "notes": "mine"}
    assert os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, exists, error):
    """A full disk or Ctrl-C half-way: neither half-written files nor the temporary folder."""
    target = tmp_path / "target"
    if exists:
        target.mkdir()
        (target / "a").write_text("old")

    def write():
        with atomic_folder(target) as folder:
            (folder / "a").write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert os.listdir(tmp_path) == (["target"] if exists else [])
    if exists:
        assert texts(target) == {"a": "old"}


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file"), atomic_folder(tmp_path / "file"):
        pass
    assert texts(tmp_path) == {"file": "mine"}


def test_json(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": [1, "é"]})
    assert read_json(file) == {"a": [1, "é"]}
    assert file.read_text().endswith("}\n")
    for content, message in (
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "holds a list"),
    ):
        file.write_bytes(content)
        with pytest.raises(InvalidInput, match=message):
            read_json(file)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "b.json")


def test_what_a_killed_writer_has_left_goes_with_the_next_write(tmp_path):
    """Also what a library puts beside the file it is given: safetensors has a file of its own."""
    path = tmp_path / "state.safetensors"
    killed = f"""
import os
from pathlib import Path
from dnd_fast.files import atomic_file
with atomic_file(Path({str(path)!r})) as staged:
    staged.write_text("half")
    staged.with_name(".tmp1ywrxy").write_text("safetensors's own")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", killed]).returncode == 9
    assert not path.exists()
    with atomic_file(path) as staged:
        staged.write_text("whole")
    assert [file.name for file in tmp_path.rglob("*")] == [path.name]
    assert path.read_text() == "whole"


def test_a_file_is_replaced_at_the_end(tmp_path):
    """Also after a process was killed half-way, of which nothing is left then."""
    path = tmp_path / "new" / "a"
    with atomic_file(path) as staged:
        staged.write_text("1")
        assert not path.exists()
    staged.parent.mkdir()
    staged.write_text("of a killed process")
    with atomic_file(path) as staged:
        staged.write_text("2")
        assert path.read_text() == "1"
    with pytest.raises(ZeroDivisionError), atomic_file(path) as staged:
        staged.write_text("3") / 0
    assert texts(path.parent) == {"a": "2"}


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/null")])
def test_only_regular_files_are_replaced(tmp_path, make):
    """``--json /dev/null`` by the administrator would put a file in its place."""
    make(tmp_path / "a")
    with (
        pytest.raises(OSError, match=r"a is (no regular file|a folder)"),
        atomic_file(tmp_path / "a"),
    ):
        pass
    assert os.listdir(tmp_path) == ["a"]


def test_names_as_long_as_can_be(tmp_path):
    with atomic_folder(tmp_path / ("é" * 127)) as folder:
        (folder / ("a" * 255)).write_text("1")
    with atomic_file(tmp_path / ("a" * 255)) as staged:
        staged.write_text("2")
    assert len(os.listdir(tmp_path)) == 2


def test_links_are_not_written_through(tmp_path):
    """In a folder that comes from others: a lock, and all names that could be guessed."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "folder").mkdir()
    for name in (".lock", ".a.partial", "a"):
        (tmp_path / "folder" / name).symlink_to(victim)
    with pytest.raises(OSError, match=r"\.lock"), locked(tmp_path / "folder", "test"):
        pass
    with atomic_file(tmp_path / "folder" / "a") as staged:
        staged.write_text("mine")
    assert victim.read_text() == "precious"
    assert (tmp_path / "folder" / "a").read_text() == "mine"
    assert not (tmp_path / "folder" / "a").is_symlink()


def test_a_lock_keeps_what_is_in_its_file(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    with (
        locked(tmp_path, "test"),
        pytest.raises(InvalidInput, match="another test is at work"),
        locked(tmp_path, "test"),
    ):
        pass
    with locked(tmp_path, "test"):
        assert texts(tmp_path) == {".lock": "mine"}


def test_a_folder_is_exchanged_whole(tmp_path, monkeypatch):
    """Where that one call fails, nothing has changed; once it left some old and some new files."""
    target = tmp_path / "a"

    def save(text):
        with atomic_folder(target) as folder:
            for name in "ab":
                (folder / name).write_text(text)

    def fails(first, second):
        raise OSError(errno.EIO, "broken")

    save("old")
    monkeypatch.setattr(files, "exchange", fails)
    with pytest.raises(OSError, match="broken"):
        save("new")
    assert texts(target) == {"a": "old", "b": "old"}
    assert os.listdir(tmp_path) == ["a"]
    monkeypatch.undo()
    save("new")
    assert texts(target) == {"a": "new", "b": "new"}


@pytest.mark.parametrize("swept", [False, True])
def test_foreign_files_that_come_late_stay(tmp_path, monkeypatch, swept):
    """Between the moment at which the others were linked and the exchange.

    Also where another process then looks for folders of dead ones: it took the replaced one for
    such, whose name it has by then.
    """
    exchange = files.exchange
    (tmp_path / "a").mkdir(mode=0o750)
    (tmp_path / "a" / "state").mkdir()
    (tmp_path / "a" / "state" / "step").write_text("1")

    def late(first, second):
        (second / "late").write_text("theirs")
        exchange(first, second)
        if swept:
            sweep(tmp_path)

    monkeypatch.setattr(files, "exchange", late)
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "a").write_text("mine")
    assert contents(tmp_path / "a") == {
        "a": b"mine",
        "late": b"theirs",
        "state": None,
        "state/step": b"1",
    }
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_to_a_folder_stays_one(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "a").write_text("1")
    assert os.readlink(tmp_path / "link") == "target"
    assert texts(tmp_path / "target") == {"a": "1"}


def test_folders_that_cannot_be_replaced(tmp_path, monkeypatch):
    """Found out before anything is computed or written."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    for path in (".", "..", tmp_path / "a"):
        with pytest.raises(OSError, match="is where this process works"), atomic_folder(path):
            pytest.fail("it began")
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path / "c")
    with (
        pytest.raises(OSError, match=r"is a mount point .*give a folder in it"),
        atomic_folder(tmp_path / "c"),
    ):
        pytest.fail("it began")
    assert contents(tmp_path) == {"a": None, "a/b": None}


def test_everything_is_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    order = []
    for name in ("sync", "exchange"):
        real = getattr(files, name)
        monkeypatch.setattr(
            files,
            name,
            lambda *paths, n=name, f=real: order.append((n, paths[0].name)) or f(*paths),
        )
    (tmp_path / "a").mkdir()
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "b").write_text("1")
        (folder / "c").mkdir()
        (folder / "c" / "d").write_text("2")
    *before, last = order
    assert {name for kind, name in before if kind == "sync"} == {"b", "c", "d", folder.name}
    assert before[-1] == ("exchange", folder.name)
    assert last == ("sync", tmp_path.name)


def test_removed_by_one_rename(tmp_path, monkeypatch):
    """A process that is killed meanwhile leaves no half of it under its name."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
    remove_folder(tmp_path / "a")
    (rest,) = tmp_path.iterdir()
    assert rest.name.startswith(TEMPORARY)
    monkeypatch.undo()
    (tmp_path / "b").mkdir()
    remove_folder(tmp_path / "b")
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError):
        remove_folder(tmp_path / "b")


def test_a_reader_never_sees_a_mixture(tmp_path):
    """The folder is replaced between the reading of its two files: then both are read again."""
    path, reads = tmp_path / "a", []

    def save(text):
        with atomic_folder(path) as folder:
            for name in "ab":
                (folder / name).write_text(text)

    def read():
        first = (path / "a").read_text()
        if len(reads) < 3:
            reads.append(first)
            save(str(len(reads)))
        return first, (path / "b").read_text()

    save("0")
    assert read_unchanged(path, read) == ("3", "3")
    assert reads == ["0", "1", "2"]
    with pytest.raises(FileNotFoundError):
        read_unchanged(path, (path / "none").read_text)
    with pytest.raises(FileNotFoundError):
        read_unchanged(tmp_path / "none", read)


def test_what_is_no_regular_file(tmp_path):
    """A pipe would be waited for without end, a device read without end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InvalidInput, match="is a device or a pipe; give a regular file"):
            read_json(path)
        with pytest.raises(FileNotFoundError, match="does not exist or is no file"):
            read_safetensors(path)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidInput, match="has 1099511627776 bytes; at most"):
        read_json(tmp_path / "huge")
