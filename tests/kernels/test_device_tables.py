"""Tables of devices: the user's count before the package's, and the package stays as it is."""

import json
from pathlib import Path

import pytest

from dnd_fast.kernels import device_tables
from dnd_fast.kernels.device import table_name
from dnd_fast.kernels.device_tables import DeviceTables, cache_folder


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.setenv("DND_FAST_CACHE", str(tmp_path / "cache"))
    return DeviceTables(tmp_path / "package/times", "seconds")


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("DND_FAST_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("DND_FAST_CACHE", "")
    monkeypatch.setattr(device_tables, "user_cache_dir", lambda name: f"/home/me/{name}")
    assert cache_folder() == Path("/home/me/dnd-fast")


def test_the_users_entries_count_before_the_packages(tables):
    assert tables.load("cpu") == {}
    packaged = tables.save("cpu", {"a": 1, "b": 2}, packaged=True)
    assert tables.load("cpu") == {"a": 1, "b": 2}
    kept = packaged.read_text()
    own = tables.save("cpu", {"b": 3})
    assert tables.load("cpu") == {"a": 1, "b": 3}
    assert packaged.read_text() == kept
    assert own == cache_folder() / "times" / table_name("cpu")
    assert json.loads(own.read_text())["seconds"] == {"b": 3}


def test_a_failed_write_leaves_the_table_as_it_was(tables):
    path = tables.save("cpu", {"a": 1})
    with pytest.raises(TypeError):
        tables.save("cpu", {"b": object()})
    assert tables.load("cpu") == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_damaged_table_is_named(tables, content):
    path = tables.save("cpu", {"a": 1})
    path.write_text(content)
    for use in (lambda: tables.load("cpu"), lambda: tables.save("cpu", {"b": 2})):
        with pytest.raises(ValueError, match=rf"{path.name} is no table of 'seconds'"):
            use()
