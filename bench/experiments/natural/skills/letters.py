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
            First letter of {}:
            I need the letter at the start of {}.
            {} begins with which letter?
            Abbreviate {} to one letter.
            B is for ball; what letter is for {}?
            Spell {} and stop after one letter.
            Initial, please: {}
            Pick the leftmost letter in {}.
            When I write {}, which letter do I put down before the others?
            Remove all but the first letter from {}.
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
            Last letter of {}:
            I need the letter at the end of {}.
            {} finishes on which letter?
            Which letter closes the spelling of {}?
            Spell {} from the back, one letter only.
            End letter, please: {}
            Pick the rightmost letter in {}.
            When I write {}, which letter do I put down after all the others?
            Remove all but the last letter from {}.
            The word {} has a tail of one letter: which?
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
            Letters in {}:
            I need the length of {} in letters.
            {} fills how many squares of a crossword?
            Number of characters in {}, please.
            What would a program print for len("{}")?
            Sky has 3 letters; how many has {}?
            Each letter of {} takes one tile; how many tiles?
            Determine the letter total for {}.
            Tell how long the spelling of {} is, as a number.
            Measure {} in letters.
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
            Uppercase: {}
            I need {} in big letters throughout.
            SHOUT the word {} in writing.
            {} in all capitals, please.
            Make {} look like a headline, capitals only.
            What does str.upper() return for {}?
            Raise every letter of {} to upper case.
            sky becomes SKY; {} becomes what?
            Replace the small letters of {} by capital ones.
            For a sign, print {} entirely in capitals.
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
            Initial capital: {}
            I need {} with an uppercase initial.
            sky becomes Sky; {} becomes what?
            What does str.capitalize() return for {}?
            {} in title case, please.
            Raise the first letter of {} to upper case, and no other.
            Type {} with shift held for one letter, the first.
            A line of verse begins with {}; capitalise it.
            As a heading, {} gets one capital; write it.
            Replace just the opening letter of {} by its capital.
        """),
        unseen=lines("""
            How would {} be written as the first word of a text?
            State {} with a big letter in front.
            Write {} like a proper name.
        """),
    ),
}
