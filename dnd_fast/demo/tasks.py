"""The demo's tasks: procedural data sets, one for each (skill, answer format, word domain).

A prompt is natural language and names skill and format only in words ("take the opening letter of
the tool cord between round parentheses" -> "(c)"). Training and test words are disjoint, and so are
the wordings: each skill has some that training never uses.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from dnd_fast.demo.vocabulary import DECORATION, DOMAINS, FORMATS, SKILLS
from dnd_fast.text import datasets

Split = Literal["train", "validation", "test"]

SHIPPED_SEED = 0  # of the files that come with the package
EXAMPLES = 192  # training examples of each task


class Example(NamedTuple):
    """A prompt, its only correct answer, and the word it is about."""

    prompt: str
    answer: str
    word: str

    @property
    def turn(self) -> datasets.Example:
        """The example as training takes it."""
        return datasets.Example(self.prompt, self.answer)


class Grade(NamedTuple):
    """What is right about a response."""

    exact: bool
    skill: bool  # whatever the decoration
    format: bool  # whatever is inside


@dataclass(frozen=True)
class Task:
    """One data set: a skill, an answer format and a domain of words."""

    skill: str
    format: str
    domain: str

    def __str__(self) -> str:
        return f"{self.skill}, {self.format}, {self.domain} words"

    @property
    def name(self) -> str:
        """Name of the task's file."""
        return f"{self.skill}-{self.format}-{self.domain}".replace(" ", "-")

    def answer(self, word: str) -> str:
        """Return the correct answer for ``word``."""
        return FORMATS[self.format].apply(SKILLS[self.skill].apply(word))

    def grade(self, response: str, word: str) -> Grade:
        """Compare a response with the answer for ``word``."""
        return Grade(
            exact=response == self.answer(word),
            skill=response.strip(DECORATION) == SKILLS[self.skill].apply(word),
            format=FORMATS[self.format].fits(response),
        )

    def examples(
        self, count: int, words: Split, seed: int, wordings: Split = "train"
    ) -> list[Example]:
        """Draw random examples; the order of words is the same for all tasks of a domain.

        Args:
            count: Number of examples.
            words: Which words; validation and test share theirs.
            seed: Seed of the draws.
            wordings: Which wordings of the skill.
        """
        rng = random.Random(f"{self} {words} {seed} {wordings}")
        word_rng = random.Random(f"{self.domain} {words} {seed}")
        choices = split_words(self.domain, words)
        drawn = [word_rng.choice(choices) for _ in range(count)]
        return [
            Example(self.prompt(word, rng, wordings), self.answer(word), word) for word in drawn
        ]

    def prompt(self, word: str, rng: random.Random, wordings: Split = "train") -> str:
        """Draw a random prompt about ``word``."""
        skill = SKILLS[self.skill]
        phrases = {
            "train": skill.wordings,
            "validation": skill.validation_wordings,
            "test": skill.test_wordings,
        }[wordings]
        noun = rng.choice(("", f"the {self.domain} ", f"the {self.domain} name "))
        request = rng.choice(phrases).format(noun + word)
        return f"{request} {rng.choice(FORMATS[self.format].wordings)}".strip()


def split_words(domain: str, words: Split) -> list[str]:
    """Split a domain's words: a quarter for validation and test, the rest for training."""
    shuffled = sorted(DOMAINS[domain])
    random.Random(7).shuffle(shuffled)
    quarter = len(shuffled) // 4
    return shuffled[quarter:] if words == "train" else shuffled[:quarter]


def split_tasks(seed: int, validation: int = 8, test: int = 12) -> dict[Split, list[Task]]:
    """Share out all combinations of skill and format, each with a random domain.

    Neither validation nor test holds a skill or a format more than twice, so that training sees
    every skill and every format in other combinations.
    """
    rng = random.Random(f"split {seed}")
    combinations = [(skill, form) for skill in SKILLS for form in FORMATS]

    def balanced(chosen: Sequence[tuple[str, str]]) -> bool:
        counts = Counter(name for pair in chosen for name in pair)
        return max(counts.values()) <= max(2, math.ceil(len(chosen) / len(SKILLS)))

    while True:
        rng.shuffle(combinations)
        if balanced(combinations[:test]) and balanced(combinations[test : test + validation]):
            break
    tasks = [Task(skill, form, rng.choice(list(DOMAINS))) for skill, form in combinations]
    return {
        "test": tasks[:test],
        "validation": tasks[test : test + validation],
        "train": tasks[test + validation :],
    }
