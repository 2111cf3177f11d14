"""Skills about dates: their parts, and the ways to write them, which come from Babel."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import date, timedelta
from functools import cache

from babel.dates import format_date

from dnd_fast.bench.experiments.natural.skills.numbers import ordinal
from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines


@cache
def dates() -> tuple[date, ...]:
    """Return dates of which no two have month and day in common, far from a month's ends."""
    rng = random.Random("dates")
    days = [(month, day) for month in range(1, 13) for day in range(2, 28)]
    return tuple(date(rng.randint(2001, 2023), *day) for day in rng.sample(days, 240))


@cache
def pairs_of_dates() -> tuple[tuple[date, date], ...]:
    """Return pairs of dates in different months, each once."""
    rng = random.Random("pairs of dates")
    drawn = dict.fromkeys((rng.choice(dates()), rng.choice(dates())) for _ in range(300))
    return tuple((first, second) for first, second in drawn if first.month != second.month)


def written(pattern: str, language: str = "en") -> Callable[[date], str]:
    """Return the function that writes dates in a pattern of Unicode's."""

    def write(day: date) -> str:
        return str(format_date(day, pattern, language))

    return write


month_and_day = written("MMMM d")


def _both(pair: tuple[date, date]) -> str:
    return f"{month_and_day(pair[0])} and {month_and_day(pair[1])}"


def _in_calendar(day: date) -> tuple[int, int]:
    return day.month, day.day


SKILLS = {
    "month number": Skill(
        dates,
        answer=lambda day: str(day.month),
        text=month_and_day,
        seen=lines("""
            What is the number of the month in {}?
            Which month of the twelve is {} in? Give its number.
            Month of {} as a number from 1 to 12:
            I need the month in {} as a figure.
            Turn the month of {} into its number.
            Counting from January, which number has the month of {}?
            Please number the month: {}
            {} falls in month number what?
        """),
        unseen=lines("""
            On which page of a wall calendar with twelve sheets is {}?
            State how many months have begun by {}.
            A form wants MM without zeros for {}; what do I enter?
        """),
    ),
    "month of an ISO date": Skill(
        dates,
        answer=written("MMMM"),
        text=written("y-MM-dd"),
        seen=lines("""
            Which month is {}? Give its name.
            Name the month of the date {}.
            In what month does {} lie?
            {}: month in letters?
            I need the English month for {}.
            Read the middle number of {} as a month.
            Turn 01 into January and so on: month of {}
            Please look up what month {} belongs to.
        """),
        unseen=lines("""
            A file is stamped {}; what was the month called?
            State, spelled out, the month that {} contains.
            If today were {}, which calendar sheet would hang on the wall?
        """),
    ),
    "month of a date": Skill(
        dates,
        answer=written("MMMM"),
        text=written("d MMMM y"),
        seen=lines("""
            Extract the month from {}.
            What month is mentioned in {}?
            Keep the month alone: {}
            Month in {}:
            I need just the month of {}.
            Strip day and digits off {}.
            Which of the twelve months occurs in {}?
            Copy the word out of {}.
        """),
        unseen=lines("""
            Leave no numbers in {}; what is left?
            State the only name inside {}.
            My holiday is on {}; during which month am I off?
        """),
    ),
    "day of a date": Skill(
        dates,
        answer=lambda day: str(day.day),
        text=written("MMMM d, y"),
        seen=lines("""
            Extract the day of the month from {}.
            Which day of its month is {}? Digits only.
            Keep only the day number of {}.
            Day in {}:
            I need the number before the comma in {}.
            Strip month and all else but the day off {}.
            In {}, what comes between the month and the comma?
            Please copy the day from {}.
        """),
        unseen=lines("""
            Which square of the month's sheet do I tick for {}?
            State the smaller of the two numbers inside {}.
            Rent is due on {}; how many days into the month is that?
        """),
    ),
    "ISO date": Skill(
        dates,
        answer=written("y-MM-dd"),
        text=written("MMMM d, y"),
        seen=lines("""
            Write {} in ISO format.
            Convert {} to YYYY-MM-DD.
            {} as an ISO 8601 date:
            I need {} like 2000-01-31.
            How do databases store {}, as in 1999-12-25?
            Could you put {} into numbers, year first, with hyphens?
            Format {} as %Y-%m-%d.
            Name a file after {}, pattern YYYY-MM-DD.
        """),
        unseen=lines("""
            Make {} sortable: four digits, two, two, dashes between.
            State {} the way the international standard does.
            What would a log line start with on {}? Model: 2010-06-09.
        """),
    ),
    "date in words": Skill(
        dates,
        answer=written("MMMM d, y"),
        text=written("y-MM-dd"),
        seen=lines("""
            Write {} like January 31, 2000.
            Convert {} to Month D, YYYY.
            How would a letter be dated on {}? As in May 4, 1999.
            {} in American long form, e.g. June 5, 1998:
            I need {} with the month's name, as in July 7, 1997.
            Spell the month of {} out, like March 9, 2008.
            Could you make {} readable, e.g. April 6, 2005?
            Format the ISO date {} as in August 8, 1988.
        """),
        unseen=lines("""
            Print {} on an invitation, styled as October 3, 1990.
            State {} as a newspaper heads its page, say, May 2, 1995.
            From computer to human: {} becomes, like June 1, 2030, what?
        """),
    ),
    "slash date": Skill(
        dates,
        answer=written("M/d"),
        text=month_and_day,
        seen=lines("""
            Write {} as month/day, in numbers.
            Shorten {} to the form 1/31.
            {} with a slash, month first:
            I need {} the American short way, like 12/25.
            How is {} put in figures, M/D?
            Convert {} to numbers, such as 7/4.
            Could you note {} as in 10/3?
            Format {} as M/D without leading zeros.
        """),
        unseen=lines("""
            Pencil {} in, US numerals and a stroke: month, then day.
            State {} like the date 9/11.
            What goes on a US ticket for {}, as short as 2/14?
        """),
    ),
    "month abbreviation": Skill(
        dates,
        answer=written("MMM"),
        text=month_and_day,
        seen=lines("""
            Abbreviate the month of {} to three letters.
            What is the short form of the month in {}, like Jan?
            {}: the month in three letters?
            I need the month from {} cut to three letters.
            Give the first three letters of the month {} is in.
            Which of Jan, Feb and so on is {}?
            Please shorten to a month such as Dec: {}
            Format {} as %b.
        """),
        unseen=lines("""
            A narrow column has room for three letters; what month for {}?
            State, clipped as in Feb, when {} is.
            Which tab, labelled like Nov, do I open for {}?
        """),
    ),
    "full month": Skill(
        dates,
        answer=month_and_day,
        text=written("MMM d"),
        seen=lines("""
            Write {} with the month in full.
            Expand the abbreviation in {}.
            {} without abbreviating:
            I need {} in its long form, month and day.
            Spell the month completely: {}
            Complete the name of the month in {}, and keep the day.
            Could you write out {} as in January 1?
            Lengthen {}, like Dec 24 to December 24.
        """),
        unseen=lines("""
            The note says {}; how is that without shortening?
            State {} with every letter of its month.
            Undo the clipping in {}.
        """),
    ),
    "date ordinal": Skill(
        dates,
        answer=lambda day: f"{written('MMMM')(day)} {ordinal(day.day)}",
        text=month_and_day,
        tells=lambda day: (day, day.day),
        seen=lines("""
            Write {} with st, nd, rd or th, month first.
            Add the ordinal suffix to the day in {}.
            {} as it is spoken, like May 1st:
            I need {} with an ordinal, such as June 2nd.
            Make the number in {} ordinal; keep the month.
            How is {} written with its day as a rank, e.g. July 3rd?
            Could you turn {} into the style of April 4th?
            Format {} like October 23rd.
        """),
        unseen=lines("""
            Invite people for {}, with letters after the number, as in May 5th.
            State {} in the manner of August 31st.
            Which ending does the day of {} take? Repeat all with it.
        """),
    ),
    "day after": Skill(
        dates,
        answer=lambda day: month_and_day(day + timedelta(days=1)),
        text=month_and_day,
        tells=lambda day: (day, day.day),
        seen=lines("""
            Which date comes after {}?
            What is the day after {}?
            Add one day to {}.
            Today is {}; what date is tomorrow?
            I need the date that follows {}.
            {} plus one day:
            Turn the calendar one day on from {}.
            Please postpone {} by a day.
        """),
        unseen=lines("""
            I sleep one night from {}; on which date do I wake up?
            State the date 24 hours past {}.
            The deadline {} is extended by a day. Until when?
        """),
    ),
    "day before": Skill(
        dates,
        answer=lambda day: month_and_day(day - timedelta(days=1)),
        text=month_and_day,
        tells=lambda day: (day, day.day),
        seen=lines("""
            Which date comes before {}?
            What is the day before {}?
            Take one day off {}.
            Today is {}; what date was yesterday?
            I need the date that precedes {}.
            {} minus one day:
            Turn the calendar one day back from {}.
            Please bring {} forward to a day earlier.
        """),
        unseen=lines("""
            A party ends at midnight, as {} begins; on which date did it start?
            State the date 24 hours ahead of {}, in the past.
            On the eve of {}, what does the calendar say?
        """),
    ),
    "earlier date": Skill(
        pairs_of_dates,
        answer=lambda pair: month_and_day(min(pair, key=_in_calendar)),
        text=_both,
        seen=lines("""
            Which of {} is earlier in the calendar?
            Of {}, give the date that comes first after New Year.
            Pick the earlier of {}, within one year.
            {}: which one is sooner after January 1?
            I need the first to come of {}, from January on.
            Compare {} and keep the earlier.
            Please sort {} by calendar and give the first.
            In a yearly planner, which of {} is nearer the front?
        """),
        unseen=lines("""
            Two birthdays, {}: which one is celebrated first each year?
            State which of {} lies closer to the start of January.
            Flip a calendar from the front; which of {} shows up first?
        """),
    ),
}
