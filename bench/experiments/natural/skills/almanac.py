"""Skills about what returns: months, weekdays, seasons and quarters."""

from __future__ import annotations

import calendar
import random
from collections.abc import Callable
from datetime import date, timedelta
from functools import cache

from dnd_fast.bench.experiments.natural.skills.dates import dates, month_and_day, written
from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines

_SEASONS = {"winter": (1, 2), "spring": (4, 5), "summer": (7, 8), "autumn": (10, 11)}
_weekday = written("EEEE")
_with_weekday = written("EEEE, MMMM d")


@cache
def mixed_days() -> tuple[date, ...]:
    """Return dates of which one half is on weekends."""
    weekend = [day for day in dates() if _is_weekend(day)]
    working = [day for day in dates() if not _is_weekend(day)]
    return tuple(day for pair in zip(weekend, working, strict=False) for day in pair)


def days_in_seasons() -> tuple[date, ...]:
    """Return dates in months that lie in one season, however seasons are counted."""
    return tuple(day for day in dates() if any(day.month in each for each in _SEASONS.values()))


@cache
def months() -> tuple[date, ...]:
    """Return the first days of months."""
    all_months = [date(year, month, 1) for year in range(2001, 2024) for month in range(1, 13)]
    return tuple(random.Random("months").sample(all_months, 120))


def season(day: date) -> str:
    """Return the season of a date on the northern half of the earth."""
    return next(name for name, numbers in _SEASONS.items() if day.month in numbers)


def _is_weekend(day: date) -> bool:
    return day.weekday() >= 5


def _month_after(count: int) -> Callable[[date], str]:
    def month(day: date) -> str:
        return written("MMMM")(date(day.year, (day.month - 1 + count) % 12 + 1, 1))

    return month


SKILLS = {
    "next month": Skill(
        dates,
        answer=_month_after(1),
        text=month_and_day,
        seen=lines("""
            Which month follows that of {}?
            It is {}. What is the next month?
            Name the month after the one in {}.
            {}: the following month?
            I need the month to come after {}.
            Turn the sheet over from {}; which month appears?
            One month on from {} it is what month?
            Please go a month further than {}; the name will do.
        """),
        unseen=lines("""
            My contract ends with the month of {}; in which does a new one start?
            State what the calendar shows once the month of {} is over.
            Rent paid on {} covers this month; which is due then?
        """),
    ),
    "previous month": Skill(
        dates,
        answer=_month_after(-1),
        text=month_and_day,
        seen=lines("""
            Which month precedes that of {}?
            It is {}. What was last month?
            Name the month before the one in {}.
            {}: the month that went before?
            I need the month just over at {}.
            Turn the sheet back from {}; which month appears?
            One month back from {} it was what month?
            Please go a month behind {}; the name will do.
        """),
        unseen=lines("""
            A bill of {} is for the month past; which was it?
            State what the calendar showed until the month of {} began.
            It took a month and is ready on {}; when was it ordered?
        """),
    ),
    "next weekday": Skill(
        dates,
        answer=lambda day: _weekday(day + timedelta(days=1)),
        text=_with_weekday,
        seen=lines("""
            Which day of the week follows {}?
            If it is {}, what weekday is tomorrow?
            Name the weekday after {}.
            {}: and the next day is a what?
            I need the weekday that comes after {}.
            One day later than {} is which of Monday to Sunday?
            Go on by one weekday from {}.
            Please say what day of the week comes next after {}.
        """),
        unseen=lines("""
            We leave overnight on {}; which weekday do we arrive?
            State the name of the morrow of {}.
            After {}, which column of the week is next?
        """),
    ),
    "previous weekday": Skill(
        dates,
        answer=lambda day: _weekday(day - timedelta(days=1)),
        text=_with_weekday,
        seen=lines("""
            Which day of the week comes before {}?
            If it is {}, what weekday was yesterday?
            Name the weekday before {}.
            {}: and the day before was a what?
            I need the weekday that precedes {}.
            One day earlier than {} is which of Monday to Sunday?
            Go back by one weekday from {}.
            Please say what day of the week it was before {}.
        """),
        unseen=lines("""
            We arrived overnight on {}; which weekday had we left?
            State the weekday of the eve of {}.
            Left of {}, which column of the week is there?
        """),
    ),
    "weekday": Skill(
        dates,
        answer=_weekday,
        text=_with_weekday,
        seen=lines("""
            Extract the weekday from {}.
            What day of the week is in {}?
            Keep the weekday alone: {}
            Weekday of {}:
            I need just the day's name from {}.
            Strip month and number off {}.
            Which of Monday to Sunday occurs in {}?
            Copy what stands before the comma in {}.
        """),
        unseen=lines("""
            Forget the date of {} but not the day of the week.
            State which of the seven days {} names.
            The market is on {}; on what day does it take place?
        """),
    ),
    "weekday abbreviation": Skill(
        dates,
        answer=written("EEE"),
        text=_with_weekday,
        seen=lines("""
            Abbreviate the weekday of {} to three letters.
            What is the short form of the weekday in {}, like Mon?
            {}: the weekday in three letters?
            I need the day's name from {} cut to three letters.
            Which of Mon, Tue and so on is {}?
            Give three letters for the day of the week {}.
            Please shorten to a weekday such as Fri: {}
            Format {} as %a.
        """),
        unseen=lines("""
            My diary heads columns like Wed; where does {} go?
            State, clipped as in Sat, on which weekday {} falls.
            Which label of the kind Thu has {} in a timetable?
        """),
    ),
    "weekend": Skill(
        mixed_days,
        answer=lambda day: "weekend" if _is_weekend(day) else "weekday",
        text=_with_weekday,
        seen=lines("""
            Is {} on a weekend or a weekday? One word.
            Say weekend or weekday for {}.
            {}: weekday or weekend?
            Classify {} as a weekday or a weekend.
            I need to know, in a word: weekend or weekday, {}?
            Which fits {}, weekday or weekend?
            Label {} with weekend or weekday.
            Saturday and Sunday are weekend, others weekday. And {}?
        """),
        unseen=lines("""
            Are offices closed on {}? Put weekend if so, else weekday.
            State weekday or weekend, whichever holds on {}.
            Do pupils stay home on {}: weekend, or not: weekday?
        """),
    ),
    "season": Skill(
        days_in_seasons,
        answer=season,
        text=month_and_day,
        seen=lines("""
            Which season is {} in: winter, spring, summer or autumn?
            Winter, spring, summer, autumn: where in Europe's year is {}?
            Name the season in Europe on {}, with autumn for fall.
            {}: spring, summer, autumn or winter?
            I need the season (not fall but autumn) for {} in London.
            Sort {} under summer, winter, autumn or spring.
            Europeans call the season of {} what?
            Is it winter, autumn, summer or spring in Paris on {}?
        """),
        unseen=lines("""
            Dress for {} in Berlin: winter, spring, summer or autumn things?
            State the quarter of nature's year, as the British say, on {}.
            Of the four pieces by Vivaldi, spring to winter, which suits {}?
        """),
    ),
    "quarter": Skill(
        dates,
        answer=lambda day: f"Q{(day.month + 2) // 3}",
        text=month_and_day,
        seen=lines("""
            Which quarter is {} in, Q1 to Q4?
            Give the quarter of {} as Q1, Q2, Q3 or Q4.
            {}: Q1, Q2, Q3 or Q4?
            Sort {} under Q1 to Q4.
            I need the business quarter of {}, like Q2.
            January to March is Q1 and so on. And {}?
            Label {} with its quarter, as in Q4.
            Please file {} under the right quarter, e.g. Q3.
        """),
        unseen=lines("""
            An accountant books {} in which three months, Q1 to Q4?
            State Q and a number for the report that covers {}.
            Cut the year into four, Q1 first: which piece holds {}?
        """),
    ),
    "days in month": Skill(
        months,
        answer=lambda month: str(calendar.monthrange(month.year, month.month)[1]),
        text=written("MMMM y"),
        seen=lines("""
            How many days are in {}?
            How long is {} in days?
            Number of days in {}:
            Does {} have 28, 29, 30 or 31 days?
            I need the length of {} in days.
            Count the days of {}.
            {} ends on which day number?
            Please say if it is 28, 29, 30 or 31 for {}.
        """),
        unseen=lines("""
            I take one pill daily through {}; how many do I need?
            State the number on the final square of {}.
            With a coin put aside every day of {}, how many are there?
        """),
    ),
}
