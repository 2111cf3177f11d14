"""Prompts of a task: reading, checking and sampling them."""

from __future__ import annotations

import json
import os
import random
import warnings
from collections.abc import Sequence
from pathlib import Path

from dnd_fast.errors import InvalidInput


def read_prompts(source: str | os.PathLike[str] | Sequence[str]) -> list[str]:
    """The prompts of one task.

    Args:
        source: a list of strings, a ``.txt`` file with one prompt a line, or a ``.jsonl`` file with
            one object a line and its prompt under the key ``prompt``. Blank lines are skipped.

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
            ".txt or .jsonl file."
        )
    if not prompts:
        raise InvalidInput(f"{where}: there are no prompts; give at least one.")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise InvalidInput(f"{where}[{i}] is a {type(prompt).__name__}, expected a string.")
        if not prompt.strip():
            raise InvalidInput(f"{where}[{i}] is empty; remove it.")
        if prompt.encode(errors="ignore").decode() != prompt:
            raise InvalidInput(f"{where}[{i}] holds half a surrogate pair, which is no text.")
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


def _read_file(path: Path) -> list[str]:
    if path.suffix not in (".txt", ".jsonl"):
        raise InvalidInput(
            f"{path}: prompts are read from .txt (one a line) or .jsonl (key 'prompt') files. "
            "To use one string as the only prompt, put it into a list."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of prompts.")
    try:
        # Not splitlines(), which also cuts at U+2028 and the like, legal within a JSON string.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text ({error}); convert it first.") from error
    if path.suffix == ".txt":
        return [line for line in lines if line.strip()]
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{path}, line {number}: not valid JSON ({error}).") from error
        if not isinstance(record, dict) or "prompt" not in record:
            raise InvalidInput(f"{path}, line {number}: there is no key 'prompt' in it.")
        prompts.append(record["prompt"])
    return prompts
