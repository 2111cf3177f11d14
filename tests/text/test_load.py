"""Encoders by name: models of sentence-transformers, held to that library's own outputs."""

import json

import pytest
import safetensors.torch
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from dnd_fast import InvalidInput, TextEncoder
from dnd_fast.text.load import load_transformer, split_layer

LONG = " ".join(f"w{i % 50}" for i in range(70))
CONFIGS = {
    "bert": (
        BertModel,
        BertConfig(
            vocab_size=60,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
        ),
    ),
    "t5": (
        T5EncoderModel,
        T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
    ),
}


def save(folder, kind="bert", subfolder="", **settings):
    """A folder as sentence-transformers writes it, with random weights."""
    torch.manual_seed(0)
    words = Tokenizer(
        WordLevel({"[UNK]": 0, "[PAD]": 1} | {f"w{i}": i + 2 for i in range(50)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]"
    )
    model, config = CONFIGS[kind]
    for part in (model(config), tokenizer):
        part.save_pretrained(folder / subfolder)
    (folder / subfolder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 20, "do_lower_case": False} | settings)
    )
    modules = [("Transformer", subfolder), ("Pooling", "1_Pooling")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": path,
                    "type": f"sentence_transformers.models.{name}",
                }
                for i, (name, path) in enumerate(modules)
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True})
    )
    return folder


@pytest.mark.parametrize("subfolder", ["", "0_Transformer"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_token_embeddings_of_sentence_transformers(tmp_path, kind, subfolder):
    folder = save(tmp_path / "model", kind, subfolder)
    embeddings = TextEncoder.from_pretrained(folder).encode(["w1 w2 w3", "w9"], 4)
    whole = SentenceTransformer(str(folder), device="cpu")
    expected = whole.encode(["w1 w2 w3", "w9"], output_value="token_embeddings")
    for row, states in enumerate(expected):
        torch.testing.assert_close(embeddings[row, : len(states)], states, rtol=1e-4, atol=1e-5)
        assert not embeddings[row, len(states) :].any()


def test_slices_are_as_long_as_the_transformer_has_positions_for(tmp_path):
    """A ``max_seq_length`` of 20 is about pooling; all-MiniLM-L6-v2's 256 must not halve slices."""
    encoder = TextEncoder.from_pretrained(save(tmp_path / "model"))
    assert encoder.max_length == 32
    embeddings = encoder.encode([LONG], 70)[0]
    ids = torch.tensor([encoder.tokenizer(LONG, verbose=False)["input_ids"]])
    for start in (0, 32, 64):
        with torch.no_grad():
            expected = encoder.model(ids[:, start : start + 32]).last_hidden_state[0]
        torch.testing.assert_close(embeddings[start : start + 32], expected, rtol=1e-4, atol=1e-5)


def test_a_transformer_without_positions_has_the_tokenizers_limit(tmp_path):
    assert TextEncoder.from_pretrained(save(tmp_path / "model", "t5")).max_length == 20


def test_lower_case_as_sentence_transformers_has_it(tmp_path):
    encoder = TextEncoder.from_pretrained(save(tmp_path / "model", do_lower_case=True))
    upper, lower = encoder.encode(["W1 W2", "w1 w2"], 2)
    assert torch.equal(upper, lower)


def test_a_layer_of_a_sentence_transformer(tmp_path):
    folder = save(tmp_path / "model")
    first = TextEncoder.from_pretrained(f"{folder}#layer=1")
    with torch.no_grad():
        ids = torch.tensor([first.tokenizer("w1 w2")["input_ids"]])
        expected = first.model(ids, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(first.encode(["w1 w2"], 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("subfolder", ["", "0_Transformer"])
def test_missing_weights_of_a_sentence_transformer(tmp_path, subfolder):
    """sentence-transformers does not say so: they would be random, and every adapter noise."""
    folder = save(tmp_path / "model", subfolder=subfolder)
    file = folder / subfolder / "model.safetensors"
    state = safetensors.torch.load(file.read_bytes())
    kept = {name: value for name, value in state.items() if "query" not in name}
    safetensors.torch.save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(InvalidInput, match=r"4 weights are missing, .*query\.bias"):
        TextEncoder.from_pretrained(folder)
    kept = {name: value for name, value in state.items() if "pooler" not in name}
    safetensors.torch.save_file(kept, file, metadata={"format": "pt"})
    TextEncoder.from_pretrained(folder)  # hidden states need no pooler


@pytest.mark.parametrize("content", ["{", "[]", '[{"idx": 0, "type": "os.path", "path": ""}]'])
def test_damaged_lists_of_modules(tmp_path, content):
    folder = save(tmp_path / "model")
    (folder / "modules.json").write_text(content)
    with pytest.raises(InvalidInput, match=f"no usable text encoder at '{folder}'"):
        TextEncoder.from_pretrained(folder)


def test_word_vectors_without_a_transformer(tmp_path):
    """A static embedding is a sentence-transformers model as well."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    words = Tokenizer(WordLevel({"[UNK]": 0, "w1": 1}, unk_token="[UNK]"))
    embedding = StaticEmbedding(words, embedding_dim=8)
    SentenceTransformer(modules=[embedding]).save(str(tmp_path / "static"))
    with pytest.raises(InvalidInput, match="it has no transformer"):
        TextEncoder.from_pretrained(tmp_path / "static")


def test_weights_keep_the_dtype_of_their_files_where_asked(tmp_path):
    folder = save(tmp_path / "model")
    BertModel(CONFIGS["bert"][1]).bfloat16().save_pretrained(folder)
    for dtype, expected in (("auto", torch.bfloat16), (torch.float32, torch.float32)):
        assert load_transformer(str(folder), dtype).model.dtype == expected


def test_layers_in_names():
    assert split_layer("a/b") == ("a/b", None)
    assert split_layer("a/b#layer=-2") == ("a/b", -2)
    with pytest.raises(InvalidInput, match="the layer is 'last', expected an integer"):
        split_layer("a#layer=last")
