"""Broad skills about sentences: what they mention, and how they are turned into others."""

from __future__ import annotations

import random
from functools import cache
from typing import NamedTuple

from dnd_fast.bench.experiments.natural.skills.people import first_names
from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines

_COUNT = 240
OBJECTS = """
    book lamp clock watch map letter ring ticket basket camera blanket mirror pencil bottle hammer
    candle radio wallet brush kettle pillow ladder bucket necklace carpet notebook teapot kite
""".split()
PARCELS = lines("""
    {sender} sent a {thing} to {recipient}.
    {recipient} got a {thing} from {sender}.
    For {recipient}, a {thing}, with love from {sender}.
    {sender} gave {recipient} a {thing}.
    A {thing} for {recipient} was left by {sender}.
    The {thing} that {recipient} received came from {sender}.
    {sender} bought a {thing} for {recipient}.
    {recipient} thanked {sender} for the {thing}.
""")
CALLS = lines("""
    Call {name} at {number} after nine.
    My number is {number}, says {name}.
    {name} can be reached at {number}.
    For tickets, ring {number} and ask for {name}.
    {number} is the office line of {name}.
    Text {number} if {name} is late.
""")
SUBJECTS = "nurse pilot farmer lawyer teacher guard driver waiter judge baker clerk king".split()
DEEDS = "called helped saw met thanked followed trusted heard visited paid warned hired".split()
SUBJECTS_OF_BE = "She He It Anna Tom Maria Paul The_door The_shop My_dog This Everything".split()
STATES = """
    ready, gone, behind me, in the garden, very old, in the way, near the station, new, here,
    on the list, from Spain, quite small, wet, next door, in danger, ready for us, too loud, fine
"""
SUBJECTS_OF_VERB = "I You We They The_boys My_parents Our_friends Most_people".split()
ACTIONS = """
    sing well, live in Rome, work at night, drink tea, leave at noon, play chess, read the news,
    cook for us, need a doctor, wear black, run fast, sleep on the floor, pay the rent, drive home,
    sell flowers, speak loudly, wait outside, build boats, eat soup, write letters
"""


class Parcel(NamedTuple):
    """A sentence about a thing that went from one person to another."""

    sender: str
    recipient: str
    thing: str
    template: str

    @property
    def text(self) -> str:
        """The sentence."""
        return self.template.format(**self._asdict())


class Call(NamedTuple):
    """A sentence with a telephone number."""

    number: str
    name: str
    template: str

    @property
    def text(self) -> str:
        """The sentence."""
        return self.template.format(**self._asdict())


class Deed(NamedTuple):
    """A sentence in which somebody does something to somebody."""

    subject: str
    verb: str
    object: str

    @property
    def text(self) -> str:
        """The sentence, without a full stop."""
        return f"The {self.subject} {self.verb} the {self.object}"


class Clause(NamedTuple):
    """A subject and what is said about it."""

    subject: str
    rest: str


@cache
def parcels() -> tuple[Parcel, ...]:
    """Return random parcels between different people."""
    rng = random.Random("parcels")

    def parcel() -> Parcel:
        sender, recipient = rng.sample(first_names(), 2)
        return Parcel(sender, recipient, rng.choice(OBJECTS), rng.choice(PARCELS))

    return tuple(parcel() for _ in range(_COUNT))


@cache
def calls() -> tuple[Call, ...]:
    """Return random telephone numbers, in sentences."""
    rng = random.Random("calls")
    return tuple(
        Call(f"555-{number:04}", rng.choice(first_names()), rng.choice(CALLS))
        for number in rng.sample(range(10_000), _COUNT)
    )


@cache
def deeds() -> tuple[Deed, ...]:
    """Return random deeds."""
    rng = random.Random("deeds")
    all_deeds = [Deed(a, verb, b) for a in SUBJECTS for verb in DEEDS for b in SUBJECTS if a != b]
    return tuple(rng.sample(all_deeds, _COUNT))


def _clauses(subjects: list[str], rests: str) -> tuple[Clause, ...]:
    listed = " ".join(rests.split()).split(", ")
    every = [Clause(name.replace("_", " "), rest) for name in subjects for rest in listed]
    return tuple(random.Random(rests).sample(every, 150))


@cache
def states() -> tuple[Clause, ...]:
    """Return what something or somebody is."""
    return _clauses(SUBJECTS_OF_BE, STATES)


@cache
def actions() -> tuple[Clause, ...]:
    """Return what several people, I or you do."""
    return _clauses(SUBJECTS_OF_VERB, ACTIONS)


def statement(clause: Clause) -> str:
    """Return what is so, without a full stop."""
    return f"{clause.subject} is {clause.rest}"


def question(clause: Clause) -> str:
    """Return the question whether it is so."""
    subject, rest = clause
    first = subject.split()[0]
    if first in ("She", "He", "It", "The", "My", "This", "Everything"):
        subject = subject.replace(first, first.lower())
    return f"Is {subject} {rest}?"


def _sentence(item: Parcel | Call | Deed) -> str:
    return item.text


SKILLS = {
    "sender": Skill(
        parcels,
        answer=lambda parcel: parcel.sender,
        text=_sentence,
        seen=lines("""
            Who is the giver? {}
            From whom did the present come? {}
            Sender: who is it here? {}
            {} Which person gave something away?
            Name the one that the thing comes from. {}
            I need the giver's name. {}
            Whom should be thanked? {}
            Find the donor: {}
        """),
        unseen=lines("""
            {} So who had it before?
            State the source of the gift. {}
            Who was generous? {}
        """),
    ),
    "recipient": Skill(
        parcels,
        answer=lambda parcel: parcel.recipient,
        text=_sentence,
        seen=lines("""
            Who is the receiver? {}
            To whom did the present go? {}
            Recipient: who is it here? {}
            {} Which person was given something?
            Name the one that the thing is for. {}
            I need the receiver's name. {}
            Who has the gift in the end? {}
            Find the addressee: {}
        """),
        unseen=lines("""
            {} So who has it now?
            State the destination of the gift, a person. {}
            Who could unwrap something? {}
        """),
    ),
    "gift": Skill(
        parcels,
        answer=lambda parcel: parcel.thing,
        text=_sentence,
        seen=lines("""
            Which object is mentioned? {}
            What changed hands? One noun. {}
            Gift: what is it here? {}
            {} Name the thing without its article.
            What was the present, in one word? {}
            I need the object, not the people. {}
            Find the thing that was given: {}
            Pick out the item: {}
        """),
        unseen=lines("""
            {} So what did the parcel hold? One noun.
            State what can be touched and is no person. {}
            Guess the wrapping's content, a single word. {}
        """),
    ),
    "phone number": Skill(
        calls,
        answer=lambda call: call.number,
        text=_sentence,
        seen=lines("""
            Which telephone number is in this text? {}
            Phone number: {}
            Extract the number to dial. {}
            {} What do I dial?
            I need the phone number only. {}
            Find the digits to call: {}
            Copy the number with its hyphen. {}
            Read out the telephone number from this: {}
        """),
        unseen=lines("""
            {} I save the contact; with what number?
            State what to key in on a phone. {}
            Where can one ring? Digits, please. {}
        """),
    ),
    "swapped roles": Skill(
        deeds,
        answer=lambda deed: Deed(deed.object, deed.verb, deed.subject).text,
        text=_sentence,
        seen=lines("""
            Swap the two people: {}
            Exchange subject and object. {}
            {} - now the other way round, please.
            Let them change roles: {}
            Who did it to whom is wrong here; turn it around. {}
            Reverse doer and target in this sentence: {}
            I need the two persons in each other's place. {}
            Mirror the action: {}
        """),
        unseen=lines("""
            {} Tit for tat: how does the return of it read?
            State the same deed with its parties interchanged. {}
            Put the second person at the start and the first at the end: {}
        """),
    ),
    "negation": Skill(
        states,
        answer=lambda clause: f"{clause.subject} is not {clause.rest}",
        text=statement,
        seen=lines("""
            Negate with not: {}
            Insert "not": {}
            Say that this is false, using is not: {}
            {}. Deny it with the word not.
            Make the sentence negative by adding not: {}
            I need the negation with "is not": {}
            Contradict me with not. {}
            Put not after the verb: {}
        """),
        unseen=lines("""
            I claim: {}. Object, with not.
            State the contrary by means of a not: {}
            A liar's version, one not added: {}
        """),
    ),
    "question": Skill(
        states,
        answer=question,
        text=statement,
        seen=lines("""
            Turn this into a question: {}
            Ask whether it is so: {}
            Make a yes-no question from: {}
            I need the interrogative of: {}
            Begin with Is and end with a question mark: {}
            {}? Put the verb first.
            Rephrase as a question with Is: {}
            Which question does "{}" answer with yes?
        """),
        unseen=lines("""
            I doubt it: {}. How do I inquire?
            State in question form: {}
            Let the verb of this trade places with its subject: {}
        """),
    ),
    "statement": Skill(
        states,
        answer=statement,
        text=question,
        seen=lines("""
            Turn this question into a statement. {}
            Answer in the affirmative, without yes or full stop: {}
            Make an assertion out of this, no period: {}
            I need the declarative sentence of: {}
            {} Say that it is so, without yes.
            Put the subject first and drop the question mark: {}
            Rephrase as a claim: {}
            {} Suppose that it is true; write the fact.
        """),
        unseen=lines("""
            {} Nobody asks any more; everybody says so.
            State instead of asking: {}
            Convert the query to a declaration: {}
        """),
    ),
    "future": Skill(
        actions,
        answer=lambda clause: f"{clause.subject} will {clause.rest}",
        text=lambda clause: f"{clause.subject} {clause.rest}",
        seen=lines("""
            Put into the future with will: {}
            Future tense, with will: {}
            Say with will that this comes tomorrow: {}
            {}. And next year? Use will.
            Predict it, adding only will: {}
            I need the will form of this sentence: {}
            Rewrite for the days to come, with will: {}
            Insert will before the verb: {}
        """),
        unseen=lines("""
            A fortune teller sees this ahead and says will: {}
            State the plan with will: {}
            Not yet, but soon, in the words of will: {}
        """),
    ),
}
