"""What the demo's tasks are made of: skills, answer formats and words, and how prompts name them.

Each skill has wordings that training never uses, and no word of a domain occurs in a wording.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Skill:
    """What to do with a word, and how prompts ask for it ({} is the word)."""

    apply: Callable[[str], str]
    wordings: tuple[str, ...]
    validation_wordings: tuple[str, ...]
    test_wordings: tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """What surrounds the answer, and how prompts ask for it."""

    before: str
    after: str
    wordings: tuple[str, ...]

    def apply(self, answer: str) -> str:
        """Put an answer into the format."""
        return f"{self.before}{answer}{self.after}"

    def fits(self, response: str) -> bool:
        """Whether a response has this decoration and no other."""
        inside = response.removeprefix(self.before).removesuffix(self.after)
        return self.apply(inside) == response and not set(inside) & set(DECORATION)


DECORATION = '[]*"!(){}.#>?/~@$'


def _next_letter(letter: str) -> str:
    return chr((ord(letter) - ord("a") + 1) % 26 + ord("a"))


SKILLS = {
    "copy": Skill(
        lambda word: word,
        (
            "copy {} exactly",
            "repeat {}",
            "say {} again",
            "echo {}",
            "write {} unchanged",
            "give back {} as it is",
            "return {} without changes",
            "write down {} the same way",
            "print {} as given",
        ),
        ("reproduce {} faithfully",),
        ("type {} once more", "leave {} as it stands"),
    ),
    "reverse": Skill(
        lambda word: word[::-1],
        (
            "reverse {}",
            "spell {} backwards",
            "write {} from right to left",
            "flip the order of letters in {}",
            "write {} in reverse order",
            "mirror the word {}",
            "read {} from the end to the start",
            "put the letters of {} in opposite order",
            "invert the spelling of {}",
        ),
        ("write {} back to front",),
        ("turn {} around", "spell {} from its end"),
    ),
    "upper": Skill(
        str.upper,
        (
            "put {} in capitals",
            "write {} in upper case",
            "capitalize every letter of {}",
            "make {} all caps",
            "convert {} to capital letters",
            "change {} to uppercase",
            "use only capital letters for {}",
            "raise every letter of {} to upper case",
            "print {} in block capitals",
        ),
        ("uppercase the word {}",),
        ("shout {} with big letters", "write {} with caps lock on"),
    ),
    "first": Skill(
        lambda word: word[0],
        (
            "give the first letter of {}",
            "what letter does {} start with",
            "tell the initial of {}",
            "take the opening letter of {}",
            "show the letter at the start of {}",
            "which letter comes first in {}",
            "name the leading letter of {}",
            "extract the first character of {}",
            "pick the letter at the beginning of {}",
        ),
        ("keep only the initial letter of {}",),
        ("find the letter that begins {}", "say which letter opens {}"),
    ),
    "last": Skill(
        lambda word: word[-1],
        (
            "give the last letter of {}",
            "what letter does {} end with",
            "tell the final letter of {}",
            "take the closing letter of {}",
            "show the letter at the end of {}",
            "which letter comes last in {}",
            "name the trailing letter of {}",
            "extract the last character of {}",
            "pick the letter at the finish of {}",
        ),
        ("keep only the ending letter of {}",),
        ("find the letter that finishes {}", "say which letter closes {}"),
    ),
    "count": Skill(
        lambda word: str(len(word)),
        (
            "count the letters in {}",
            "how many letters has {}",
            "tell the length of {}",
            "give the number of letters in {}",
            "how long is the word {}",
            "state how many characters {} has",
            "compute the length of {}",
            "say how many letters are in {}",
            "determine the letter count of {}",
        ),
        ("find out how many letters {} contains",),
        ("measure how long {} is", "give the size of {} in letters"),
    ),
    "double": Skill(
        lambda word: word + word,
        (
            "write {} two times",
            "say {} twice",
            "double the word {}",
            "repeat {} two times",
            "write {} twice in a row",
            "duplicate {}",
            "give {} two times over",
            "print {} twice",
            "output {} doubled",
        ),
        ("say {} a second time after itself",),
        ("put {} next to itself", "write {} and its copy together"),
    ),
    "shift": Skill(
        lambda word: "".join(map(_next_letter, word)),
        (
            "shift each letter of {} by one",
            "replace letters of {} with the next in the alphabet",
            "encode {} with a caesar cipher",
            "move every letter of {} one step forward",
            "change each letter of {} to the following one",
            "rotate the letters of {} by one",
            "advance each letter of {} in the alphabet",
            "apply a caesar shift to {}",
            "substitute every letter of {} by its successor",
        ),
        ("push each letter of {} to the next alphabet letter",),
        ("encrypt {} by advancing each letter", "cipher {} one alphabet place forward"),
    ),
    "vowels": Skill(
        lambda word: "".join(letter for letter in word if letter in "aeiou"),
        (
            "list the vowels of {}",
            "keep only the vowels in {}",
            "which vowels are in {}",
            "extract the vowels from {}",
            "give the vowels of {}",
            "show just the vowels in {}",
            "remove everything but vowels from {}",
            "pick out the vowels of {}",
            "write only the vowels of {}",
        ),
        ("filter {} down to its vowels",),
        ("delete the consonants of {}", "drop all consonants from {}"),
    ),
    "hyphen": Skill(
        "-".join,
        (
            "put hyphens between the letters of {}",
            "separate the letters of {} with dashes",
            "spell {} with hyphens",
            "write {} letter by letter with dashes",
            "insert a dash between letters of {}",
            "hyphenate every letter of {}",
            "place dashes between the characters of {}",
            "split {} into letters with hyphens",
            "write {} with a hyphen after each letter",
        ),
        ("add hyphens between all letters of {}",),
        ("join the letters of {} using hyphens", "connect the letters of {} by dashes"),
    ),
}

FORMATS = {
    "plain": Format("", "", ("", "and add nothing else", "with no decoration", "as plain text")),
    "brackets": Format(
        "[",
        "]",
        (
            "in square brackets",
            "inside brackets",
            "between square brackets",
            "and wrap it in brackets",
        ),
    ),
    "stars": Format(
        "*",
        "*",
        (
            "between stars",
            "with a star on both sides",
            "surrounded by asterisks",
            "and add asterisks around",
        ),
    ),
    "quotes": Format(
        '"',
        '"',
        ("in quotation marks", "inside quotes", "between double quotes", "and quote it"),
    ),
    "exclamation": Format(
        "",
        "!",
        (
            "with an exclamation mark",
            "and sound excited",
            "ending in an exclamation point",
            "as an exclamation",
        ),
    ),
    "parentheses": Format(
        "(",
        ")",
        (
            "in parentheses",
            "inside parentheses",
            "between round parentheses",
            "and wrap it in parentheses",
        ),
    ),
    "braces": Format(
        "{",
        "}",
        ("in curly braces", "inside braces", "between curly braces", "and wrap it in braces"),
    ),
    "full stop": Format(
        "",
        ".",
        (
            "with a full stop",
            "ending in a period",
            "followed by a period",
            "and end with a full stop",
        ),
    ),
    "hash": Format(
        "#",
        "",
        ("after a hash sign", "as a hashtag", "with a hash before it", "and start with a hash"),
    ),
    "arrow": Format(
        ">",
        "",
        (
            "after an arrow",
            "following an arrow sign",
            "with an arrow before it",
            "and start with an arrow",
        ),
    ),
    "question": Format(
        "",
        "?",
        (
            "with a question mark",
            "and sound unsure",
            "ending in a question mark",
            "as a question",
        ),
    ),
    "slashes": Format(
        "/",
        "/",
        (
            "between slashes",
            "with a slash on both sides",
            "surrounded by slashes",
            "and add slashes around",
        ),
    ),
    "tildes": Format(
        "~",
        "~",
        (
            "between tildes",
            "with a tilde on both sides",
            "surrounded by tildes",
            "and add tildes around",
        ),
    ),
    "handle": Format(
        "@",
        "",
        (
            "after an at sign",
            "as a handle",
            "with an at sign before it",
            "and start with an at sign",
        ),
    ),
    "price": Format(
        "$",
        "",
        (
            "after a dollar sign",
            "as a price",
            "with a dollar sign before it",
            "and start with a dollar sign",
        ),
    ),
}

# Words of three to five letters, none of which occurs in a wording.
DOMAINS = {
    "animal": (
        "ant bat bear bee bird bison camel cat cobra cow crab crow deer dog duck eagle eel "
        "fish fox frog goat goose hare hawk hen heron hippo horse hyena koala lamb lemur lion "
        "lynx mole moose mouse mule newt otter owl panda pig pony puma rat raven robin seal "
        "shark sheep sloth snail snake squid stork swan tapir tiger toad trout viper wasp "
        "whale wolf worm yak zebra"
    ).split(),
    "food": (
        "apple bacon bagel basil bean beef beet berry bread cake candy chili cocoa corn cream "
        "curry date donut egg fig flour fudge grape gravy ham honey jam jelly juice kale kiwi "
        "leek lemon lime mango melon milk mint nacho nut oat olive onion pasta peach pear pie "
        "pizza plum prune rice salad salt sauce soup spice steak sugar syrup taco tea toast "
        "tofu tuna wheat"
    ).split(),
    "tool": (
        "anvil auger awl axe bolt broom brush cable chain chair clamp clock comb cord crane "
        "crate cup desk dial drill file fork gauge gear glue hinge hoe hook hose jack jar key "
        "knife lamp lathe lens lever map mop motor nail oven pan pen pipe plane plate plow "
        "pot pump radio rake razor rope ruler saw scale screw sieve spade spoon stove table "
        "tape tongs tray valve vise wagon wedge wheel wire"
    ).split(),
}


def instruction_words() -> list[str]:
    """List every word that occurs in prompts beside the domains' own words."""
    phrases = [
        phrase
        for skill in SKILLS.values()
        for phrase in skill.wordings + skill.validation_wordings + skill.test_wordings
    ]
    phrases += [phrase for form in FORMATS.values() for phrase in form.wordings]
    phrases += [f"the {domain} name" for domain in DOMAINS]
    return sorted({word for phrase in phrases for word in phrase.split()} - {"{}"})
