"""Files: all or nothing when writing, damage named when reading."""

import os

import pytest
import torch
from safetensors.torch import save_file

from dnd_fast import InvalidInput
from dnd_fast.files import (
    atomic_file,
    atomic_folder,
    read_json,
    read_metadata,
    read_safetensors,
    write_json,
    write_safetensors,
)


def contents(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_a_new_folder_appears_at_the_end(tmp_path):
    """Another process never sees a folder with half of its files."""
    target = tmp_path / "deep" / "new"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
        assert folder.parent == target.parent  # another file system has no atomic rename
    assert contents(target) == {"a": "1"}
    assert os.listdir(target.parent) == ["new"]


def test_a_new_folder_is_readable_by_others(tmp_path):
    """A temporary folder is private; what becomes of it must obey the umask instead."""
    old = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "new") as folder:
            (folder / "a").write_text("1")
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(old)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "new" / "a").stat().st_mode & 0o777 == 0o640


def test_an_existing_folder_keeps_foreign_files(tmp_path):
    target = tmp_path / "old"
    target.mkdir()
    (target / "a").write_text("old")
    (target / "notes").write_text("mine")
    with atomic_folder(target) as folder:
        assert contents(folder) == {}
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")
        assert contents(target) == {"a": "old", "notes": "mine"}
    assert contents(target) == {"a": "new", "b": "new", "notes": "mine"}
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
        assert contents(target) == {"a": "old"}


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file"), atomic_folder(tmp_path / "file"):
        pass
    assert contents(tmp_path) == {"file": "mine"}


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


def test_a_file_is_replaced_at_the_end(tmp_path):
    """Also after a process was killed half-way, whose rest is not in the way."""
    path = tmp_path / "new" / "a"
    with atomic_file(path) as staged:
        staged.write_text("1")
        assert not path.exists()
    staged.write_text("of a killed process")
    with atomic_file(path) as staged:
        staged.write_text("2")
        assert path.read_text() == "1"
    with pytest.raises(ZeroDivisionError), atomic_file(path) as staged:
        staged.write_text("3") / 0
    assert contents(path.parent) == {"a": "2"}


def test_texts_beside_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": torch.arange(3.0)}, {"step": "7"})
    assert read_metadata(path)["step"] == "7"
    assert read_safetensors(path)["x"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(InvalidInput, match=r"a\.safetensors is truncated"):
        read_metadata(path)
