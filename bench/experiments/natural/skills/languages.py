"""Skills about words of other languages.

Names of numbers come from num2words, those of months and weekdays from Babel.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from functools import cache
from typing import Any

from babel import Locale
from num2words import num2words

from dnd_fast.bench.experiments.natural.skills.dates import dates, month_and_day, written
from dnd_fast.bench.experiments.natural.skills.numbers import in_words
from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines

LANGUAGES = {"es": "Spanish", "fr": "French", "de": "German"}
TOLD_APART = ("es", "fr", "de", "it", "nl", "pl", "fi", "hu")
# English, Spanish, French, German; only words that have one usual translation both ways.
NOUNS = lines("""
    dog perro chien Hund, cat gato chat Katze, horse caballo cheval Pferd, cow vaca vache Kuh,
    wolf lobo loup Wolf, bear oso ours Bär, mouse ratón souris Maus, lion león lion Löwe,
    sheep oveja mouton Schaf, goat cabra chèvre Ziege, duck pato canard Ente,
    bee abeja abeille Biene,
    snake serpiente serpent Schlange, monkey mono singe Affe, tiger tigre tigre Tiger,
    elephant elefante éléphant Elefant, butterfly mariposa papillon Schmetterling,
    spider araña araignée Spinne, house casa maison Haus, door puerta porte Tür,
    window ventana fenêtre Fenster, table mesa table Tisch, chair silla chaise Stuhl,
    bed cama lit Bett, book libro livre Buch, school escuela école Schule,
    church iglesia église Kirche, street calle rue Straße, city ciudad ville Stadt,
    bridge puente pont Brücke, garden jardín jardin Garten, tree árbol arbre Baum,
    flower flor fleur Blume, forest bosque forêt Wald, mountain montaña montagne Berg,
    island isla île Insel, moon luna lune Mond, sun sol soleil Sonne, star estrella étoile Stern,
    water agua eau Wasser, fire fuego feu Feuer, snow nieve neige Schnee, rain lluvia pluie Regen,
    wind viento vent Wind, bread pan pain Brot, milk leche lait Milch, cheese queso fromage Käse,
    salt sal sel Salz, sugar azúcar sucre Zucker, apple manzana pomme Apfel, pear pera poire Birne,
    cherry cereza cerise Kirsche, wine vino vin Wein, beer cerveza bière Bier,
    butter mantequilla beurre Butter, honey miel miel Honig, soup sopa soupe Suppe,
    hand mano main Hand, foot pie pied Fuß, nose nariz nez Nase, mouth boca bouche Mund,
    tooth diente dent Zahn, blood sangre sang Blut, mother madre mère Mutter,
    father padre père Vater, brother hermano frère Bruder, king rey roi König,
    queen reina reine Königin, knife cuchillo couteau Messer, spoon cuchara cuillère Löffel,
    fork tenedor fourchette Gabel, bottle botella bouteille Flasche, shirt camisa chemise Hemd,
    shoe zapato chaussure Schuh, hat sombrero chapeau Hut, night noche nuit Nacht,
    week semana semaine Woche, month mes mois Monat, hour hora heure Stunde, gold oro or Gold,
    iron hierro fer Eisen, train tren train Zug, red rojo rouge rot, blue azul bleu blau,
    green verde vert grün, yellow amarillo jaune gelb, white blanco blanc weiß,
    black negro noir schwarz, winter invierno hiver Winter, summer verano été Sommer
""")


@cache
def translations() -> dict[str, tuple[str, ...]]:
    """Map English words to their Spanish, French and German ones."""
    rows = [row.split() for line in NOUNS for row in line.rstrip(",").split(", ")]
    return {english: tuple(others) for english, *others in rows}


def nouns() -> tuple[str, ...]:
    """Return the English words whose translations are asked for."""
    return tuple(translations())


def small_integers() -> Sequence[int]:
    """Return the numbers whose names in other languages are asked for."""
    return range(1, 101)


@cache
def foreign_words() -> tuple[tuple[str, str], ...]:
    """Return words, numbers or weekdays, that one language alone has, with its code."""
    words = [(code, num2words(n, lang=code)) for code in TOLD_APART for n in range(20, 50)]
    words += [(code, day.lower()) for code in TOLD_APART for day in _days(code).values()]
    counts = Counter(word for _, word in words)
    alone = [(code, word) for code, word in words if counts[word] == 1]
    return tuple(random.Random("foreign words").sample(alone, 240))


def _days(code: str) -> dict[int, str]:
    return Locale(code).days["stand-alone"]["wide"]


def _number_in(code: str) -> Skill[int]:
    seen = """
        What is the number {} in LANGUAGE?
        Count in LANGUAGE: how is {} said?
        LANGUAGE number word for {}:
        I need to say {} to a LANGUAGE speaker, in words.
        Translate the number {} into LANGUAGE words.
        Could you write {} out in LANGUAGE?
        Name {} as LANGUAGE children learn to count.
        Put the English numeral {} into LANGUAGE.
    """
    unseen = """
        A LANGUAGE cashier wants {}; which words do I hear?
        State how many {} is, speaking LANGUAGE.
        At a LANGUAGE auction I bid {}; what do I shout?
    """
    return Skill(
        small_integers,
        answer=lambda number: str(num2words(number, lang=code)),
        seen=_wordings(seen, code),
        unseen=_wordings(unseen, code),
        text=in_words,
        teachable=False,
    )


def _number_from(code: str) -> Skill[int]:
    seen = """
        Which number is the LANGUAGE word {}? Use digits.
        What does the LANGUAGE numeral {} mean, in digits?
        Write the LANGUAGE {} in figures.
        From LANGUAGE to digits: {}
        I need LANGUAGE {} as a number in digits.
        LANGUAGE speakers say {}; type the number.
        How much is {} in LANGUAGE? Digits, please.
        Decode the LANGUAGE number word {} into 0-9.
    """
    unseen = """
        A LANGUAGE waiter asks {} euros; which figure is on the bill?
        State in numerals what LANGUAGE people call {}.
        My LANGUAGE bus is line {}; which digits are on its front?
    """
    return Skill(
        small_integers,
        answer=str,
        seen=_wordings(seen, code),
        unseen=_wordings(unseen, code),
        text=lambda number: str(num2words(number, lang=code)),
        teachable=False,
    )


def _month_in(code: str) -> Skill[date]:
    seen = """
        What is the month of {} called in LANGUAGE?
        Name the month in {} in LANGUAGE.
        LANGUAGE name of the month in {}:
        I need the month, not the day, of {} in LANGUAGE.
        Translate the month of {} into LANGUAGE; drop the day.
        In which month is {}? Reply in LANGUAGE.
        Could you give just the month of {}, in LANGUAGE?
        Say in LANGUAGE which month {} belongs to.
    """
    unseen = """
        A LANGUAGE calendar is open at {}; what is its heading?
        State the month around {} as LANGUAGE people do.
        I book for {} at a LANGUAGE hotel; which month do they note?
    """
    return Skill(
        dates,
        answer=written("LLLL", code),
        seen=_wordings(seen, code),
        unseen=_wordings(unseen, code),
        text=month_and_day,
    )


def _weekday_in(code: str) -> Skill[date]:
    seen = """
        What is the weekday of {} called in LANGUAGE?
        Name the day of the week in {} in LANGUAGE.
        LANGUAGE weekday for {}:
        I need the day's name from {} in LANGUAGE.
        Translate the weekday, not the date, of {} into LANGUAGE.
        On which day of the week is {}? Reply in LANGUAGE.
        Could you give just the weekday of {}, in LANGUAGE?
        Say in LANGUAGE which of the seven days {} is.
    """
    unseen = """
        A LANGUAGE diary shows {}; under which weekday?
        State the name of the day in {} for LANGUAGE ears.
        My LANGUAGE dentist offers {}; which day of the week does she say?
    """
    return Skill(
        dates,
        answer=written("cccc", code),
        seen=_wordings(seen, code),
        unseen=_wordings(unseen, code),
        text=written("EEEE, MMMM d"),
    )


def _word_in(code: str) -> Skill[str]:
    seen = """
        What is the LANGUAGE for "{}"?
        Translate the word {} from English into LANGUAGE.
        LANGUAGE vocabulary, no article: {}
        I need the LANGUAGE word meaning {}, without article.
        How do LANGUAGE people say "{}"? One word.
        English {} equals what in LANGUAGE?
        Could you say {} in LANGUAGE, in one word?
        Give one LANGUAGE word for {}.
    """
    unseen = """
        On the back of a LANGUAGE flash card for {} is what?
        State {} in the tongue of LANGUAGE speakers, as one word.
        A LANGUAGE child points at "{}"; which word is heard?
    """
    position = list(LANGUAGES).index(code)
    return Skill(
        nouns,
        answer=lambda word: translations()[word][position],
        seen=_wordings(seen, code),
        unseen=_wordings(unseen, code),
        teachable=False,
    )


def _word_from(code: str) -> Skill[str]:
    seen = """
        What does the LANGUAGE word {} mean in English?
        Translate {} from LANGUAGE into English.
        LANGUAGE to English, one word: {}
        I need the English for LANGUAGE {}.
        Which English word is {} in a LANGUAGE dictionary?
        LANGUAGE {} equals what in English?
        Could you explain LANGUAGE {} by one English word?
        Put the LANGUAGE {} into English, no article.
    """
    unseen = """
        I read {} on a LANGUAGE sign; what is that at home in London?
        State for a Briton what {} is, said by LANGUAGE friends.
        Tourists hear LANGUAGE "{}"; tell them its meaning, one word.
    """
    position = list(LANGUAGES).index(code)
    return Skill(
        nouns,
        answer=str,
        seen=_wordings(seen, code),
        unseen=_wordings(unseen, code),
        text=lambda word: translations()[word][position],
        teachable=False,
    )


def _wordings(text: str, code: str) -> tuple[str, ...]:
    return lines(text.replace("LANGUAGE", LANGUAGES[code]))


_IN_LANGUAGE: dict[str, Callable[[str], Skill[Any]]] = {
    "LANGUAGE number": _number_in,
    "digits of a LANGUAGE number": _number_from,
    "LANGUAGE month": _month_in,
    "LANGUAGE weekday": _weekday_in,
    "LANGUAGE word": _word_in,
    "LANGUAGE to English": _word_from,
}
SKILLS: dict[str, Skill[Any]] = {
    "language": Skill(
        foreign_words,
        answer=lambda item: str(Locale(item[0]).get_display_name("en")),
        text=lambda item: item[1],
        seen=lines("""
            Which language is this word: {}?
            What language does {} come from?
            Identify the language of "{}".
            {}: language?
            I need to know in what language {} is written.
            Detect the tongue: {}
            In which European language would I say {}?
            Please name the language that has the word {}.
        """),
        unseen=lines("""
            Where {} is spoken, what do people call their language in English?
            State the tongue to which {} belongs.
            For "{}", which dictionary must I open?
        """),
    ),
    **{
        name.replace("LANGUAGE", language): make(code)
        for code, language in LANGUAGES.items()
        for name, make in _IN_LANGUAGE.items()
    },
}
