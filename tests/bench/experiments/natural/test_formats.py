"""Answer formats, read back by other means than those that write them."""

import json
import re
from xml.etree import ElementTree

import pytest

FORMATS = pytest.importorskip(
    "dnd_fast.bench.experiments.natural.formats", reason='needs pip install "dnd-fast[natural]"'
).FORMATS

RESPONSES = {
    "plain": "New Delhi",
    "json": '{"answer": "New Delhi"}',
    "xml": "<answer>New Delhi</answer>",
    "bold": "**New Delhi**",
    "brackets": "[New Delhi]",
    "sentence": "The answer is New Delhi.",
    "label": "Answer: New Delhi",
    "exclamation": "New Delhi!!!",
    "arrow": "=> New Delhi",
    "bullet": "- New Delhi",
}


def test_responses():
    assert {name: form.apply("New Delhi") for name, form in FORMATS.items()} == RESPONSES


@pytest.mark.parametrize("answer", ["Perú", "N'Djamena", "tip, ring, idea", "two hundred and one"])
def test_machines_can_read_the_answer(answer):
    assert json.loads(FORMATS["json"].apply(answer)) == {"answer": answer}
    element = ElementTree.fromstring(FORMATS["xml"].apply(answer))
    assert (element.tag, element.text) == ("answer", answer)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_wordings_that_training_never_uses(name):
    assert len(FORMATS[name].seen) >= 7
    assert len(FORMATS[name].unseen) >= 3


def test_no_wording_is_used_twice_or_part_of_another():
    wordings = [w for form in FORMATS.values() for w in (*form.seen, *form.unseen)]
    for wording in wordings:
        assert sum(wording in other for other in wordings) == 1


def test_every_wording_of_a_decoration_names_it():
    """No request is so vague that two formats would meet it."""
    signs = {
        "json": "JSON|json",
        "xml": "XML|tag|<answer>",
        "bold": r"bold|Markdown|star|asterisk",
        "brackets": r"bracket|\[",
        "sentence": "The answer is",
        "label": "Answer(:|, colon| and a colon)",
        "exclamation": "!!!|exclamation",
        "arrow": "=>|arrow|greater-than",
        "bullet": "dash|hyphen|bullet",
    }
    for name, sign in signs.items():
        for wording in (*FORMATS[name].seen, *FORMATS[name].unseen):
            assert re.search(sign, wording), (name, wording)
