"""Small models that many tests share, and the lanes that tests run in."""

import copy
import os
import sys
from pathlib import Path

# `pytest -m interpret` is a process of its own: Triton reads this when it is first imported.
if "interpret" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from dnd_fast import Generator, HyperConvDecoder, TextEncoder
from dnd_fast.convert import load_decoder
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.lora.target_modules import LoraModule
from dnd_fast.recipe import ConditionSpec, DecoderSpec

from .bad_input import FEATURES, PROMPTS, published

GOLDEN = Path(__file__).parent / "golden"


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


COMPILED = pytest.StashKey[list]()


@pytest.fixture
def note_compiled(pytestconfig):
    """Have what a kernel was compiled to printed at the end of ``pytest -m codegen``."""
    rows = pytestconfig.stash.setdefault(COMPILED, [])
    return lambda kernel, what, capability, report: rows.append(
        {"kernel": kernel, "sm": capability, **report, "for": what}
    )


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash.get(COMPILED, [])
    if rows and config.option.markexpr == "codegen":
        table = Table(*rows[0], box=None)
        for row in rows:
            table.add_row(*map(str, row.values()))
        terminalreporter.section("what the compiler made of every kernel")
        Console(width=180).print(table)


@pytest.fixture(scope="session")
def tiny_config():
    return Qwen2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )


@pytest.fixture
def tiny_base(tiny_config):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(tiny_config).eval()


@pytest.fixture(scope="session")
def encoder():
    """The packaged all-MiniLM-L6-v2."""
    return TextEncoder.from_pretrained()


@pytest.fixture(scope="session")
def shared_generator(tiny_config, encoder):
    torch.manual_seed(0)
    layout = TokenLayout.for_model(tiny_config, 2)
    generator = Generator(
        GeneratorConfig(
            ConditionSpec("sentence-transformers/all-MiniLM-L6-v2", prompts=4, length=16),
            DecoderSpec([[4, 16, 384], [6, 4, 8], [layout.num_tokens, *layout.token_shape]], 3),
            layout.to_dict(),
        ),
        encoder=encoder,
    )
    generator.layout.fit(torch.randn(5, layout.num_tokens, *layout.token_shape) * 0.1)
    return generator


@pytest.fixture
def tiny_generator(shared_generator):
    """Untrained, for ``tiny_base``; rank 2."""
    return copy.copy(shared_generator)


@pytest.fixture
def fitted_layout():
    """Of two matrices, each cut into chunks of 6, the last of which is shorter; with statistics."""
    torch.manual_seed(1)
    modules = [LoraModule("proj", 13, 7)]
    layout = TokenLayout(modules, 3, lora_alpha=1, target_modules=["proj"], chunk=6)
    mean = torch.randn(layout.num_tokens, *layout.token_shape)
    layout.set_statistics(mean, torch.rand(layout.num_tokens, 1, 1))
    return layout


@pytest.fixture(params=["decoder_tiny_k3", "decoder_tiny_k9"])
def golden_decoder(request):
    tensors = load_file(GOLDEN / f"{request.param}.safetensors")
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    return load_decoder(state), tensors


@pytest.fixture(scope="session")
def good(tiny_config, encoder, shared_generator, tmp_path_factory):
    """One usable object of every kind, in memory and on disk."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("good")
    adapter = shared_generator.generate(PROMPTS)
    adapter.save(folder / "adapter")
    shared_generator.save_pretrained(folder / "generator")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertModel(BertConfig(vocab_size=2, intermediate_size=16, **sizes))
    for part in (bert, tokenizer):
        part.save_pretrained(folder / "encoder")
    return SimpleNamespace(
        folder=folder,
        config=tiny_config,
        encoder=encoder,
        generator=shared_generator,
        adapter=adapter,
        layout=TokenLayout.for_model(tiny_config, 2),
        decoder=HyperConvDecoder(FEATURES, 3),
        state=published(HyperConvDecoder(FEATURES, 3)),
    )
