"""Embedded texts of a training run: kept once, and read only as they were written."""

import dataclasses
import json

import pytest
import torch

from dnd_fast import InvalidInput
from dnd_fast.recipe import ConditionSpec
from dnd_fast.train.generator.embedding_cache import EMBEDDINGS_FILE, INDEX_FILE, embed_texts


def test_embedded_texts_are_the_encoders(encoder, tmp_path):
    """Real positions only, in float16, once; whatever the padded length."""
    spec = ConditionSpec("", prompts=2, length=26624)
    texts = ["a", "the initial of otter", "what letter does camel start with"]
    told = []
    found = embed_texts(encoder, texts, spec, tmp_path, fingerprint="x", progress=told.append)
    assert sum(told) == len(found) == 3
    lengths = [len(ids) for ids in encoder.tokenizer(texts)["input_ids"]]
    assert [len(found[index]) for index in range(3)] == lengths
    padded = encoder.encode(texts, 32)
    for index, length in enumerate(lengths):
        assert torch.equal(found[index], padded[index, :length].half())
    (entry,) = tmp_path.iterdir()
    assert (entry / EMBEDDINGS_FILE).stat().st_size == 2 * 384 * sum(lengths)

    told.clear()
    embed_texts(encoder, texts, spec, tmp_path, fingerprint="x", progress=told.append)
    assert not told
    for other in ((texts[:2], spec, "x"), (texts, dataclasses.replace(spec, length=9), "x")):
        embed_texts(encoder, *other[:2], tmp_path, fingerprint=other[2])
    assert len(list(tmp_path.iterdir())) == 3
    whole = (entry / EMBEDDINGS_FILE).read_bytes()
    for damaged in (b"cut", whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:]):
        (entry / EMBEDDINGS_FILE).write_bytes(damaged)
        with pytest.raises(InvalidInput, match=r"delete .* to embed anew"):
            embed_texts(encoder, texts, spec, tmp_path, fingerprint="x")
    (entry / EMBEDDINGS_FILE).write_bytes(whole)
    index = json.loads((entry / INDEX_FILE).read_text())
    for change in ({"lengths": 3}, {"lengths": [-1, *index["lengths"][1:]]}, {"width": "384"}):
        (entry / INDEX_FILE).write_text(json.dumps(index | change))
        with pytest.raises(InvalidInput, match=r"delete .* to embed anew"):
            embed_texts(encoder, texts, spec, tmp_path, fingerprint="x")
    del index["sha256"]
    (entry / INDEX_FILE).write_text(json.dumps(index))
    with pytest.warns(UserWarning, match="comes from an earlier version"):
        embed_texts(encoder, texts, spec, tmp_path, fingerprint="x")
