"""Broad skills: enough of them, each with one right answer, and nothing that tests ask for."""

import re

import pytest

NEEDS = 'needs pip install "dnd-fast[natural]"'
suite = pytest.importorskip("dnd_fast.bench.experiments.natural.suite", reason=NEEDS)
export = pytest.importorskip("dnd_fast.bench.experiments.natural.export", reason=NEEDS)
SKILLS, BROAD_SKILLS, FORMATS = suite.SKILLS, suite.BROAD_SKILLS, suite.FORMATS

SEEDS = [0, 1]
TASKS = suite.broad_tasks(0)


def as_pattern(wordings):
    """A pattern for questions in one of the wordings, about whatever item."""
    return re.compile("|".join(".+".join(map(re.escape, w.split("{}"))) for w in wordings))


def test_no_skill_is_both_broad_and_tested():
    assert not BROAD_SKILLS.keys() & SKILLS.keys()


@pytest.mark.parametrize("name", BROAD_SKILLS)
def test_every_broad_skill(name):
    """Enough items, each with one right answer; enough wordings, each with a place for the item."""
    skill = BROAD_SKILLS[name]
    items = list(skill.items())
    texts = [skill.text(item) for item in items]
    assert len(set(texts)) == len(texts) >= 60
    assert all(text == text.strip() and text for text in texts)
    answers = [skill.answer(item) for item in items]
    assert all(answer == answer.strip() and answer for answer in answers)
    assert not any(set(answer) & set('"<>&\\{}*[]!') for answer in answers)  # formats' own signs
    assert not any(answer.endswith(".") for answer in answers)  # the format "sentence" adds one
    assert len(skill.seen) >= 8
    assert len(skill.unseen) >= 3
    assert all(wording.count("{}") == 1 for wording in (*skill.seen, *skill.unseen))
    assert all(skill.tells(item) for item in items)


@pytest.mark.parametrize("name", BROAD_SKILLS)
def test_no_broad_skill_answers_like_a_held_out_one(name):
    """Whatever it is called, it does not pick the last word or the year, capitalise and so on."""
    skill = BROAD_SKILLS[name]
    items = list(skill.items())
    pairs = [(skill.text(item), skill.answer(item)) for item in items]
    words = [(re.split("[ ,]+", text), answer) for text, answer in pairs]
    years = [(re.findall(r"\b(?:19|20)\d\d\b", text), answer) for text, answer in pairs]
    alike = {
        "last word": [len(parts) > 1 and parts[-1] == answer for parts, answer in words],
        "year": [answer in found for found, answer in years],
        "capitalise": [text != answer == text[0].upper() + text[1:] for text, answer in pairs],
    }
    for other in ("plural", "superlative", "continent"):
        held_out = SKILLS[other]
        known = {held_out.text(item): held_out.answer(item) for item in held_out.items()}
        alike[other] = [known.get(text) == answer for text, answer in pairs]
    for other, same in alike.items():
        assert sum(same) < 0.6 * len(items), other


def test_no_wording_is_used_twice():
    skills = [*SKILLS.values(), *BROAD_SKILLS.values()]
    wordings = [wording for skill in skills for wording in (*skill.seen, *skill.unseen)]
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_broad_skill_has_three_tasks_in_known_formats(seed):
    tasks = suite.broad_tasks(seed)
    assert len({task.name for task in tasks}) == len(tasks) == 3 * len(BROAD_SKILLS)
    assert {task.skill for task in tasks} == set(BROAD_SKILLS)
    assert not {task.format for task in tasks} & set(suite.UNSEEN_FORMATS)


@pytest.mark.parametrize("name", BROAD_SKILLS)
def test_most_items_train(name):
    for seed in SEEDS:
        assert len(suite.split_items(name, "train", seed)) >= 40


@pytest.mark.parametrize("seed", SEEDS)
def test_items_that_tests_ask_about_do_not_train(seed):
    tested = {
        str(item)
        for skill in SKILLS
        for item in suite.split_items(skill, "test", seed)
        if isinstance(item, str)
    }
    for name, skill in BROAD_SKILLS.items():
        for item in suite.split_items(name, "train", seed):
            assert not tested & set(map(str, skill.tells(item))), name


def test_broad_questions_do_not_ask_for_held_out_skills_or_formats():
    things = [
        *(SKILLS[name] for name in suite.UNSEEN_SKILLS),
        *(FORMATS[name] for name in suite.UNSEEN_FORMATS),
    ]
    asked = as_pattern([wording for thing in things for wording in (*thing.seen, *thing.unseen)])
    for task in TASKS:
        for example in export.training_examples(task, 0):
            assert not asked.search(example.prompt), task


def test_broad_questions_use_the_wordings_of_training():
    for task in TASKS:
        unseen = as_pattern((*BROAD_SKILLS[task.skill].unseen, *FORMATS[task.format].unseen))
        for example in export.training_examples(task, 0):
            assert not unseen.search(example.prompt), task
