"""Broad skills about numbers, dates, languages, places and facts: their answers are right."""

from datetime import date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

NEEDS = 'needs pip install "dnd-fast[natural]"'
skills = pytest.importorskip("dnd_fast.bench.experiments.natural.skills", reason=NEEDS)
countries, measures = skills.countries, skills.measures
SKILLS = skills.BROAD_SKILLS
MODULES = [
    *(skills.arithmetic, skills.numerals, measures, skills.dates, skills.almanac),
    *(skills.languages, skills.codes, skills.places, skills.facts),
]

MONDAY = date(2022, 3, 14)
# An item, how a question shows it, and the answer.
TRUTHS = {
    "double": [(27, "27", "54")],
    "half": [(186, "186", "93")],
    "subtraction": [((29, 12), "29 and 12", "17")],
    "multiplication": [((7, 8), "7 and 8", "56")],
    "smaller": [((12, 69), "12 and 69", "12"), ((69, 12), "69 and 12", "12")],
    "difference": [((12, 69), "12 and 69", "57"), ((69, 12), "69 and 12", "57")],
    "sum of three": [((17, 9, 11), "17, 9, 11", "37")],
    "times ten": [(138, "138", "1380")],
    "plus hundred": [(22, "22", "122")],
    "negative": [(104, "104", "-104")],
    "rounded": [(208, "208", "210"), (94, "94", "90"), (4, "4", "0")],
    "comparison": [((16, 32), "16 and 32", "no"), ((61, 45), "61 and 45", "yes")],
    "over a hundred": [(100, "100", "no"), (101, "101", "yes")],
    "Roman numeral": [(44, "44", "XLIV"), (199, "199", "CXCIX"), (238, "238", "CCXXXVIII")],
    "from Roman": [(49, "XLIX", "49"), (90, "XC", "90")],
    "ordinal in words": [
        (3, "3", "third"),
        (40, "40", "fortieth"),
        (112, "112", "one hundred and twelfth"),
    ],
    "first digit": [(7041, "7041", "7")],
    "last digit": [(206, "206", "6"), (80, "80", "0")],
    "tens digit": [(26, "26", "2"), (206, "206", "0")],
    "digit count": [(5, "5", "1"), (80213, "80213", "5")],
    "countdown": [(101, "101", "101, 100, 99")],
    "count up": [(98, "98", "98, 99, 100")],
    "sequence": [((9, 13, 17), "9, 13, 17", "21")],
    "next even": [(33, "33", "34"), (168, "168", "170")],
    "thousands": [(1234, "1234", "1,234"), (1234567, "1234567", "1,234,567")],
    "zero-padded": [(8, "8", "0008"), (124, "124", "0124")],
    "reversed digits": [(174, "174", "471")],
    "ascending": [((20, 4, 9), "20, 4, 9", "4, 9, 20")],
    "smallest of three": [((15, 6, 13), "15, 6, 13", "6")],
    "minutes": [((17, 5), "17:05", "05")],
    "morning or afternoon": [((11, 55), "11:55", "am"), ((12, 5), "12:05", "pm")],
    "hour later": [((23, 25), "23:25", "00:25"), ((9, 50), "09:50", "10:50")],
    "price": [(405, "4 dollars and 5 cents", "$4.05")],
    "price in words": [(1830, "$18.30", "18 dollars and 30 cents")],
    "percentage": [(4, "0.04", "4%"), (90, "0.90", "90%")],
    "decimal of a percentage": [(4, "4%", "0.04"), (90, "90%", "0.90")],
    "centimeters": [(24, "24 m", "2400")],
    "month number": [(MONDAY, "March 14", "3")],
    "month of an ISO date": [(MONDAY, "2022-03-14", "March")],
    "month of a date": [(MONDAY, "14 March 2022", "March")],
    "day of a date": [(MONDAY, "March 14, 2022", "14")],
    "slash date": [(MONDAY, "March 14", "3/14")],
    "month abbreviation": [(MONDAY, "March 14", "Mar"), (date(2022, 9, 2), "September 2", "Sep")],
    "full month": [(MONDAY, "Mar 14", "March 14"), (date(2022, 9, 2), "Sep 2", "September 2")],
    "date ordinal": [(MONDAY, "March 14", "March 14th"), (date(2022, 5, 22), "May 22", "May 22nd")],
    "earlier date": [((MONDAY, date(2001, 6, 2)), "March 14 and June 2", "March 14")],
    "next month": [(MONDAY, "March 14", "April"), (date(2022, 12, 3), "December 3", "January")],
    "previous month": [
        (MONDAY, "March 14", "February"),
        (date(2022, 1, 3), "January 3", "December"),
    ],
    "next weekday": [(MONDAY, "Monday, March 14", "Tuesday")],
    "previous weekday": [(MONDAY, "Monday, March 14", "Sunday")],
    "weekday": [(MONDAY, "Monday, March 14", "Monday")],
    "weekday abbreviation": [(MONDAY, "Monday, March 14", "Mon")],
    "weekend": [
        (MONDAY, "Monday, March 14", "weekday"),
        (date(2022, 3, 13), "Sunday, March 13", "weekend"),
        (date(2022, 3, 12), "Saturday, March 12", "weekend"),
        (date(2022, 3, 11), "Friday, March 11", "weekday"),
    ],
    "season": [
        (date(2022, month, 3), f"{name} 3", season)
        for month, name, season in [
            (1, "January", "winter"),
            (5, "May", "spring"),
            (7, "July", "summer"),
            (10, "October", "autumn"),
        ]
    ],
    "quarter": [
        (MONDAY, "March 14", "Q1"),
        (date(2022, 4, 3), "April 3", "Q2"),
        (date(2022, 12, 3), "December 3", "Q4"),
    ],
    "days in month": [
        (date(2020, 2, 1), "February 2020", "29"),
        (date(2022, 6, 1), "June 2022", "30"),
    ],
    "language": [
        (("es", "veintiséis"), "veintiséis", "Spanish"),
        (("fr", "lundi"), "lundi", "French"),
        (("de", "montag"), "montag", "German"),
        (("nl", "twintig"), "twintig", "Dutch"),
        (("it", "venti"), "venti", "Italian"),
        (("hu", "kedd"), "kedd", "Hungarian"),
        (("pl", "sobota"), "sobota", "Polish"),
        (("fi", "sunnuntai"), "sunnuntai", "Finnish"),
    ],
    "Spanish number": [(21, "twenty-one", "veintiuno"), (55, "fifty-five", "cincuenta y cinco")],
    "French number": [(80, "eighty", "quatre-vingts"), (71, "seventy-one", "soixante et onze")],
    "German number": [
        (1, "one", "eins"),
        (30, "thirty", "dreißig"),
        (95, "ninety-five", "fünfundneunzig"),
    ],
    "digits of a Spanish number": [(88, "ochenta y ocho", "88")],
    "digits of a French number": [(79, "soixante-dix-neuf", "79")],
    "digits of a German number": [(14, "vierzehn", "14")],
    "Spanish month": [(MONDAY, "March 14", "marzo")],
    "French month": [(MONDAY, "March 14", "mars")],
    "German month": [(MONDAY, "March 14", "März")],
    "Spanish weekday": [(MONDAY, "Monday, March 14", "lunes")],
    "French weekday": [(MONDAY, "Monday, March 14", "lundi")],
    "German weekday": [(MONDAY, "Monday, March 14", "Montag")],
    "Spanish word": [("tree", "tree", "árbol")],
    "French word": [("tree", "tree", "arbre")],
    "German word": [("tree", "tree", "Baum")],
    "Spanish to English": [("nose", "nariz", "nose")],
    "French to English": [("duck", "canard", "duck")],
    "German to English": [("bear", "Bär", "bear")],
    "country code": [("Germany", "Germany", "DE"), ("United Kingdom", "United Kingdom", "GB")],
    "country of a code": [("Switzerland", "CH", "Switzerland")],
    "domain": [("United Kingdom", "United Kingdom", ".uk"), ("Japan", "Japan", ".jp")],
    "phone code": [("France", "France", "+33"), ("Japan", "Japan", "+81")],
    "currency code": [("Japan", "Japan", "JPY"), ("Poland", "Poland", "PLN")],
    "state code": [("Alaska", "Alaska", "AK"), ("Ontario", "Ontario", "ON")],
    "state of a code": [("Missouri", "MO", "Missouri"), ("Quebec", "QC", "Quebec")],
    "country of a capital": [("Kenya", "Nairobi", "Kenya")],
    "country of a city": [("Kyoto", "Kyoto", "Japan"), ("Coventry", "Coventry", "United Kingdom")],
    "demonym": [("Peru", "Peru", "Peruvian"), ("Netherlands", "Netherlands", "Dutch")],
    "country of a demonym": [("Thailand", "Thai", "Thailand")],
    "official language": [
        ("Brazil", "Brazil", "Portuguese"),
        ("El Salvador", "El Salvador", "Spanish"),
    ],
    "element symbol": [("iron", "iron", "Fe"), ("tungsten", "tungsten", "W")],
    "element": [("silver", "Ag", "silver")],
    "unit symbol": [("megapascal", "megapascal", "MPa"), ("nanowatt", "nanowatt", "nW")],
    "unit": [("kilometer", "km", "kilometer"), ("milligram", "mg", "milligram")],
    "landmark": [
        ("Petra", "Petra", "Jordan"),
        ("the White House", "the White House", "United States"),
    ],
    "maker": [("the iPad", "the iPad", "Apple"), ("Photoshop", "Photoshop", "Adobe")],
}


@pytest.mark.parametrize("name", TRUTHS)
def test_answers_are_right(name):
    skill = SKILLS[name]
    for item, text, answer in TRUTHS[name]:
        item = measures.Time(*item) if name in measures.SKILLS and isinstance(item, tuple) else item
        assert (skill.text(item), skill.answer(item)) == (text, answer)


def test_every_skill_of_these_modules_is_checked():
    elsewhere = {
        "24-hour clock",
        "12-hour clock",
        "ISO date",
        "date in words",
        "day after",
        "day before",
    }
    assert TRUTHS.keys() | elsewhere == {name for module in MODULES for name in module.SKILLS}


@given(st.sampled_from(measures.times()))
def test_clocks(time):
    """The standard library reads both ways to write a time, and each answers the other."""
    long, short = SKILLS["24-hour clock"].answer(time), SKILLS["12-hour clock"].answer(time)
    assert len(long) == 5
    assert datetime.strptime(long, "%H:%M") == datetime.strptime(short, "%I:%M %p")
    assert not short.startswith("0")
    assert SKILLS["24-hour clock"].text(time) == short
    assert SKILLS["12-hour clock"].text(time) == long


@given(st.sampled_from(skills.dates.dates()))
def test_dates(day):
    assert SKILLS["ISO date"].answer(day) == SKILLS["date in words"].text(day) == day.isoformat()
    in_words = SKILLS["date in words"].answer(day)
    assert in_words == SKILLS["ISO date"].text(day)
    assert datetime.strptime(in_words, "%B %d, %Y").date() == day
    for skill, days in (("day after", 1), ("day before", -1)):
        other = datetime.strptime(f"{SKILLS[skill].answer(day)}, {day.year}", "%B %d, %Y").date()
        assert other - day == timedelta(days=days)
        assert other.month == day.month


@given(st.integers(1, 240))
def test_roman_numerals(number):
    written = SKILLS["Roman numeral"].answer(number)
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}[letter] for letter in written]
    signed = [
        -value if value < following else value
        for value, following in zip(values, [*values[1:], 0], strict=True)
    ]
    assert sum(signed) == number
    assert not any(4 * letter in written for letter in "IXC")


def test_places_are_of_known_countries():
    for name in ("country of a city", "landmark"):
        assert {SKILLS[name].answer(item) for item in SKILLS[name].items()} <= {
            *countries.countries()
        }
    for name in ("demonym", "official language"):
        assert set(SKILLS[name].items()) <= set(countries.countries())


def test_cities_are_no_capitals():
    """A capital with its country would betray what the skill "capital" asks in tests."""
    capitals = {countries.capital(country) for country in countries.countries()}
    assert not capitals & set(SKILLS["country of a city"].items())


@pytest.mark.parametrize(
    ("skill", "item", "told"),
    [
        ("count up", 17, 18),
        ("countdown", 17, 16),
        ("subtraction", (29, 19), (19, 10)),
        ("difference", (19, 29), (19, 10)),
        ("half", 34, (17, 17)),
        ("date ordinal", MONDAY, 14),
    ],
)
def test_items_that_an_answer_tells_about(skill, item, told):
    """Answers such as "17, 18, 19" give away what follows 18."""
    assert told in SKILLS[skill].tells(item)
