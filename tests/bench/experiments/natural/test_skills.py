"""Skills: their answers against truths written by hand, and against other ways to work them out."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

NEEDS = 'needs pip install "dnd-fast[natural]"'
SKILLS = pytest.importorskip("dnd_fast.bench.experiments.natural.skills", reason=NEEDS).SKILLS
suite = pytest.importorskip("dnd_fast.bench.experiments.natural.suite", reason=NEEDS)

NOUNS = """
    child children, woman women, man men, tooth teeth, foot feet, mouse mice, wife wives,
    knife knives, city cities, baby babies, boss bosses, match matches, dish dishes, beach beaches,
    branch branches, bench benches, sandwich sandwiches, story stories, library libraries,
    army armies, lady ladies, photo photos, piano pianos, studio studios, key keys, boy boys,
    holiday holidays, highway highways, shoe shoes, house houses, virus viruses, bonus bonuses,
    agency agencies, tree trees, video videos, coach coaches
"""
VERBS = """
    go goes went going, have has had having, do does did doing, say says said saying,
    make makes made making, take takes took taking, think thinks thought thinking,
    give gives gave giving, tell tells told telling, leave leaves left leaving,
    keep keeps kept keeping, begin begins began beginning, bring brings brought bringing,
    run runs ran running, write writes wrote writing, meet meets met meeting,
    buy buys bought buying, stop stops stopped stopping, die dies died dying,
    try tries tried trying, study studies studied studying, carry carries carried carrying,
    watch watches watched watching, push pushes pushed pushing, miss misses missed missing,
    enjoy enjoys enjoyed enjoying, play plays played playing, argue argues argued arguing,
    agree agrees agreed agreeing, plan plans planned planning, prefer prefers preferred preferring,
    visit visits visited visiting, choose chooses chose choosing, fly flies flew flying,
    teach teaches taught teaching, fix fixes fixed fixing, open opens opened opening
"""
ADJECTIVES = """
    good better best, hot hotter hottest, big bigger biggest, thin thinner thinnest,
    sad sadder saddest, happy happier happiest, easy easier easiest, dry drier driest,
    busy busier busiest, ugly uglier ugliest, large larger largest, nice nicer nicest,
    safe safer safest, simple simpler simplest, brave braver bravest, tall taller tallest,
    young younger youngest, cheap cheaper cheapest, clean cleaner cleanest, quiet quieter quietest,
    narrow narrower narrowest, fresh fresher freshest, wide wider widest, lazy lazier laziest,
    flat flatter flattest, shallow shallower shallowest, long longer longest, rich richer richest
"""
PARTS_OF_SPEECH = {
    "noun": "history family computer music bird library oven camera teacher road idea child",
    "verb": "become ask begin bring write hear carry decide forget eat arrive listen",
    "adjective": "different important difficult useful expensive famous careful legal huge happy",
}
ARTICLES = """
    a map, an oven, an idea, a basket, an army, a year, an apple, an ear, a tooth, an island,
    an engine, an audience, a woman, an event, a knife, an essay, an insect, a yard, an arm, a piano
"""
CATEGORIES = """
    cat animal, zebra animal, owl bird, penguin bird, banana fruit, plum fruit, carrot vegetable,
    onion vegetable, blue color, violet color, tractor vehicle, bus vehicle, harp instrument,
    drum instrument, golf sport, tennis sport, hat clothing, skirt clothing, nurse profession,
    pilot profession, sofa furniture, desk furniture, zinc metal, silver metal
"""
OPPOSITES = """
    hot cold, cold hot, big small, small big, day night, king queen, north south, open closed,
    last first, defeat victory, cheap expensive, expensive cheap, dead alive, before after, out in,
    stupid clever, black white, odd even, wet dry, win lose, summer winter, exit entrance
"""
COUNTRIES = """
    Japan|Asia|Tokyo|Yen|Japon|Japan|Japón
    Germany|Europe|Berlin|Euro|Allemagne|Deutschland|Alemania
    France|Europe|Paris|Euro|France|Frankreich|Francia
    Brazil|South America|Brasilia|Real|Brésil|Brasilien|Brasil
    Egypt|Africa|Cairo|Pound|Égypte|Ägypten|Egipto
    Australia|Oceania|Canberra|Dollar|Australie|Australien|Australia
    Canada|North America|Ottawa|Dollar|Canada|Kanada|Canadá
    Mexico|North America|Mexico City|Peso|Mexique|Mexiko|México
    India|Asia|New Delhi|Rupee|Inde|Indien|India
    Kenya|Africa|Nairobi|Shilling|Kenya|Kenia|Kenia
    Poland|Europe|Warsaw|Zloty|Pologne|Polen|Polonia
    Sweden|Europe|Stockholm|Krona|Suède|Schweden|Suecia
    Hungary|Europe|Budapest|Forint|Hongrie|Ungarn|Hungría
    Peru|South America|Lima|Sol|Pérou|Peru|Perú
    Thailand|Asia|Bangkok|Baht|Thaïlande|Thailand|Tailandia
    Turkey|Asia|Ankara|Lira|Turquie|Türkei|Turquía
    Vietnam|Asia|Hanoi|Dong|Viêt Nam|Vietnam|Vietnam
    Morocco|Africa|Rabat|Dirham|Maroc|Marokko|Marruecos
    Greece|Europe|Athens|Euro|Grèce|Griechenland|Grecia
    Norway|Europe|Oslo|Krone|Norvège|Norwegen|Noruega
    Kazakhstan|Asia|Astana|Tenge|Kazakhstan|Kasachstan|Kazajistán
    Netherlands|Europe|Amsterdam|Euro|Pays-Bas|Niederlande|Países Bajos
    New Zealand|Oceania|Wellington|Dollar|Nouvelle-Zélande|Neuseeland|Nueva Zelanda
    Nigeria|Africa|Abuja|Naira|Nigeria|Nigeria|Nigeria
"""


def rows(text):
    return [row.split() for row in text.split(",")]


def truths():
    """Questions' texts and the right answers, by skill."""
    verbs, adjectives = rows(VERBS), rows(ADJECTIVES)
    countries = [line.strip().split("|") for line in COUNTRIES.strip().splitlines()]
    of_countries = ("continent", "capital", "currency", "French", "German", "Spanish")
    return {
        "plural": rows(NOUNS),
        "singular": [(plural, singular) for singular, plural in rows(NOUNS)],
        "third person": [(verb, form) for verb, form, _, _ in verbs],
        "past": [(verb, form) for verb, _, form, _ in verbs],
        "base form": [(form, verb) for verb, _, form, _ in verbs],
        "gerund": [(verb, form) for verb, _, _, form in verbs],
        "comparative": [(word, form) for word, form, _ in adjectives],
        "superlative": [(word, form) for word, _, form in adjectives],
        "part of speech": [
            (word, part) for part, words in PARTS_OF_SPEECH.items() for word in words.split()
        ],
        "article": [(noun, f"{article} {noun}") for article, noun in rows(ARTICLES)],
        "category": rows(CATEGORIES),
        "opposite": rows(OPPOSITES),
        **{
            skill: [(row[0], row[column]) for row in countries]
            for column, skill in enumerate(of_countries, 1)
        },
    }


@pytest.mark.parametrize("skill", truths())
def test_answers_are_right(skill):
    answers = {SKILLS[skill].text(item): SKILLS[skill].answer(item) for item in items(skill)}
    known = dict(truths()[skill])
    shared = known.keys() & answers.keys()
    assert len(shared) > 0.8 * len(known)  # the packages' lists may lack a word
    assert {text: answers[text] for text in shared} == {text: known[text] for text in shared}


def items(skill):
    return list(SKILLS[skill].items())


@given(st.sampled_from(items("first letter")))
def test_letters(word):
    assert word.startswith(SKILLS["first letter"].answer(word))
    assert word.endswith(SKILLS["last letter"].answer(word))
    assert SKILLS["letter count"].answer(word) == str(sum(1 for _ in word))
    capitals = dict(zip(string.ascii_lowercase, string.ascii_uppercase, strict=True))
    assert SKILLS["upper case"].answer(word) == "".join(capitals[letter] for letter in word)
    assert SKILLS["capitalise"].answer(word) == capitals[word[0]] + word[1:]


@given(st.sampled_from(items("first word")))
def test_lists(triple):
    text = SKILLS["first word"].text(triple)
    assert SKILLS["first word"].answer(triple) == text[: text.index(",")]
    assert SKILLS["last word"].answer(triple) == text[text.rindex(" ") + 1 :]
    assert sorted(SKILLS["reversed list"].answer(triple).split(", ")) == sorted(text.split(", "))
    assert SKILLS["reversed list"].answer(triple[::-1]) == text


@given(st.sampled_from(items("name")))
def test_notes(note):
    """What a note mentions is in it once, so that there is one right answer."""
    text = SKILLS["name"].text(note)
    for skill in ("name", "city", "year"):
        assert text.count(SKILLS[skill].answer(note)) == 1
    assert SKILLS["year"].answer(note) == "".join(filter(str.isdigit, text))
    capitalised = {word.strip(".,") for word in text.split() if word[0].isupper()}
    named = {SKILLS["name"].answer(note), *SKILLS["city"].answer(note).split()}
    assert capitalised - named <= {"In", "The", "Born", "Our", "We"}


@given(st.integers(1, 9999))
def test_integers(number):
    assert int(SKILLS["next"].answer(number)) - number == 1
    assert number - int(SKILLS["previous"].answer(number)) == 1
    assert SKILLS["parity"].answer(number) == ("even" if str(number)[-1] in "02468" else "odd")
    assert SKILLS["digits"].answer(number) == str(number)
    assert number_of(SKILLS["number in words"].answer(number)) == number
    assert number_of(SKILLS["digits"].text(number)) == number


@given(st.integers(1, 9999))
def test_ordinals(number):
    written = SKILLS["ordinal"].answer(number)
    assert written[:-2] == str(number)
    teens = number % 100 in (11, 12, 13)
    assert written[-2:] == ("th" if teens else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th"))


@given(st.integers(1, 99), st.integers(1, 99))
def test_pairs_of_numbers(a, b):
    assert int(SKILLS["addition"].answer((a, b))) - a == b
    assert SKILLS["addition"].text((a, b)) == f"{a} and {b}"
    assert SKILLS["larger"].answer((a, b)) == str(a if a > b else b)


def number_of(words):
    """Read an English number below ten thousand."""
    small = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen"
    ).split()
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    total = current = 0
    for word in words.replace("-", " ").replace(",", "").split():
        if word in small:
            current += small.index(word)
        elif word in tens:
            current += 10 * (tens.index(word) + 2)
        elif word == "hundred":
            current *= 100
        elif word == "thousand":
            total, current = 1000 * current, 0
        else:
            assert word == "and"
    return total + current


def test_sentiment():
    reviews = {
        SKILLS["sentiment"].text(item): SKILLS["sentiment"].answer(item)
        for item in items("sentiment")
    }
    assert all(text.startswith("The ") and text.endswith(".") for text in reviews)
    known = {
        "positive": "amazing excellent fantastic lovely perfect superb wonderful brilliant",
        "negative": "awful boring disappointing dreadful horrible lousy terrible useless",
    }
    for sentiment, adjectives in known.items():
        for adjective in adjectives.split():
            (text,) = (text for text in reviews if text.endswith(f" was {adjective}."))
            assert reviews[text] == sentiment
    assert list(reviews.values()).count("positive") == len(reviews) / 2
    things = {sentiment: set() for sentiment in known}
    for text, sentiment in reviews.items():
        things[sentiment].add(text.split()[1])
    assert things["positive"] == things["negative"]  # what is reviewed says nothing


def test_there_are_enough_skills_and_some_that_cannot_be_taught():
    assert len(SKILLS) >= 34
    unteachable = {name for name, skill in SKILLS.items() if not skill.teachable}
    assert unteachable == {
        "capital", "currency", "French", "German", "Spanish", "letter count", "upper case"
    }  # fmt: skip


@pytest.mark.parametrize("name", SKILLS)
def test_every_skill(name):
    """Enough items, each with one right answer; enough wordings, each with a place for the item."""
    skill = SKILLS[name]
    texts = [skill.text(item) for item in items(name)]
    assert len(set(texts)) == len(texts) >= 90
    assert all(text == text.strip() and text for text in texts)
    answers = [skill.answer(item) for item in items(name)]
    assert all(answer == answer.strip() and answer for answer in answers)
    assert not any(set(answer) & set('"<>&\\{}*[]!') for answer in answers)  # formats' own signs
    assert len(skill.seen) >= 7
    assert len(skill.unseen) >= 3
    assert all(wording.count("{}") == 1 for wording in (*skill.seen, *skill.unseen))


def test_no_wording_is_used_twice():
    wordings = [w for skill in SKILLS.values() for w in (*skill.seen, *skill.unseen)]
    assert len(set(wordings)) == len(wordings)
