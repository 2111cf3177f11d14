"""Examples out of the forms that people have."""

import pytest

from dnd_fast import InvalidInput
from dnd_fast.text.conversations import Example, example_of, prompt_of

TURNS = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
MESSAGES = {"messages": [{"role": role, "content": text} for role, text in TURNS]}
NAMES = {"user": "human", "assistant": "gpt", "system": "system"}
SHARED = {"conversations": [{"from": NAMES[role], "value": text} for role, text in TURNS]}
PARTS = {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in "pq"]}]}
LONG = Example("c", "d", "s", (Example("a", "b"),))


@pytest.mark.parametrize(
    ("record", "example"),
    [
        ({"prompt": "a", "response": "b", "other": 3}, Example("a", "b")),
        ({"prompt": "a", "response": "b", "system": ""}, Example("a", "b", "")),
        ({"prompt": "a", "completion": "b"}, Example("a", "b")),
        ({"question": "a", "answer": "b"}, Example("a", "b")),
        ({"instruction": "a", "output": "b", "input": ""}, Example("a", "b")),
        ({"instruction": "a", "output": "b", "input": "c"}, Example("a\n\nc", "b")),
        (MESSAGES, LONG),
        (SHARED, LONG),
        ({"conversations": SHARED["conversations"][1:3], "id": 7}, Example("a", "b")),
        ({"prompt": "x", "response": "y"} | MESSAGES, Example("x", "y")),
    ],
)
def test_forms(record, example):
    assert example_of(record, "here") == example
    assert prompt_of(record, "here") == example.prompt


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "a"}, "a"),
        ({"question": "a"}, "a"),
        ({"instruction": "a", "input": "b"}, "a\n\nb"),
        ({"messages": MESSAGES["messages"][:4]}, "c"),
        ({"messages": MESSAGES["messages"][:3]}, "a"),
        (PARTS, "pq"),
    ],
)
def test_prompts_need_no_response(record, prompt):
    assert prompt_of(record, "here") == prompt


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "found the keys nothing; expected 'prompt' and 'response'"),
        ({"text": "a", "label": 3}, "found the keys 'text', 'label'; expected 'prompt' and"),
        ({"prompt": "a"}, "found the keys 'prompt'; expected 'prompt' and 'response'"),
        ({"prompt": " ", "response": "b"}, "the key 'prompt' holds ' ', expected some text"),
        ({"question": "a", "answer": 3}, "the key 'answer' holds 3, expected some text"),
        ({"instruction": "a", "output": "b", "input": 3}, "the key 'input' holds 3"),
        ({"prompt": "a", "response": "b", "system": 3}, "the key 'system' holds 3"),
        ({"messages": "a"}, "the key 'messages' holds no list of turns"),
        ({"messages": [3]}, "the key 'messages' holds no list of turns"),
        ({"messages": []}, "the key 'messages' holds no prompt"),
        ({"messages": MESSAGES["messages"][:1]}, "the key 'messages' holds no prompt"),
        ({"messages": MESSAGES["messages"][:2]}, "messages end without a response"),
        ({"messages": MESSAGES["messages"][2:]}, "turn 1 is of 'assistant', expected 'user'"),
        ({"messages": MESSAGES["messages"][1:2] * 2}, "turn 2 is of 'user', expected 'assistant'"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "turn 1 is of 'tool', expected 'user'"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, r"turn 1 is of \['user'\]"),
        ({"messages": [{"role": "user"}]}, "turn 1 holds None, expected text"),
        ({"messages": [{"role": "user", "content": [{"image": "x"}]}]}, "turn 1 holds .*image"),
    ],
)
def test_other_forms_are_named(record, message):
    with pytest.raises(InvalidInput, match=f"^here: (the key 'messages': )?{message}"):
        example_of(record, "here")


def test_no_prompt():
    with pytest.raises(InvalidInput, match="there is no key 'prompt' in it, but 'text'; expected"):
        prompt_of({"text": "a"}, "here")
