"""Tensors on disk: served only if they are the very ones, and not without end."""

import os

import pytest
import torch

from dnd_fast import cache
from dnd_fast.cache import cached
from dnd_fast.files import write_safetensors

SHAPES = {"x": (2, 3)}


@pytest.fixture
def get(tmp_path):
    """Asks the cache, and counts what is computed."""
    computed = []

    def ask(key, value=1.0, shapes=SHAPES):
        def compute():
            computed.append(key)
            return {"x": torch.full(shapes["x"], value)}

        found = cached(tmp_path, key, shapes, compute, what="things")
        assert found["x"].eq(value).all()
        return len(computed)

    return ask


def test_computed_once(get, tmp_path):
    assert get("a", 1.0) == 1
    assert get("b", 2.0) == 2
    assert get("a", 1.0) == 2
    assert len(list(tmp_path.iterdir())) == 2


def test_another_shape_under_one_key(get, caplog):
    get("a")
    assert get("a", shapes={"x": (1, 3)}) == 2
    assert "holds something else" in caplog.text


def test_every_flipped_bit(get, tmp_path):
    """Of values, of names, of shapes, of the checksum itself: none is ever served."""
    get("a")
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        get("a")
        file.write_bytes(whole)


def test_without_a_checksum(get, tmp_path, caplog):
    """It may come from an earlier version, and is computed again."""
    get("a")
    (file,) = tmp_path.iterdir()
    torch_only = {"x": torch.full((2, 3), 7.0)}
    write_safetensors(file, torch_only)
    cache.read_safetensors(file)  # fine
    from safetensors.torch import save_file

    save_file(torch_only, file)
    assert get("a") == 2
    assert "no checksum" in caplog.text


def test_what_was_not_used_for_longest_goes(get, tmp_path, monkeypatch):
    get("a")
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(cache, "CACHE_BYTES", 2.5 * file.stat().st_size)
    for age, key in ((90, "a"), (50, "b")):
        computed = get(key)
        for path in tmp_path.iterdir():
            if path != file or key == "a":
                os.utime(path, (1e9 - age, 1e9 - age))
    assert get("a") == computed  # used again, and so the newer of the two
    get("c")
    assert len(list(tmp_path.iterdir())) == 2
    assert get("a") == computed + 1
    assert get("b") == computed + 2


def test_one_that_is_larger_than_the_cache(get, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CACHE_BYTES", 10)
    get("a")
    assert get("a") == 1
    get("b")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_only_read(get, tmp_path, monkeypatch):
    get("a")

    def refused(path):
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert get("a") == 1
