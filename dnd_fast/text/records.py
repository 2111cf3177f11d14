"""Records: what files of data hold, as objects with keys, whichever form the file has."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnd_fast.errors import InvalidInput
from dnd_fast.files import parse_json, read_bytes

STDIN = "-"
ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
DATA_BYTES = 1 << 33
Record = tuple[str, dict[str, Any]]  # its place, for messages, and the object


def read_source(path: Path) -> bytes:
    """Return the bytes of a file, or with the name ``-`` those of standard input.

    Raises:
        OSError: there is no such file, or it is a folder.
        InvalidInput: as :func:`dnd_fast.files.read_bytes`.
    """
    return sys.stdin.buffer.read() if str(path) == STDIN else read_bytes(path, DATA_BYTES)


def decode(content: bytes, path: Path) -> str:
    """Return bytes as text, without a byte order mark.

    Raises:
        InvalidInput: they are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text ({error}); convert it first.") from error


def parse_records(content: bytes, path: Path) -> list[Record]:
    """Return the objects in a file's bytes, each after its place. Blank lines are skipped.

    The ending says what the file is: ``.jsonl``, an object a line; ``.json``, the same, or a list
    of objects; ``.csv``, with names in its first row; ``.parquet``. Standard input is as ``.json``.

    Raises:
        InvalidInput: another ending, no objects, undecodable text, or damage; the message names
            the line.
    """
    ending = ".json" if str(path) == STDIN else path.suffix
    if ending not in ENDINGS:
        raise InvalidInput(
            f"{path}: data is read from files that end in {', '.join(ENDINGS)}, or from {STDIN!r}, "
            "standard input."
        )
    if ending == ".parquet":
        records = list(_parquet(content, path))
    elif ending == ".csv":
        records = list(_csv(decode(content, path), path))
    else:
        text = decode(content, path)
        is_list = ending == ".json" and text.lstrip().startswith("[")
        records = list((_json_list if is_list else _json_lines)(text, path))
    if not records:
        raise InvalidInput(f"{path} holds no examples.")
    for where, record in records:
        if not isinstance(record, dict):
            raise InvalidInput(f"{where}: found a {type(record).__name__}, expected an object.")
    return records


def as_json_lines(records: list[Record]) -> bytes:
    """Return records in the form of a ``.jsonl`` file."""
    return "".join(json.dumps(record, default=str) + "\n" for _, record in records).encode()


def _json_lines(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    # Not splitlines(), which also cuts at U+2028 and the like, legal within a JSON string.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, parse_json(line, where)


def _json_list(text: str, path: Path) -> Iterator[tuple[str, Any]]:
    for number, record in enumerate(parse_json(text, str(path)), 1):
        yield f"{path}, entry {number}", record


def _csv(text: str, path: Path) -> Iterator[Record]:
    """Yield rows; an empty cell is none."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise InvalidInput(f"{where}: there are more cells than names in the first row.")
            yield where, {name: cell for name, cell in row.items() if cell}
    except csv.Error as error:
        where = f"{path}, line {reader.line_num}"
        raise InvalidInput(
            f"{where}: not valid CSV ({error}); mend it, or save it as .jsonl."
        ) from error


def _parquet(content: bytes, path: Path) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException, BufferReader, parquet
    except ImportError as error:
        raise InvalidInput(
            f"{path}: reading parquet needs pyarrow: pip install 'dnd-fast[parquet]'."
        ) from error
    try:
        rows = parquet.read_table(BufferReader(content)).to_pylist()
    except (ArrowException, OSError, ValueError, TypeError) as error:
        raise InvalidInput(f"{path} is damaged, or no parquet file: {error}") from error
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        yield where, {name: cell for name, cell in row.items() if cell is not None}
