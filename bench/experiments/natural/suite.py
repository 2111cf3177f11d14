"""The suite: tasks, which of them train, and their questions.

A task is a skill in an answer format. Its questions come at three levels: "full" names the skill
and the format in words, "ask" the skill only, "bare" is the item alone, so that only the adapter
says what to do. A response is right where it equals the only right one, character by character.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dnd_fast.bench.experiments.natural.formats import FORMATS
from dnd_fast.bench.experiments.natural.skills import ALL_SKILLS, BROAD_SKILLS, SKILLS
from dnd_fast.text.datasets import Example

Level = Literal["full", "ask", "bare"]
Part = Literal["train", "test"]  # of items
Wordings = Literal["seen", "unseen"]

LEVELS: tuple[Level, ...] = ("full", "ask", "bare")
# Each held-out skill has a twin that is trained: singular, comparative, first word, name, …
UNSEEN_SKILLS = ("plural", "superlative", "continent", "last word", "capitalise", "year")
UNSEEN_FORMATS = ("arrow", "bullet")
TRAIN_TASKS, VALIDATION_TASKS, TEST_TASKS = 200, 20, 24
FORMATS_OF_UNSEEN_SKILL = 2
SKILLS_OF_UNSEEN_FORMAT = 6
FORMATS_OF_BROAD_SKILL = 3
TEST_SHARE = 1 / 3  # of the items


@dataclass(frozen=True)
class Task:
    """A skill in an answer format."""

    skill: str
    format: str

    def __str__(self) -> str:
        return f"{self.skill}, {self.format}"

    @property
    def name(self) -> str:
        """Name of the task's files."""
        return f"{self.skill} {self.format}".replace(" ", "-")

    def response(self, item: Any) -> str:
        """Return the right response to a question about ``item``."""
        return FORMATS[self.format].apply(ALL_SKILLS[self.skill].answer(item))

    def question(
        self, item: Any, level: Level, rng: random.Random, wordings: Wordings = "seen"
    ) -> str:
        """Return a question about ``item``, in one of the wordings, drawn from ``rng``."""
        skill, form = ALL_SKILLS[self.skill], FORMATS[self.format]
        text = skill.text(item)
        if level == "bare":
            return text
        question = rng.choice(getattr(skill, wordings)).replace("{}", text)
        if level == "ask":
            return question
        request = rng.choice(getattr(form, wordings))
        return f"{question} {request}" if rng.random() < 0.7 else f"{request} {question}"

    def examples(
        self,
        part: Part,
        level: Level,
        count: int,
        *,
        seed: int,
        wordings: Wordings = "seen",
        draw: str = "",
    ) -> list[Example]:
        """Draw questions with their responses; items repeat only where there are fewer.

        Args:
            part: Which items.
            level: What the questions say.
            count: Number of examples.
            seed: Seed of the split of the items, and of the draws.
            wordings: Which wordings of skill and format.
            draw: Name of the draw: another name, other items and wordings.
        """
        rng = random.Random(f"{self} {part} {level} {wordings} {draw} {seed}")
        items = split_items(self.skill, part, seed)
        rng.shuffle(items)
        drawn = [items[index % len(items)] for index in range(count)]
        # An empty system prompt: templates such as SmolLM2's would otherwise put in their own.
        return [
            Example(self.question(item, level, rng, wordings), self.response(item), system="")
            for item in drawn
        ]


def split_items(skill: str, part: Part, seed: int) -> list[Any]:
    """Return a skill's items for training or for tests.

    An item is one for tests, or not, in all skills that ask about it, whatever their question: no
    training task betrays the plural of a noun that tests ask for. The same goes for a pair and the
    pair the other way round.
    """
    items, tells = ALL_SKILLS[skill].items(), ALL_SKILLS[skill].tells
    return [
        item
        for item in items
        if any(_is_for_tests(each, seed) for each in tells(item)) == (part == "test")
    ]


def split_tasks(seed: int) -> dict[str, list[Task]]:
    """Share out the combinations of skills and formats.

    Returns:
        ``train``, ``validation`` and ``test``, where every test task is another skill, and every
        known format occurs equally often; and, with skills or formats of which training has none,
        ``unseen-skill`` and ``unseen-format``.
    """
    rng = random.Random(f"tasks {seed}")
    skills = [skill for skill in SKILLS if skill not in UNSEEN_SKILLS]
    formats = [form for form in FORMATS if form not in UNSEEN_FORMATS]
    test = _spread(rng, skills, formats, TEST_TASKS)
    validation = _spread(rng, skills, formats, VALIDATION_TASKS)
    while set(validation) & set(test):
        validation = _spread(rng, skills, formats, VALIDATION_TASKS)
    rest = [Task(skill, form) for skill in skills for form in formats]
    rest = [task for task in rest if task not in test and task not in validation]
    learnable = [skill for skill in skills if SKILLS[skill].teachable]
    return {
        "train": rng.sample(rest, TRAIN_TASKS),
        "validation": validation,
        "test": test,
        "unseen-skill": [
            Task(skill, form)
            for skill in UNSEEN_SKILLS
            for form in rng.sample(formats, FORMATS_OF_UNSEEN_SKILL)
        ],
        "unseen-format": [
            Task(skill, form)
            for form in UNSEEN_FORMATS
            for skill in rng.sample(learnable, SKILLS_OF_UNSEEN_FORMAT)
        ],
    }


def broad_tasks(seed: int) -> list[Task]:
    """Return tasks of the broad skills, each in some of the formats that train.

    All of them are for training: they show a generator more things to be asked for.
    """
    formats = [form for form in FORMATS if form not in UNSEEN_FORMATS]
    return [
        Task(skill, form)
        for skill in BROAD_SKILLS
        for form in random.Random(f"broad {skill} {seed}").sample(formats, FORMATS_OF_BROAD_SKILL)
    ]


def other_task(task: Task, tasks: Sequence[Task], seed: int) -> Task:
    """Return one of ``tasks`` with another skill and another format: a source of wrong prompts."""
    others = [each for each in tasks if each.skill != task.skill and each.format != task.format]
    return random.Random(f"other {task} {seed}").choice(others)


def random_strings(task: Task, count: int, seed: int) -> list[str]:
    """Return strings of letters that mean nothing, about as long as questions."""
    rng = random.Random(f"random strings {task} {seed}")

    def word() -> str:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9)))

    return [" ".join(word() for _ in range(rng.randint(8, 16))) for _ in range(count)]


def _is_for_tests(item: Any, seed: int) -> bool:
    parts = sorted(map(str, item)) if isinstance(item, tuple) else [str(item)]
    return random.Random(f"{' '.join(parts)} {seed}").random() < TEST_SHARE


def _spread(
    rng: random.Random, skills: Sequence[str], formats: Sequence[str], count: int
) -> list[Task]:
    """Draw tasks of different skills, with the formats in turn."""
    turns = rng.sample(formats, len(formats))
    return [
        Task(skill, turns[index % len(turns)])
        for index, skill in enumerate(rng.sample(skills, count))
    ]
