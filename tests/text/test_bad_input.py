"""Whatever is handed in as prompts or as their encoder: a clear error of one of two kinds."""

import pytest
import safetensors.torch
import torch

import dnd_fast
from dnd_fast import TextEncoder
from dnd_fast.text.prompts import read_prompts

from ..bad_input import (
    GONE,
    NAN,
    PROMPTS,
    contents,
    damaged,
    disk_full,
    entries,
    extra_tensor,
    fails,
    tensors,
)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "there are no prompts; give at least one"),
        ([[]], "there are no prompts; give at least one"),
        (["a", ""], r"prompts\[1\] is empty; remove it"),
        (["a", 3], r"prompts\[1\] is a int, expected a string"),
        ([["a"], [None]], r"prompts\[0\] is a NoneType, expected a string"),
        ([["a"], "b"], "b: prompts are read from .*put it into a list"),
        (["a", "\ud800"], r"prompts\[1\] holds half a surrogate pair"),
        ("reverse rice", "reverse rice: .*put it into a list"),
        (None, "prompts is a NoneType; expected a list of strings or the path"),
        ({"a"}, "prompts is a set; expected a list of strings or the path"),
        (b"abc", r"prompts\[0\] is a int, expected a string"),
    ],
)
def test_prompts(good, prompts, message):
    fails(message, good.generator.generate, prompts)
    fails(message, dnd_fast.generate, prompts, good.generator)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "there are no prompts"),
        ("a.txt", b"\n \n\t\n", "there are no prompts"),
        ("a.txt", "café".encode("latin-1"), "not UTF-8 text .* convert it first"),
        ("a.txt", "café".encode("utf-16"), "not UTF-8 text .* convert it first"),
        ("a.jsonl", '{"prompt": "café"}'.encode("latin-1"), "not UTF-8 text .* convert it first"),
        ("a.jsonl", b'{"prompt": "a"}\nreverse rice', "line 2 is not valid JSON"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"', "line 2 is not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
        ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "line 1 is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}', "line 1: there is no key 'prompt'"),
        ("a.jsonl", b'["prompt"]', "line 1: found a list, expected an object"),
        ("a.jsonl", b"3", "line 1: found a int, expected an object"),
        ("a.jsonl", b'{"prompt": ' + b"[" * 60 + b"]" * 60 + b"}", "nested more than 50 levels"),
        ("a.jsonl", b'{"prompt": 3}', r"\[0\] is a int, expected a string"),
        ("a.jsonl", b'{"prompt": null}', r"\[0\] is a NoneType, expected a string"),
        ("a.jsonl", b'{"prompt": " "}', r"\[0\] is empty; remove it"),
        ("a.jsonl", b'{"prompt": "\\ud800"}', r"\[0\] holds half a surrogate pair"),
        ("a.pdf", b"a", r"read from \.txt .*\.jsonl, \.json, \.csv, \.parquet files, or from '-'"),
    ],
)
def test_files_of_prompts(good, tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    assert str(file) in fails(message, read_prompts, file)
    assert str(file) in fails(message, good.generator.generate, str(file))


def test_missing_files_of_prompts(good, tmp_path):
    (tmp_path / "folder.txt").mkdir()
    for name in ("missing.txt", "missing.jsonl", "folder.txt"):
        message = f"{name}: there is no such file of prompts"
        fails(message, good.generator.generate, tmp_path / name, error=FileNotFoundError)


@pytest.mark.parametrize(
    ("prompts", "length", "options", "message"),
    [
        (PROMPTS, 0, {}, "length=0: it must be a positive integer"),
        (PROMPTS, "8", {}, "length='8': it must be a positive integer"),
        (PROMPTS, 8, {"padding": "left"}, "padding='left'; choose one of"),
        ("abc", 8, {}, "abc: .*put it into a list"),
        ([], 8, {}, "there are no prompts"),
        (["a", 3], 8, {}, r"prompts\[1\] is a int, expected a string"),
    ],
)
def test_encode(good, prompts, length, options, message):
    """A string is not a list of one-letter prompts."""
    good.encoder.encode(PROMPTS, 8)
    fails(message, good.encoder.encode, prompts, length, **options)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", GONE, "no usable text encoder"),
        ("config.json", b"{", "no usable text encoder"),
        ("config.json", entries(model_type="no-such-model"), "no-such-model"),
        ("config.json", entries(hidden_size="16"), "hidden_size"),
        ("config.json", entries(num_attention_heads=5), "attention heads"),
        ("config.json", entries(num_hidden_layers=2**31), "num_hidden_layers=2147483648 in its"),
        ("model.safetensors", GONE, "model.safetensors"),
        ("model.safetensors", b"", "no usable text encoder"),
        ("model.safetensors", lambda whole: whole[:-1], "no usable text encoder"),
        ("model.safetensors", tensors("word_emb", lambda x: x[:1].clone()), "no usable text"),
        ("model.safetensors", tensors("query", GONE), "2 weights are missing, .*query.bias"),
        ("model.safetensors", tensors("query.bias", lambda x: x * NAN), "query.bias holds NaN"),
        ("tokenizer.json", b"{}", "no usable text encoder"),
        ("tokenizer_config.json", b"{", "no usable text encoder"),
    ],
)
def test_a_text_encoder(good, tmp_path, name, damage, message):
    """Missing weights are transformers' warning: they would be random, and every adapter noise."""
    folder = damaged(good.folder / "encoder", tmp_path / "encoder", name, damage)
    assert str(folder) in fails(message, TextEncoder.from_pretrained, folder)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        lambda whole: whole[:-1],
        tensors("hidden", lambda x: x * NAN),
        tensors("hidden", lambda x: x[:, :1].clone().expand(-1, 3).contiguous()),
        extra_tensor,
        lambda whole: safetensors.torch.save({"other": torch.ones(1)}),
    ],
    ids=["empty", "cut off", "NaN", "shape", "extra", "key"],
)
def test_a_damaged_embedding_cache_is_never_served(good, tmp_path, caplog, damage):
    first = good.encoder.encode(PROMPTS, 8, cache=tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(damage(file.read_bytes()) if callable(damage) else damage)
    assert torch.equal(good.encoder.encode(PROMPTS, 8, cache=tmp_path), first)
    if damage is not extra_tensor:
        assert f"{file} is damaged" in caplog.text


def test_an_embedding_cache_without_room(good, tmp_path):
    prompts = [f"count {i}" for i in range(9)]
    with disk_full(), pytest.raises(OSError, match=r"embeddings\.safetensors"):
        good.encoder.encode(prompts, 8, cache=tmp_path)
    assert contents(tmp_path) == {}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file"):
        good.encoder.encode(prompts, 8, cache=tmp_path / "file")
