"""Data sets: prompts with their responses, of one task."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from dnd_fast.text.conversations import Example, example_of
from dnd_fast.text.prompts import check_text
from dnd_fast.text.records import STDIN, Record, as_json_lines, parse_records, read_source

__all__ = ["Dataset", "Example", "read_records"]


@dataclass(frozen=True)
class Dataset:
    """One task's examples.

    Attributes:
        name: the file's name without its ending; ``stdin`` of standard input.
        examples: the examples in the file's order.
        sha256: SHA-256 of ``json_lines``, in hexadecimal.
        json_lines: the content in the form of a ``.jsonl`` file, and of such a file its own bytes.
        path: where the file is.
    """

    name: str
    examples: tuple[Example, ...]
    sha256: str
    path: Path
    json_lines: bytes = field(default=b"", repr=False, compare=False)

    @classmethod
    def read(cls, path: str | Path) -> Dataset:
        """Read a file with an example a record; ``-`` is standard input.

        :mod:`dnd_fast.text.conversations` lists keys, :func:`dnd_fast.text.records.parse_records`
        kinds of files. Other keys are ignored.

        Raises:
            FileNotFoundError: there is no such file.
            InvalidInput: no examples, a key is missing or no text, undecodable text, or damage; the
                message names the line.
        """
        path = Path(path)
        json_lines, records = read_records(path)
        examples = tuple(_checked(example_of(record, where), where) for where, record in records)
        name = "stdin" if str(path) == STDIN else path.stem
        return cls(name, examples, hashlib.sha256(json_lines).hexdigest(), path, json_lines)


def read_records(path: str | Path) -> tuple[bytes, list[Record]]:
    """The content of a file as that of a ``.jsonl`` file, and its objects, each after its place.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: as :func:`dnd_fast.text.records.parse_records`.
    """
    path = Path(path)
    if str(path) != STDIN and not path.exists():
        raise FileNotFoundError(f"{path}: there is no such data set.")
    content = read_source(path)
    records = parse_records(content, path)
    return (content if path.suffix == ".jsonl" else as_json_lines(records)), records


def _checked(example: Example, where: str) -> Example:
    for text in (example.prompt, example.response, example.system or ""):
        check_text(text, where)
    for shot in example.shots:
        _checked(shot, where)
    return example
