"""Whitened embeddings, against numpy's own covariance."""

import dataclasses

import numpy as np
import pytest
import torch

from dnd_fast import Generator
from dnd_fast.text.whitening import SHRINKAGE, Whitening


@pytest.fixture
def texts():
    """Of different lengths; the last two directions never vary, as one of MiniLM's does."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    return [
        torch.cat(
            [torch.randn(length, 6, generator=generator) @ mixing + 3, torch.ones(length, 2)], 1
        )
        for length in (40, 1, 300, 90)
    ]


def test_covariance(texts):
    """Each direction keeps v / (v + s) of its variance v, where s is what is added to all."""
    whitening = Whitening(8)
    whitening.fit(texts)
    rows = torch.cat(texts)
    found = whitening(rows).double().numpy()
    covariance = np.cov(rows.double().numpy(), rowvar=False, bias=True)
    added = SHRINKAGE * np.trace(covariance) / 8 * np.eye(8)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(
        np.cov(found, rowvar=False, bias=True),
        covariance @ np.linalg.inv(covariance + added),
        atol=1e-4,
    )
    np.testing.assert_allclose(whitening.matrix, whitening.matrix.T, atol=1e-5)  # ZCA


def test_padding_stays_zero(texts):
    whitening = Whitening(8)
    assert torch.equal(whitening(texts[0]), texts[0])  # not fitted: nothing changes
    whitening.fit(texts)
    padded = torch.zeros(2, 50, 8)
    padded[1, :40] = texts[0]
    found = whitening(padded)
    assert not found[0].any()
    assert not found[1, 40:].any()
    torch.testing.assert_close(found[1, :40], whitening(texts[0]))


def test_a_generator_keeps_it(tiny_generator, encoder, tmp_path):
    """On disk, in other dtypes, and on the way to the decoder."""
    config = tiny_generator.config
    whitened = dataclasses.replace(config.condition, whitening=True)
    torch.manual_seed(0)
    generator = Generator(dataclasses.replace(config, condition=whitened), encoder=encoder)
    generator.layout = tiny_generator.layout
    prompts = ["What comes right after 4?", "Name the letter before b.", "cat", "Say it louder"]
    hidden = encoder.encode(prompts, config.condition.length)
    assert torch.equal(generator.encode([prompts])[0], hidden)  # not fitted
    generator.whitening.fit(text[text.any(-1)] for text in hidden)
    condition = generator.encode([prompts])
    assert torch.equal(condition[0], generator.whitening(hidden))
    generator.save_pretrained(tmp_path / "generator")
    loaded = Generator.from_pretrained(tmp_path / "generator", encoder=encoder)
    assert torch.equal(loaded.encode([prompts]), condition)
    expected = generator.generate(prompts).tensors
    for key, value in loaded.generate(prompts).tensors.items():
        assert torch.equal(value, expected[key])
    half = Generator.from_pretrained(tmp_path / "generator", encoder=encoder, dtype=torch.bfloat16)
    assert half.encode([prompts]).dtype == torch.float32
    torch.testing.assert_close(half.encode([prompts]), condition, rtol=0.05, atol=0.05)
