"""Words, from the packages lemminflect and Faker: items that several skills ask about.

Words with more than one accepted form ("learned", "learnt") are left out, so that every question
has one right answer.
"""

from __future__ import annotations

import random
from functools import cache

from faker.providers.lorem.en_US import Provider
from lemminflect import getAllLemmas, getInflection

# Hardly nouns, in no use in the plural, rude, or with the plural of another ("bases").
_ODD_NOUNS = set("nothing inside outside aside till sir breast god devil math basis".split())
# More than one past form is in use, though the dictionary has one.
_ODD_VERBS = {"fit"}
# Hardly compared, or the dictionary's form is wrong ("freeer").
_ODD_ADJECTIVES = set(
    "able civil common dead dear distinct drunk exact few fit free gross less little much real "
    "right secure severe sorry spare still sure true unhappy unlikely vague wrong".split()
)
_MORE_ADJECTIVES = (
    "bold coarse damp dense dull faint fierce gentle greedy harsh juicy keen lazy mild moist "
    "noisy pale plain quaint ripe rude shallow slim small sour stale steep stern swift "
    "tame tasty tidy wealthy witty"
).split()
# Of several kinds, though the dictionary has one.
_AMBIGUOUS = {"act", "complete", "several"}
_TAGS = {"noun": "NOUN", "verb": "VERB", "adjective": "ADJ"}


@cache
def inflection(word: str, tag: str) -> str | None:
    """Return the form of ``word`` with a Penn Treebank tag; None where there is not exactly one."""
    forms = getInflection(word, tag=tag, inflect_oov=False)
    return forms[0] if len(forms) == 1 else None


@cache
def nouns() -> tuple[str, ...]:
    """Countable nouns whose plural differs from their singular."""
    return tuple(
        word
        for word in _listed("noun")
        if word not in _ODD_NOUNS and inflection(word, "NNS") not in (None, word)
    )


@cache
def verbs() -> tuple[str, ...]:
    """Verbs with one past form, which differs from the infinitive."""
    return tuple(
        word
        for word in _listed("verb")
        if word not in _ODD_VERBS
        and inflection(word, "VBD") not in (None, word)
        and inflection(word, "VBG")
        and inflection(word, "VBZ")
    )


@cache
def adjectives() -> tuple[str, ...]:
    """Adjectives that are compared with -er and -est, or irregularly."""
    return tuple(
        word
        for word in dict.fromkeys([*_listed("adjective"), *_MORE_ADJECTIVES])
        if word not in _ODD_ADJECTIVES and inflection(word, "JJR") and inflection(word, "JJS")
    )


@cache
def unambiguous_words() -> dict[str, str]:
    """Map words that are a noun, a verb or an adjective and nothing else to what they are."""
    return {word: part for part, tag in _TAGS.items() for word in _only(part, tag)[:100]}


@cache
def words() -> tuple[str, ...]:
    """Words of three to eight letters, of all kinds."""
    pool = [word for word in (*nouns(), *verbs(), *adjectives()) if 3 <= len(word) <= 8]
    return tuple(random.Random("words").sample(list(dict.fromkeys(pool)), 240))


@cache
def triples() -> tuple[tuple[str, str, str], ...]:
    """Lists of three different nouns."""
    rng = random.Random("triples")
    drawn = (rng.sample(nouns(), 3) for _ in range(240))
    return tuple((first, second, third) for first, second, third in drawn)


def _only(part: str, tag: str) -> list[str]:
    return [
        word
        for word in _listed(part)
        if set(getAllLemmas(word)) == {tag} and word not in _AMBIGUOUS
    ]


def _listed(part: str) -> list[str]:
    """Faker's words of a part of speech that are base forms, each once."""
    return [
        word
        for word in dict.fromkeys(Provider.parts_of_speech[part])
        if getAllLemmas(word).get(_TAGS[part]) == (word,)
    ]
