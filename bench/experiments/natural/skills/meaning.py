"""Skills about what words mean; truths are the lists in this file."""

from __future__ import annotations

from functools import cache

from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines

CATEGORIES = {
    "animal": "cat dog horse lion tiger elephant rabbit monkey cow goat wolf giraffe camel zebra",
    "bird": "eagle sparrow owl parrot pigeon swan raven hawk penguin ostrich gull robin falcon",
    "fruit": "apple banana grape mango peach pear cherry lemon plum melon apricot strawberry fig",
    "vegetable": "carrot potato onion cabbage spinach broccoli lettuce cucumber garlic celery leek",
    "color": "red blue green yellow purple pink brown black white gray violet turquoise crimson",
    "vehicle": "car truck bus train bicycle airplane motorcycle helicopter tractor van taxi tram",
    "instrument": "piano guitar violin drum flute trumpet harp cello saxophone clarinet banjo oboe",
    "sport": "football tennis basketball hockey baseball golf rugby volleyball boxing badminton",
    "clothing": "shirt jacket hat dress coat sweater skirt sock glove scarf blouse trousers jeans",
    "profession": "doctor teacher lawyer nurse engineer plumber farmer pilot carpenter dentist",
    "furniture": "chair table sofa bed desk wardrobe bookshelf cupboard bench stool armchair couch",
    "metal": "iron gold silver copper zinc tin aluminum nickel platinum titanium cobalt chromium",
}
OPPOSITES = """
    hot cold, big small, tall short, fast slow, happy sad, good bad, light dark, old young,
    rich poor, strong weak, hard soft, early late, open closed, full empty, wet dry, loud quiet,
    high low, near far, thick thin, clean dirty, easy difficult, true false, love hate, day night,
    up down, left right, in out, before after, begin end, win lose, buy sell, push pull, give take,
    come go, laugh cry, live die, remember forget, arrive depart, accept reject, sweet bitter,
    increase decrease, brave cowardly, wide narrow, deep shallow, sharp blunt, smooth rough,
    cheap expensive, safe dangerous, success failure, friend enemy, peace war, summer winter,
    north south, east west, first last, always never, inside outside, above below, top bottom,
    front back, black white, beautiful ugly, clever stupid, asleep awake, alive dead,
    guilty innocent, polite rude, tight loose, public private, ancient modern, male female,
    positive negative, maximum minimum, heaven hell, birth death, question answer, import export,
    appear disappear, attack defend, victory defeat, entrance exit, possible impossible,
    honest dishonest, more less, all none, odd even
"""
GOOD = """
    amazing awesome beautiful brilliant charming cheerful comfortable convincing delightful
    enjoyable excellent exceptional fabulous fantastic fascinating flawless fun gorgeous great
    impressive incredible inspiring lovely magical magnificent marvelous memorable outstanding
    perfect phenomenal pleasant refreshing remarkable satisfying sensational spectacular splendid
    stunning sublime superb terrific thrilling top-notch unforgettable wonderful
"""
BAD = """
    abysmal annoying appalling atrocious forgettable awful bad boring broken clumsy depressing
    disappointing disastrous disgusting dismal dreadful dull embarrassing filthy frustrating ghastly
    hideous horrendous horrible inferior irritating lame lousy mediocre miserable nasty outrageous
    overpriced pathetic poor ridiculous sloppy substandard tedious terrible tiresome unbearable
    unpleasant useless worthless
"""
THINGS = (
    "movie book meal hotel concert game trip service room song phone restaurant lesson show coffee"
).split()


@cache
def categories() -> dict[str, str]:
    """Map things to what they are."""
    return {thing: kind for kind, things in CATEGORIES.items() for thing in things.split()}


@cache
def opposites() -> tuple[tuple[str, str], ...]:
    """Return pairs of a word and its opposite, both ways round."""
    pairs = [tuple(pair.split()) for pair in OPPOSITES.split(",")]
    return tuple(both for a, b in pairs for both in ((a, b), (b, a)))


@cache
def sentiments() -> dict[str, str]:
    """Map adjectives to the opinion that they express, the two kinds in turn."""
    alternating = zip(GOOD.split(), BAD.split(), strict=True)
    return {
        word: kind
        for pair in alternating
        for word, kind in zip(pair, ("positive", "negative"), strict=True)
    }


def review(adjective: str) -> str:
    """Return a sentence that says so about some thing."""
    position = list(sentiments()).index(adjective)
    return f"The {THINGS[position // 2 % len(THINGS)]} was {adjective}."


SKILLS = {
    "category": Skill(
        lambda: list(categories()),
        answer=lambda thing: categories()[thing],
        seen=lines("""
            What kind of thing is {}?
            Name the category that {} belongs to.
            What type of thing is {}?
            Tell me the category of {}.
            Give the general term for {}.
            To which group of things does {} belong?
            Say what kind of thing {} is.
            Category of {}:
            I need a label for the group that {} is in.
            {} is a kind of ___.
            An oak is a tree. What is {}?
            Generalize {}: one word for its kind.
            Hypernym of {}, please.
            Put {} in a category.
            Which class of objects includes {}?
            {}: what sort of thing is that?
            A child asks what {} is; name its kind in one word.
        """),
        unseen=lines("""
            Which more general word covers {}?
            State what {} is an example of.
            In a game of categories, under which heading does {} go?
        """),
    ),
    "opposite": Skill(
        opposites,
        answer=lambda pair: pair[1],
        text=lambda pair: pair[0],
        seen=lines("""
            What is the opposite of {}?
            Give an antonym of {}.
            Name the opposite of the word {}.
            Tell me a word that means the opposite of {}.
            Which word is the contrary of {}?
            Write the antonym of {}.
            What is the reverse of {}?
            Antonym of {}:
            I need the opposite of {}.
            {} and its opposite: name the second.
            Find a word that contradicts {}.
            I said {} but meant the contrary. Which word did I mean?
            fat is to slim as {} is to what?
            Flip the meaning of {}.
            Swap {} for its antonym.
            As a thesaurus, list one antonym for {}.
            Opposites attract: what goes with {}?
        """),
        unseen=lines("""
            It is anything but {}; so what is it?
            State the word at the other end of the scale from {}.
            Negate {} with another word.
        """),
    ),
    "sentiment": Skill(
        lambda: list(sentiments()),
        answer=lambda adjective: sentiments()[adjective],
        text=review,
        seen=lines("""
            Is this review positive or negative? {}
            What is the sentiment of this review? {}
            Tell me if the opinion is positive or negative: {}
            Classify the sentiment as positive or negative: {}
            Does this sound positive or negative? {}
            Decide whether this comment is positive or negative. {}
            Rate the feeling of this text, positive or negative: {}
            Sentiment, positive or negative: {}
            I need the tone of this, positive or negative. {}
            {} Was that praise? Answer positive or negative.
            As a shop owner, would I count this as positive or negative? {}
            Label with positive or negative: {}
            "{}" Is that praise (positive) or criticism (negative)?
            Thumbs up (positive) or down (negative)? {}
            Judge this remark as positive or negative: {}
            Good opinion or bad? Write positive or negative. {}
            Feedback: {} Put down positive or negative.
        """),
        unseen=lines("""
            Did the customer like it? Say positive or negative. {}
            State the attitude of the writer, positive or negative: {}
            Positive or negative, which fits? {}
        """),
    ),
}
