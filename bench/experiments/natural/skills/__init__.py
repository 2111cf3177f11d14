"""All skills by name."""

from __future__ import annotations

from typing import Any

from dnd_fast.bench.experiments.natural.skills import (
    countries,
    grammar,
    letters,
    meaning,
    numbers,
    texts,
)
from dnd_fast.bench.experiments.natural.skills.skill import Skill

SKILLS: dict[str, Skill[Any]] = {
    **grammar.SKILLS,
    **meaning.SKILLS,
    **letters.SKILLS,
    **texts.SKILLS,
    **numbers.SKILLS,
    **countries.SKILLS,
}
