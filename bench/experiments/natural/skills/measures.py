"""Skills about times of day, prices and lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from dnd_fast.bench.experiments.natural.skills.numbers import integers
from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines


class Time(NamedTuple):
    """A time of day."""

    hour: int
    minute: int


@cache
def times() -> tuple[Time, ...]:
    """Return times of day in steps of five minutes, without midnight and noon."""
    all_times = [Time(hour, minute) for hour in range(24) for minute in range(0, 60, 5)]
    drawn = random.Random("times").sample(all_times, 240)
    return tuple(time for time in drawn if time not in {(0, 0), (12, 0)})


@cache
def amounts() -> tuple[int, ...]:
    """Return amounts in cents that take the plural of dollars and of cents."""
    all_amounts = [cents for cents in range(200, 4000) if cents % 100 > 1]
    return tuple(random.Random("amounts").sample(all_amounts, 240))


def percents() -> Sequence[int]:
    """Return the whole percents from 1 to 99."""
    return range(1, 100)


def clock(time: Time) -> str:
    """Write a time on the 24-hour clock."""
    return f"{time.hour:02}:{time.minute:02}"


def half_day(time: Time) -> str:
    """Return which half of the day a time is in."""
    return "pm" if time.hour >= 12 else "am"


def clock_12(time: Time) -> str:
    """Write a time on the 12-hour clock."""
    return f"{(time.hour - 1) % 12 + 1}:{time.minute:02} {half_day(time)}"


def price(cents: int) -> str:
    """Write an amount as a price tag does."""
    return f"${cents // 100}.{cents % 100:02}"


def price_in_words(cents: int) -> str:
    """Write an amount with the names of its units."""
    return f"{cents // 100} dollars and {cents % 100} cents"


SKILLS = {
    "24-hour clock": Skill(
        times,
        answer=clock,
        text=clock_12,
        seen=lines("""
            Write {} on the 24-hour clock, as in 08:05.
            What is {} in military style, hh:mm?
            Convert {} to the form HH:MM, from 00:00 to 23:59.
            {} in 24-hour time, five characters:
            I need {} without am or pm, as hh:mm.
            A European timetable prints {} how, in hh:mm?
            Could you turn {} into 24-hour format, hh:mm?
            Set a digital 24-hour watch to {}. What does it show?
        """),
        unseen=lines("""
            A train leaves at {}; which hh:mm is on the board, of 24 hours?
            State {} counted from midnight, as hh:mm.
            Drop the half of the day from {}, but count hours to 23: hh:mm.
        """),
    ),
    "12-hour clock": Skill(
        times,
        answer=clock_12,
        text=clock,
        seen=lines("""
            Write {} with am or pm, as in 8:05 pm.
            What is {} on the 12-hour clock, like 9:30 am?
            Convert {} to the American form, such as 1:15 pm.
            {} in 12-hour time, lower-case am or pm:
            I need {} as people say it, like 7:20 am.
            How would {} look with am/pm? Model: 3:45 pm.
            Could you turn {} into am/pm style, as in 6:10 am?
            My 24-hour watch shows {}. Give it like 2:50 pm.
        """),
        unseen=lines("""
            An American guest asks what {} means; reply as in 4:40 pm.
            State {} with no hour above twelve, like 5:25 am.
            Rewrite the military time {} for a civilian, e.g. 10:35 pm.
        """),
    ),
    "hour later": Skill(
        times,
        answer=lambda time: clock(Time((time.hour + 1) % 24, time.minute)),
        text=clock,
        tells=lambda time: (time, time.hour),
        seen=lines("""
            What time is it one hour after {}?
            Add an hour to {}.
            {} plus 60 minutes:
            Move the clock from {} one hour forward.
            I need the time an hour later than {}.
            A one-hour film starts at {}; when does it end?
            Please delay {} by one hour.
            In an hour from {}, what will the clock show?
        """),
        unseen=lines("""
            I arrive at {} and stay for an hour; when do I go?
            State the time once the big hand went round from {}.
            Postpone the meeting at {} by sixty minutes.
        """),
    ),
    "minutes": Skill(
        times,
        answer=lambda time: f"{time.minute:02}",
        text=clock,
        seen=lines("""
            What are the minutes of {}? Two digits.
            Read off the two digits after the colon: {}
            Give the minute part of {}.
            Minutes field of {}:
            I need what follows the hour in {}.
            From the time {} keep only MM of HH:MM.
            Please leave out the hour of {}.
            In {}, which two digits count minutes?
        """),
        unseen=lines("""
            Where does the long hand point at {}? Two digits, 00 to 55.
            State the right half of the clock display {}.
            Ignore the hour: {}
        """),
    ),
    "morning or afternoon": Skill(
        times,
        answer=half_day,
        text=clock,
        seen=lines("""
            Is {} am or pm?
            Say am or pm for {}.
            {}: am, or pm?
            Which half of the day is {}, am or pm?
            I need to know if {} is before noon (am) or after (pm).
            Label the time {} with am or pm.
            Choose pm or am for {} on a 24-hour watch.
            Before midday is am, after it pm. And {}?
        """),
        unseen=lines("""
            Has the sun passed its top at {}? Tell am or pm.
            State which suffix, am or pm, suits {}.
            Lunch is at 12:00. Does {} fall earlier (am) or later (pm)?
        """),
    ),
    "price": Skill(
        amounts,
        answer=price,
        text=price_in_words,
        seen=lines("""
            Write {} as a price with the dollar sign.
            What does a price tag say for {}?
            Put {} in the form $1.05.
            {} with $ and a point:
            I need {} in short, as on a receipt.
            Format {} as dollars with two decimals, like $9.99.
            Could you shorten {} to figures and a $?
            A cash register shows {} how, with $ in front?
        """),
        unseen=lines("""
            Make a label for goods that cost {}, starting with $.
            State {} in currency notation, e.g. $3.50.
            Which figure after the $ do I enter for {}? Include the sign.
        """),
    ),
    "price in words": Skill(
        amounts,
        answer=price_in_words,
        text=price,
        seen=lines("""
            Write {} as dollars and cents, like 2 dollars and 5 cents.
            How many dollars and cents are {}? As in 3 dollars and 10 cents.
            Split {} up: 4 dollars and 20 cents, say.
            {} without signs, such as 9 dollars and 99 cents:
            I need {} the way a clerk says it: 5 dollars and 25 cents.
            Expand {} to the style of 7 dollars and 15 cents.
            Could you read the tag {}? Model: 6 dollars and 30 cents.
            Name both units of {}, e.g. 8 dollars and 45 cents.
        """),
        unseen=lines("""
            Count out {} in notes and coins, e.g. 2 dollars and 35 cents.
            State {} like 12 dollars and 50 cents.
            Replace the symbol in {}; pattern: 10 dollars and 75 cents.
        """),
    ),
    "percentage": Skill(
        percents,
        answer=lambda percent: f"{percent}%",
        text=lambda percent: f"0.{percent:02}",
        seen=lines("""
            Write {} as a percentage.
            How many percent are {}?
            Convert the decimal {} to percent, with the sign.
            {} of a whole, in %:
            I need {} as a percent figure.
            A share of {} equals what percentage?
            Could you express {} in hundredths, with %?
            Multiply {} by 100 and add a percent sign.
        """),
        unseen=lines("""
            An interest rate of {} is advertised as what? Use %.
            State the proportion {} per hundred, with its sign.
            If a chance is {}, which number with % do people quote?
        """),
    ),
    "decimal of a percentage": Skill(
        percents,
        answer=lambda percent: f"0.{percent:02}",
        text=lambda percent: f"{percent}%",
        seen=lines("""
            Write {} as a decimal with two places.
            What is {} as a number between 0 and 1, like 0.05?
            Convert {} from percent to a decimal such as 0.25.
            {} without the sign, as 0.xx:
            I need {} as a fraction of one, two decimals.
            Divide {} by a hundred; keep two places.
            Which decimal, like 0.50, equals {}?
            Could you put {} in the form 0.75?
        """),
        unseen=lines("""
            A spreadsheet stores {} as which number, two decimals?
            State the probability {} on a scale to one, e.g. 0.10.
            By what factor, as in 0.30, do I multiply to take {}?
        """),
    ),
    "centimeters": Skill(
        integers,
        answer=lambda number: str(100 * number),
        text=lambda number: f"{number} m",
        seen=lines("""
            How many centimeters are {}?
            Convert {} to centimeters; just the number.
            {} = how many cm?
            I need the length {} in cm, the figure alone.
            Number of centimeters in {}:
            From meters to centimeters: {}. Omit the unit.
            Please measure {} in centimeters, number only.
            A rope is {} long. How many cm is that?
        """),
        unseen=lines("""
            My ruler is marked in cm; what number does it give for {}?
            State {} in hundredths of a meter, the bare figure.
            If a tile is 1 cm, how many make {}?
        """),
    ),
}
