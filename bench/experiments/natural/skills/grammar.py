"""Skills about forms and kinds of words; truths from lemminflect's dictionary."""

from __future__ import annotations

from collections.abc import Callable

from dnd_fast.bench.experiments.natural.skills.skill import Skill, lines
from dnd_fast.bench.experiments.natural.words import (
    adjectives,
    inflection,
    nouns,
    unambiguous_words,
    verbs,
)


def _form(tag: str) -> Callable[[str], str]:
    """Return the function from a word to its form with a Penn Treebank tag."""

    def inflect(word: str) -> str:
        form = inflection(word, tag)
        assert form is not None, f"words.py lets only words with one form through, not {word!r}"
        return form

    return inflect


def _nouns_with_clear_sound() -> list[str]:
    """Nouns whose first letter tells their article: not "hour", not "unit"."""
    return [noun for noun in nouns() if not noun.startswith(("u", "eu", "ho", "one"))]


def with_article(noun: str) -> str:
    """Return a noun after its indefinite article."""
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


SKILLS = {
    "singular": Skill(
        nouns,
        answer=str,
        text=_form("NNS"),
        seen=lines("""
            What is the singular of {}?
            Make the noun {} singular.
            Give the singular form of {}.
            Write the word for only one of the {}.
            Turn the plural {} into the singular.
            What do you call one of several {}?
            Change {} from plural to singular.
            Singular of {}:
            I have the plural {}; I need its singular.
            Two {}, but one what?
            As a linguist, reduce {} to singular number.
            {} in the singular, please.
            How do I say {} when there is only one?
            Which noun has {} as its plural?
            Rewrite {} for a single thing.
            Take the plural off {}.
            ants becomes ant; {} becomes what?
        """),
        unseen=lines("""
            There are many {}; write the noun for a single one.
            State the singular noun that belongs to {}.
            If I have just one and not several {}, what do I have?
        """),
    ),
    "plural": Skill(
        nouns,
        answer=_form("NNS"),
        seen=lines("""
            What is the plural of {}?
            Make the noun {} plural.
            Give the plural form of {}.
            Write the word for more than one {}.
            Turn the singular {} into the plural.
            What do you call several of a {}?
            Change {} from singular to plural.
            Plural of {}:
            I have the singular {}; I need its plural.
            One {}, but two what?
            As a linguist, raise {} to plural number.
            {} in the plural, please.
            How do I say {} when there are several?
            Which noun has {} as its singular?
            Rewrite {} for a whole group.
            Pluralize {}.
            ant becomes ants; {} becomes what?
        """),
        unseen=lines("""
            There is one {}; write the noun for two of them.
            State the plural noun that belongs to {}.
            If I have many and not just one {}, what do I have?
        """),
    ),
    "gerund": Skill(
        verbs,
        answer=_form("VBG"),
        seen=lines("""
            What is the -ing form of {}?
            Put the verb {} into its -ing form.
            Give the present participle of {}.
            Write the gerund of {}.
            Add -ing to the verb {}.
            Which form of {} follows "they are"?
            Turn {} into a word that ends in -ing.
            Form of {} with -ing:
            I need the verb {} ending in -ing.
            Complete with {} in the right form: I enjoy ___.
            Inflect {} the way hopping comes from hop.
            How does one spell {} plus -ing?
            Make a verbal noun in -ing out of {}.
            Attach the ending -ing to {}, spelled correctly.
            hop becomes hopping; {} becomes what?
            {} as an -ing word, please.
            Grammar quiz: which present participle belongs to {}?
        """),
        unseen=lines("""
            State the continuous form of the verb {}.
            How is {} written in the present progressive?
            Someone does it right now: give the participle of {}.
        """),
    ),
    "third person": Skill(
        verbs,
        answer=_form("VBZ"),
        seen=lines("""
            What is the third person singular of {}?
            Put {} into the form used with he or she.
            Give the he/she/it form of the verb {}.
            Write the verb {} in the third person.
            Which form of {} follows "she"?
            Conjugate {} for he, in the present.
            Change {} so that it agrees with "it".
            Third person singular of {}:
            I need {} with the ending for "he".
            Fill the gap: I {}, she ___.
            The he form, please: {}
            How is {} conjugated with a singular subject, in the present?
            If they {}, then what does he do? One word.
            You are an English tutor: what is {} for "it", in the simple present?
            hop becomes hops; {} becomes what?
            Inflect {} for a subject such as "my sister".
            Make {} fit after "The man", present tense.
        """),
        unseen=lines("""
            State the present tense of {} for one other person.
            How does the verb {} look after the word "he"?
            Every day she does it: give that form of {}.
        """),
    ),
    "past": Skill(
        verbs,
        answer=_form("VBD"),
        seen=lines("""
            What is the past tense of {}?
            Put the verb {} into the past.
            Give the simple past form of {}.
            Write {} in the past tense.
            Which form of {} goes with yesterday?
            Change {} from present to past.
            Turn the verb {} into the past tense.
            Simple past of {}:
            I need {} in the simple past.
            Today I {}, yesterday I ___.
            {}, past form please.
            hop became hopped; what did {} become?
            Inflect {} for an action that is over.
            In 1990 she ___: insert {}.
            The verb in "Yesterday we {}" is wrong; correct it.
            Simple past wanted: {}
            Did she {}? Yes, she ___.
        """),
        unseen=lines("""
            It happened last week: give that form of {}.
            State the preterite of the verb {}.
            How does the verb {} look in a story about long ago?
        """),
    ),
    "base form": Skill(
        verbs,
        answer=str,
        text=_form("VBD"),
        seen=lines("""
            What is the base form of the verb {}?
            Give the infinitive of {}.
            Undo the past tense of {}.
            Write the dictionary form of {}.
            Which verb has the past tense {}?
            Change {} from past to present.
            Turn the past form {} into the infinitive.
            Infinitive of {}:
            I need the verb behind {}.
            Complete with the plain form of {}: They want to ___.
            Yesterday I {}, today I ___.
            What is the lemma of the verb {}?
            hopped comes from hop; what does {} come from?
            Insert the verb of "she {}": Did she ___?
            Bring {} back to the form after "to".
            {}: which verb is this, without its tense?
            Plain verb, please: {}
        """),
        unseen=lines("""
            Under which verb would a dictionary list {}?
            State the verb that {} is the past of.
            Take {} back to its uninflected form.
        """),
    ),
    "comparative": Skill(
        adjectives,
        answer=_form("JJR"),
        seen=lines("""
            What is the comparative of {}?
            Give the comparative form of {}.
            Compare two things with the word {}.
            Write the comparative of the adjective {}.
            Which form of {} comes before "than"?
            Turn {} into its comparative.
            Put the adjective {} into the comparative degree.
            Comparative of {}:
            I need the word for "more {}".
            A is {}, but B is ___ than A.
            Raise {} by one degree of comparison.
            meek becomes meeker; {} becomes what?
            How do you say "more {}" in a single word?
            My house is {}, yours is even ___.
            Second step of the comparison that starts with {}?
            English homework: comparative form, adjective {}.
            Use {} to say that one outdoes the other: which form?
        """),
        unseen=lines("""
            One thing is {}, the other even more so: give that form.
            State the form of {} that compares a pair.
            How does {} change when it is followed by "than"?
        """),
    ),
    "superlative": Skill(
        adjectives,
        answer=_form("JJS"),
        seen=lines("""
            What is the superlative of {}?
            Give the superlative form of {}.
            Turn {} into its superlative.
            Write the superlative of the adjective {}.
            Which form of {} comes after "the most of all, the"?
            Put the adjective {} into the superlative degree.
            Say that something is {} to the highest degree, in one word.
            Superlative of {}:
            I need the word for "most {}".
            Of all of them, this one is the ___ ({}).
            Raise {} to the top degree of comparison.
            meek becomes meekest; {} becomes what?
            How do you say "most {}" in a single word?
            My house is {}, but hers is the ___ in town.
            Third step of the comparison that starts with {}?
            English homework: superlative form, adjective {}.
            Use {} to say that one outdoes them all: which form?
        """),
        unseen=lines("""
            Nothing is more so than this: give that form of {}.
            State the form of {} that beats all others.
            How does {} change for the winner among many?
        """),
    ),
    "part of speech": Skill(
        lambda: list(unambiguous_words()),
        answer=lambda word: unambiguous_words()[word],
        seen=lines("""
            What part of speech is {}?
            Is {} a noun, a verb or an adjective?
            Name the word class of {}.
            Tell me the part of speech of {}.
            Which kind of word is {}: noun, verb or adjective?
            Give the grammatical category of {}.
            Classify the word {} as noun, verb or adjective.
            Word class of {}:
            I need to know whether {} is a noun, a verb or an adjective.
            Thing, action or quality? Label {} noun, verb or adjective.
            As a linguist, tag the word {}.
            Does {} count as a noun, a verb or an adjective?
            POS tag, please, spelled out: {}
            A dictionary entry for {} says noun, verb or adjective. Which?
            Pick one for {}: noun, verb, adjective.
            Parse the word {}: what is its class?
            In a grammar quiz, what is {}: a noun, a verb, an adjective?
        """),
        unseen=lines("""
            How would a grammar book label the word {}?
            State the lexical class of {}.
            Noun, verb or adjective: what fits {}?
        """),
    ),
    "article": Skill(
        _nouns_with_clear_sound,
        answer=with_article,
        seen=lines("""
            Which article goes with {}? Repeat the word.
            Put a or an before {}.
            Write {} with its indefinite article.
            Add the right article, a or an, to {}.
            Give {} together with a or an.
            Complete with a or an: {}.
            Place the indefinite article in front of {}.
            A or an? Write both words: {}
            I need {} with its article in front.
            I see ___ {}. Write the article with its noun.
            Prefix {} by a or an.
            {} needs a or an; write out the result.
            "the {}" is definite; make it indefinite.
            egg becomes an egg; {} becomes what?
            Indefinite article plus noun, please: {}
            The article is missing from {}; put it back, a or an.
            Does {} take a or an? Show it with the noun.
        """),
        unseen=lines("""
            Is it a or an? Write it with the noun {}.
            State the noun {} after its indefinite article.
            Introduce one {} with the correct small word.
        """),
    ),
}
