"""Data sets in several kinds of files: the same examples, kept in one form."""

import hashlib
import io
import json
import sys

import pytest

from dnd_fast import InvalidInput
from dnd_fast.text.datasets import Dataset, Example
from dnd_fast.text.prompts import read_prompts

EXAMPLES = (Example("a", "b"), Example("c", "d"))
ROWS = [{"question": e.prompt, "answer": e.response} for e in EXAMPLES]


def test_json_lines_are_kept_as_they_are(tmp_path):
    """So that collections know data sets that they have been trained on before."""
    file = tmp_path / "task.v1.jsonl"
    file.write_bytes(b"\n".join(json.dumps(row).encode() for row in ROWS))
    dataset = Dataset.read(file)
    assert dataset.examples == EXAMPLES
    assert dataset.json_lines == file.read_bytes()
    assert dataset.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert dataset.name == "task.v1"


def test_others_are_kept_as_json_lines(tmp_path, monkeypatch):
    (tmp_path / "task.json").write_text(json.dumps(ROWS))
    (tmp_path / "task.csv").write_text("question,answer\na,b\nc,d\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(ROWS).encode())))
    datasets = [
        Dataset.read(place) for place in (tmp_path / "task.json", tmp_path / "task.csv", "-")
    ]
    assert [dataset.name for dataset in datasets] == ["task", "task", "stdin"]
    for dataset in datasets:
        assert dataset.examples == EXAMPLES
        kept = tmp_path / "kept.jsonl"
        kept.write_bytes(dataset.json_lines)
        assert Dataset.read(kept).examples == EXAMPLES
        assert Dataset.read(kept).sha256 == dataset.sha256


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "a", "response": "\ud800"},
        {"prompt": "a", "response": "b", "system": "\ud800"},
        {
            "messages": [
                {"role": "user", "content": "\ud800"},
                {"role": "assistant", "content": "a"},
            ]
        },
    ],
)
def test_what_is_no_text(tmp_path, record):
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    with pytest.raises(InvalidInput, match="line 1 holds half a surrogate pair"):
        Dataset.read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    "piped",
    [b"a\n\nc\n", b'\n{"prompt": "a"}\n{"prompt": "c"}', b'[{"prompt": "a"}, {"prompt": "c"}]'],
)
def test_prompts_from_standard_input(monkeypatch, piped):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
    assert read_prompts("-") == ["a", "c"]


def test_a_pipe_is_not_waited_for(tmp_path):
    import os

    for name in ("a.jsonl", "a.txt", "a.csv"):
        os.mkfifo(tmp_path / name)
        for read in (Dataset.read, read_prompts):
            if (read, name) != (Dataset.read, "a.txt"):
                with pytest.raises(InvalidInput, match="is a device or a pipe"):
                    read(tmp_path / name)
