"""All skills by name: those of the benchmark, and further ones that widen training."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from dnd_fast.bench.experiments.natural.skills import (
    almanac,
    arithmetic,
    codes,
    countries,
    dates,
    facts,
    grammar,
    languages,
    letters,
    lists,
    meaning,
    measures,
    numbers,
    numerals,
    people,
    places,
    sentences,
    spelling,
    texts,
)
from dnd_fast.bench.experiments.natural.skills.skill import Skill

_MODULES: tuple[ModuleType, ...] = (grammar, meaning, letters, texts, numbers, countries)
_BROAD_MODULES: tuple[ModuleType, ...] = (
    arithmetic,
    numerals,
    measures,
    dates,
    almanac,
    languages,
    codes,
    places,
    facts,
    lists,
    people,
    sentences,
    spelling,
)


def _merged(modules: tuple[ModuleType, ...]) -> dict[str, Skill[Any]]:
    return {name: skill for module in modules for name, skill in module.SKILLS.items()}


# The splits of a seed depend on the order of these.
SKILLS = _merged(_MODULES)
BROAD_SKILLS = _merged(_BROAD_MODULES)
ALL_SKILLS = {**SKILLS, **BROAD_SKILLS}
