"""Data sets: prompts with their responses, one JSON object a line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from dnd_fast.errors import InvalidInput


@dataclass(frozen=True)
class Example:
    """A prompt, the response wanted to it, and a system prompt where there is one."""

    prompt: str
    response: str
    system: str | None = None


@dataclass(frozen=True)
class Dataset:
    """One task's examples.

    Attributes:
        name: of the file, without its ending.
        examples: in the file's order.
        sha256: of the file.
    """

    name: str
    examples: tuple[Example, ...]
    sha256: str

    @classmethod
    def read(cls, path: str | Path) -> Dataset:
        """Read a ``.jsonl`` file with the keys ``prompt``, ``response`` and, if any, ``system``.

        Other keys are ignored, blank lines skipped.

        Raises:
            FileNotFoundError: there is no such file.
            InvalidInput: no examples, a key is missing or no text, undecodable text, malformed
                JSON; the message names the line.
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
        examples = tuple(
            _example(line, f"{path}, line {number}")
            for number, line in enumerate(lines, 1)
            if line.strip()
        )
        if not examples:
            raise InvalidInput(f"{path} holds no examples.")
        return cls(path.stem, examples, hashlib.sha256(content).hexdigest())


def _example(line: str, where: str) -> Example:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: not valid JSON ({error}).") from error
    if not isinstance(record, dict):
        raise InvalidInput(f"{where}: found a {type(record).__name__}, expected an object.")
    for key in ("prompt", "response"):
        found = record.get(key)
        if not isinstance(found, str) or not found.strip():
            raise InvalidInput(f"{where}: the key {key!r} holds {found!r}, expected some text.")
    system = record.get("system")
    if not isinstance(system, str | None):
        raise InvalidInput(f"{where}: the key 'system' holds {system!r}, expected text.")
    return Example(record["prompt"], record["response"], system or None)
