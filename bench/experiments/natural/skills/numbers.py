"""Skills about numbers; their names in words come from num2words."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from num2words import num2words

from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines


def integers() -> Sequence[int]:
    """Return the numbers that are asked about."""
    return range(1, 241)


@cache
def summands() -> tuple[tuple[int, int], ...]:
    """Return pairs of numbers from 1 to 30."""
    pairs = [(a, b) for a in range(1, 31) for b in range(1, 31)]
    return tuple(random.Random("summands").sample(pairs, 240))


@cache
def rivals() -> tuple[tuple[int, int], ...]:
    """Return pairs of different numbers from 1 to 99."""
    pairs = [(a, b) for a in range(1, 100) for b in range(1, 100) if a != b]
    return tuple(random.Random("rivals").sample(pairs, 240))


def in_words(number: int) -> str:
    """Return a number's English name."""
    return str(num2words(number))


def ordinal(number: int) -> str:
    """Return a number with its ordinal suffix."""
    return str(num2words(number, to="ordinal_num"))


def _joined(pair: tuple[int, int]) -> str:
    return f"{pair[0]} and {pair[1]}"


SKILLS = {
    "next": Skill(
        integers,
        answer=lambda number: str(number + 1),
        seen=lines("""
            Which number comes after {}?
            What is the number following {}?
            Count one further than {}.
            Give the next number after {}.
            Which number is one more than {}?
            Add one to {}.
            Name the successor of {}.
            {} + 1 = ?
            Next integer up from {}:
            I need the number that follows {}, please.
            What do you get when 1 is added to {}?
            After {} comes what?
            Go up one step from {}.
            As a calculator, compute {} plus 1.
            I am on page {}; which page is next?
            Fill the gap: {}, ___
            Could you move one place to the right of {} on the number line?
        """),
        unseen=lines("""
            Increase {} by one.
            State the whole number right above {}.
            I have counted up to {}; how do I continue?
        """),
    ),
    "previous": Skill(
        integers,
        answer=lambda number: str(number - 1),
        seen=lines("""
            Which number comes before {}?
            What is the number preceding {}?
            Count one back from {}.
            Give the number just before {}.
            Which number is one less than {}?
            Take one away from {}.
            Name the predecessor of {}.
            {} - 1 = ?
            Next integer down from {}:
            I need the number that {} follows, please.
            What remains when 1 is subtracted from {}?
            Before {} comes what?
            Go down one step from {}.
            As a calculator, compute {} minus 1.
            I am on page {}; which page was before it?
            Fill the gap: ___, {}
            Could you move one place to the left of {} on the number line?
        """),
        unseen=lines("""
            Decrease {} by one.
            State the whole number right below {}.
            I count down and have reached {}; how do I continue?
        """),
    ),
    "ordinal": Skill(
        integers,
        answer=ordinal,
        seen=lines("""
            What is the ordinal of {}?
            Write {} as an ordinal with its suffix.
            Give the ordinal form of {}.
            Add the right suffix, st, nd, rd or th, to {}.
            Turn the number {} into a rank such as 5th.
            How is the position {} written in a ranking?
            Change {} from a cardinal to an ordinal number.
            {} as a rank, like 1st or 2nd:
            I need {} the way dates put it, as in 3rd.
            Please make {} ordinal, digits plus ending.
            What does {} look like as an ordinal, in figures?
            Convert {} to the pattern 1st, 2nd, 3rd.
            Ordinal number for {}, abbreviated:
            As an editor, append the ordinal ending to {}.
            Today is day {} of the trip; which day, as in 4th?
            Attach the ordinal letters to {}.
            Item number {} is the what? Use figures, as in 7th.
        """),
        unseen=lines("""
            A runner finishes in place {}; write it in short.
            State {} with st, nd, rd or th.
            Which digits and letters name chapter {} in order?
        """),
    ),
    "number in words": Skill(
        integers,
        answer=in_words,
        seen=lines("""
            Write the number {} in words.
            Spell out {}.
            How is {} written in words?
            Give the English words for {}.
            Turn the digits {} into words.
            Say the number {} in full.
            Express {} without digits.
            {} as words, please.
            I need {} written out.
            What is {} called in plain English?
            Put {} into English words.
            Verbalize {}.
            With words only, {} is what?
            As a proofreader, write out the number {}.
            Could you type {} without using figures?
            English name of the number {}:
            Which words stand for {}?
        """),
        unseen=lines("""
            How would one read {} aloud?
            State {} as it is written on a cheque.
            Replace the figures {} by letters.
        """),
    ),
    "digits": Skill(
        integers,
        answer=str,
        text=in_words,
        seen=lines("""
            Write {} in digits.
            Which number is {}?
            Give the digits of {}.
            Turn {} into a number.
            Express {} in figures.
            How is {} written with digits?
            Convert the words {} to digits.
            {} = ? Use digits.
            I need {} as a number.
            Numeric form of {}:
            Please jot down {} using 0-9 only.
            What number does "{}" spell?
            Someone dictates {}; note it in digits.
            As a parser, read {} as an integer.
            Could you put {} into Arabic numerals?
            From words to digits: {}
            In a table of numbers, {} becomes what?
        """),
        unseen=lines("""
            Which figures stand for {}?
            Type {} on a calculator; what does it show?
            State {} as a numeral.
        """),
    ),
    "addition": Skill(
        summands,
        answer=lambda pair: str(sum(pair)),
        text=_joined,
        seen=lines("""
            What is the sum of {}?
            Add {} together.
            Give the total of {}.
            Calculate the sum of {}.
            How much are {} together?
            Add up the numbers {}.
            What do {} make in total?
            {}: sum?
            I need {} summed up.
            Total of {}:
            Please compute the first plus the second: {}.
            What number are {} combined?
            Merge {} into one total.
            As a cashier, add {}.
            Find the number that {} add up to.
            Use plus on {}.
            How many do you get from {} altogether?
        """),
        unseen=lines("""
            Put {} together; how many is that?
            State the result of adding {}.
            I buy things for {} dollars; what do I pay?
        """),
    ),
    "larger": Skill(
        rivals,
        answer=lambda pair: str(max(pair)),
        text=_joined,
        seen=lines("""
            Which is larger of {}?
            Give the bigger number of {}.
            Tell me the greater one of {}.
            What is the maximum of {}?
            Pick the higher number out of {}.
            Which of the numbers {} is greater?
            Name the larger one of {}.
            Max of {}:
            I need the bigger of these two: {}.
            {}: which one is higher?
            Please choose the number with the greater value: {}.
            Compare {} and keep the larger.
            Between {}, which lies further right on the number line?
            Drop the smaller of {}; what is left?
            As a judge, announce the top score: {}.
            Which of {} would you count to later?
            Can you spot the largest value in {}?
        """),
        unseen=lines("""
            Of {}, which is worth more?
            State the number that exceeds the other: {}.
            Two players have {} points; how many has the winner?
        """),
    ),
    "parity": Skill(
        integers,
        answer=lambda number: "odd" if number % 2 else "even",
        seen=lines("""
            Is {} even or odd?
            Tell me whether {} is odd or even.
            What is the parity of {}?
            Say if the number {} is even or odd.
            Classify {} as even or odd.
            Does {} count as an odd or an even number?
            Decide between odd and even for {}.
            {}: even/odd?
            I need to know if {} is odd or even.
            Parity check, odd or even: {}
            Please label {} odd or even.
            Divide {} by 2: is it odd or even?
            Which word fits {}, odd or even?
            As a math teacher, sort {} under odd or even.
            Would you call {} an even number or an odd one?
            Look at the last digit of {}: odd or even?
            Odd or even? The number is {}.
        """),
        unseen=lines("""
            Can {} be halved without rest? Say even or odd.
            State which it is, even or odd: {}.
            A house has the number {}; on the even or the odd side?
        """),
    ),
}
