"""Prompts: reading, checking, sampling."""

import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnd_fast import InvalidInput
from dnd_fast.text.prompts import read_prompts, sample_prompts

PROMPTS = ["What is 2+3?", "  indented", "naïve 漢字"]


def test_sources_agree(tmp_path):
    """Blank lines, a byte-order mark and Windows line ends included."""
    text, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_bytes(("\ufeff" + "\r\n\r\n".join(PROMPTS) + "\r\n").encode())
    records = [json.dumps({"prompt": prompt, "response": "x"}) for prompt in PROMPTS]
    lines.write_bytes(("\ufeff" + "\n \n".join(records) + "\n").encode())
    for source in (PROMPTS, tuple(PROMPTS), text, str(text), lines, str(lines)):
        assert read_prompts(source) == PROMPTS


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1))
@settings(deadline=None)
def test_any_text_survives_jsonl(tmp_path_factory, prompts):
    """U+2028, U+0085 and others are line ends to str.splitlines() but legal in a JSON string."""
    file = tmp_path_factory.mktemp("prompts") / "a.jsonl"
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert read_prompts(file) == prompts


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "no prompts"),
        (["a", " \n"], r"prompts\[1\] is empty"),
        (["a", 3], r"prompts\[1\] is a int"),
        ([["a"]], r"prompts\[0\] is a list"),
        (None, "is a NoneType"),
        ("What is 2+3?", "put it into a list"),
        ({"a": 1}, "is a dict"),
    ],
)
def test_unusable_prompts(source, message):
    """One string is not a list of one-letter prompts."""
    with pytest.raises(InvalidInput, match=message):
        read_prompts(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\n  \n", "no prompts"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.pdf", b"a", "are read from .txt"),
        ("a.jsonl", b'{"prompt": "a"}\n\n{"prompt": ', "line 3 is not valid JSON"),
        ("a.jsonl", b'{"prompt": "a"}\n{"text": "b"}', "line 2: there is no key 'prompt'"),
        ("a.jsonl", b'"prompt"', "line 1: found a str, expected an object"),
        ("a.jsonl", b'{"prompt": 3}', r"\[0\] is a int"),
        ("a.jsonl", b'{"prompt": " "}', r"\[0\] is empty"),
    ],
)
def test_unusable_files(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(InvalidInput, match=message) as caught:
        read_prompts(file)
    assert str(file) in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a\.txt"):
        read_prompts(tmp_path / "a.txt")


def test_sampling_without_replacement():
    """Deterministic for a seed, whatever the global generator has done; different seeds differ."""
    prompts = [f"prompt {i}" for i in range(40)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = [sample_prompts(prompts, 16, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 16
    assert set(drawn[0]) <= set(prompts)
    assert sorted(sample_prompts(prompts, 40, 0)) == sorted(prompts)
    assert prompts == [f"prompt {i}" for i in range(40)]


def test_a_drawn_sample_never_changes():
    """An adapter made with some seed yesterday must be reproducible tomorrow."""
    assert sample_prompts(list("abcdefgh"), 4, seed=7) == ["f", "b", "d", "a"]


def test_too_few_prompts_are_repeated():
    """All of them are used, and the user is told."""
    for seed in range(20):
        with pytest.warns(UserWarning, match="takes 4 prompts and got 3"):
            drawn = sample_prompts(PROMPTS, 4, seed)
        with pytest.warns(UserWarning, match="takes 4 prompts"):
            assert drawn == sample_prompts(PROMPTS, 4, seed)
        assert len(drawn) == 4
        assert set(drawn) == set(PROMPTS)
