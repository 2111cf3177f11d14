"""What a skill is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


def lines(text: str) -> tuple[str, ...]:
    """Return the lines of ``text`` without indentation and blank lines."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def pairs(text: str) -> dict[str, str]:
    """Return what is listed as "key value, key value"; a key may have several words."""
    entries = (entry.rpartition(" ") for entry in " ".join(text.split()).split(", "))
    return {key: value for key, _, value in entries}


@dataclass(frozen=True)
class Skill(Generic[Item]):
    """A question that can be asked about many items, with one right answer for each.

    Attributes:
        items: Returns the items, always in the same order. Skills about the same things share
            their items, so that a split of the items holds for all of them.
        answer: Returns the right answer for an item.
        seen: Wordings of the question, with ``{}`` for the item.
        unseen: Wordings that training never uses.
        text: Writes an item as a question shows it.
        tells: Returns the items, of any skill, about which an item's question and answer tell
            something: an item is for tests where one of them is.
        teachable: Whether a model of 135 M parameters can be expected to learn the skill from a
            hundred examples; what takes knowledge or spelling that it lacks is kept as a negative.
    """

    items: Callable[[], Sequence[Item]]
    answer: Callable[[Item], str]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    text: Callable[[Item], str] = str
    tells: Callable[[Item], Sequence[object]] = lambda item: (item,)
    teachable: bool = True
