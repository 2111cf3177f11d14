"""Embeddings of prompts, against transformers and sentence-transformers' own outputs."""

import warnings

import pytest
import torch
from transformers import T5Config, T5Model

from dnd_fast import TextEncoder
from dnd_fast.condition import LengthProjection

SHORT = "take the opening letter of the tool cord"
LONG = "count the letters in lemon and add nothing else " * 80  # about 720 tokens


def reference(encoder, prompt):
    """One prompt, no padding, straight through transformers."""
    inputs = encoder.tokenizer([prompt], return_tensors="pt")
    with torch.no_grad():
        return encoder.model(**inputs).last_hidden_state[0]


@pytest.fixture
def calls(encoder, monkeypatch):
    """Batch sizes of the encoder's forward passes."""
    sizes = []
    forward = encoder.model.forward

    def counted(*args, **kwargs):
        sizes.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(encoder.model, "forward", counted)
    return sizes


def test_short_prompts(encoder):
    found = encoder.encode([SHORT, "echo"], 24)
    assert found.shape == (2, 24, 384)
    assert found.dtype == torch.float32
    for row, prompt in enumerate((SHORT, "echo")):
        expected = reference(encoder, prompt)
        torch.testing.assert_close(found[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
        assert not found[row, len(expected) :].any()  # exactly zero, not merely small


def test_long_prompts_are_sliced(encoder):
    """Tokenised once, cut at 512, encoded slice by slice, laid end to end."""
    ids = encoder.tokenizer(LONG, verbose=False)["input_ids"]
    assert 512 < len(ids) < 1024
    found = encoder.encode([LONG], 1536)[0]
    for start in range(0, len(ids), 512):
        part = torch.tensor([ids[start : start + 512]])
        with torch.no_grad():
            expected = encoder.model(input_ids=part).last_hidden_state[0]
        torch.testing.assert_close(
            found[start : start + 512][: len(expected)], expected, rtol=1e-4, atol=1e-5
        )
    assert not found[len(ids) :].any()


def test_padding_as_published(encoder, calls):
    """padding="encoded": slices of nothing but padding are all the same and encoded once."""
    found = encoder.encode([SHORT, "echo"], 2048, padding="encoded")
    assert sum(calls) == 3  # two prompts' first slices, one slice of padding
    inputs = encoder.tokenizer([SHORT], padding="max_length", max_length=512, return_tensors="pt")
    with torch.no_grad():
        expected = encoder.model(**inputs).last_hidden_state[0]
    torch.testing.assert_close(found[0, :512], expected, rtol=1e-4, atol=1e-5)
    for start in (1024, 1536):
        assert torch.equal(found[0, 512:1024], found[0, start : start + 512])
    assert torch.equal(found[0, 512:], found[1, 512:])
    assert found.isfinite().all()


def test_zero_padding_encodes_no_padding_slices(encoder, calls):
    encoder.encode([SHORT, "echo"], 2048)
    assert sum(calls) == 2


def test_repeated_prompts_are_encoded_once(encoder, calls):
    found = encoder.encode(["echo", SHORT, "echo"], 16)
    assert sum(calls) == 2
    assert torch.equal(found[0], found[2])


def test_truncation_is_counted(encoder):
    with pytest.warns(UserWarning, match="1 of 2 prompts are longer than 8 tokens"):
        found = encoder.encode([SHORT, "echo"], 8)
    assert found.shape == (2, 8, 384)
    assert found[0].any(-1).all()


def test_cache(encoder, calls, tmp_path):
    prompts = [SHORT, LONG]
    first = encoder.encode(prompts, 1024, cache=tmp_path)
    encoded = sum(calls)
    assert torch.equal(encoder.encode(prompts, 1024, cache=tmp_path), first)
    assert sum(calls) == encoded
    for changed in (([SHORT, SHORT], 1024), (prompts, 1023)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder.encode(*changed, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_cache_is_replaced(encoder, tmp_path, caplog):
    first = encoder.encode([SHORT], 24, cache=tmp_path)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(encoder.encode([SHORT], 24, cache=tmp_path), first)
    assert "encoded again" in caplog.text
    assert torch.equal(encoder.encode([SHORT], 24, cache=tmp_path), first)


def test_other_weights_have_another_fingerprint(encoder):
    """A cache must not serve one encoder's embeddings to another."""
    before = encoder.fingerprint()
    weight = encoder.model.embeddings.LayerNorm.bias
    weight.data[0] += 1
    try:
        assert encoder.fingerprint() != before
    finally:
        weight.data[0] -= 1


def test_the_encoder_half_of_an_encoder_decoder(encoder):
    torch.manual_seed(0)
    config = T5Config(vocab_size=30522, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    model = T5Model(config)
    t5 = TextEncoder(model, encoder.tokenizer)
    found = t5.encode(["echo"], 8)[0]
    ids = encoder.tokenizer("echo", return_tensors="pt")["input_ids"]
    expected = model.encoder(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(found[: len(expected)], expected, rtol=1e-4, atol=1e-5)


def test_a_tampered_package_is_refused(monkeypatch):
    """The packaged weights are a stranger's: anything but the original is refused."""
    from dnd_fast import InvalidInput, condition

    monkeypatch.setattr(condition, "DEFAULT_ENCODER_SHA256", "0" * 64)
    with pytest.raises(InvalidInput, match="is not the original all-MiniLM-L6-v2"):
        TextEncoder.from_pretrained()


def test_length_projection_runs_along_the_length():
    """Guards against the published view, which mixes tokens with channels."""
    projection = LengthProjection(6, 4)
    x = torch.randn(2, 3, 6, 5)
    found = projection(x)
    for channel in range(5):
        hidden = torch.nn.functional.silu(projection.down_proj(x[..., channel]))
        torch.testing.assert_close(found[..., channel], projection.gate_proj(hidden))
