"""Files of tensors: every damage is noticed, and equal content is equal bytes."""

import warnings

import pytest
import torch
from safetensors.torch import save_file

from dnd_fast import InvalidInput
from dnd_fast.files import read_metadata, read_safetensors, write_safetensors


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


def test_texts_beside_tensors(tmp_path):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"x": torch.arange(3.0)}, {"step": "7"})
    assert read_metadata(path)["step"] == "7"
    assert read_safetensors(path)["x"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(InvalidInput, match=r"a\.safetensors is truncated"):
        read_metadata(path)
