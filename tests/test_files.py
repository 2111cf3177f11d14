"""Files: all or nothing when writing, damage named when reading."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dnd_fast
from dnd_fast import Generator, InvalidInput, TextEncoder, files
from dnd_fast import generator as generator_module
from dnd_fast.convert import load_decoder
from dnd_fast.files import (
    atomic_file,
    atomic_folder,
    locked,
    read_json,
    read_metadata,
    read_safetensors,
    read_unchanged,
    remove_folder,
    write_json,
    write_safetensors,
)
from dnd_fast.filesystem import TEMPORARY
from dnd_fast.lora.adapter import Adapter

from .bad_input import (
    FOLDER,
    GONE,
    PROMPTS,
    contents,
    damaged,
    disk_full,
    disk_full_at_sync,
    fails,
    run,
)


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


def test_safetensors(tmp_path):
    """Every possible truncation is noticed."""
    file = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(3.0)}, file)
    assert torch.equal(read_safetensors(file)["x"], torch.arange(3.0))
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(InvalidInput, match="truncated"):
            read_safetensors(file)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_safetensors(tmp_path / "b.safetensors")


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


def test_foreign_files_that_come_late_stay(tmp_path, monkeypatch):
    """Between the moment at which the others were linked and the exchange."""
    exchange = files.exchange
    (tmp_path / "a").mkdir(mode=0o750)
    (tmp_path / "a" / "state").mkdir()
    (tmp_path / "a" / "state" / "step").write_text("1")

    def late(first, second):
        (second / "late").write_text("theirs")
        exchange(first, second)

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


def test_every_flipped_bit_is_noticed(tmp_path):
    """Or changes nothing, as in the header's blanks."""
    file = tmp_path / "a.safetensors"
    tensors = {"x": torch.arange(3.0), "y": torch.ones(2, 2, dtype=torch.bfloat16)}
    write_safetensors(file, tensors, {"step": "7"})
    whole = file.read_bytes()
    refused = 0
    for position in range(len(whole)):
        for bit in (0, 5):
            flipped = bytes([whole[position] ^ (1 << bit)])
            file.write_bytes(whole[:position] + flipped + whole[position + 1 :])
            try:
                found = read_safetensors(file)
            except InvalidInput:
                refused += 1
            else:
                assert found.keys() == tensors.keys()
                assert all(torch.equal(found[key], value) for key, value in tensors.items())
    assert refused > 1.5 * len(whole)


@pytest.mark.parametrize("name", ["x", 'a "quoted" \\ name', "é\u2028\x1f\x7f"])
def test_equal_content_is_equal_bytes(tmp_path, name):
    """And stays readable, whatever JSON makes of the names."""
    file, written = tmp_path / "a.safetensors", set()
    for _ in range(8):
        texts = {"one": name, "two": "2", "three": "3"}
        write_safetensors(file, {name: torch.arange(3.0)}, texts)
        assert read_metadata(file).items() >= texts.items()
        assert read_safetensors(file, unchecked="refuse")[name].tolist() == [0, 1, 2]
        written.add(file.read_bytes())
    assert len(written) == 1


def test_files_without_a_checksum(tmp_path):
    """Those of others are as good as ours; of our own earlier ones, there is a warning."""
    file = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1)}, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_safetensors(file)
    with pytest.warns(UserWarning, match=r"a\.safetensors comes from an earlier version"):
        read_safetensors(file, unchecked="warn")
    with pytest.raises(InvalidInput, match="no checksum"):
        read_safetensors(file, unchecked="refuse")


def test_a_flipped_bit_of_a_weight(good, tmp_path):
    """The value stays finite; once it was used."""

    def flip(whole):
        return whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]

    for load, folder, name in (
        (Adapter.load, "adapter", "adapter_model.safetensors"),
        (Generator.from_pretrained, "generator", "model.safetensors"),
    ):
        copied = damaged(good.folder / folder, tmp_path / folder, name, flip)
        fails(f"{name} is damaged: its content does not have the SHA-256", load, copied)


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


def test_texts_beside_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": torch.arange(3.0)}, {"step": "7"})
    assert read_metadata(path)["step"] == "7"
    assert read_safetensors(path)["x"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(InvalidInput, match=r"a\.safetensors is truncated"):
        read_metadata(path)


DAMAGED_JSON = {
    "missing": (GONE, "{name}", FileNotFoundError),
    "a folder": (FOLDER, "{name}", OSError),
    "empty": (b"", "{name} is not valid JSON", InvalidInput),
    "cut off": (lambda whole: whole[:-3], "{name} is not valid JSON", InvalidInput),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "{name} is not valid JSON", InvalidInput),
    "too deep": (b"[" * 100_000, "{name} is not valid JSON", InvalidInput),
    "no object": (b"[1]", "{name} holds a list, expected an object", InvalidInput),
}
DAMAGED_WEIGHTS = {
    "missing": (GONE, "{name}", FileNotFoundError),
    "a folder": (FOLDER, "{name}", FileNotFoundError),
    "empty": (b"", "{name} is truncated or not a safetensors", InvalidInput),
    "cut off": (lambda whole: whole[:-1], "{name} is truncated", InvalidInput),
    "cut off in the header": (lambda whole: whole[:100], "{name} is truncated", InvalidInput),
    "zeros": (bytes(1000), "{name} is truncated or not a safetensors", InvalidInput),
    "a pickle": (pickle.dumps({"a": 1}), "{name} is truncated or not a safetensors", InvalidInput),
}


@pytest.mark.parametrize(
    ("load", "folder", "name", "damage", "message", "error"),
    [
        pytest.param(load, folder, name, *case, id=f"{folder}'s {name}: {how}")
        for load, folder, name, table in (
            (Adapter.load, "adapter", "adapter_config.json", DAMAGED_JSON),
            (Adapter.load, "adapter", "adapter_model.safetensors", DAMAGED_WEIGHTS),
            (Generator.from_pretrained, "generator", "config.json", DAMAGED_JSON),
            (Generator.from_pretrained, "generator", "model.safetensors", DAMAGED_WEIGHTS),
        )
        for how, case in table.items()
    ],
)
def test_damaged_files(good, tmp_path, load, folder, name, damage, message, error):
    load(good.folder / folder)  # fine before
    copied = damaged(good.folder / folder, tmp_path / "damaged", name, damage)
    assert str(copied) in fails(message.format(name=name), load, copied, error=error)


def test_missing_folders(good, tmp_path):
    """A file is not a folder either."""
    adapter, generator = good.folder / "adapter", good.folder / "generator"
    for path in (tmp_path / "a" / "b", adapter / "adapter_config.json"):
        fails(f"no adapter folder at {path}", Adapter.load, path, error=FileNotFoundError)
    for path in (tmp_path / "a" / "b", generator / "config.json"):
        message = f"no generator folder '{path}'"
        fails(message, Generator.from_pretrained, path, error=FileNotFoundError)
        fails(message, dnd_fast.generate, PROMPTS, path, error=FileNotFoundError)
    fails("config.json is missing", Generator.from_pretrained, adapter, error=FileNotFoundError)
    path = tmp_path / "a" / "b"
    fails(f"no usable text encoder at '{path}'", TextEncoder.from_pretrained, path)
    for path in (tmp_path / "a.pth", tmp_path):
        fails(f"no checkpoint at {path}", load_decoder, path, error=FileNotFoundError)


def write_adapter(good, path):
    good.adapter.save(path)


def write_generator(good, path):
    good.generator.save_pretrained(path)


def write_by_command(good, path):
    (path.parent / "task.txt").write_text("\n".join(PROMPTS))
    arguments = ["generate", path.parent / "task.txt", "--generator", good.folder / "generator"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_module.TextEncoder, "from_pretrained", lambda name: good.encoder)
        code, found = run(patch, *arguments, "--out", path)
    (path.parent / "task.txt").unlink()
    if code:
        assert found.startswith("error: ")
        raise OSError(found)


WRITERS = {
    "adapter": (write_adapter, Adapter.load, "adapter_model.safetensors"),
    "generator": (write_generator, Generator.from_pretrained, "model.safetensors"),
    "command": (write_by_command, Adapter.load, "adapter_config.json"),
}


@pytest.mark.parametrize(("write", "load", "name"), WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("full", [disk_full, disk_full_at_sync])
def test_a_full_disk(good, tmp_path, write, load, name, full):
    """Neither half of a new folder, nor a damaged old one, nor a temporary one."""
    old = tmp_path / "old"
    shutil.copytree(good.folder / ("generator" if write is write_generator else "adapter"), old)
    (old / name).with_suffix(".bak").write_bytes(b"mine")
    before = contents(tmp_path)
    for target in (old, tmp_path / "new"):
        with full(), pytest.raises(OSError, match=r"too large|No space left"):
            write(good, target)
        assert contents(tmp_path) == before
    load(old)
    write(good, tmp_path / "new")  # with room again
    load(tmp_path / "new")


@pytest.mark.parametrize(("write", "load", "name"), WRITERS.values(), ids=WRITERS)
def test_something_in_the_way(good, tmp_path, write, load, name):
    """A file for the folder, a file for its parent, a folder for one of its files."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / name).mkdir(parents=True)
    before = contents(tmp_path)
    for target, message in (
        (tmp_path / "file", "file is a file; give a folder"),
        (tmp_path / "file" / "new", "task.txt" if write is write_by_command else "is a file; give"),
        (tmp_path / "taken", f"{name} is a folder; move it away"),
    ):
        with pytest.raises(OSError, match=message):
            write(good, target)
        assert contents(tmp_path) == before


def test_what_json_does_not_have(good, tmp_path):
    """PEFT's own configurations hold sets."""
    adapter = Adapter(good.adapter.tensors, good.adapter.config | {"target_modules": {"q_proj"}})
    fails("adapter_config.json cannot hold this: .*set", adapter.save, tmp_path / "new")
    assert contents(tmp_path) == {}
