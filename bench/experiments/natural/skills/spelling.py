"""Broad skills about how words are spelled and written."""

from __future__ import annotations

import random
from functools import cache

from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines
from dnd_fast.bench.experiments.natural.words import adjectives, nouns, words


@cache
def phrases() -> tuple[tuple[str, str], ...]:
    """Return phrases of an adjective and a noun."""
    rng = random.Random("phrases")
    drawn = ((rng.choice(adjectives()), rng.choice(nouns())) for _ in range(240))
    return tuple(dict.fromkeys(drawn))


SKILLS = {
    "second letter": Skill(
        words,
        answer=lambda word: word[1],
        seen=lines("""
            What is the second letter of {}?
            Letter number two of {}:
            Which letter follows the initial in {}?
            I need the letter in position 2 of {}.
            Spell {}; which letter do you say second?
            Name letter two of the word {}.
            In {}, what stands right behind the opening letter?
            Second letter, please: {}
        """),
        unseen=lines("""
            Index {} at 1, counting from 0.
            State the letter with just one before it in {}.
            Between the first and the third letter of {}, what is there?
        """),
    ),
    "first two letters": Skill(
        words,
        answer=lambda word: word[:2],
        seen=lines("""
            What are the first two letters of {}?
            Opening pair of letters in {}:
            Shorten {} to two letters.
            I need the two letters that {} starts with.
            Keep letters one and two of {}, drop the others.
            Which two letters begin the word {}?
            Two-letter beginning, please: {}
            A search box has completed {} after two letters: which?
        """),
        unseen=lines("""
            State how {} starts, in two characters.
            Truncate {} after its second letter.
            Evaluate "{}"[:2].
        """),
    ),
    "last two letters": Skill(
        words,
        answer=lambda word: word[-2:],
        seen=lines("""
            What are the last two letters of {}?
            Closing pair of letters in {}:
            Which two letters end the word {}?
            I need the two letters that {} finishes with.
            Drop everything from {} but its two final letters.
            Two-letter ending, please: {}
            Read {} up to its close: which two letters come at the end?
            With what pair of letters does {} conclude?
        """),
        unseen=lines("""
            State how {} stops, in two characters.
            Evaluate "{}"[-2:].
            Delete letters of {} from the left until two remain.
        """),
    ),
    "lower case": Skill(
        words,
        answer=str,
        text=str.upper,
        seen=lines("""
            Write {} in small letters.
            Put {} into lower case.
            Lowercase: {}
            I need {} without capitals.
            Stop shouting {}; write it quietly.
            What does str.lower() return for {}?
            Make every capital in {} a small letter.
            {} in lowercase letters, please.
        """),
        unseen=lines("""
            Somebody left caps lock on and typed {}; repair it.
            State {} with all its letters reduced.
            How does {} appear in the middle of a sentence?
        """),
    ),
    "repeated word": Skill(
        words,
        answer=lambda word: f"{word} {word}",
        seen=lines("""
            Write {} twice.
            Say the word {} two times.
            Repeat {} once, with a space between.
            I need {} in duplicate.
            Double the word {}.
            {}, and again the same word, please.
            Echo: what comes back if I shout {} twice?
            Print two copies of {} on one line.
        """),
        unseen=lines("""
            Stammer: say {} and once more the same.
            Let {} stand next to itself.
            State {} a first and a second time.
        """),
    ),
    "letter by letter": Skill(
        words,
        answer="-".join,
        seen=lines("""
            Spell {} with hyphens between the letters.
            Letter by letter, joined by hyphens: {}
            Put a hyphen after every letter of {} but the last.
            I need the letters of {}, hyphenated.
            How is {} spelled? Separate letters by hyphens.
            Insert hyphens between all letters of {}.
            As in s-k-y, spell {}.
            Stretch {} out with a hyphen in every gap.
        """),
        unseen=lines("""
            At a spelling bee you get {}; write it like c-o-w.
            State each letter of {} in order, with - in between.
            Evaluate "-".join("{}").
        """),
    ),
    "hashtag": Skill(
        phrases,
        answer=lambda phrase: "#" + "".join(phrase),
        text=" ".join,
        seen=lines("""
            Make a hashtag of {}.
            Write {} as a hashtag in small letters.
            Hashtag for {}:
            I post about {}; which hashtag do I use?
            Put # in front of {} and close the gap.
            Turn the phrase {} into one hashtag.
            Tag, please, with # and no space: {}
            How would {} look as a social media tag with #?
        """),
        unseen=lines("""
            Label my photo with a # tag that says {}.
            State {} the way hashtags are written.
            Fuse {} and let a # precede it.
        """),
    ),
}
