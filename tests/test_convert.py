"""Import of published checkpoints, held to numbers made with the published code."""

import json
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dnd_fast import (
    Generator,
    HyperConvDecoder,
    InvalidInput,
    TextEncoder,
)
from dnd_fast.convert import load_decoder, load_generator
from dnd_fast.decoder.length_projection import LengthProjection
from dnd_fast.lora.adapter import Adapter
from dnd_fast.recipe import BaseSpec, ConditionSpec, DecoderSpec, LoraSpec, Recipe

from .bad_input import GONE, Trap, damaged, fails

GOLDEN = Path(__file__).parent / "golden"
BLOCK = "decoder.module_list.{}.linear"


def read_golden(name):
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        metadata = file.metadata() or {}
    return load_file(GOLDEN / f"{name}.safetensors"), metadata


def golden_state(golden):
    return {k.removeprefix("state."): v for k, v in golden.items() if k.startswith("state.")}


def published_state(features, k, seed=0):
    """Random weights under the published names, in the published shapes."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for i, ((n, length, c), (n2, l2, c2)) in enumerate(pairwise(features)):
        one, two = BLOCK.format(i) + "1", BLOCK.format(i) + "2"
        shapes = {
            f"{one}.norm.weight": (length, c),
            f"{one}.norm.bias": (length, c),
            f"{one}.conv1w.weight": (c2, c, k, k),
            f"{one}.conv1h.weight": (l2, length, k, k),
            f"{one}.conv2h.weight": (l2, length, k, k),
            f"{one}.conv2w.weight": (c2, c, k, k),
            f"{one}.bias": (l2, c2),
            f"{two}.weight": (n2, n, k, k),
            f"{two}.bias": (n2,),
        }
        state |= {key: 0.1 * torch.randn(shape, generator=rng) for key, shape in shapes.items()}
    return state


def projection_state(length, projected, seed=1):
    rng = torch.Generator().manual_seed(seed)
    shapes = {
        "down_proj.weight": (projected, length),
        "down_proj.bias": (projected,),
        "gate_proj.weight": (projected, projected),
        "gate_proj.bias": (projected,),
    }
    return {key: 0.3 * torch.randn(shape, generator=rng) for key, shape in shapes.items()}


# Numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["decoder_tiny_k3", "decoder_tiny_k9"])
def test_published_outputs(name):
    """Guards against a swapped axis, a lost tanh or residual, convolution for correlation."""
    golden, metadata = read_golden(name)
    decoder = load_decoder(golden_state(golden))
    assert [list(shape) for shape in decoder.features] == json.loads(metadata["features"])
    assert decoder.kernel_size == int(metadata["kernel_size"])
    assert not decoder.training
    with torch.no_grad():
        found, exact = decoder(golden["input"]), decoder.double()(golden["input"].double())
    expected = golden["output_fp64"]
    assert (found - golden["output"]).abs().max() <= 1e-6 * expected.abs().max()
    assert (exact - expected).abs().max() <= 1e-12 * expected.abs().max()


def test_published_length_projection():
    """The first published code reinterprets its input instead of transposing it."""
    golden, _ = read_golden("length_projection")
    weights = {key: value for key, value in golden.items() if "proj" in key}
    projection = LengthProjection(24, 10, mode="view")
    projection.load_state_dict(weights)
    found = projection(golden["input"])
    assert (found - golden["output"]).abs().max() <= 1e-6 * golden["output"].abs().max()
    # The same weights in a decoder's checkpoint: read so by default, and on demand otherwise.
    state = published_state([(3, 10, 8), (2, 4, 6)], 3) | weights
    decoder = load_decoder(state)
    assert decoder.condition_shape == (3, 24, 8)
    assert torch.equal(decoder.projection(golden["input"]), found)
    transposing = load_decoder(state, projection="transpose").projection(golden["input"])
    assert (transposing - found).abs().max() > 0.1


def test_transposing_length_projection():
    """Guards against projecting along the embedding, and against a missing SiLU."""
    state = {key: value.double() for key, value in projection_state(5, 3).items()}
    projection = LengthProjection(5, 3).double()
    projection.load_state_dict(state)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    hidden = torch.einsum("bnlc,ml->bnmc", x, state["down_proj.weight"])
    hidden = hidden + state["down_proj.bias"].view(-1, 1)
    hidden = hidden / (1 + torch.exp(-hidden))
    expected = torch.einsum("bnmc,km->bnkc", hidden, state["gate_proj.weight"])
    expected = expected + state["gate_proj.bias"].view(-1, 1)
    torch.testing.assert_close(projection(x), expected, rtol=1e-12, atol=1e-12)


# Files and keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_file_formats_and_key_prefixes(tmp_path, suffix, prefix):
    """The text encoder's keys are dropped, the loss weights are kept."""
    features = [(3, 5, 4), (4, 5, 4), (4, 5, 4)]
    state = published_state(features, 3)
    extra = {
        "condition_module.embeddings.weight": torch.full((2, 2), torch.nan),
        "criterion_weight": torch.arange(4.0).view(1, 4, 1, 1),
    }
    file = tmp_path / f"decoder{suffix}"
    stored = {prefix + key: value for key, value in (state | extra).items()}
    torch.save(stored, file) if suffix == ".pth" else save_file(stored, file)

    decoder = load_decoder(file)
    assert isinstance(decoder, HyperConvDecoder)
    assert torch.equal(decoder.criterion_weight, extra["criterion_weight"])
    x = torch.randn(2, 3, 5, 4)
    assert torch.equal(decoder(x), load_decoder(state)(x))


def test_nested_state_dict(tmp_path):
    """As Lightning and Accelerate write it."""
    state = published_state([(3, 5, 4), (4, 5, 4)], 3)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "a.pt")
    assert load_decoder(tmp_path / "a.pt").features == ((3, 5, 4), (4, 5, 4))


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_unusable_files(tmp_path):
    """A pickle may run anything: it must be refused before it does."""
    trap, file = tmp_path / "executed", tmp_path / "decoder.pth"
    torch.save({"decoder.module_list.0.linear1.bias": Payload(trap)}, file)
    with pytest.raises(InvalidInput, match="never loaded"):
        load_decoder(file)
    assert not trap.exists()

    torch.save(published_state([(3, 5, 4), (4, 5, 4)], 3), file)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InvalidInput, match="damaged"):
        load_decoder(file)
    for state in ({}, {"weight": torch.ones(1)}, {"decoder.module_list.0.linear1.bias": 1}):
        with pytest.raises(InvalidInput):
            load_decoder(state)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_decoder(tmp_path / "other.pth")


def test_all_missing_and_unexpected_keys_are_listed():
    state = published_state([(3, 5, 4), (4, 5, 4), (4, 5, 4)], 3) | projection_state(9, 5)
    gone = [BLOCK.format(0) + "1.conv2h.weight", BLOCK.format(1) + "2.bias", "gate_proj.bias"]
    odd = [BLOCK.format(1) + "1.conv3.weight", "head.weight"]
    damaged = {k: v for k, v in state.items() if k not in gone} | dict.fromkeys(odd, torch.ones(1))
    with pytest.raises(InvalidInput) as caught:
        load_decoder(damaged)
    missing, unexpected = str(caught.value).split("unexpected")
    assert all(key in missing for key in gone)
    assert all(key in unexpected for key in odd)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (BLOCK.format(0) + "1.conv1w.weight", (4, 5, 3, 3), r"blocks\.0\.a_width\.weight has"),
        (BLOCK.format(1) + "1.conv2h.weight", (5, 5, 5, 5), r"blocks\.1\.b_height\.weight has"),
        (BLOCK.format(0) + "2.weight", (4, 3, 4, 4), "kernel_size=4"),
        (BLOCK.format(1) + "1.norm.weight", (5,), "three positive integers"),
        (BLOCK.format(1) + "2.weight", (), "no released decoder"),
        ("down_proj.weight", (4, 9), "projection gives length 4"),
        ("criterion_weight", (1, 3, 1, 1), "criterion_weight has"),
    ],
)
def test_contradicting_shapes_are_named(key, shape, message):
    state = published_state([(3, 5, 4), (4, 5, 4), (4, 5, 4)], 3) | projection_state(9, 5)
    load_decoder(state)  # fine before
    with pytest.raises(InvalidInput, match=message):
        load_decoder(state | {key: torch.ones(shape)})


def test_values_that_are_not_finite_are_named():
    state = published_state([(3, 5, 4), (4, 5, 4)], 3)
    key = BLOCK.format(0) + "2.bias"
    with pytest.raises(InvalidInput, match=key):
        load_decoder(state | {key: state[key] / 0})


# Generators -------------------------------------------------------------------------------------


def make_recipe(length, projected_length):
    """Tokens [29, 2, 4] of a one-layer Qwen2, [29, 4, 6] with the border."""
    base = {
        "model_type": "qwen2",
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return Recipe(
        name="tiny",
        description="",
        base=BaseSpec("some/base", base),
        lora=LoraSpec(rank=2, alpha=4),
        condition=ConditionSpec("some/encoder", 3, length, projected_length),
        decoder=DecoderSpec([[1, 1, 1], [1, 1, 1]], 5),  # the checkpoint's own is taken
    )


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("criterion", [False, True])
def test_a_generator_around_a_published_decoder(tmp_path, projected, criterion):
    """A checkpoint's loss weights made a saved generator unloadable."""
    state = published_state([(3, 5, 8), (7, 5, 4), (29, 4, 6)], 3)
    if projected:
        state |= projection_state(9, 5)
    if criterion:
        state["criterion_weight"] = torch.rand(1, 29, 1, 1)
    recipe = make_recipe(*(9, 5) if projected else (5, None))
    generator = load_generator(state, recipe)
    decoder = load_decoder(state)
    condition = torch.randn(2, *decoder.condition_shape)
    tokens = decoder(condition)
    assert torch.equal(generator(condition), tokens)
    assert generator.layout.scale == "border"
    assert (generator.config.condition.padding, generator.config.condition.projection) == (
        "encoded",
        "view",
    )
    adapter = generator.layout.detokenize(tokens)
    assert {key: tuple(v.shape[1:]) for key, v in adapter.items()} == (
        generator.layout.tensor_shapes()
    )

    generator.save_pretrained(tmp_path / "generator")
    again = Generator.from_pretrained(tmp_path / "generator")
    assert again.config == generator.config
    assert torch.equal(again(condition), tokens)
    if criterion:
        assert torch.equal(again.decoder.criterion_weight, state["criterion_weight"])
    else:
        assert again.decoder.criterion_weight is None


@pytest.mark.parametrize(
    ("features", "lengths", "message"),
    [
        ([(3, 5, 8), (29, 2, 4)], (5, None), "the layout needs"),  # no room for the border
        ([(3, 5, 8), (29, 4, 6)], (6, None), "the condition has"),
        ([(3, 5, 8), (29, 4, 6)], (9, 5), "takes conditions of shape"),
    ],
)
def test_a_decoder_that_does_not_fit_the_recipe(features, lengths, message):
    with pytest.raises(InvalidInput, match=message):
        load_generator(published_state(features, 3), make_recipe(*lengths))


FIRST_BLOCK = "decoder.module_list.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {}, "holds no state dict"),
        (lambda x: [x], "holds no state dict"),
        (lambda x: {"a.weight": torch.ones(1)}, "no key starts with decoder.module_list.0; found"),
        (lambda x: x | {"head": torch.ones(1)}, r"missing nothing, unexpected \['head'\]"),
        (
            lambda x: {key: x[key] for key in x if key != f"{FIRST_BLOCK}.linear1.bias"},
            rf"missing \['{FIRST_BLOCK}.linear1.bias'\], unexpected nothing",
        ),
        (  # counting up to it took forever
            lambda x: x | {f"decoder.module_list.{10**12}.x": torch.ones(1)},
            "missing decoder.module_list.2, found decoder.module_list.1000000000000",
        ),
        (
            lambda x: x | {f"{FIRST_BLOCK}.linear1.conv1w.weight": torch.ones(2, 2, 3, 3)},
            r"a_width.weight has shape \[2, 2, 3, 3\], which contradicts .*\[6, 4, 3, 3\]",
        ),
        (
            lambda x: {key: v[..., 1:, 1:] if v.ndim == 4 else v for key, v in x.items()},
            "no released decoder: kernel_size=2: it must be an odd",
        ),
        (
            lambda x: x | {f"{FIRST_BLOCK}.linear1.bias": x[f"{FIRST_BLOCK}.linear1.bias"] / 0},
            f"{FIRST_BLOCK}.linear1.bias holds NaN or infinity",
        ),
        (lambda x: {k: v.int() for k, v in x.items()}, "is torch.int32, expected a tensor"),
        (lambda x: x | {f"{FIRST_BLOCK}.linear1.bias": [0.0]}, "bias is a list, expected a tensor"),
        (lambda x: {k: v.to_sparse() for k, v in x.items()}, " is sparse, expected a dense tensor"),
        (lambda x: {k: v.to("meta") for k, v in x.items()}, "without values .on the meta device"),
        (
            lambda x: x | {f"{FIRST_BLOCK}.linear1.bias": torch.zeros(1).expand(4, 4)},
            "bias repeats values instead of holding them",
        ),
    ],
)
def test_state_dicts(good, change, message):
    load_decoder(good.state | {"condition_module.x": 3})
    fails(message, load_decoder, change(good.state))


def test_a_decoder_of_another_recipe(good):
    message = "takes 3 prompts of length 5, the condition has 8 of length 24"
    fails(message, load_generator, good.state, Recipe.load("demo"))


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
