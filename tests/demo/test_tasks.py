"""The demo's tasks and tokenizer."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnd_fast.demo.tasks import Task, split_tasks, split_words
from dnd_fast.demo.tokenizer import CHARACTERS, build_tokenizer
from dnd_fast.demo.vocabulary import DOMAINS, FORMATS, SKILLS, instruction_words
from dnd_fast.recipe import Recipe

ANSWERS = {
    "copy": "cord",
    "reverse": "droc",
    "upper": "CORD",
    "first": "c",
    "last": "d",
    "count": "4",
    "double": "cordcord",
    "shift": "dpse",
    "vowels": "o",
    "hyphen": "c-o-r-d",
}


@pytest.mark.parametrize(("skill", "answer"), ANSWERS.items())
def test_answers(skill, answer):
    assert Task(skill, "plain", "tool").answer("cord") == answer
    assert Task(skill, "parentheses", "tool").answer("cord") == f"({answer})"


def test_shift_wraps_around():
    assert SKILLS["shift"].apply("zebra") == "afcsb"


@pytest.mark.parametrize("seed", range(5))
def test_splits_share_no_combination(seed):
    parts = split_tasks(seed)
    combinations = [(t.skill, t.format) for part in parts.values() for t in part]
    assert len(combinations) == len(set(combinations)) == len(SKILLS) * len(FORMATS)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [130, 8, 12]
    for attribute, names in (("skill", SKILLS), ("format", FORMATS)):
        assert {getattr(task, attribute) for task in parts["train"]} == set(names)


def test_words_are_disjoint():
    """A test word seen in training would make copying look like generalising."""
    for domain in DOMAINS:
        train, test = split_words(domain, "train"), split_words(domain, "test")
        assert not set(train) & set(test)
        assert sorted(train + test) == sorted(DOMAINS[domain])
        assert not set(DOMAINS[domain]) & set(instruction_words())
        assert all(3 <= len(word) <= 5 for word in DOMAINS[domain])


def test_wordings_are_disjoint():
    for skill in SKILLS.values():
        everything = skill.wordings + skill.validation_wordings + skill.test_wordings
        assert len(everything) == len(set(everything))
        assert all(wording.count("{}") == 1 for wording in everything)


def test_examples_are_reproducible_and_right():
    task = Task("reverse", "stars", "food")
    examples = task.examples(20, "test", 3)
    assert examples == task.examples(20, "test", 3)
    for prompt, answer, word in examples:
        assert word in prompt.split()
        assert answer == f"*{word[::-1]}*"


def test_grades():
    task = Task("upper", "brackets", "food")
    assert task.grade("[RICE]", "rice") == (True, True, True)
    assert task.grade("*RICE*", "rice") == (False, True, False)
    assert task.grade("[rice]", "rice") == (False, False, True)
    assert task.grade("[", "rice") == (False, False, False)
    plain = Task("upper", "plain", "food")
    assert plain.grade("RICE!", "rice") == (False, True, False)
    assert plain.grade("", "rice") == (False, False, True)


def test_the_vocabulary_is_the_recipes():
    assert len(build_tokenizer()) == Recipe.load("demo").base.config["vocab_size"]


@given(st.text(alphabet=CHARACTERS, max_size=30))
def test_tokenizer_round_trip(text):
    """Guards against lost spaces and normalised text."""
    tokenizer = build_tokenizer()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_prompt_is_known_to_the_tokenizer():
    tokenizer, rng = build_tokenizer(), random.Random(0)
    for skill in SKILLS:
        for form in FORMATS:
            task = Task(skill, form, rng.choice(list(DOMAINS)))
            for example in task.examples(3, "test", 0, rng.choice(["train", "test"])):
                ids = tokenizer(f"{example.prompt}\n{example.answer}")["input_ids"]
                assert tokenizer.unk_token_id not in ids
