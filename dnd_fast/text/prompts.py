"""Prompts of a task: reading, checking and sampling them."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Sequence
from pathlib import Path

from dnd_fast.errors import InvalidInput
from dnd_fast.text.conversations import prompt_of
from dnd_fast.text.records import ENDINGS, STDIN, decode, parse_records, read_source


def read_prompts(source: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    """The prompts of one task.

    Args:
        source: a list of strings; a ``.txt`` file with one prompt a line; a file of records, see
            :func:`dnd_fast.text.records.parse_records`, each with its prompt under ``prompt`` or as
            in :mod:`dnd_fast.text.conversations`; or ``"-"``, standard input in any of these forms.
            Blank lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: no prompts, an empty or non-string prompt, undecodable text, malformed JSON.
    """
    where = "prompts"
    if isinstance(source, str | os.PathLike):
        where = str(source)
        prompts = _read_file(Path(source))
    elif isinstance(source, Sequence):
        prompts = list(source)
    else:
        raise InvalidInput(
            f"prompts is a {type(source).__name__}; expected a list of strings or the path of a "
            "file."
        )
    if not prompts:
        raise InvalidInput(f"{where}: there are no prompts; give at least one.")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InvalidInput(f"{where}[{i}] is a {type(prompt).__name__}, expected a string.")
        if not prompt.strip():
            raise InvalidInput(f"{where}[{i}] is empty; remove it.")
        check_text(prompt, f"{where}[{i}]")
    return prompts


def sample_prompts(prompts: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` prompts, drawn without replacement where there are enough, by a seeded generator.

    With fewer prompts than ``count``, all are taken, the rest is drawn with replacement, and a
    warning says so.

    Raises:
        InvalidInput: ``seed`` is no integer.
    """
    if not isinstance(seed, int):
        raise InvalidInput(f"seed={seed!r}: it must be an integer.")
    rng = random.Random(seed)
    if len(prompts) >= count:
        return rng.sample(list(prompts), count)
    warnings.warn(
        f"the generator takes {count} prompts and got {len(prompts)}: some are used repeatedly. "
        "More prompts describe the task better.",
        stacklevel=3,
    )
    return [*prompts, *rng.choices(prompts, k=count - len(prompts))]


def check_text(text: str, where: str) -> None:
    """Raise unless a string is a text.

    Raises:
        InvalidInput: it holds half a surrogate pair.
    """
    if text.encode(errors="ignore").decode() != text:
        raise InvalidInput(f"{where} holds half a surrogate pair, which is no text.")


def _read_file(path: Path) -> list[str]:
    is_stdin = str(path) == STDIN
    if not is_stdin and path.suffix not in (".txt", *ENDINGS):
        raise InvalidInput(
            f"{path}: prompts are read from .txt (one a line), {', '.join(ENDINGS)} files, or from "
            f"{STDIN!r}, standard input. To use one string as the only prompt, put it into a list."
        )
    if not is_stdin and (not path.exists() or path.is_dir()):
        raise FileNotFoundError(f"{path}: there is no such file of prompts.")
    content = read_source(path)
    if path.suffix == ".txt" or (is_stdin and content.lstrip()[:1] not in (b"{", b"[")):
        # Not splitlines(), which also cuts at U+2028 and the like.
        text = decode(content, path).replace("\r\n", "\n").replace("\r", "\n")
        return [line for line in text.split("\n") if line.strip()]
    return [prompt_of(record, where) for where, record in parse_records(content, path)]
