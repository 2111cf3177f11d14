"""Folders of adapters and generators: damage is named, and a save is all or nothing."""

import pickle
import shutil

import pytest

import dnd_fast
from dnd_fast import Generator, InvalidInput, TextEncoder
from dnd_fast import generator as generator_module
from dnd_fast.convert import load_decoder
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
    """Nothing is written then; the sets of live configurations become lists."""
    adapter = Adapter(good.adapter.tensors, good.adapter.config | {"target_modules": b"q_proj"})
    fails("adapter_config.json cannot hold this: .*bytes", adapter.save, tmp_path / "new")
    assert contents(tmp_path) == {}
