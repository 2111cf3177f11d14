"""Prompt, response and system prompt out of records in the forms that people have.

* ``prompt`` and ``response`` (or ``completion``), and ``system`` where there is one;
* ``question`` and ``answer``;
* ``instruction``, ``output`` and, where there is one, ``input``, which comes after the instruction;
* ``messages`` with ``role`` and ``content``, or ``conversations`` with ``from`` and ``value``: the
  last prompt and its response, after the turns before as shots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dnd_fast.errors import InvalidInput

PAIRS = (
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "output"),
)
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
EXPECTED = (
    "expected 'prompt' and 'response', 'question' and 'answer', 'instruction' and 'output', "
    "'messages', or 'conversations'"
)


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


def example_of(record: dict[str, Any], where: str) -> Example:
    """Return a record as an example.

    Raises:
        InvalidInput: there are no such keys, or what they hold is no text; the message begins with
            ``where``, and names the keys that were found.
    """
    for key in ("messages", "conversations"):
        if key in record and "prompt" not in record:
            system, texts = _turns(record[key], f"{where}: the key {key!r}")
            if len(texts) % 2:
                raise InvalidInput(f"{where}: {key} end without a response; remove the last turn.")
            *shots, example = _exchanges(texts)
            return Example(example.prompt, example.response, system, tuple(shots))
    for pair in PAIRS:
        if all(key in record for key in pair):
            prompt, response = (_text(record, key, where) for key in pair)
            system = record.get("system")
            if not isinstance(system, str | None):
                raise InvalidInput(f"{where}: the key 'system' holds {system!r}, expected text.")
            return Example(_with_input(prompt, pair[0], record, where), response, system)
    raise InvalidInput(f"{where}: found the keys {_keys(record)}; {EXPECTED}.")


def prompt_of(record: dict[str, Any], where: str) -> Any:
    """Return a record's prompt, whether or not there is a response to it.

    Raises:
        InvalidInput: there is none; the message names the keys that were found.
    """
    for key in ("messages", "conversations"):
        if key in record and "prompt" not in record:
            _, texts = _turns(record[key], f"{where}: the key {key!r}")
            return texts[(len(texts) - 1) // 2 * 2]
    for key, _ in PAIRS:
        if key in record:
            return _with_input(record[key], key, record, where)
    raise InvalidInput(
        f"{where}: there is no key 'prompt' in it, but {_keys(record)}; {EXPECTED}, of which the "
        "prompts are taken."
    )


def _turns(turns: Any, where: str) -> tuple[str | None, list[str]]:
    """The system prompt, and the texts of user and assistant in turn."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise InvalidInput(f"{where} holds no list of turns.")
    system: str | None = None
    texts: list[str] = []
    for number, turn in enumerate(turns):
        role = turn.get("role", turn.get("from"))
        kind = ROLES.get(role) if isinstance(role, str) else None
        wanted = ("user", "assistant")[len(texts) % 2]
        if kind not in ("system" if number == 0 else wanted, wanted):
            raise InvalidInput(f"{where}: turn {number + 1} is of {role!r}, expected {wanted!r}.")
        text = _content(turn.get("content", turn.get("value")), f"{where}: turn {number + 1}")
        if kind == "system":
            system = text
        else:
            texts.append(text)
    if not texts:
        raise InvalidInput(f"{where} holds no prompt.")
    return system, texts


def _content(content: Any, where: str) -> str:
    """A turn's text, which may come in parts."""
    if isinstance(content, list):
        parts: list[Any] = [part.get("text") if isinstance(part, dict) else 0 for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    if not isinstance(content, str):
        raise InvalidInput(f"{where} holds {content!r}, expected text.")
    return content


def _exchanges(texts: list[str]) -> list[Example]:
    return [Example(*pair) for pair in zip(texts[::2], texts[1::2], strict=True)]


def _with_input(prompt: Any, key: str, record: dict[str, Any], where: str) -> Any:
    """The prompt, and after an instruction what it is about."""
    if key != "instruction" or not record.get("input"):
        return prompt
    return f"{prompt}\n\n{_text(record, 'input', where)}"


def _text(record: dict[str, Any], key: str, where: str) -> str:
    text = record[key]
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput(f"{where}: the key {key!r} holds {text!r}, expected some text.")
    return text


def _keys(record: dict[str, Any]) -> str:
    return ", ".join(map(repr, record)) or "nothing"
