"""A small file of word vectors, which several tests read."""

import pytest

GLOVE = {
    "cats": [1.0, 0.0, 2.0],
    "the": [0.0, 3.0, -1.0],
    ",": [0.5, 0.5, 0.5],
    "well-known": [4.0, 4.0, 4.0],
    "Paris": [7.0, 0.0, 0.0],
    "at name": [9.0, 9.0, 9.0],  # words with spaces are real in the largest published file
}


@pytest.fixture
def glove_file(tmp_path):
    file = tmp_path / "vectors.txt"
    lines = (f"{word} {' '.join(map(str, vector))}\n" for word, vector in GLOVE.items())
    file.write_text("".join(lines))
    return file
