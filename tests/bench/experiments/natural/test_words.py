"""Words that skills ask about."""

import pytest

words = pytest.importorskip(
    "dnd_fast.bench.experiments.natural.words", reason='needs pip install "dnd-fast[natural]"'
)


def test_only_one_form_counts():
    assert words.inflection("go", "VBD") == "went"
    assert words.inflection("learn", "VBD") is None  # learned, learnt
    assert words.inflection("beautiful", "JJR") is None  # more beautiful


@pytest.mark.parametrize("kind", ["nouns", "verbs", "adjectives", "words", "triples"])
def test_no_item_occurs_twice(kind):
    listed = getattr(words, kind)()
    assert len(set(listed)) == len(listed) >= 100


def test_plurals_belong_to_one_noun():
    plurals = [words.inflection(noun, "NNS") for noun in words.nouns()]
    assert len(set(plurals)) == len(plurals)


@pytest.mark.parametrize("vowels", ["ue", "ee", "ie"])
def test_no_comparative_is_misspelt(vowels):
    """The dictionary's mistakes ("freeer", "vagueer")."""
    assert not any(
        words.inflection(word, "JJR").endswith(f"{vowels}er") for word in words.adjectives()
    )


def test_parts_of_speech_are_equally_frequent():
    parts = list(words.unambiguous_words().values())
    assert {part: parts.count(part) for part in set(parts)} == {
        "noun": 100, "verb": 100, "adjective": 100
    }  # fmt: skip


def test_lists_hold_three_different_nouns():
    for triple in words.triples():
        assert len(set(triple)) == 3
        assert set(triple) <= set(words.nouns())
