"""Checkpoints by torch.save: damage is found that torch does not look for."""

import os
import random
import zipfile

import pytest
import torch

from dnd_fast import InvalidInput
from dnd_fast.torch_file import read_torch

from .bad_input import fails


@pytest.fixture
def file(tmp_path):
    torch.save({"x": torch.arange(100.0), "n": 3}, tmp_path / "a.pth")
    return tmp_path / "a.pth"


def test_flipped_bits(file):
    """Of the zip's own tables some do not matter; no other value is ever read."""
    whole, rng = file.read_bytes(), random.Random(0)
    assert read_torch(file)["n"] == 3
    refused = 0
    for position in rng.sample(range(len(whole)), 300):
        flipped = bytes([whole[position] ^ (1 << rng.randrange(8))])
        file.write_bytes(whole[:position] + flipped + whole[position + 1 :])
        try:
            found = read_torch(file)
        except InvalidInput:
            refused += 1
        else:
            assert torch.equal(found["x"], torch.arange(100.0))
            assert found["n"] == 3
    assert refused > 100


def test_a_flipped_bit_of_a_value(file):
    """torch.load reads it without a word."""
    with zipfile.ZipFile(file) as archive:
        (member,) = (m for m in archive.infolist() if m.filename.endswith("data/0"))
    whole = bytearray(file.read_bytes())
    position = whole.index(torch.arange(100.0).numpy().tobytes(), member.header_offset)
    whole[position + 42] ^= 1
    file.write_bytes(whole)
    torch.load(file, weights_only=True)
    fails("is damaged", read_torch, file)


def rezipped(file, compression, copies=1):
    with zipfile.ZipFile(file) as archive:
        members = {m.filename: archive.read(m) for m in archive.infolist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_compressed_members(file):
    """A small file could fill the memory; torch.save compresses nothing."""
    rezipped(file, zipfile.ZIP_STORED)
    assert read_torch(file)["n"] == 3
    rezipped(file, zipfile.ZIP_DEFLATED)
    fails("is compressed, which torch.save never does", read_torch, file)


def test_members_that_lie_over_one_another(file):
    """As much as one likes could be read out of a small file."""
    whole = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        last = archive.infolist()[-1]
    entry = whole.rindex(last.filename.encode()) - 46  # in the table at the end
    for offset in (20, 24):  # its two sizes
        whole[entry + offset : entry + offset + 4] = (1 << 30).to_bytes(4, "little")
    file.write_bytes(whole)
    fails("is compressed, which torch.save never does", read_torch, file)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "none.pth")
    with pytest.raises(IsADirectoryError):
        read_torch(tmp_path)


def test_what_is_no_regular_file(tmp_path):
    """A pipe was waited for without end."""
    os.mkfifo(tmp_path / "pipe")
    fails("is a device or a pipe", read_torch, tmp_path / "pipe")
