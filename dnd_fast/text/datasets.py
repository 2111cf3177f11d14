"""Data sets: prompts with their responses, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dnd_fast.errors import InvalidInput


@dataclass(frozen=True)
class Example:
    """A prompt, the response wanted to it, and a system prompt where there is one.

    An empty system prompt takes the place of one that a chat template has by default. Shots are
    examples that come before, as earlier turns of the conversation.
    """

    prompt: str
    response: str
    system: str | None = None
    shots: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """One task's examples.

    Attributes:
        name: the file's name without its ending.
        examples: the examples in the file's order.
        sha256: SHA-256 of the file's bytes, in hexadecimal.
        path: where the file is.
    """

    name: str
    examples: tuple[Example, ...]
    sha256: str
    path: Path

    @classmethod
    def read(cls, path: str | Path) -> Dataset:
        """Read a ``.jsonl`` file with the keys ``prompt``, ``response`` and, if any, ``system``.

        Other keys are ignored, blank lines skipped.

        Raises:
            FileNotFoundError: there is no such file.
            InvalidInput: no examples, a key is missing or no text, undecodable text, malformed
                JSON; the message names the line.
        """
        content, records = read_records(path)
        examples = tuple(_example(record, where) for where, record in records)
        return cls(Path(path).stem, examples, hashlib.sha256(content).hexdigest(), Path(path))


def read_records(path: str | Path) -> tuple[bytes, list[tuple[str, dict[str, Any]]]]:
    """The bytes of a ``.jsonl`` file, and its objects, each after its place for messages.

    Blank lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: no objects, undecodable text, malformed JSON; the message names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such data set.")
    content = path.read_bytes()
    try:
        # Not splitlines(), which also cuts at U+2028 and the like, legal within a JSON string.
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text ({error}); convert it first.") from error
    records = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            records.append((where, _object(line, where)))
    if not records:
        raise InvalidInput(f"{path} holds no examples.")
    return content, records


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"{where}: found a {type(record).__name__}, expected an object.")
    return record


def _example(record: dict[str, Any], where: str) -> Example:
    for key in ("prompt", "response"):
        text = record.get(key)
        if not isinstance(text, str) or not text.strip():
            raise InvalidInput(f"{where}: the key {key!r} holds {text!r}, expected some text.")
    system = record.get("system")
    if not isinstance(system, str | None):
        raise InvalidInput(f"{where}: the key 'system' holds {system!r}, expected text.")
    return Example(record["prompt"], record["response"], system)
