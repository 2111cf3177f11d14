"""Skills about the letters of a word."""

from __future__ import annotations

from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines
from dnd_fast.bench.experiments.natural.words import words

SKILLS = {
    "first letter": Skill(
        words,
        answer=lambda word: word[0],
        seen=lines("""
            What is the first letter of {}?
            Give the initial letter of {}.
            With which letter does {} start?
            Tell me the letter that {} begins with.
            Which letter comes first in {}?
            Write only the first letter of {}.
            Name the opening letter of {}.
        """),
        unseen=lines("""
            Under which letter would a dictionary list {}?
            State the initial of the word {}.
            Cut {} down to the letter at its front.
        """),
    ),
    "last letter": Skill(
        words,
        answer=lambda word: word[-1],
        seen=lines("""
            What is the last letter of {}?
            Give the final letter of {}.
            With which letter does {} end?
            Tell me the letter that {} ends with.
            Which letter comes last in {}?
            Write only the last letter of {}.
            Name the closing letter of {}.
        """),
        unseen=lines("""
            At which letter does {} stop?
            State the letter at the very end of {}.
            Cut {} down to the letter at its back.
        """),
    ),
    "letter count": Skill(
        words,
        answer=lambda word: str(len(word)),
        teachable=False,
        seen=lines("""
            How many letters does {} have?
            Count the letters of {}.
            What is the length of the word {}?
            Tell me the number of letters in {}.
            Give the letter count of {}.
            How long is {}, in letters?
            Say how many letters are in {}.
        """),
        unseen=lines("""
            Of how many letters is {} made up?
            State the size of the word {} in letters.
            If I spell {}, how many letters do I say?
        """),
    ),
    "upper case": Skill(
        words,
        answer=str.upper,
        teachable=False,
        seen=lines("""
            Write {} in capital letters.
            Put {} into uppercase.
            Give {} in all caps.
            Change every letter of {} to a capital.
            Turn {} into upper case.
            Convert all letters of {} to capitals.
            Spell {} with capital letters only.
        """),
        unseen=lines("""
            Type {} as if caps lock were on.
            State {} in block capitals.
            How does {} look without any small letters?
        """),
    ),
    "capitalise": Skill(
        words,
        answer=str.capitalize,
        seen=lines("""
            Write {} with a capital first letter.
            Capitalize the word {}.
            Make only the first letter of {} uppercase.
            Give {} as it looks at the start of a sentence.
            Begin {} with a capital letter.
            Change the first letter of {} to a capital.
            Put an initial capital on {}.
        """),
        unseen=lines("""
            How would {} be written as the first word of a text?
            State {} with a big letter in front.
            Write {} like a proper name.
        """),
    ),
}
