"""Word vectors as the encoder of prompts."""

import pytest
import torch

from dnd_fast import InvalidInput, TextEncoder
from dnd_fast.text.glove import GloveEncoder

from .conftest import GLOVE


def test_glove(glove_file):
    encoder = TextEncoder.from_pretrained(f"glove:{glove_file}")
    assert encoder.width == 3
    found = encoder.encode(["The  cats, well-known (cats,", "Paris paris"], 6)
    vectors = {word: torch.tensor(vector) for word, vector in GLOVE.items()}
    unknown = torch.stack(list(vectors.values())).mean(0)
    expected = torch.zeros(2, 6, 3)
    expected[0, 0] = vectors["the"]
    expected[0, 1] = (vectors["cats"] + vectors[","]) / 2
    expected[0, 2] = vectors["well-known"]
    expected[0, 3] = (vectors["cats"] + vectors[","]) / 2  # "(" is not in the table
    expected[1, 0] = vectors["Paris"]
    expected[1, 1] = unknown  # not padding's zero
    torch.testing.assert_close(found, expected)
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than 3 words"):
        assert encoder.encode(["the the the the", "the"], 3).shape == (2, 3, 3)


def test_glove_unknown_word_of_its_own(glove_file):
    glove_file.write_text(glove_file.read_text() + "<unk> -1 -1 -1\n")
    encoder = GloveEncoder.read(glove_file)
    assert encoder.encode(["zebra"], 1).flatten().tolist() == [-1, -1, -1]


def test_glove_cache_and_fingerprint(glove_file, tmp_path):
    encoder = GloveEncoder.read(glove_file)
    first = encoder.encode(["the cats", "the"], 4, cache=tmp_path / "cache")
    assert torch.equal(encoder.encode(["the cats", "the"], 4, cache=tmp_path / "cache"), first)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    before = encoder.fingerprint()
    glove_file.write_text(glove_file.read_text().replace("cats", "dogs"))  # the same vectors
    assert GloveEncoder.read(glove_file).fingerprint() != before


@pytest.mark.parametrize(
    ("line", "damage"),
    [
        (3, ", 0.5 0.5"),
        (3, ", 0.5 0.5 0.5 0.5"),
        (3, ", 0.5 0.5 x"),
        (3, ", 0.5 0.5 nan"),
        (3, ""),
        (2, "\udcff 0.5 0.5 0.5"),
        (1, "400000 300"),  # a word2vec header: noticed on the line after it
    ],
)
def test_damaged_glove_file(glove_file, line, damage):
    lines = glove_file.read_text().split("\n")
    lines[line - 1] = damage
    glove_file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    named = line + (damage == "400000 300")
    with pytest.raises(InvalidInput, match=rf"vectors.txt, line {named}: "):
        TextEncoder.from_pretrained(f"glove:{glove_file}")


def test_glove_file_missing_or_empty(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file of word vectors"):
        TextEncoder.from_pretrained(f"glove:{tmp_path / 'none.txt'}")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InvalidInput, match="is empty"):
        TextEncoder.from_pretrained(f"glove:{tmp_path / 'empty.txt'}")
