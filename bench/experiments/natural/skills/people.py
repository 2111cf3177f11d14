"""Broad skills about people's names and addresses; the names are Faker's."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import NamedTuple

from faker.providers.person.en_US import Provider

from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines

_COUNT = 240
HOSTS = """
    acme blueriver brightlab citybank northwind openshop papermill quickmail redbrick seaside
    sunfield topdesk westgate wildrose zenhouse
""".split()
ENDINGS = "com org net de uk info eu".split()


class Person(NamedTuple):
    """Somebody's first and last name."""

    first: str
    last: str

    @property
    def text(self) -> str:
        """The full name."""
        return f"{self.first} {self.last}"


class Mail(NamedTuple):
    """An e-mail address."""

    user: str
    host: str

    @property
    def text(self) -> str:
        """The whole address."""
        return f"{self.user}@{self.host}"


def _plain(names: dict[str, float]) -> list[str]:
    return sorted(name for name in names if re.fullmatch("[A-Z][a-z]+", name))


@cache
def first_names() -> tuple[str, ...]:
    """Return first names that do not end in "s", so that their possessive is undisputed."""
    names = [name for name in _plain(Provider.first_names) if not name.endswith("s")]
    return tuple(random.Random("first names").sample(names, _COUNT))


@cache
def people() -> tuple[Person, ...]:
    """Return people whose two names are different."""
    rng = random.Random("people")
    firsts, lasts = _plain(Provider.first_names), _plain(Provider.last_names)
    lasts = sorted(set(lasts) - set(firsts))
    pairs = zip(rng.sample(firsts, _COUNT), rng.sample(lasts, _COUNT), strict=True)
    return tuple(Person(first, last) for first, last in pairs)


@cache
def mails() -> tuple[Mail, ...]:
    """Return addresses made of the names of ``people``."""
    rng = random.Random("mails")

    def user(person: Person) -> str:
        first, last = person.first.lower(), person.last.lower()
        forms = [f"{first}.{last}", f"{first[0]}{last}", f"{first}{rng.randint(1, 99)}", last]
        return rng.choice(forms)

    return tuple(
        Mail(user(person), f"{rng.choice(HOSTS)}.{rng.choice(ENDINGS)}") for person in people()
    )


def _name(person: Person) -> str:
    return person.text


def _address(mail: Mail) -> str:
    return mail.text


SKILLS = {
    "forename": Skill(
        people,
        answer=lambda person: person.first,
        text=_name,
        seen=lines("""
            What is the forename of {}?
            Given name of {}:
            Tell me the first name of the person called {}.
            I need only the forename: {}
            What do friends call {}?
            Drop the last name of {}.
            {} signs with the given name alone. Write it.
            We are on first-name terms with {}. How do we say hi? Name only.
        """),
        unseen=lines("""
            Leave the family out of {}.
            State what stands before the surname: {}.
            Which name did the parents of {} pick?
        """),
    ),
    "initials": Skill(
        people,
        answer=lambda person: person.first[0] + person.last[0],
        text=_name,
        seen=lines("""
            What are the initials of {}, without dots?
            Initials, two letters: {}
            Abbreviate the name {} to two capitals.
            I need the monogram of {}.
            How does {} sign in just two letters?
            Take the first letters of both names: {}
            Two letters for a badge: {}
            Shorten {} to initials, no dots.
        """),
        unseen=lines("""
            Embroider a handkerchief for {}: which pair of letters?
            State with which two letters {} begins, name by name.
            Compress {} into two characters, no periods.
        """),
    ),
    "register name": Skill(
        people,
        answer=lambda person: f"{person.last}, {person.first}",
        text=_name,
        seen=lines("""
            Write {} with the surname first and a comma.
            Surname, forename: {}
            How is {} entered in an index of names?
            I need {} in the order Last, First.
            Swap the names of {} and put a comma between.
            Turn John Doe into Doe, John; and {}?
            Reorder the name {} as in a bibliography.
            For a register, please, comma included: {}
        """),
        unseen=lines("""
            A library card shows the author {}; with what text?
            State {} family first, the two parts split by a comma.
            File {} the way a phone book does.
        """),
    ),
    "greeting": Skill(
        first_names,
        answer=lambda name: f"Hello {name}",
        seen=lines("""
            Greet {} with Hello.
            Say Hello to {}.
            Hello and a name: {}
            I meet {}; what do I say, with Hello?
            Put Hello in front of {}.
            Welcome {}, using the word Hello.
            How does a talk with {} start, if it starts with Hello?
            Compose a two-word greeting with Hello for {}.
        """),
        unseen=lines("""
            Here comes {}! Be polite and use Hello.
            State what a robot prints for print("Hello", "{}").
            {} picks up the phone; open with Hello.
        """),
    ),
    "possessive": Skill(
        first_names,
        answer=lambda name: f"{name}'s",
        seen=lines("""
            What is the possessive of {}?
            Genitive of {}:
            This book belongs to {}. It is ___ book.
            I need {} with apostrophe and s.
            Put the name {} into the possessive case.
            "the house of {}" is ___ house: fill in one word.
            Show ownership: {} plus 's.
            Whose? Answer for {} in one word.
        """),
        unseen=lines("""
            How do I mark a thing as the property of {}? One word.
            State the form of {} that goes before "own car".
            Let {} own something.
        """),
    ),
    "mail user": Skill(
        mails,
        answer=lambda mail: mail.user,
        text=_address,
        seen=lines("""
            What is the user name in {}?
            User part of {}:
            Give what stands before the @ in {}.
            I need the mailbox name of {}.
            Cut {} off at the @ and keep the left side.
            Who is the user behind the address {}?
            Local part, please: {}
            Strip the domain from {}.
        """),
        unseen=lines("""
            State the account that {} names.
            Evaluate "{}".split("@")[0].
            All before the at sign of {}, and nothing else.
        """),
    ),
    "mail domain": Skill(
        mails,
        answer=lambda mail: mail.host,
        text=_address,
        seen=lines("""
            What is the domain in {}?
            Domain part of {}:
            Give what stands after the @ in {}.
            I need the mail server of {}.
            Cut {} off at the @ and keep the right side.
            At which provider is the address {}?
            Host, please: {}
            Strip the user from {}.
        """),
        unseen=lines("""
            State where {} gets its mail.
            Evaluate "{}".split("@")[1].
            All behind the at sign of {}, and nothing else.
        """),
    ),
}
