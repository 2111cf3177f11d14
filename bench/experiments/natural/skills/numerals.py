"""Skills about how numbers are written and counted."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from num2words import num2words

from dnd_fast.bench.experiments.natural.skills.arithmetic import listed, trios
from dnd_fast.bench.experiments.natural.skills.numbers import integers
from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines

_ROMAN = {
    100: "C",
    90: "XC",
    50: "L",
    40: "XL",
    10: "X",
    9: "IX",
    5: "V",
    4: "IV",
    1: "I",
}


def longer_integers() -> Sequence[int]:
    """Return the numbers of two or three digits."""
    return integers()[9:]


@cache
def long_integers() -> tuple[int, ...]:
    """Return numbers of one to six digits, each length as often as the others that allow it."""
    rng = random.Random("long integers")
    drawn = [rng.randrange(10**power, 10 ** (power + 1)) for power in range(6) for _ in range(40)]
    return tuple(dict.fromkeys(drawn))


@cache
def large_integers() -> tuple[int, ...]:
    """Return numbers of four to seven digits."""
    rng = random.Random("large integers")
    drawn = [
        rng.randrange(10**power, 10 ** (power + 1)) for power in range(3, 7) for _ in range(50)
    ]
    return tuple(dict.fromkeys(drawn))


@cache
def sequences() -> tuple[tuple[int, ...], ...]:
    """Return the first three numbers of arithmetic sequences."""
    starts = [(start, step) for start in range(1, 41) for step in range(2, 11)]
    drawn = random.Random("sequences").sample(starts, 240)
    return tuple((start, start + step, start + 2 * step) for start, step in drawn)


def roman(number: int) -> str:
    """Write a number below 400 in Roman numerals."""
    written = ""
    for value, letters in _ROMAN.items():
        count, number = divmod(number, value)
        written += count * letters
    return written


SKILLS = {
    "Roman numeral": Skill(
        integers,
        answer=roman,
        seen=lines("""
            Write {} in Roman numerals.
            What is {} as a Roman numeral?
            {} in I, V, X, L and C:
            How did the Romans write {}?
            I need {} in the numerals of ancient Rome.
            Convert {} from Arabic to Roman.
            Could you put {} the way old clocks do?
            King number {}: which Roman figure is that?
        """),
        unseen=lines("""
            Carve {} into a Latin inscription.
            State {} with letters such as X and V.
            Which numeral would Caesar have used for {}?
        """),
    ),
    "from Roman": Skill(
        integers,
        answer=str,
        text=roman,
        seen=lines("""
            Which number is the Roman numeral {}?
            Convert {} from Roman to Arabic.
            {} stands for what number?
            Read the Roman figure {} and use ordinary digits.
            I need {} in modern digits.
            Decode {}, written in Roman style.
            Value of the Roman numeral {}:
            A chapter is numbered {}; which one is it, in 0-9?
        """),
        unseen=lines("""
            An old stone bears {}; how many is that today?
            State the worth of the Latin figure {}.
            Translate {} from Caesar's numerals.
        """),
    ),
    "ordinal in words": Skill(
        integers,
        answer=lambda number: str(num2words(number, to="ordinal")),
        seen=lines("""
            Write the ordinal of {} in words, like third.
            Spell {} as first, second, third and so on.
            Which word ranks item {}, as in second?
            Ordinal word for {}:
            I need {} as a rank without digits.
            Could you say {} like fourth or fifth?
            Put {} into a word such as ninth.
            Turn the cardinal {} into an ordinal, in letters.
        """),
        unseen=lines("""
            Read out rank {} as at a prize giving.
            State the place {} in full words, ending as in tenth.
            After {} candles, which birthday is it, spelled out?
        """),
    ),
    "first digit": Skill(
        large_integers,
        answer=lambda number: str(number)[0],
        seen=lines("""
            What is the first digit of {}?
            With which digit does {} begin?
            Keep only the leftmost figure of {}.
            Leading digit of {}:
            I need the digit at the start of {}.
            Chop off all but the front digit of {}.
            Please name the opening digit of {}.
            Reading {} from the left, which figure is met first?
        """),
        unseen=lines("""
            Which key do I press first to type {}?
            State the most significant figure of {}.
            Cover the rest of {} and read what is in front.
        """),
    ),
    "last digit": Skill(
        longer_integers,
        answer=lambda number: str(number)[-1],
        seen=lines("""
            What is the last digit of {}?
            In which digit does {} end?
            Keep only the rightmost figure of {}.
            Units digit of {}:
            I need the digit in the ones place of {}.
            What remains of {} divided by 10?
            Please name the closing digit of {}.
            {} mod 10 = ?
        """),
        unseen=lines("""
            Which key do I press at the end when typing {}?
            State the least significant figure of {}.
            Take full tens off {}; what stays?
        """),
    ),
    "tens digit": Skill(
        longer_integers,
        answer=lambda number: str(number)[-2],
        seen=lines("""
            What is the tens digit of {}?
            Which figure stands in the tens place of {}?
            Second digit from the right in {}:
            I need the digit for the tens in {}.
            Point to the tens column of {}; what is there?
            Please read off the next-to-last digit of {}.
            In {}, which digit counts tens?
            Return the figure just before the ones of {}.
        """),
        unseen=lines("""
            On an abacus, how many beads of ten, below a hundred, show {}?
            State what {} has left of its ones, one place only.
            Skip the units of {}; which figure comes next, going left?
        """),
    ),
    "digit count": Skill(
        long_integers,
        answer=lambda number: str(len(str(number))),
        seen=lines("""
            How many digits does {} have?
            Count the digits of {}.
            Number of figures in {}:
            What is the length of {} in digits?
            I need to know how many digits long {} is.
            len("{}") = ?
            Say with how many figures {} is written.
            A form has one box per digit; how many for {}?
        """),
        unseen=lines("""
            How often must I hit a key to dial {}?
            State the quantity of numerals that make up {}.
            Does {} take one place, two, three or how many?
        """),
    ),
    "countdown": Skill(
        lambda: integers()[2:],
        answer=lambda number: listed((number, number - 1, number - 2)),
        tells=lambda number: (number, number - 1),
        seen=lines("""
            Count down from {}, three numbers in all.
            List {} and the two numbers below it, falling.
            Three numbers, backwards, from {}:
            Start at {} and go down twice by one.
            I need a countdown of three that begins at {}.
            Write {} and its two predecessors, with commas.
            Descend from {}: three terms, please.
            Could you count backwards from {} for three numbers?
        """),
        unseen=lines("""
            A rocket clock shows {}, then what? Three readings in all.
            State {} and, after it, the next two lower numbers.
            Walk two steps down the number line from {}, noting each stop.
        """),
    ),
    "count up": Skill(
        integers,
        answer=lambda number: listed((number, number + 1, number + 2)),
        tells=lambda number: (number, number + 1),
        seen=lines("""
            Count up from {}, three numbers in all.
            List {} and the two numbers above it, rising.
            Three numbers, forwards, from {}:
            Start at {} and go up twice by one.
            I need three consecutive numbers that begin at {}.
            Write {} and its two successors, with commas.
            Ascend from {}: three terms, please.
            Could you count on from {} for three numbers?
        """),
        unseen=lines("""
            Pages {} and on: which three do I read?
            State {} and, after it, the next two higher numbers.
            Walk two steps up the number line from {}, noting each stop.
        """),
    ),
    "sequence": Skill(
        sequences,
        answer=lambda numbers: str(2 * numbers[2] - numbers[1]),
        text=listed,
        seen=lines("""
            Which number continues the sequence {}?
            What comes next: {}?
            Fourth term of {}:
            Find the pattern in {} and give one more number.
            I need the next member of the series {}.
            {}, and then?
            Extend {} by one term; write that term.
            The numbers {} grow evenly. Which is next?
        """),
        unseen=lines("""
            A puzzle shows {} and a blank; what goes there?
            State how {} goes on, one number only.
            Keep the same step: after {}, where do we land?
        """),
    ),
    "next even": Skill(
        integers,
        answer=lambda number: str(number + 2 - number % 2),
        seen=lines("""
            What is the next even number after {}?
            Which even number follows {}?
            Next even integer above {}:
            Find the smallest even number greater than {}.
            I need the first even number past {}.
            From {}, count up until an even number comes.
            Please skip odd ones: what comes after {}?
            Go on from {} to the nearest larger multiple of two.
        """),
        unseen=lines("""
            On the even side of the street, which house comes after {}?
            State the closest number above {} that two divides.
            Starting past {}, where can pairs be made without rest?
        """),
    ),
    "thousands": Skill(
        large_integers,
        answer=lambda number: f"{number:,}",
        seen=lines("""
            Write {} with commas between thousands.
            Insert the thousands separator into {}.
            Group the digits of {} by threes with commas.
            {} with commas, please.
            I need {} as newspapers print it, with commas.
            Make {} readable: a comma before every three digits.
            Format {} like 1,000.
            Where do the commas go in {}?
        """),
        unseen=lines("""
            A cheque for {}: set it with separators, the American way.
            State {} in groups of three figures, comma-separated.
            Punctuate the long number {}.
        """),
    ),
    "zero-padded": Skill(
        integers,
        answer=lambda number: f"{number:04}",
        seen=lines("""
            Write {} with four digits, zeros in front.
            Pad {} with leading zeros to four places.
            Fill {} up to length four with zeros.
            {} as a four-digit code:
            I need {} in the form 0001.
            Show {} on a counter with four wheels.
            Format {} with %04d.
            Could you put zeros before {} until it has four digits?
        """),
        unseen=lines("""
            An odometer with four positions has run {} miles; what does it show?
            State {} as a PIN of length four, empty places zero.
            Right-align {} in four cells and put 0 into the free ones.
        """),
    ),
    "reversed digits": Skill(
        lambda: tuple(number for number in longer_integers() if number % 10),
        answer=lambda number: str(number)[::-1],
        seen=lines("""
            Reverse the digits of {}.
            Write {} backwards.
            {} from right to left:
            Which digits result when {} is read from its end?
            I need the mirror image of the digits in {}.
            Turn {} around, digit by digit.
            What is {} spelled in reverse, in figures?
            Swap the order of the figures in {}.
        """),
        unseen=lines("""
            Type {} starting with its final figure.
            State the figures of {} in the opposite order.
            How does {} look to someone who reads leftwards?
        """),
    ),
    "ascending": Skill(
        trios,
        answer=lambda trio: listed(tuple(sorted(trio))),
        text=listed,
        seen=lines("""
            Sort {} from small to large.
            Put {} in ascending order.
            Order these numbers, least first: {}
            {} sorted:
            I need {} arranged by size, rising.
            Rank {} from lowest to highest.
            Which order do {} have on the number line?
            sorted([{}]) prints which numbers, with commas?
        """),
        unseen=lines("""
            Line {} up so that every number beats the one before.
            State {} beginning with the minimum and ending with the maximum.
            Children aged {} queue up, youngest in front; which ages in turn?
        """),
    ),
    "smallest of three": Skill(
        trios,
        answer=lambda trio: str(min(trio)),
        text=listed,
        seen=lines("""
            What is the smallest of {}?
            Find the minimum among {}.
            Which of the three is least: {}?
            min({}) = ?
            I need the lowest number in {}.
            Pick the tiniest value from {}.
            Of all of {}, keep the one nearest zero.
            Please select the bottom number of {}.
        """),
        unseen=lines("""
            Three shops ask {}; what is the cheapest price?
            State the number that both others exceed: {}.
            Who is youngest, by age: {}?
        """),
    ),
}
