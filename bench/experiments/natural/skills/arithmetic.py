"""Skills that calculate with one, two or three numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

from dnd_fast.bench.experiments.natural.skills.numbers import integers, rivals
from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines


def even_integers() -> Sequence[int]:
    """Return every other of the numbers that are asked about."""
    return integers()[1::2]


def roundable_integers() -> tuple[int, ...]:
    """Return the numbers that are not halfway between two tens."""
    return tuple(number for number in integers() if number % 10 != 5)


@cache
def falling_pairs() -> tuple[tuple[int, int], ...]:
    """Return pairs of numbers up to 40, the larger one first."""
    pairs = [(a, b) for a in range(2, 41) for b in range(1, a)]
    return tuple(random.Random("falling pairs").sample(pairs, 240))


def factors() -> tuple[tuple[int, int], ...]:
    """Return all pairs of numbers from 2 to 12."""
    return tuple((a, b) for a in range(2, 13) for b in range(2, 13))


@cache
def trios() -> tuple[tuple[int, ...], ...]:
    """Return triples of different numbers from 1 to 20."""
    rng = random.Random("trios")
    drawn = [tuple(rng.sample(range(1, 21), 3)) for _ in range(240)]
    return tuple(dict.fromkeys(drawn))


def joined(pair: tuple[int, int]) -> str:
    """Write two numbers as questions show them."""
    return f"{pair[0]} and {pair[1]}"


def listed(numbers: tuple[int, ...]) -> str:
    """Write numbers one after the other."""
    return ", ".join(map(str, numbers))


def _with_sum(pair: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return a pair, and the one whose sum its difference tells."""
    return pair, (min(pair), abs(pair[0] - pair[1]))


SKILLS = {
    "double": Skill(
        integers,
        answer=lambda number: str(2 * number),
        tells=lambda number: (number, (number, number)),
        seen=lines("""
            What is twice {}?
            Double {}.
            2 x {} = ?
            Multiply {} by two.
            I need {} two times over.
            {} plus itself:
            Could you work out the double of {}?
            If one box holds {}, how much do two hold?
        """),
        unseen=lines("""
            Take {} and the same again; how many is that?
            State the product of two and {}.
            A pair of tickets at {} each costs what?
        """),
    ),
    "half": Skill(
        even_integers,
        answer=lambda number: str(number // 2),
        tells=lambda number: (number, (number // 2, number // 2)),
        seen=lines("""
            What is half of {}?
            Halve {}.
            {} / 2 = ?
            Split {} into two equal parts; how large is one?
            I need fifty percent of {}.
            Half the size of {}:
            Could you divide {} by two?
            Two of us share {} fairly. How many do I get?
        """),
        unseen=lines("""
            Which number, taken twice, makes {}?
            State one half of {}.
            Everything costs 50% less; what is left of a price of {}?
        """),
    ),
    "subtraction": Skill(
        falling_pairs,
        answer=lambda pair: str(pair[0] - pair[1]),
        text=joined,
        tells=_with_sum,
        seen=lines("""
            Subtract the second number from the first: {}.
            First minus second for {}, please.
            Take the right number away from the left: {}.
            Given {}, what remains of the first without the second?
            I need a subtraction, not an addition, of {}.
            From the former of {} deduct the latter.
            Minus: {}
            Lower the first of {} by the second; what comes out?
        """),
        unseen=lines("""
            Of {}, I have the first and spend the second; what is left?
            State the remainder once the smaller is removed from the bigger: {}.
            Had, then lost: {}. What do I still have?
        """),
    ),
    "multiplication": Skill(
        factors,
        answer=lambda pair: str(pair[0] * pair[1]),
        text=joined,
        seen=lines("""
            What is the product of {}?
            Multiply {}.
            Give one times the other for {}.
            I need {} multiplied together.
            Times, not plus: {}
            Look up {} in the multiplication table.
            How large is a rectangle with sides {}?
            Could you compute the product from {}?
        """),
        unseen=lines("""
            Rows and seats: {}; how many places are there?
            State what {} give as factors.
            Use the sign x between {} and work it out.
        """),
    ),
    "smaller": Skill(
        rivals,
        answer=lambda pair: str(min(pair)),
        text=joined,
        seen=lines("""
            Which is smaller of {}?
            Give the lesser number of {}.
            Min of {}:
            What is the minimum of {}?
            Pick the lower number out of {}.
            I need the smaller one: {}.
            Compare {} and keep the lower.
            {}: which one comes first in counting?
        """),
        unseen=lines("""
            Of {}, which is worth less?
            State the number that the other exceeds: {}.
            Two players have {} points; how many has the loser?
        """),
    ),
    "difference": Skill(
        rivals,
        answer=lambda pair: str(abs(pair[0] - pair[1])),
        text=joined,
        tells=_with_sum,
        seen=lines("""
            What is the difference between {}?
            How far apart are {}?
            Find the gap between the numbers {}.
            By how much do {} differ?
            I need the distance from one to the other of {}.
            How many steps lie between {}?
            Absolute difference of {}:
            Please say how much bigger the bigger is: {}.
        """),
        unseen=lines("""
            Two people are {} years old; how many years separate them?
            State how much is missing from the lower to the higher: {}.
            Measure the space between {} on a ruler.
        """),
    ),
    "sum of three": Skill(
        trios,
        answer=lambda trio: str(sum(trio)),
        text=listed,
        seen=lines("""
            What is the sum of these three: {}?
            Add all of {}.
            Total these numbers: {}
            How much do {} make together?
            I need {} added up.
            Sum({}) = ?
            Could you tally {}?
            Put a plus between each of {}; what results?
        """),
        unseen=lines("""
            Three items cost {}; what is the bill?
            State the grand total for {}.
            Throw {} into one heap and count.
        """),
    ),
    "times ten": Skill(
        lambda: integers()[1:],
        answer=lambda number: str(10 * number),
        seen=lines("""
            What is ten times {}?
            Multiply {} by 10.
            {} x 10 =
            Append a zero to {}.
            I need {} tenfold.
            How many fingers do {} people have, at ten each?
            Please scale {} up by ten.
            Ten bags of {} make how many?
        """),
        unseen=lines("""
            Move every digit of {} one place to the left.
            State how many cents are {} dimes.
            A decade has ten years; how many have {} decades?
        """),
    ),
    "plus hundred": Skill(
        integers,
        answer=lambda number: str(number + 100),
        seen=lines("""
            What is {} plus a hundred?
            Add 100 to {}.
            {} + 100 =
            Which number is one hundred more than {}?
            I need {} raised by one hundred.
            Go up a hundred from {}.
            Could you put 100 on top of {}?
            A hundred above {}:
        """),
        unseen=lines("""
            My bill of {} went up by a hundred; what is it now?
            State the number a century of steps after {}.
            Increase {} by 100.
        """),
    ),
    "negative": Skill(
        integers,
        answer=lambda number: f"-{number}",
        seen=lines("""
            What is the negative of {}?
            Put a minus sign in front of {}.
            Change the sign of {}.
            0 - {} = ?
            I need minus {} in digits.
            Reflect {} at zero on the number line.
            Please make {} negative.
            Multiply {} by minus one.
        """),
        unseen=lines("""
            Which number gives zero when added to {}?
            State the additive inverse of {}.
            My account is overdrawn by {}; what balance is shown?
        """),
    ),
    "rounded": Skill(
        roundable_integers,
        answer=lambda number: str(round(number, -1)),
        seen=lines("""
            Round {} to the nearest ten.
            Which multiple of ten is closest to {}?
            {} is about how much, to the nearest ten?
            I need {} rounded to tens.
            Nearest ten for {}:
            Could you round {} so that it ends in zero?
            Snap {} to a grid of tens.
            Up or down to a full ten: what becomes of {}?
        """),
        unseen=lines("""
            Which round number, a multiple of 10, does {} almost reach?
            State {} without precise ones, to the next ten by distance.
            A scale shows only tens; what does it say for {}?
        """),
    ),
    "comparison": Skill(
        rivals,
        answer=lambda pair: "yes" if pair[0] > pair[1] else "no",
        text=joined,
        seen=lines("""
            Yes or no: is the first number larger? {}
            Say yes if the first of {} is greater, else no.
            Does the first exceed the second, yes or no? {}
            {}: is the left one bigger? Yes or no.
            I need a yes or a no: first above second? {}
            Check with yes or no whether the numbers {} go down.
            Reply yes for falling and no for rising: {}
            Is the former of {} the higher one, yes or no?
        """),
        unseen=lines("""
            Team one and team two score {}; did team one win, yes or no?
            State yes or no: the number in front outweighs the other in {}.
            Prices then and now are {}. Cheaper now, yes or no?
        """),
    ),
    "over a hundred": Skill(
        integers,
        answer=lambda number: "yes" if number > 100 else "no",
        seen=lines("""
            Is {} more than 100, yes or no?
            Yes or no: {} exceeds one hundred.
            Say yes if {} is above 100, otherwise no.
            Does {} go beyond a hundred? Yes or no.
            I need a yes or a no: {} > 100?
            Test with yes or no if {} is over one hundred.
            The limit is 100. Is {} too high, yes or no?
            Reply yes when {} tops 100, and no when not.
        """),
        unseen=lines("""
            My lift carries 100 kilos; is {} too heavy, yes or no?
            State yes or no: a hundred is less than {}.
            Would {} coins overflow a box for 100? Yes or no.
        """),
    ),
}
