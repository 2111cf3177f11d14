"""Embeddings of prompts, against transformers and sentence-transformers' own outputs."""

import copy
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MPNetConfig,
    MPNetModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
    T5Model,
)

from dnd_fast import InvalidInput, TextEncoder
from dnd_fast.decoder.length_projection import LengthProjection
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.text import load, prompt_encoder
from dnd_fast.text.load import load_transformer

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
    assert "computed again" in caplog.text
    assert torch.equal(encoder.encode([SHORT], 24, cache=tmp_path), first)


def test_other_weights_have_another_fingerprint(encoder):
    """A cache must not serve one encoder's embeddings to another."""
    before = encoder.fingerprint()
    weight = encoder.model.embeddings.LayerNorm.bias
    kept = weight.data.clone()
    weight.data[0] += 1
    try:
        assert TextEncoder(encoder.model, encoder.tokenizer).fingerprint() != before
    finally:
        weight.data.copy_(kept)
    assert TextEncoder(encoder.model, encoder.tokenizer).fingerprint() == before


def test_all_that_embeddings_depend_on_is_in_the_fingerprint(good, monkeypatch):
    """Config and tokenizer too; not where the encoder lies, nor what the last call has set."""
    path = good.folder / "encoder"
    before = TextEncoder.from_pretrained(path)
    before.tokenizer(["a"], truncation=True, max_length=1, padding=True)
    assert TextEncoder.from_pretrained(path).fingerprint() == before.fingerprint()
    for part, name, value in (
        ("tokenizer", "truncation_side", "left"),
        ("tokenizer", "model_max_length", 7),
        ("config", "layer_norm_eps", 1e-3),
        ("config", "hidden_act", "relu"),
    ):
        loaded = load_transformer(str(path), torch.float32)
        if name == "model_max_length":
            loaded.model.config.max_position_embeddings = 0  # else it plays no part
        changed = loaded.tokenizer if part == "tokenizer" else loaded.model.config
        setattr(changed, name, value)
        assert TextEncoder(loaded.model, loaded.tokenizer).fingerprint() != before.fingerprint()
    loaded = load_transformer(str(path), torch.float32)
    loaded.tokenizer.add_tokens(["new"])
    assert TextEncoder(loaded.model, loaded.tokenizer).fingerprint() != before.fingerprint()


def test_the_fingerprint_is_computed_once(good, monkeypatch):
    """Hashing all weights takes longer than encoding."""
    loaded = load_transformer(str(good.folder / "encoder"), torch.float32)
    encoder = TextEncoder(loaded.model, loaded.tokenizer)
    first = encoder.fingerprint()
    monkeypatch.setattr(prompt_encoder, "hash_tensors", None)  # a second time would raise
    assert encoder.fingerprint() == first


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
    """It is a stranger's: anything but the original is refused, whichever file differs."""
    for name, sha256 in load.DEFAULT_ENCODER_SHA256.items():
        with monkeypatch.context() as patch:
            patch.setitem(load.DEFAULT_ENCODER_SHA256, name, "0" * 64)
            message = f"is not the original all-MiniLM-L6-v2: {name} has SHA-256 {sha256}, expected"
            with pytest.raises(InvalidInput, match=message):
                TextEncoder.from_pretrained()


def test_length_projection_runs_along_the_length():
    """Guards against the published view, which mixes tokens with channels."""
    projection = LengthProjection(6, 4)
    x = torch.randn(2, 3, 6, 5)
    found = projection(x)
    for channel in range(5):
        hidden = torch.nn.functional.silu(projection.down_proj(x[..., channel]))
        torch.testing.assert_close(found[..., channel], projection.gate_proj(hidden))


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = T5Config(vocab_size=350, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def test_t5_from_a_folder(t5_folder):
    """Slices, padding and the relative positions of a real encoder-decoder on disk."""
    t5 = TextEncoder.from_pretrained(t5_folder)
    prompts = [SHORT, "echo"]
    found = t5.encode(prompts, 40)
    model = AutoModel.from_pretrained(t5_folder).eval()
    for row, prompt in enumerate(prompts):
        ids = t5.tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model.encoder(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(found[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
        assert not found[row, len(expected) :].any()


SIZES = {
    "vocab_size": 350,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def causal_folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    kinds = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}
    config, model = kinds[request.param]
    model(config(**SIZES)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layer", [0, 2, -1, -2, None])
@pytest.mark.parametrize("side", ["left", "right"])
def test_hidden_layer_of_a_language_model(causal_folder, layer, side):
    """Every token's state is what it is without padding, whatever side the tokenizer pads on."""
    tokenizer = build_tokenizer()
    tokenizer.padding_side = side
    encoder = TextEncoder(AutoModel.from_pretrained(causal_folder), tokenizer, layer=layer)
    model = AutoModelForCausalLM.from_pretrained(causal_folder).eval()
    prompts = [SHORT, "echo", SHORT + " " + SHORT]
    found = encoder.encode(prompts, 100)
    for row, prompt in enumerate(prompts):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        expected = states[-1 if layer is None else layer][0]
        torch.testing.assert_close(found[row, : len(expected)], expected, rtol=1e-4, atol=1e-5)
        assert not found[row, len(expected) :].any()


def test_the_layer_is_part_of_the_name_and_of_the_fingerprint(tmp_path):
    """A cache must not serve one layer's states for another's."""
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**SIZES)).to(torch.bfloat16).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    second, last = (TextEncoder.from_pretrained(f"{tmp_path}#layer={k}") for k in (2, -1))
    assert (second.layer, last.layer, second.width) == (2, -1, 32)
    assert second.model.dtype == torch.bfloat16  # a 7B one must not take 28 GB
    assert second.fingerprint() != last.fingerprint()
    states = [each.encode(["echo"], 8, cache=tmp_path / "cache") for each in (second, last)]
    assert states[0].dtype == torch.float32
    assert not torch.equal(*states)
    for wrong, message in (("4", "has 3 layers"), ("-5", "has 3 layers"), ("x", "an integer")):
        with pytest.raises(InvalidInput, match=message):
            TextEncoder.from_pretrained(f"{tmp_path}#layer={wrong}")


@pytest.mark.parametrize(
    ("config", "model"), [(RobertaConfig, RobertaModel), (MPNetConfig, MPNetModel)]
)
def test_positions_that_start_behind_the_padding_index(encoder, config, model):
    """Of RoBERTa's max_position_embeddings two can be no token's: a slice is shorter by them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    built = model(
        config(
            vocab_size=30522,
            intermediate_size=16,
            max_position_embeddings=34,
            pad_token_id=1,
            **sizes,
        )
    )
    small = TextEncoder(built, encoder.tokenizer)
    assert small.max_length == 32
    ids = torch.tensor([encoder.tokenizer(LONG, verbose=False)["input_ids"]])
    embeddings = small.encode([LONG], 1024)
    for start in range(0, ids.shape[1], 32):
        part = ids[:, start : start + 32]
        with torch.no_grad():
            expected = built(part).last_hidden_state
        slice_ = embeddings[:, start : start + part.shape[1]]
        torch.testing.assert_close(slice_, expected, rtol=1e-4, atol=1e-5)


def test_a_language_model_with_its_head(causal_folder):
    tokenizer = build_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(causal_folder)
    headless = TextEncoder(AutoModel.from_pretrained(causal_folder), tokenizer)
    whole = TextEncoder(model, tokenizer)
    assert torch.equal(whole.encode([SHORT], 40), headless.encode([SHORT], 40))
    assert whole.fingerprint() == headless.fingerprint()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 40, 99])
def test_prompts_are_cut_as_the_tokenizer_cuts_them(encoder, length, side):
    prompts = [
        "take the opening letter of the tool cord " * 8,
        "echo [SEP]",
        "",
        "a b c d e f g h [SEP]",
    ]
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.truncation_side = side
    cut = TextEncoder(encoder.model, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cut._tokenize(prompts, length)
    if length > tokenizer.num_special_tokens_to_add():
        expected = tokenizer(prompts, truncation=True, max_length=length)["input_ids"]
        assert [list(row) for row in found] == expected
    assert all(len(row) <= length for row in found)


def test_long_and_short_prompts_at_once(encoder):
    """A fast tokenizer's truncation is a setting that threads share: prompts were cut, or not, by
    what another thread was about to do."""
    short = [f"say word number {i}" for i in range(4)]
    long = [f"in a long request, {'please ' * 60} say word number {i}" for i in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [encoder._tokenize(prompts, 24) for prompts in (short, long)]
        switch = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(8) as pool:
                calls = [(short, long)[i % 2] for i in range(800)]
                found = list(pool.map(lambda prompts: encoder._tokenize(prompts, 24), calls))
        finally:
            sys.setswitchinterval(switch)
    assert all(rows == expected[i % 2] for i, rows in enumerate(found))
