"""Test questions: examples, with the options to choose from or the program that checks an answer.

One JSON object a line, as in training data sets, with further keys where a metric needs them:

* ``options``: list of responses to choose from (metric ``choice``); by default the responses that
  occur in the file.
* ``test``: Python code that runs after the generated code and raises where it is wrong (metric
  ``pass@k``). ``response`` may then be missing.
* ``entry_point``: name of the function wanted. The prompt is then Python code itself, which the
  generated code continues or repeats, and a function ``check`` in ``test`` is called with the
  function: the form of HumanEval.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dnd_fast.errors import InvalidInput
from dnd_fast.text.datasets import Example, read_records

Needed = Literal["response", "test"]


@dataclass(frozen=True)
class Question(Example):
    """An example to test on; see the module for the further fields."""

    options: tuple[str, ...] = ()
    test: str = ""
    entry_point: str = ""


def read_questions(path: str | Path, needed: Needed = "response") -> list[Question]:
    """Read the questions in a ``.jsonl`` file.

    Args:
        path: Path of the file.
        needed: The key that a question cannot be judged without.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidInput: no questions, a key is missing or of the wrong type, undecodable text,
            malformed JSON; the message names the line.
    """
    return [_question(record, where, needed) for where, record in read_records(path)[1]]


def _question(record: dict[str, Any], where: str, needed: Needed) -> Question:
    texts = {}
    for key in ("prompt", "response", "system", "test", "entry_point"):
        value = record.get(key)
        text = "" if value is None else value
        if not isinstance(text, str) or (key in ("prompt", needed) and not text.strip()):
            raise InvalidInput(f"{where}: the key {key!r} holds {text!r}, expected some text.")
        texts[key] = text
    options = record.get("options", [])
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise InvalidInput(
            f"{where}: the key 'options' holds {options!r}, expected a list of text."
        )
    system = texts.pop("system")
    given = record.get("system") is not None  # an empty one takes the place of a template's own
    return Question(
        texts["prompt"],
        texts["response"],
        system if given else None,
        options=tuple(options),
        test=texts["test"],
        entry_point=texts["entry_point"],
    )
