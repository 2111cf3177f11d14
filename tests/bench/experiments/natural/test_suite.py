"""The suite: splits of tasks and items, and what its questions say."""

import os
import random
import subprocess
import sys
from collections import Counter

import pytest

suite = pytest.importorskip(
    "dnd_fast.bench.experiments.natural.suite", reason='needs pip install "dnd-fast[natural]"'
)
SKILLS, FORMATS, Task = suite.SKILLS, suite.FORMATS, suite.Task
SEEDS = [0, 1, 2]
JAPAN = Task("capital", "json")


@pytest.mark.parametrize("seed", SEEDS)
def test_splits_have_the_promised_sizes(seed):
    splits = suite.split_tasks(seed)
    assert {name: len(tasks) for name, tasks in splits.items()} == {
        "train": 200, "validation": 20, "test": 24, "unseen-skill": 12, "unseen-format": 12
    }  # fmt: skip
    tasks = [task for split in splits.values() for task in split]
    assert len({task.name for task in tasks}) == len(tasks) == 268


@pytest.mark.parametrize("seed", SEEDS)
def test_tests_are_new_combinations_of_what_training_knows(seed):
    splits = suite.split_tasks(seed)
    train = splits["train"]
    skills, formats = {task.skill for task in train}, {task.format for task in train}
    assert len(SKILLS.keys() - skills) == 6
    assert len(FORMATS.keys() - formats) == 2
    for name in ("validation", "test"):
        assert {task.skill for task in splits[name]} <= skills
        assert {task.format for task in splits[name]} <= formats
        assert not set(splits[name]) & set(train)
    assert len({task.skill for task in splits["test"]}) == 24
    assert set(Counter(task.format for task in splits["test"]).values()) == {3}


@pytest.mark.parametrize("seed", SEEDS)
def test_unseen_skills_and_formats_are_unseen_one_at_a_time(seed):
    splits = suite.split_tasks(seed)
    train = splits["train"]
    skills, formats = {task.skill for task in train}, {task.format for task in train}
    unseen = splits["unseen-skill"]
    assert {task.skill for task in unseen} == SKILLS.keys() - skills
    assert {task.format for task in unseen} <= formats
    unseen = splits["unseen-format"]
    assert {task.format for task in unseen} == FORMATS.keys() - formats
    assert {task.skill for task in unseen} <= skills


def test_held_out_skills_can_be_taught():
    assert all(SKILLS[skill].teachable for skill in suite.UNSEEN_SKILLS)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("skill", SKILLS)
def test_items_for_training_and_tests_are_disjoint(skill, seed):
    train, test = (
        {SKILLS[skill].text(item) for item in suite.split_items(skill, part, seed)}
        for part in ("train", "test")
    )
    assert not train & test
    assert len(train) >= 48
    assert len(test) >= 20
    assert len(train) + len(test) == len(SKILLS[skill].items())


@pytest.mark.parametrize(
    "skills",
    [
        ["singular", "plural"],
        ["past", "base form", "gerund", "third person"],
        ["comparative", "superlative"],
        ["capital", "continent", "French"],
        ["next", "ordinal", "digits", "number in words"],
    ],
)
def test_a_split_holds_for_all_skills_that_share_their_items(skills):
    assert len({tuple(suite.split_items(skill, "test", 0)) for skill in skills}) == 1


@pytest.mark.parametrize("skill", ["opposite", "addition", "larger"])
def test_a_pair_and_its_reverse_are_on_the_same_side(skill):
    train, test = (suite.split_items(skill, part, 0) for part in ("train", "test"))
    assert not {item[::-1] for item in train} & set(test)


def test_another_seed_splits_otherwise():
    assert suite.split_tasks(0) != suite.split_tasks(1)
    assert suite.split_items("past", "test", 0) != suite.split_items("past", "test", 1)


def test_levels():
    """Full names skill and format, ask the skill, bare is the item."""
    rng = random.Random(0)
    assert JAPAN.question("Japan", "bare", rng) == "Japan"
    skill, form = SKILLS["capital"], FORMATS["json"]
    asked = {wording.replace("{}", "Japan") for wording in skill.seen}
    assert {JAPAN.question("Japan", "ask", rng) for _ in range(1000)} == asked
    full = {JAPAN.question("Japan", "full", rng) for _ in range(30_000)}
    assert full == {
        f"{first} {second}"
        for question in asked
        for request in form.seen
        for first, second in ((question, request), (request, question))
    }
    unseen = {wording.replace("{}", "Japan") for wording in skill.unseen}
    assert {JAPAN.question("Japan", "ask", rng, "unseen") for _ in range(100)} == unseen
    assert JAPAN.response("Japan") == '{"answer": "Tokyo"}'


def test_examples():
    examples = JAPAN.examples("train", "bare", 60, seed=0)
    countries = [example.prompt for example in examples]
    assert len(set(countries)) == 60
    assert set(countries) <= set(suite.split_items("capital", "train", 0))
    assert [example.response for example in examples] == list(map(JAPAN.response, countries))
    assert {example.system for example in examples} == {""}
    other = JAPAN.examples("train", "bare", 60, seed=0, draw="again")
    assert [example.prompt for example in other] != countries


def test_items_repeat_evenly_where_there_are_too_few():
    available = suite.split_items("capital", "test", 0)
    examples = JAPAN.examples("test", "bare", 2 * len(available), seed=0)
    assert set(Counter(example.prompt for example in examples).values()) == {2}


def test_wrong_prompts_come_from_another_skill_and_format():
    tasks = suite.split_tasks(0)["train"]
    for task in tasks:
        other = suite.other_task(task, tasks, 0)
        assert other.skill != task.skill
        assert other.format != task.format


def test_random_strings():
    strings = suite.random_strings(JAPAN, 24, 0)
    assert len(set(strings)) == 24
    assert all(8 <= len(text.split()) <= 16 for text in strings)
    assert strings == suite.random_strings(JAPAN, 24, 0)
    assert strings != suite.random_strings(Task("past", "json"), 24, 0)


def test_draws_are_the_same_in_another_process():
    """Nothing depends on the order of sets, which differs from process to process."""
    program = (
        "from dnd_fast.bench.experiments.natural.suite import *\n"
        "tasks = [task for split in split_tasks(3).values() for task in split]\n"
        "print([task.name for task in tasks])\n"
        "print([task.examples('train', 'full', 3, seed=3)[-1].prompt for task in tasks])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
