"""Broad skills about lists of words."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines
from dnd_fast.bench.experiments.natural.words import nouns, triples

Words = tuple[str, ...]
_COUNT = 240


def _drawn(name: str, draw: Callable[[random.Random], Words]) -> tuple[Words, ...]:
    """Draw different lists of words."""
    rng = random.Random(name)
    drawn: dict[Words, None] = {}
    while len(drawn) < _COUNT:
        drawn[draw(rng)] = None
    return tuple(drawn)


@cache
def quadruples() -> tuple[Words, ...]:
    """Return lists of four different nouns."""
    return _drawn("quadruples", lambda rng: tuple(rng.sample(nouns(), 4)))


@cache
def lists_of_some() -> tuple[Words, ...]:
    """Return lists of two to six different nouns."""
    return _drawn("lists of some", lambda rng: tuple(rng.sample(nouns(), rng.randint(2, 6))))


@cache
def lists_with_repetition() -> tuple[Words, ...]:
    """Return lists of four nouns of which two are the same."""

    def draw(rng: random.Random) -> Words:
        first, second, third = rng.sample(nouns(), 3)
        return tuple(rng.sample([first, first, second, third], 4))

    return _drawn("lists with repetition", draw)


@cache
def triples_of_clear_length() -> tuple[Words, ...]:
    """Return lists of three nouns whose lengths differ by two letters or more."""

    def draw(rng: random.Random) -> Words:
        while True:
            words = rng.sample(nouns(), 3)
            short, middle, long = sorted(map(len, words))
            if short + 2 <= middle <= long - 2:
                return tuple(words)

    return _drawn("triples of clear length", draw)


@cache
def triples_of_clear_order() -> tuple[Words, ...]:
    """Return lists of three nouns with different initials."""

    def draw(rng: random.Random) -> Words:
        while True:
            words = rng.sample(nouns(), 3)
            if len({word[0] for word in words}) == 3:
                return tuple(words)

    return _drawn("triples of clear order", draw)


SKILLS = {
    "second item": Skill(
        quadruples,
        answer=lambda words: words[1],
        text=", ".join,
        seen=lines("""
            What is the second item of {}?
            Item number two: {}
            Which word stands in position 2 of the list {}?
            I need the one after the first: {}.
            Skip one item of {} and give me the next.
            Second word, please: {}
            Who is runner-up if the ranking is {}?
            Pick element two out of {}.
        """),
        unseen=lines("""
            Index the array ({}) at 1, counting from 0.
            State the entry with exactly one before it: {}.
            Take silver from this order of finish: {}.
        """),
    ),
    "longest word": Skill(
        triples_of_clear_length,
        answer=lambda words: max(words, key=len),
        text=", ".join,
        seen=lines("""
            Which is the longest word: {}?
            Longest of these, in letters: {}
            Find the word with the most letters among {}.
            I need the longest word of {}.
            Choose the lengthiest word from {}.
            Of the words {}, which takes up most space in print?
            Compare {} by length; which one wins?
            Maximum number of letters: {} - which word has it?
        """),
        unseen=lines("""
            Spelling which of these takes the most time? {}
            State the word that outdoes the others in length: {}.
            Evaluate max(words, key=len) for {}.
        """),
    ),
    "shortest word": Skill(
        triples_of_clear_length,
        answer=lambda words: min(words, key=len),
        text=", ".join,
        seen=lines("""
            Which is the shortest word: {}?
            Shortest of these, in letters: {}
            Find the word with the fewest letters among {}.
            I need the shortest word of {}.
            Choose the briefest word from {}.
            Of the words {}, which takes up least space in print?
            Compare {} by length; which one loses?
            Minimum number of letters: {} - which word has it?
        """),
        unseen=lines("""
            Spelling which of these takes the least time? {}
            State the word that all others exceed in length: {}.
            Evaluate min(words, key=len) for {}.
        """),
    ),
    "alphabetically first": Skill(
        triples_of_clear_order,
        answer=min,
        text=", ".join,
        seen=lines("""
            Which comes first in the alphabet: {}?
            First by alphabet: {}
            Of {}, which word is earliest in a dictionary?
            I file {} from A to Z; what is on top?
            Find the word among {} whose initial is nearest to A.
            Put {} in alphabetical order, then give only the head.
            Which of {} would a dictionary reach before the others?
            The one closest to A, please: {}
        """),
        unseen=lines("""
            Browsing a lexicon from its start, I meet which of {} soonest?
            State the word that leads when {} are put in ABC order.
            Evaluate min() of the strings {}.
        """),
    ),
    "alphabetically last": Skill(
        triples_of_clear_order,
        answer=max,
        text=", ".join,
        seen=lines("""
            Which comes last in the alphabet: {}?
            Last by alphabet: {}
            Of {}, which word is latest in a dictionary?
            I file {} from A to Z; what is at the bottom?
            Find the word among {} whose initial is nearest to Z.
            Put {} in alphabetical order, then give only the tail.
            Which of {} would a dictionary reach after the others?
            The one closest to Z, please: {}
        """),
        unseen=lines("""
            Browsing a lexicon from its end, I meet which of {} soonest?
            State the word that closes when {} are put in ABC order.
            Evaluate max() of the strings {}.
        """),
    ),
    "item count": Skill(
        lists_of_some,
        answer=lambda words: str(len(words)),
        text=", ".join,
        seen=lines("""
            How many items are there: {}?
            Count the words, answer in digits: {}
            Number of entries in {}:
            I need the length of the list {}, as a number.
            What is len() of the list {}?
            My shopping list says {}. How many things is that?
            Tally these: {}.
            Give the size of the set {} as a figure.
        """),
        unseen=lines("""
            If I tick off {}, how many ticks do I make?
            State the amount of words, as a digit: {}.
            One finger for each of {}; how many fingers?
        """),
    ),
    "sorted list": Skill(
        triples_of_clear_order,
        answer=lambda words: ", ".join(sorted(words)),
        text=", ".join,
        seen=lines("""
            Sort alphabetically: {}.
            Put the words {} in alphabetical order.
            From A to Z: {}
            I need {} sorted by initial.
            Arrange {} as a dictionary would.
            What does sorted() make of {}?
            Order the list {} by the alphabet.
            Alphabetize {}, please.
        """),
        unseen=lines("""
            An index at the end of a book has {}; in what order?
            State {} in ABC order.
            Shuffle {} until their initials ascend.
        """),
    ),
    "joined list": Skill(
        triples,
        answer=lambda words: f"{words[0]}, {words[1]} and {words[2]}",
        text=", ".join,
        seen=lines("""
            Write {} with "and" before the end.
            Replace the final comma of {} by and.
            Make {} read like a phrase, with and.
            I need {} for a text, joined by comma and "and".
            How does one say {} with the word and?
            Link the last two of {} with and.
            Enumeration with "and", please: {}
            Connect the words {} so that and comes before the third.
        """),
        unseen=lines("""
            Speak the list {} as a person would, using and.
            State {} with the conjunction that lists end on.
            Put an "and" where it belongs in {}.
        """),
    ),
    "without the first": Skill(
        quadruples,
        answer=lambda words: ", ".join(words[1:]),
        text=", ".join,
        seen=lines("""
            Remove the first item from {}.
            Everything but the first: {}
            What is left of {} after its first word is gone?
            I need the list {} minus its head.
            Delete the opening word of {} and keep the others.
            Cross out item one: {}
            Strike the beginning of the list {}, one word.
            Start the list {} with its second word.
        """),
        unseen=lines("""
            The earliest in the queue {} leaves; who stays?
            State {} short of its leading entry.
            Evaluate list[1:] for {}.
        """),
    ),
    "repeated item": Skill(
        lists_with_repetition,
        answer=lambda words: max(words, key=words.count),
        text=", ".join,
        seen=lines("""
            Which word occurs twice: {}?
            Find the duplicate: {}
            What is listed two times in {}?
            I need the word that {} repeats.
            Name the double entry of {}.
            Spot the repetition in {}, one word.
            One of {} is there once too often: which?
            Most frequent word, please: {}
        """),
        unseen=lines("""
            Whom would I greet again on meeting {}?
            State the entry that has a twin: {}.
            Clean up {}; which word can lose a copy?
        """),
    ),
}
