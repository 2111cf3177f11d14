"""What all encoders of prompts share, and what a generator needs of them."""

import pytest
import torch

from dnd_fast import Generator, InvalidInput
from dnd_fast.generator import GeneratorConfig
from dnd_fast.recipe import ConditionSpec, DecoderSpec
from dnd_fast.text.glove import GloveEncoder
from dnd_fast.text.prompt_encoder import PromptEncoder


def test_a_generator_takes_any_encoder_by_name(shared_generator, glove_file):
    layout = shared_generator.layout
    features = [[2, 5, 3], [4, 4, 4], [layout.num_tokens, *layout.token_shape]]
    generator = Generator(
        GeneratorConfig(
            ConditionSpec(f"glove:{glove_file}", prompts=2, length=5),
            DecoderSpec(features, 3),
            layout.to_dict(),
        )
    )
    assert generator.generate(["the cats", "Paris"]).modules


def test_embeddings_are_float32_whatever_the_default_dtype(encoder, glove_file, tmp_path):
    """Training scripts set bfloat16, which must not round embeddings, cached ones neither."""
    for each in (encoder, GloveEncoder.read(glove_file)):
        expected = each.encode(["the cats"], 8)
        torch.set_default_dtype(torch.bfloat16)
        try:
            embeddings = [each.encode(["the cats"], 8, cache=tmp_path) for _ in range(2)]
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(states.dtype == torch.float32 for states in embeddings)
        assert all(torch.equal(states, expected) for states in embeddings)


def test_what_a_generator_needs(encoder, glove_file):
    for each in (encoder, GloveEncoder.read(glove_file)):
        assert isinstance(each, PromptEncoder)
        each.to("cpu")
        assert each.device == torch.device("cpu")
        with pytest.raises(InvalidInput, match="device='nonsense' cannot be used"):
            each.to("nonsense")
    assert not isinstance("all-MiniLM-L6-v2", PromptEncoder)
