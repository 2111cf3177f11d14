"""Whatever is handed in: a clear error of one of two kinds, and nothing half-written.

Unusable input is an InvalidInput that names it; a failure of the system stays an OSError. Most
tests make the same call with good input first, so that nothing else can be what fails.
"""

import copy
import dataclasses
import errno
import io
import json
import os
import pickle
import resource
import shutil
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import dnd_fast
from dnd_fast import Generator, HyperConvDecoder, InvalidInput, Recipe, TextEncoder, TokenLayout
from dnd_fast import generator as generator_module
from dnd_fast.cli import main
from dnd_fast.convert import RENAMED, load_decoder, load_generator
from dnd_fast.decoder.length_projection import LengthProjection
from dnd_fast.generator_config import GeneratorConfig
from dnd_fast.lora.adapter import Adapter
from dnd_fast.lora.layout import LoraModule
from dnd_fast.recipe import RECIPES
from dnd_fast.text.prompts import read_prompts
from dnd_fast.train.demo import show

PROMPTS = ["reverse rice", "count the letters in tea", "echo fig", "copy oak"]
FEATURES = [(3, 5, 4), (3, 4, 6), (5, 4, 6)]
Q = "base_model.model.model.layers.0.self_attn.q_proj"
A = f"{Q}.lora_A.weight"
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
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


def published(decoder):
    """A decoder's state dict under the names of the paper's code."""
    theirs = {ours: name for name, ours in RENAMED.items()}
    state = {}
    for key, value in decoder.state_dict().items():
        _, index, name = key.split(".", 2)
        state[f"decoder.module_list.{index}.{theirs[name]}"] = value
    return state


def fails(message, call, *arguments, error=InvalidInput, **options):
    """The whole message of the error that the call must raise."""
    with pytest.raises(error, match=message) as caught:
        call(*arguments, **options)
    return str(caught.value)


# Prompts ----------------------------------------------------------------------------------------


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
        ("a.jsonl", b'{"prompt": "a"}\nreverse rice', "line 2: not valid JSON"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": "b"', "line 2: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "line 1: not valid JSON"),
        ("a.jsonl", b'{"text": "a"}', "line 1: there is no key 'prompt'"),
        ("a.jsonl", b'["prompt"]', "line 1: there is no key 'prompt'"),
        ("a.jsonl", b"3", "line 1: there is no key 'prompt'"),
        ("a.jsonl", b'{"prompt": 3}', r"\[0\] is a int, expected a string"),
        ("a.jsonl", b'{"prompt": null}', r"\[0\] is a NoneType, expected a string"),
        ("a.jsonl", b'{"prompt": " "}', r"\[0\] is empty; remove it"),
        ("a.jsonl", b'{"prompt": "\\ud800"}', r"\[0\] holds half a surrogate pair"),
        ("a.csv", b"a", r"read from \.txt .* or \.jsonl"),
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


# Calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "nonsense"}, "device='nonsense' cannot be used"),
        ({"impl": "nonsense"}, "impl='nonsense' is unknown; choose one of"),
        ({"impl": "triton"}, "impl='triton' cannot run.*Use impl='torch'"),
        ({"seed": [1]}, r"seed=\[1\]: it must be an integer"),
    ],
)
def test_generate(good, options, message):
    dnd_fast.generate(PROMPTS, good.generator, device="cpu", impl="torch", seed=1)
    fails(message, dnd_fast.generate, PROMPTS, good.generator, **options)


@pytest.mark.parametrize(
    ("features", "kernel_size", "options", "message"),
    [
        (FEATURES, 4, {}, "kernel_size=4: it must be an odd positive integer"),
        (FEATURES, 0, {}, "kernel_size=0: it must be an odd positive integer"),
        (FEATURES, -1, {}, "kernel_size=-1: it must be an odd positive integer"),
        (FEATURES, "3", {}, "kernel_size='3': it must be an odd positive integer"),
        ([], 3, {}, r"at least two shapes.*got \(\)"),
        (FEATURES[:1], 3, {}, r"at least two shapes.*got \(\(3, 5, 4\),\)"),
        ([(3, 4), (3, 4)], 3, {}, r"features holds \(3, 4\); .* three positive integers"),
        ([(3, 4, 0), (3, 4, 5)], 3, {}, r"features holds \(3, 4, 0\); .* three positive integers"),
        ([3, 4, 5], 3, {}, r"features is \[3, 4, 5\]; it must be a list of shapes"),
        (FEATURES, 3, {"impl": "gpu"}, "impl='gpu' is unknown; choose one of"),
        (FEATURES, 3, {"impl": "triton"}, "impl='triton' cannot run"),
        (FEATURES, 3, {"projection": LengthProjection(9, 7)}, "length 7, .* has length 5"),
    ],
)
def test_decoders(features, kernel_size, options, message):
    HyperConvDecoder(FEATURES, 3, projection=LengthProjection(9, 5), impl="torch")
    fails(message, HyperConvDecoder, features, kernel_size, **options)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 3, 5, 5), {}, r"takes .* \[B, 3, 5, 4\], got \[1, 3, 5, 5\]"),
        ((3, 5, 4), {}, r"takes .* \[B, 3, 5, 4\], got \[3, 5, 4\]"),
        ((1, 3, 5, 4), {"dtype": torch.float64}, r"float64, the decoder torch.float32: .*\.to\("),
        ((1, 3, 5, 4), {"dtype": torch.int64}, "torch.int64, the decoder torch.float32"),
        ((1, 3, 5, 4), {"device": "meta"}, r"on meta, the decoder on cpu: .*\.to\(device\)"),
    ],
)
def test_conditions(good, shape, options, message):
    good.decoder(torch.ones(1, 3, 5, 4))
    fails(message, good.decoder, torch.ones(shape, **options))


def test_a_decoder_keeps_its_implementation(good):
    for impl, message in (("nonsense", "is unknown; choose one of"), ("triton", "cannot run")):
        fails(f"impl='{impl}' {message}", good.decoder.set_impl, impl)
        assert good.decoder.impl == "auto"


def test_length_projections():
    fails("mode='flip'; choose 'transpose' or 'view'", LengthProjection, 9, 5, mode="flip")
    fails("length=0: it must be a positive integer", LengthProjection, 0, 5)
    fails("projected_length='5': it must be a positive integer", LengthProjection, 9, "5")
    for mode in ("transpose", "view"):
        projection = LengthProjection(9, 5, mode=mode)
        assert projection(torch.ones(1, 2, 9, 3)).shape == (1, 2, 5, 3)
        for shape in ((1, 2, 8, 3), (2, 9, 3)):
            fails(rf"takes \[B, N, 9, C\], got \[{shape[0]}, ", projection, torch.ones(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0: it must be a positive integer"),
        ({"chunk": "8"}, "chunk='8': it must be a positive integer"),
        ({"lora_alpha": NAN}, "lora_alpha=nan: it must be a positive number"),
        ({"scale": "log"}, "scale='log' is unknown; choose one of"),
        ({"scale": "border", "chunk": 5}, "even chunk, not 5. Pass another chunk or scale="),
        ({"target_modules": ["qkv"]}, r"\['qkv'\] does not fit Qwen2ForCausalLM.* q_proj, k_proj"),
        ({"target_modules": []}, r"target_modules=\[\] does not fit"),
        ({"target_modules": "q_proj"}, "target_modules='q_proj' does not fit"),
        ({"config": BertConfig()}, "BertLMHeadModel has no list 'layers'"),
        ({"config": {"model_type": "qwen2"}}, "dict belongs to no causal or vision-language model"),
        ({"config": Qwen2Config(num_attention_heads=0)}, "this Qwen2Config describes no model"),
    ],
)
def test_layouts(good, options, message):
    TokenLayout.for_model(good.config, 2, chunk=8, lora_alpha=1.5, target_modules=["q_proj"])
    fails(message, TokenLayout.for_model, **{"config": good.config, "rank": 2} | options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": ...}, "malformed: .*'rank'"),
        ({"modules": ...}, "malformed: .*'modules'"),
        ({"rnk": 2}, "malformed: .*'rnk'"),
        ({"modules": {}}, "no modules to adapt"),
        ({"modules": [1]}, "malformed"),
        ({"modules": {"q": [4]}}, "malformed: .*'size_out'"),
        ({"modules": {"q": [4, -4]}}, "module 'q' has a size of -4; it must be a positive integer"),
        ({"modules": {"q": [4, "4"]}}, "module 'q' has a size of '4'; it must be a positive int"),
        ({"rank": "2"}, "rank='2': it must be a positive integer"),
        ({"lora_alpha": "4"}, "lora_alpha='4': it must be a positive number"),
        ({"target_modules": [3]}, r"target_modules=\[3\]: it must be a list of names or one regex"),
        ({"base_model": 3}, "base_model=3: it must be a path or hub id"),
        ({"scale": "border", "chunk": 5}, "needs an even chunk, not 5"),
    ],
)
def test_descriptions_of_layouts(good, changes, message):
    fields = good.layout.to_dict()
    TokenLayout.from_dict(fields)
    fields = {key: value for key, value in (fields | changes).items() if value is not ...}
    fails(message, TokenLayout.from_dict, fields)


def test_a_layout_with_a_module_twice():
    modules = [LoraModule("q", 4, 4)] * 2
    with pytest.raises(InvalidInput, match="has module 'q' more than once"):
        TokenLayout(modules, 2, lora_alpha=4, target_modules=["q"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {}, r"28 missing \(base_model.*, …\), 0 unexpected"),
        (lambda x: {k: v for k, v in x.items() if k != A}, rf"1 missing \({A}\), 0 unexpected"),
        (lambda x: x | {"head.weight": x[A]}, r"0 missing, 1 unexpected \(head.weight\)"),
        (lambda x: x | {A: x[A][:, 1:]}, rf"{A} has shape \[2, 31\], this layout needs \[2, 32\]"),
        (lambda x: x | {A: x[A][0]}, rf"{A} has shape \[32\], this layout needs"),
        (lambda x: x | {A: x[A] * NAN}, f"{A} holds NaN or infinity"),
        (lambda x: x | {A: x[A] / 0}, f"{A} holds NaN or infinity"),
        (lambda x: x | {A: x[A].int()}, f"{A} is torch.int32, expected a tensor of floating-point"),
        (lambda x: x | {A: x[A].tolist()}, f"{A} is a list, expected a tensor"),
        (list, "tensors of an adapter are needed, by name; got a list"),
    ],
)
def test_tokenize(good, change, message):
    good.layout.tokenize(good.adapter.tensors)
    fails(message, good.layout.tokenize, change(good.adapter.tensors))


@pytest.mark.parametrize("shape", [(58, 3, 16), (58, 2), (57, 2, 16), ()])
def test_detokenize(good, shape):
    good.layout.detokenize(torch.ones(58, 2, 16))
    found = fails("tokens have shape", good.layout.detokenize, torch.ones(shape))
    assert f"{list(shape)}; this layout takes [..., 58, 2, 16]" in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], r"shape \[58, 2, 16\], expected \[adapters, 58, 2, 16\]"),
        (lambda x: x[:0], r"shape \[0, 58, 2, 16\], expected .* at least one adapter"),
        (lambda x: x[..., 1:], r"shape \[3, 58, 2, 15\], expected"),
        (lambda x: x.index_fill(0, torch.tensor(1), NAN), "collection holds NaN or infinity"),
        (lambda x: x.index_fill(3, torch.tensor(1), INF), "collection holds NaN or infinity"),
    ],
)
def test_collections(good, change, message):
    """One diverged adapter must not become a mean of 0."""
    layout, tokens = TokenLayout.from_dict(good.layout.to_dict()), torch.randn(3, 58, 2, 16)
    fails(message, layout.fit, change(tokens))
    assert layout.mean is None
    layout.fit(tokens)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.ones(58, 2, 15), torch.ones(58, 1, 1), r"mean has shape \[58, 2, 15\], expected"),
        (torch.ones(58, 2, 16), torch.ones(58), r"std has shape \[58\], expected \[58, 1, 1\]"),
        (torch.ones(58, 2, 16) * NAN, torch.ones(58, 1, 1), "mean holds NaN or infinity"),
        (torch.ones(58, 2, 16), torch.ones(58, 1, 1) * INF, "std holds NaN or infinity"),
        (torch.ones(58, 2, 16), -torch.ones(58, 1, 1), "std holds negative values"),
    ],
)
def test_statistics(good, mean, std, message):
    layout = TokenLayout.from_dict(good.layout.to_dict())
    fails(message, layout.set_statistics, mean, std)
    assert layout.mean is None
    layout.set_statistics(torch.ones(58, 2, 16), torch.ones(58, 1, 1))


def test_a_border_has_no_statistics(good):
    border = TokenLayout.for_model(good.config, 2, scale="border")
    ones = torch.ones(3, 58, 4, 18)
    fails("only scale='static' has statistics", border.fit, ones)
    fails("only scale='static' has a mean and std", border.set_statistics, ones[0], ones[0, :, 0])


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
    ("part", "changes", "message"),
    [
        ("condition", {"prompts": 5}, "takes 4 prompts of length 16, the condition has 5"),
        ("condition", {"length": 9}, "takes 4 .* of length 16, the condition has 4 of length 9"),
        ("condition", {"projected_length": 9}, "projection gives length 9, .* has length 16"),
        ("decoder", {"features": FEATURES}, "takes 3 prompts of length 5, the condition has 4"),
        ("decoder", {"kernel_size": 2}, "kernel_size=2: it must be an odd"),
        ("layout", {}, "layout's description is malformed: .*'modules'"),
    ],
)
def test_generators(good, part, changes, message):
    config = good.generator.config
    Generator(config)
    new = dataclasses.replace(getattr(config, part), **changes) if changes else {}
    fails(message, Generator, dataclasses.replace(config, **{part: new}))


def test_calls_of_a_generator(good, tmp_path):
    config, folder = good.generator.config, good.folder / "generator"
    fails("encoder is a str; load one by Text", Generator, config, encoder="all-MiniLM-L6-v2")
    narrow = Generator(config, encoder=TextEncoder.from_pretrained(good.folder / "encoder"))
    fails("embeddings of width 16, the decoder takes 384", narrow.generate, PROMPTS)
    fails(r"\[B, 4, 16, 384\], got \[1, 4, 9, 384\]", good.generator, torch.ones(1, 4, 9, 384))
    fails("a task has 3 prompts, the condition takes 4", good.generator.encode, [PROMPTS[:3]])
    fails("dtype=torch.int8: it must be a f", Generator.from_pretrained, folder, dtype=torch.int8)
    fails("no mean and std: call layout.fit", Generator(config).save_pretrained, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    device = {"device": "nonsense"}
    fails("device='nonsense'", TextEncoder.from_pretrained, good.folder / "encoder", **device)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.clear(), "no tensors base_model.model.….lora_A.weight"),
        (lambda x: x.pop(A), "q_proj has only one of lora_A and lora_B"),
        (lambda x: x.update({A: x[A] * NAN}), f"{A} holds NaN or infinity"),
        (lambda x: x.update({A: x[A].bool()}), f"{A} is torch.bool, expected a tensor of floating"),
        (lambda x: x.update({A: x[A].T}), r"q_proj: lora_A has shape \[32, 2\] and lora_B \[32, 2"),
        (lambda x: x.update({A: 1.0}), f"{A} is a float, expected a tensor"),
    ],
)
def test_adapters(good, change, message):
    tensors = dict(good.adapter.tensors)
    Adapter(tensors, good.adapter.config)
    change(tensors)
    fails(message, Adapter, tensors, good.adapter.config)


def test_calls_of_an_adapter(good):
    tensors, config = good.adapter.tensors, good.adapter.config
    fails("type 'IA3'; only LORA is supported", Adapter, tensors, {"peft_type": "IA3"})
    fails("entry 'r' is None, not a positive", Adapter, tensors, {"peft_type": "LORA"})
    foreign = {key.removeprefix("base_model."): value for key, value in tensors.items()}
    fails("no tensors base_model.model", Adapter, foreign, config)
    fails("is torch.int8, expected a tensor of floating", good.adapter.to, torch.int8)
    fewer = Adapter({k: v for k, v in tensors.items() if "q_proj" not in k}, config)
    fails("different modules: 2 are in one only, .*q_proj for one", good.adapter.compare, fewer)
    narrow = Adapter(tensors | {A: tensors[A][:, :8]}, config)
    fails(r"of shape \[32, 32\], the other \[32, 8\]", good.adapter.compare, narrow)


BLOCK = "decoder.module_list.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {}, "holds no state dict"),
        (lambda x: [x], "holds no state dict"),
        (lambda x: {"a.weight": torch.ones(1)}, "no key starts with decoder.module_list.0; found"),
        (lambda x: x | {"head": torch.ones(1)}, r"missing nothing, unexpected \['head'\]"),
        (
            lambda x: {key: x[key] for key in x if key != f"{BLOCK}.linear1.bias"},
            rf"missing \['{BLOCK}.linear1.bias'\], unexpected nothing",
        ),
        (  # counting up to it took forever
            lambda x: x | {f"decoder.module_list.{10**12}.x": torch.ones(1)},
            "missing decoder.module_list.2, found decoder.module_list.1000000000000",
        ),
        (
            lambda x: x | {f"{BLOCK}.linear1.conv1w.weight": torch.ones(2, 2, 3, 3)},
            r"a_width.weight has shape \[2, 2, 3, 3\], which contradicts .*\[6, 4, 3, 3\]",
        ),
        (
            lambda x: {key: v[..., 1:, 1:] if v.ndim == 4 else v for key, v in x.items()},
            "no released decoder: kernel_size=2: it must be an odd",
        ),
        (
            lambda x: x | {f"{BLOCK}.linear1.bias": x[f"{BLOCK}.linear1.bias"] / 0},
            f"{BLOCK}.linear1.bias holds NaN or infinity",
        ),
        (lambda x: {k: v.int() for k, v in x.items()}, "is torch.int32, expected a tensor"),
        (lambda x: x | {f"{BLOCK}.linear1.bias": [0.0]}, "bias is a list, expected a tensor"),
    ],
)
def test_state_dicts(good, change, message):
    load_decoder(good.state | {"condition_module.x": 3})
    fails(message, load_decoder, change(good.state))


def test_a_decoder_of_another_recipe(good):
    message = "takes 3 prompts of length 5, the condition has 8 of length 24"
    fails(message, load_generator, good.state, Recipe.load("demo"))


# Files ------------------------------------------------------------------------------------------

GONE, FOLDER = object(), object()


def damaged(source, target, name, damage):
    """A copy of a folder in which one file is changed, gone, or a folder."""
    shutil.copytree(source, target)
    file = target / name
    whole = file.read_bytes()
    file.unlink()
    if damage is FOLDER:
        file.mkdir()
    elif damage is not GONE:
        file.write_bytes(damage(whole) if callable(damage) else damage)
    return target


def entries(**changes):
    """Of a JSON object, at any depth (``a__b`` is ``b`` of ``a``); ``...`` removes one."""

    def damage(whole):
        content = json.loads(whole)
        for path, value in changes.items():
            *parents, last = path.split("__")
            table = content
            for parent in parents:
                table = table[parent]
            table[last] = value
            if value is ...:
                del table[last]
        return json.dumps(content).encode()

    return damage


def tensors(part, change):
    """Of a safetensors file, all whose name has ``part``; GONE removes them."""

    def damage(whole):
        state = safetensors.torch.load(whole)
        names = [name for name in state if part in name]
        assert names
        for name in names:
            value = state.pop(name)
            if change is not GONE:
                state[name] = change(value)
        return safetensors.torch.save(state)

    return damage


def extra_tensor(whole):
    return safetensors.torch.save(safetensors.torch.load(whole) | {"extra": torch.ones(2)})


class Trap:
    """Whoever unpickles it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


DAMAGED_JSON = {
    "missing": (GONE, "{name}", FileNotFoundError),
    "a folder": (FOLDER, "{name}", OSError),
    "empty": (b"", "{name} is not valid JSON", InvalidInput),
    "cut off": (lambda whole: whole[:-3], "{name} is not valid JSON", InvalidInput),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "{name} is not valid JSON", InvalidInput),
    "too deep": (b"[" * 100_000, "{name} is not valid JSON", InvalidInput),
    "no object": (b"[1]", "{name} holds a list, expected an object", InvalidInput),
}
DAMAGED_WEIGHTS = {
    "missing": (GONE, "{name}", FileNotFoundError),
    "a folder": (FOLDER, "{name}", FileNotFoundError),
    "empty": (b"", "{name} is truncated or not a safetensors", InvalidInput),
    "cut off": (lambda whole: whole[:-1], "{name} is truncated", InvalidInput),
    "cut off in the header": (lambda whole: whole[:100], "{name} is truncated", InvalidInput),
    "zeros": (bytes(1000), "{name} is truncated or not a safetensors", InvalidInput),
    "a pickle": (pickle.dumps({"a": 1}), "{name} is truncated or not a safetensors", InvalidInput),
}


@pytest.mark.parametrize(
    ("load", "folder", "name", "damage", "message", "error"),
    [
        pytest.param(load, folder, name, *case, id=f"{folder}'s {name}: {how}")
        for load, folder, name, table in (
            (Adapter.load, "adapter", "adapter_config.json", DAMAGED_JSON),
            (Adapter.load, "adapter", "adapter_model.safetensors", DAMAGED_WEIGHTS),
            (Generator.from_pretrained, "generator", "config.json", DAMAGED_JSON),
            (Generator.from_pretrained, "generator", "model.safetensors", DAMAGED_WEIGHTS),
        )
        for how, case in table.items()
    ],
)
def test_damaged_files(good, tmp_path, load, folder, name, damage, message, error):
    load(good.folder / folder)  # fine before
    copied = damaged(good.folder / folder, tmp_path / "damaged", name, damage)
    assert str(copied) in fails(message.format(name=name), load, copied, error=error)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'; only LORA"),
        ({"peft_type": ...}, "type None; only LORA"),
        ({"r": ...}, "entry 'r' is None, not a positive integer"),
        ({"r": "2"}, "entry 'r' is '2', not a positive integer"),
        ({"r": 0}, "entry 'r' is 0, not a positive integer"),
        ({"r": True}, "entry 'r' is True, not a positive integer"),
        ({"lora_alpha": None}, "entry 'lora_alpha' is None, not a number"),
        ({"lora_alpha": NAN}, "entry 'lora_alpha' is nan, not a number"),
    ],
)
def test_an_adapters_config(good, tmp_path, changes, message):
    source = good.folder / "adapter"
    folder = damaged(source, tmp_path / "a", "adapter_config.json", entries(**changes))
    assert str(folder) in fails(message, Adapter.load, folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tensors("0.self_attn.q_proj.lora_A", GONE), f"{Q} has only one of lora_A and lora_B"),
        (tensors("0.self_attn.q_proj.lora_B", GONE), f"{Q} has only one of lora_A and lora_B"),
        (tensors("lora", GONE), "has no tensors"),
        (tensors("q_proj.lora_A", lambda x: x / 0), "q_proj.lora_A.weight holds NaN or infinity"),
        (tensors("q_proj.lora_B", lambda x: x * NAN), "q_proj.lora_B.weight holds NaN or infinity"),
        (tensors("q_proj.lora_A", lambda x: x.int()), "q_proj.lora_A.weight is torch.int32"),
        (
            tensors("q_proj.lora_A", lambda x: x.to(torch.float8_e4m3fn)),
            "is torch.float8_e4m3fn, expected a tensor of floating-point numbers in 16, 32",
        ),
        (
            tensors("q_proj.lora_A", lambda x: torch.cat([x, x])),
            r"q_proj: lora_A has shape \[4, 32\] and lora_B \[32, 2\], expected",
        ),
        (tensors("q_proj.lora_A", lambda x: x[0].clone()), r"q_proj: lora_A has shape \[32\]"),
        (tensors("q_proj.lora_B", torch.sum), r"q_proj: .* and lora_B \[\]"),
    ],
)
def test_an_adapters_weights(good, tmp_path, change, message):
    source = good.folder / "adapter"
    if message == "has no tensors":
        whole, change = change, lambda data: extra_tensor(whole(data))
    folder = damaged(source, tmp_path / "a", "adapter_model.safetensors", change)
    assert str(folder) in fails(message, Adapter.load, folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2, "news": 1}, "format version 2; this dnd-fast reads 1. Update"),
        ({"format_version": "1"}, "format version '1'; this dnd-fast reads 1"),
        ({"conditon": {}}, "unknown entry 'conditon'; known are condition, decoder, layout"),
        ({"condition__prompt": 4}, "condition: unknown entry 'prompt'; known are encoder, prompts"),
        ({"decoder": ...}, "entry 'decoder' is missing"),
        ({"condition__length": ...}, "condition: entry 'length' is missing"),
        ({"condition": None}, "condition: expected a table of settings, found None"),
        ({"condition__prompts": "4"}, "condition: prompts: found '4', expected int"),
        ({"condition__prompts": 0}, "condition: prompts: found 0, expected a positive integer"),
        ({"condition__padding": "left"}, "padding: found 'left', expected one of"),
        ({"condition__encoder": 3}, "encoder: found 3, expected str"),
        ({"condition__prompts": 5}, "takes 4 prompts of length 16, the condition has 5"),
        (
            {"condition__projected_length": 5},
            r"projection gives length 5, features\[0\] has length 16",
        ),
        ({"decoder__kernel_size": 2}, "kernel_size=2: it must be an odd"),
        ({"decoder__features": []}, "features needs at least two shapes"),
        ({"decoder__features": [4, 16]}, r"features\[0\]: found 4, expected a list"),
        ({"layout": []}, r"layout: found \[\], expected dict"),
        ({"layout__rank": ...}, "malformed: .*'rank'"),
        ({"layout__rank": 3}, r"tokens \(58, 2, 16\), the layout needs \(58, 3, 16\)"),
        ({"layout__scale": "log"}, "scale='log' is unknown"),
        ({"layout__modules": {}}, "no modules to adapt"),
    ],
)
def test_a_generators_config(good, tmp_path, changes, message):
    source = good.folder / "generator"
    folder = damaged(source, tmp_path / "g", "config.json", entries(**changes))
    found = fails(message, Generator.from_pretrained, folder)
    assert str(folder / "config.json") in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (extra_tensor, r"extra has shape \(2,\), expected nothing"),
        (tensors("0.a_width", GONE), r"blocks.0.a_width.weight has shape missing, expected \(8"),
        (tensors("0.a_width", lambda x: x[:1].clone()), r"a_width.weight has shape \(1, 384, 3, 3"),
        (tensors("0.a_width", lambda x: x * NAN), "blocks.0.a_width.weight holds NaN or infinity"),
        (tensors("0.a_width", lambda x: x / 0), "blocks.0.a_width.weight holds NaN or infinity"),
        (tensors("0.a_width", lambda x: x.int()), "blocks.0.a_width.weight is torch.int32"),
        (tensors("0.a_width", lambda x: x.to(torch.float8_e5m2)), "a_width.weight is torch.float8"),
        (tensors("layout.mean", GONE), "the layout's mean or std is missing"),
        (tensors("layout.mean", lambda x: x * NAN), "layout.mean holds NaN or infinity"),
        (tensors("layout.std", lambda x: -x), "the layout's std holds negative values"),
        (tensors("layout.std", lambda x: x[1:].clone()), r"std has shape \[57, 1, 1\], expected"),
    ],
)
def test_a_generators_weights(good, tmp_path, change, message):
    source = good.folder / "generator"
    folder = damaged(source, tmp_path / "g", "model.safetensors", change)
    fails(message, Generator.from_pretrained, folder)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("config.json", GONE, "no usable text encoder"),
        ("config.json", b"{", "no usable text encoder"),
        ("config.json", entries(model_type="no-such-model"), "no-such-model"),
        ("config.json", entries(hidden_size="16"), "hidden_size"),
        ("config.json", entries(num_attention_heads=5), "attention heads"),
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


def test_missing_folders(good, tmp_path):
    """A file is not a folder either."""
    adapter, generator = good.folder / "adapter", good.folder / "generator"
    for path in (tmp_path / "a" / "b", adapter / "adapter_config.json"):
        fails(f"no adapter folder at {path}", Adapter.load, path, error=FileNotFoundError)
    for path in (tmp_path / "a" / "b", generator / "config.json"):
        message = f"no generator folder '{path}'"
        fails(message, Generator.from_pretrained, path, error=FileNotFoundError)
        fails(message, dnd_fast.generate, PROMPTS, path, error=FileNotFoundError)
    fails("config.json is missing", Generator.from_pretrained, adapter, error=FileNotFoundError)
    path = tmp_path / "a" / "b"
    fails(f"no usable text encoder at '{path}'", TextEncoder.from_pretrained, path)
    for path in (tmp_path / "a.pth", tmp_path):
        fails(f"no checkpoint at {path}", load_decoder, path, error=FileNotFoundError)


def test_the_embedded_generator_may_be_missing(monkeypatch, tmp_path):
    """Asking the hub for a model called "demo" would explain nothing."""
    monkeypatch.setattr(generator_module, "DEMO_MODELS", tmp_path)
    message = "embedded generator is missing at .*rebuild it: dnd-fast demo --retrain"
    fails(message, Generator.from_pretrained, "demo", error=FileNotFoundError)


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"reverse rice",
        lambda whole: whole[:40],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole[:300] + bytes(100) + whole[400:],
    ],
    ids=["empty", "text", "start", "half", "last byte", "zeros within"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_checkpoints(good, tmp_path, damage, zipped):
    """Depending on where it is cut, torch raises IndexError, struct.error or AssertionError."""
    file = tmp_path / "decoder.pth"
    torch.save(good.state, file, _use_new_zipfile_serialization=zipped)
    load_decoder(file)  # fine before
    file.write_bytes(damage(file.read_bytes()) if callable(damage) else damage)
    message = f"{file} is damaged, or holds objects beside tensors.*Fetch it again"
    found = fails(message, load_decoder, file)
    assert "\n" not in found
    assert "weights_only" not in found  # torch advises to switch this off


@pytest.mark.parametrize("content", [[1, 2], 3, {}, torch.ones(2), {"state_dict": {}}])
def test_checkpoints_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "decoder.pth")
    fails("holds no state dict", load_decoder, tmp_path / "decoder.pth")


def test_no_pickle_is_ever_executed(good, tmp_path):
    """Whatever its suffix and wherever it lies."""
    sprung, trap = tmp_path / "sprung", Trap(tmp_path / "sprung")
    pickle.loads(pickle.dumps(trap)).close()
    assert sprung.exists()  # it does go off
    sprung.unlink()

    for name in ("a.pth", "a.pt", "a.bin", "a.ckpt"):
        file = tmp_path / name
        for zipped in (True, False):
            torch.save(good.state | {"x": trap}, file, _use_new_zipfile_serialization=zipped)
            fails("could run code and are never loaded", load_decoder, file)
        file.write_bytes(pickle.dumps(trap))
        fails("could run code and are never loaded", load_decoder, file)

    bomb = pickle.dumps(trap)
    (tmp_path / "a.safetensors").write_bytes(bomb)
    fails("not a safetensors file", load_decoder, tmp_path / "a.safetensors")
    folder = damaged(
        good.folder / "adapter", tmp_path / "adapter", "adapter_model.safetensors", bomb
    )
    (folder / "adapter_model.bin").write_bytes(bomb)
    fails("not a safetensors file", Adapter.load, folder)
    folder = damaged(good.folder / "generator", tmp_path / "generator", "model.safetensors", bomb)
    fails("not a safetensors file", Generator.from_pretrained, folder)
    folder = damaged(good.folder / "encoder", tmp_path / "encoder", "model.safetensors", GONE)
    torch.save({"x": trap}, folder / "pytorch_model.bin")
    fails("no usable text encoder", TextEncoder.from_pretrained, folder)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "entry 'name' is missing"),
        (lambda text: text + "[lora", "not valid TOML"),
        (lambda text: text + "# é", "not valid TOML"),  # in latin-1
        (lambda text: "x = " + "[" * 100_000, "not valid TOML"),
        (lambda text: "title = 1\n" + text, "unknown entry 'title'; known are name, description"),
        (lambda text: text.replace("[lora]", "[lora]\nrnk = 4"), "lora: unknown entry 'rnk'"),
        (
            lambda text: text.replace("kernel_size = 3", ""),
            "decoder: entry 'kernel_size' is missing",
        ),
        (lambda text: text.replace("kernel_size = 3", "kernel_size = '3'"), "found '3', expected"),
        (
            lambda text: text.replace("kernel_size = 3", "kernel_size = -3"),
            "found -3, expected a p",
        ),
        (lambda text: text.replace("[lora]", "[lora]\nscale = []"), "scale: found .*expected one"),
    ],
)
def test_recipes(tmp_path, change, message):
    file, text = tmp_path / "a.toml", (RECIPES / "demo.toml").read_text()
    assert change(text) != text
    file.write_bytes(change(text).encode("latin-1"))
    assert str(file) in fails(message, Recipe.load, file)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('model_type = "qwen2"', 'model_type = "qwen0"', "recipe demo: .*identifier: qwen0"),
        ('model_type = "qwen2"', "", "recipe demo: .*'model_type'"),
        ('model_type = "qwen2"', 'model_type = "bert"', "recipe demo: .*has no list 'layers'"),
        ("hidden_size = 128", 'hidden_size = "128"', "recipe demo: .*hidden_size"),
        ("num_attention_heads = 4", "num_attention_heads = 0", "recipe demo: .*no model"),
        ("hidden_size = 128", "hidden_size = -128", "recipe demo: .*no model: .*-128"),
        ("kernel_size = 3", "kernel_size = 4", "kernel_size=4: it must be an odd"),
        ("rank = 4", "rank = 5", r"the layout needs \(96, 5, 64\)"),
    ],
)
def test_recipes_that_describe_nothing(tmp_path, old, new, message):
    file, text = tmp_path / "a.toml", (RECIPES / "demo.toml").read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    recipe = Recipe.load(file)
    with torch.device("meta"):
        fails(message, lambda: Generator(GeneratorConfig.from_recipe(recipe)))


def test_missing_recipes(tmp_path):
    (tmp_path / "folder.toml").mkdir()
    for name in ("maths", tmp_path / "missing.toml", tmp_path / "folder.toml"):
        message = f"no recipe '{name}'; give a .toml file or one of: .*math-7b"
        fails(message, Recipe.load, name, error=FileNotFoundError)


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


# Adapters on models -----------------------------------------------------------------------------


def wrapped(model):
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


@torch.no_grad()
def logits(model):
    return model(torch.arange(12).view(1, -1)).logits


@pytest.mark.parametrize("method", ["apply", "merge_into"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, r"adapts model\.layers\.1\.\S+, which the model does not have"),
        ({"hidden_size": 64}, r"needs a weight of shape \[32, 32\], found \[64, 64\]"),
        ({"intermediate_size": 40}, r"needs a weight of shape \[48, 32\], found \[40, 32\]"),
    ],
)
def test_a_wrong_base_model_is_left_alone(good, method, change, message):
    settings = {**good.config.to_dict(), "layer_types": None, **change}
    base = Qwen2ForCausalLM(Qwen2Config(**settings)).eval()
    before = logits(base)
    fails(message, getattr(good.adapter, method), base)
    assert not wrapped(base)
    assert torch.equal(logits(base), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 9}, "contradicts its configuration: .* has rank 2, not 9"),
        ({"rank_pattern": {"q_proj": 4}}, "q_proj has rank 2, not 4"),
        ({"target_modules": ["q_proj"]}, "contradicts its configuration: .*see target_modules"),
        ({"target_modules": ["qkv"]}, "contradicts its configuration: .*see target_modules"),
        ({"target_modules": None}, "contradicts its configuration"),
        ({"target_modules": 3}, "PEFT cannot use the adapter's configuration"),
        ({"target_modules": "((q_proj"}, "PEFT cannot use the adapter's configuration"),
        ({"layers_to_transform": [0]}, "model.layers.1.*in one only"),
        ({"use_dora": True}, "contradicts its configuration: .*lora_magnitude_vector"),
        ({"task_type": "POETRY"}, "PEFT cannot use .*POETRY"),
        ({"lora_dropout": "0.1"}, "PEFT cannot use the adapter's configuration"),
        ({"bias": "some"}, "PEFT cannot use .*bias: some"),
    ],
)
def test_an_adapter_that_contradicts_itself(good, tiny_base, changes, message):
    """PEFT noticed some of it only after it had wrapped half of the base model."""
    before, untouched = logits(tiny_base), copy.deepcopy(tiny_base)
    odd = Adapter(good.adapter.tensors, good.adapter.config | changes)
    fails(message, odd.apply, tiny_base)
    assert not wrapped(tiny_base)
    assert vars(tiny_base).keys() == vars(untouched).keys()
    assert torch.equal(logits(tiny_base), before)
    applied = logits(good.adapter.apply(tiny_base))  # and a good one still fits
    assert torch.equal(applied, logits(good.adapter.apply(untouched)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 9}, "has rank 2, not 9"),
        ({"target_modules": ["q_proj"]}, "see target_modules"),
        ({"task_type": "POETRY"}, "POETRY"),
    ],
)
def test_a_failed_replacement_keeps_the_first_adapter(good, tiny_base, changes, message):
    applied = good.adapter.apply(tiny_base)
    before = logits(applied)
    other = {key: 2 * value for key, value in good.adapter.tensors.items()}
    odd = Adapter(other, good.adapter.config | changes)
    fails(message, odd.apply, applied)
    assert torch.equal(logits(applied), before)
    Adapter(other, good.adapter.config).apply(applied)
    assert not torch.equal(logits(applied), before)


def test_a_base_that_carries_an_adapter(good, tiny_base):
    good.adapter.apply(tiny_base)
    for method in (good.adapter.apply, good.adapter.merge_into):
        fails(r"already carries an adapter; call apply\(\) with the PEFT model", method, tiny_base)


# Writing ----------------------------------------------------------------------------------------


def contents(folder):
    """All that is below a folder, hidden files included."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@contextmanager
def disk_full():
    """No file can grow beyond a block: what the system does, without a disk to fill."""
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def disk_full_at_sync():
    """As network file systems do, which accept writes and report later."""

    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def write_adapter(good, path):
    good.adapter.save(path)


def write_generator(good, path):
    good.generator.save_pretrained(path)


def write_by_command(good, path):
    (path.parent / "task.txt").write_text("\n".join(PROMPTS))
    arguments = ["generate", path.parent / "task.txt", "--generator", good.folder / "generator"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generator_module.TextEncoder, "from_pretrained", lambda name: good.encoder)
        code, found = run(patch, *arguments, "--out", path)
    (path.parent / "task.txt").unlink()
    if code:
        assert found.startswith("error: ")
        raise OSError(found)


WRITERS = {
    "adapter": (write_adapter, Adapter.load, "adapter_model.safetensors"),
    "generator": (write_generator, Generator.from_pretrained, "model.safetensors"),
    "command": (write_by_command, Adapter.load, "adapter_config.json"),
}


@pytest.mark.parametrize(("write", "load", "name"), WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("full", [disk_full, disk_full_at_sync])
def test_a_full_disk(good, tmp_path, write, load, name, full):
    """Neither half of a new folder, nor a damaged old one, nor a temporary one."""
    old = tmp_path / "old"
    shutil.copytree(good.folder / ("generator" if write is write_generator else "adapter"), old)
    (old / name).with_suffix(".bak").write_bytes(b"mine")
    before = contents(tmp_path)
    for target in (old, tmp_path / "new"):
        with full(), pytest.raises(OSError, match=r"too large|No space left"):
            write(good, target)
        assert contents(tmp_path) == before
    load(old)
    write(good, tmp_path / "new")  # with room again
    load(tmp_path / "new")


@pytest.mark.parametrize(("write", "load", "name"), WRITERS.values(), ids=WRITERS)
def test_something_in_the_way(good, tmp_path, write, load, name):
    """A file for the folder, a file for its parent, a folder for one of its files."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / name).mkdir(parents=True)
    before = contents(tmp_path)
    for target, message in (
        (tmp_path / "file", "file is a file; give a folder"),
        (tmp_path / "file" / "new", "task.txt" if write is write_by_command else "is a file; give"),
        (tmp_path / "taken", f"{name} is a folder; move it away"),
    ):
        with pytest.raises(OSError, match=message):
            write(good, target)
        assert contents(tmp_path) == before


def test_what_json_does_not_have(good, tmp_path):
    """PEFT's own configurations hold sets."""
    adapter = Adapter(good.adapter.tensors, good.adapter.config | {"target_modules": {"q_proj"}})
    fails("adapter_config.json cannot hold this: .*set", adapter.save, tmp_path / "new")
    assert contents(tmp_path) == {}


def test_an_embedding_cache_without_room(good, tmp_path):
    prompts = [f"count {i}" for i in range(9)]
    with disk_full(), pytest.raises(OSError, match=r"embeddings\.safetensors"):
        good.encoder.encode(prompts, 8, cache=tmp_path)
    assert contents(tmp_path) == {}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file"):
        good.encoder.encode(prompts, 8, cache=tmp_path / "file")


# The command line -------------------------------------------------------------------------------


def run(patch, *arguments):
    """Exit code and the lines on stderr of ``dnd-fast``, in this process."""
    stderr = io.StringIO()
    patch.setattr(sys, "argv", ["dnd-fast", *map(str, arguments)])
    patch.setattr(sys, "stderr", stderr)
    for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        patch.setenv(variable, os.environ.get(variable, "1"))
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code, stderr.getvalue()


COMMANDS = {
    "generate: prompts missing": ("generate {tmp}/no.txt --out {tmp}/new", "no.txt: there is no"),
    "generate: prompts empty": ("generate {tmp}/empty.txt --out {tmp}/new", "there are no prompts"),
    "generate: prompts latin-1": ("generate {tmp}/latin.txt --out {tmp}/new", "not UTF-8 text"),
    "generate: prompts not JSON": (
        "generate {tmp}/text.jsonl --out {tmp}/new",
        "text.jsonl, line 1: not valid JSON",
    ),
    "generate: prompts a folder": ("generate {tmp}/folder.txt --out {tmp}/new", "no such file of"),
    "generate: prompts themselves": ("generate rice --out {tmp}/new", "put it into a list"),
    "generate: generator missing": (
        "generate {tmp}/task.txt --out {tmp}/new --generator {tmp}/no/generator",
        "there is no generator folder '{tmp}/no/generator'",
    ),
    "generate: device": (
        "generate {tmp}/task.txt --out {tmp}/new --device nonsense",
        "device='nonsense' cannot be used",
    ),
    "generate: impl": (
        "generate {tmp}/task.txt --out {tmp}/new --impl triton",
        "impl='triton' cannot run",
    ),
    "info: missing": ("info {tmp}/no/thing", "there is no generator folder '{tmp}/no/thing'"),
    "info: a file": ("info {tmp}/task.txt", "there is no generator folder '{tmp}/task.txt'"),
    "info: neither": ("info {tmp}/folder.txt", "is no generator: config.json is missing"),
    "info: markup": ("info {tmp}/a/[/red][bold]", "there is no generator folder '{tmp}/a/[/red][b"),
    "info: a damaged adapter": ("info {tmp}/adapter", "adapter_model.safetensors is truncated"),
    "info: a damaged generator": ("info {tmp}/generator", "config.json is not valid JSON"),
    "convert: missing": (
        "convert {tmp}/no.pth --recipe demo --out {tmp}/new",
        "there is no checkpoint at {tmp}/no.pth",
    ),
    "convert: a pickle": (
        "convert {tmp}/trap.pth --recipe demo --out {tmp}/new",
        "could run code and are never loaded",
    ),
    "convert: recipe": (
        "convert {tmp}/decoder.pth --recipe maths --out {tmp}/new",
        "there is no recipe 'maths'",
    ),
    "convert: another recipe": (
        "convert {tmp}/decoder.pth --recipe demo --out {tmp}/new",
        "the decoder takes 3 prompts of length 5, the condition has 8 of length 24",
    ),
}


@pytest.mark.parametrize(("command", "message"), COMMANDS.values(), ids=COMMANDS)
def test_commands(good, tmp_path, monkeypatch, command, message):
    """One line, exit code 1, no traceback, nothing written."""
    (tmp_path / "task.txt").write_text("\n".join(PROMPTS))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "text.jsonl").write_text("reverse rice")
    (tmp_path / "folder.txt").mkdir()
    damaged(good.folder / "adapter", tmp_path / "adapter", "adapter_model.safetensors", b"x")
    damaged(good.folder / "generator", tmp_path / "generator", "config.json", b"{")
    torch.save(good.state, tmp_path / "decoder.pth")
    torch.save(good.state | {"x": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    before = contents(tmp_path)
    arguments = command.format(tmp=tmp_path).split()
    if arguments[0] == "generate" and "--generator" not in arguments:
        arguments += ["--generator", good.folder / "generator"]
    code, found = run(monkeypatch, *arguments)
    assert code == 1
    assert found.startswith("error: ")
    assert message.format(tmp=tmp_path) in found
    assert found.count("\n") == 1
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate a.txt", "Missing option '--out'"),
        ("generate a.txt --out b --impl gpu", "'gpu' is not one of"),
        ("generate a.txt --out b --seed x", "Invalid value for '--seed'"),
        ("convert a.pth --out b", "Missing option '--recipe'"),
        ("info", "Missing argument"),
        ("demonstrate", "No such command 'demonstrate'"),
    ],
)
def test_command_lines(monkeypatch, command, message):
    code, found = run(monkeypatch, *command.split())
    assert code == 2
    assert message in " ".join(found.replace("│", " ").split())


def test_the_demo_without_its_files(monkeypatch, tmp_path):
    for module in (generator_module, show):
        monkeypatch.setattr(module, "DEMO_MODELS", tmp_path)
    code, found = run(monkeypatch, "demo", "--out", tmp_path / "new")
    assert code == 1
    assert "the embedded generator is missing" in found
    assert contents(tmp_path) == {}


def test_the_demos_figures(monkeypatch, tmp_path):
    """An old file of figures survives a full disk, and a folder in its place is named."""
    monkeypatch.setattr(show, "show", lambda console, out: {"base": "x" * 1000})
    file = tmp_path / "figures.json"
    file.write_text("old")
    (tmp_path / "folder").mkdir()
    before = contents(tmp_path)
    with disk_full():
        code, found = run(monkeypatch, "demo", "--json", file)
    assert (code, "too large" in found) == (1, True)
    code, found = run(monkeypatch, "demo", "--json", tmp_path / "folder")
    assert (code, "folder is a folder; move it away" in found) == (1, True)
    code, found = run(monkeypatch, "demo", "--json", file / "figures.json")
    assert (code, "is a file; give a folder" in found) == (1, True)
    assert contents(tmp_path) == before
    code, _ = run(monkeypatch, "demo", "--json", file)
    assert code == 0
    assert json.loads(file.read_text()) == {"base": "x" * 1000}
