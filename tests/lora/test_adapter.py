"""Adapters: PEFT's files, PEFT's forward pass, and dense algebra as independent truth."""

import copy
import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from dnd_fast import InvalidInput, TokenLayout
from dnd_fast.lora.adapter import Adapter, lora_config

IDS = torch.arange(1, 13).view(2, 6)
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def make_adapter(tiny_config):
    def make(seed=0, rank=2, alpha=4, targets="all-linear", **settings):
        layout = TokenLayout.for_model(tiny_config, rank, lora_alpha=alpha, target_modules=targets)
        rng = torch.Generator().manual_seed(seed)
        tensors = {
            key: 0.3 * torch.randn(shape, generator=rng)
            for key, shape in layout.tensor_shapes().items()
        }
        config = lora_config(
            rank=rank, lora_alpha=alpha, target_modules=layout.target_modules, base_model=None
        )
        return Adapter(tensors, config | settings)

    return make


@pytest.fixture
def peft_adapter(tiny_base, tmp_path):
    """A folder written by PEFT, and the live model."""

    def make(**settings):
        peft_model = get_peft_model(copy.deepcopy(tiny_base), LoraConfig(**settings)).eval()
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        peft_model.save_pretrained(tmp_path / "peft")
        return tmp_path / "peft", peft_model

    return make


def update(adapter, module, scaling):
    """scaling * B A, dense, in float64."""
    b, a = (adapter.tensors[f"base_model.model.{module}.lora_{half}.weight"] for half in "BA")
    return scaling * b.double() @ a.double()


def with_update(base, adapter, scaling):
    """The base in float64 with every update added to its weights by hand."""
    model = copy.deepcopy(base).double()
    for module in adapter.modules:
        model.get_submodule(module).weight.data += update(adapter, module, scaling)
    return model


@torch.no_grad()
def logits(model):
    return model(IDS).logits


# Files ------------------------------------------------------------------------------------------


def test_peft_loads_what_is_saved(make_adapter, tiny_base, tmp_path):
    adapter = make_adapter()
    assert adapter.save(tmp_path / "new" / "adapter") == tmp_path / "new" / "adapter"
    loaded = PeftModel.from_pretrained(copy.deepcopy(tiny_base), tmp_path / "new" / "adapter")
    torch.testing.assert_close(logits(loaded), logits(adapter.apply(tiny_base)), rtol=0, atol=0)
    again = Adapter.load(tmp_path / "new" / "adapter")
    assert again.config == adapter.config
    assert again.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(again.tensors[key], value) for key, value in adapter.tensors.items())


def test_strided_tensors_are_saved(make_adapter, tmp_path):
    """safetensors refuses views; B is a transposed one after some operations."""
    adapter = make_adapter()
    strided = Adapter({k: v.T.contiguous().T for k, v in adapter.tensors.items()}, adapter.config)
    strided.save(tmp_path)
    loaded = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(loaded[key], value) for key, value in adapter.tensors.items())


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({"r": 4, "lora_alpha": 6}, 1.5),
        ({"r": 4, "lora_alpha": 6, "use_rslora": True}, 3.0),
        ({"r": 4, "lora_alpha": 6, "lora_dropout": 0.5, "task_type": "CAUSAL_LM"}, 1.5),
    ],
)
def test_an_adapter_of_pefts_own_loads(peft_adapter, tiny_base, settings, scaling):
    """Rank-stabilised scaling is alpha / sqrt(r); a loaded adapter must not drop anything."""
    folder, live = peft_adapter(target_modules=["q_proj", "down_proj"], **settings)
    adapter = Adapter.load(folder)
    assert adapter.scaling == scaling
    expected = logits(live)
    assert (expected - logits(tiny_base)).abs().max() > 0.01
    torch.testing.assert_close(logits(adapter.apply(tiny_base)), expected, rtol=0, atol=0)


def test_an_adapter_of_a_newer_peft_loads(make_adapter, tiny_base):
    """Unknown entries in its config are ignored, with PEFT's warning."""
    expected = logits(make_adapter().apply(copy.deepcopy(tiny_base)))
    with pytest.warns(UserWarning, match="entry_of_tomorrow"):
        found = logits(make_adapter(entry_of_tomorrow=1).apply(tiny_base))
    assert torch.equal(found, expected)


def test_unusable_folders_are_named(make_adapter, tmp_path):
    adapter = make_adapter().save(tmp_path / "adapter")
    config, weights = adapter / "adapter_config.json", adapter / "adapter_model.safetensors"
    good = json.loads(config.read_text())

    with pytest.raises(FileNotFoundError, match="no adapter folder"):
        Adapter.load(tmp_path / "other")
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "holds a list"),
        (json.dumps(good | {"peft_type": "IA3"}), "type 'IA3'"),
        (json.dumps(good | {"r": None}), "entry 'r'"),
    ):
        config.write_text(text)
        with pytest.raises(InvalidInput, match=message):
            Adapter.load(adapter)
    config.write_text(json.dumps(good))
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InvalidInput, match="truncated"):
        Adapter.load(adapter)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors"):
        Adapter.load(adapter)


@pytest.mark.parametrize("half", ["A", "B"])
def test_damaged_tensors_are_refused(make_adapter, half):
    """A lone A was a KeyError much later, in apply()."""
    adapter = make_adapter()
    key = f"base_model.model.{Q}.lora_{half}.weight"
    with pytest.raises(InvalidInput, match=f"{Q} has only one of lora_A and lora_B"):
        Adapter({k: v for k, v in adapter.tensors.items() if k != key}, adapter.config)
    with pytest.raises(InvalidInput, match=rf"lora_{half}\.weight holds NaN"):
        Adapter(adapter.tensors | {key: adapter.tensors[key] / 0}, adapter.config)


# On a model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
def test_apply_equals_the_formula(make_adapter, tiny_base, settings):
    adapter = make_adapter(rank=3, alpha=5, **settings)
    scaling = 5 / math.sqrt(3) if settings else 5 / 3
    expected = logits(with_update(tiny_base, adapter, scaling))
    applied = adapter.apply(tiny_base.double())
    torch.testing.assert_close(logits(applied), expected, rtol=1e-12, atol=1e-12)
    assert not applied.training
    assert not any(parameter.requires_grad for parameter in applied.parameters())


def test_a_base_under_another_name(make_adapter, tiny_base, recwarn):
    """Whoever applies an adapter has chosen the base: the hub's, or a copy of it in a folder."""
    tiny_base.name_or_path = "a/folder"
    applied = make_adapter(base_model_name_or_path="the hub's name").apply(tiny_base)
    assert applied.peft_config["default"].base_model_name_or_path == "a/folder"
    assert not [str(warning.message) for warning in recwarn if "renamed" in str(warning.message)]


@pytest.mark.parametrize(
    "second",
    [
        {},
        {"alpha": 9},
        {"rank": 3, "alpha": 6},
        {"use_rslora": True},
        {"lora_dropout": 0.5},
        {"targets": ["q_proj", "up_proj"]},
        {"alpha_pattern": {"q_proj": 40}},
    ],
)
def test_applying_another_replaces_the_first(make_adapter, tiny_base, second):
    """Guards against the first one's scaling staying on, against LoRA on LoRA, against dropout
    and gradients left on after the layers are rebuilt."""
    fresh = make_adapter(seed=1, **second).apply(copy.deepcopy(tiny_base))
    first = make_adapter(seed=0).apply(copy.deepcopy(tiny_base))
    applied = make_adapter(seed=0).apply(tiny_base)
    wrapped = [name for name, m in applied.named_modules() if isinstance(m, BaseTunerLayer)]
    for _ in range(2):
        assert make_adapter(seed=1, **second).apply(applied) is applied
        torch.testing.assert_close(logits(applied), logits(fresh), rtol=0, atol=0)
        assert not any(module.training for module in applied.modules())
        assert not any(parameter.requires_grad for parameter in applied.parameters())
        now = [name for name, m in applied.named_modules() if isinstance(m, BaseTunerLayer)]
        assert set(now) <= set(wrapped)
        # And back again, from whatever the second one left behind.
        make_adapter(seed=0).apply(applied)
        torch.testing.assert_close(logits(applied), logits(first), rtol=0, atol=0)
    assert (logits(fresh) - logits(first)).abs().max() > 0.01


def test_replacing_keeps_the_parameters(make_adapter, tiny_base):
    """Same sizes: values are copied in place, so that a captured graph stays valid."""
    applied = make_adapter(seed=0).apply(tiny_base)
    before = {name: p.data_ptr() for name, p in applied.named_parameters() if "lora_" in name}
    make_adapter(seed=1).apply(applied)
    assert before
    assert before == {n: p.data_ptr() for n, p in applied.named_parameters() if "lora_" in n}


def test_a_wrapped_base_is_refused(make_adapter, tiny_base):
    """A second get_peft_model on it would stack the two adapters."""
    make_adapter().apply(tiny_base)
    with pytest.raises(InvalidInput, match="already carries an adapter"):
        make_adapter().apply(tiny_base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 1}, r"adapts model\.layers\.1.*does not have.*made for some/base"),
        ({"hidden_size": 64}, r"needs a weight of shape \[32, 32\], found \[64, 64\]"),
    ],
)
def test_a_base_that_does_not_fit(make_adapter, tiny_config, change, message):
    """PEFT alone would take the smaller model and drop half of the adapter."""
    base = Qwen2ForCausalLM(Qwen2Config(**{**tiny_config.to_dict(), "layer_types": None, **change}))
    with pytest.raises(InvalidInput, match=message):
        make_adapter(base_model_name_or_path="some/base").apply(base)
    assert not any(isinstance(module, BaseTunerLayer) for module in base.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_merging_equals_applying(make_adapter, tiny_base, dtype, adapter_dtype):
    """Each is held to float64: merging may round the weights once more, no worse."""
    adapter = make_adapter().to(adapter_dtype)
    base = tiny_base.to(dtype)
    truth = logits(with_update(base, adapter, adapter.scaling))
    applied = logits(adapter.apply(copy.deepcopy(base))).double()
    merged_into = copy.deepcopy(base)
    merged = adapter.merge_into(merged_into)
    assert merged is merged_into
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    band = torch.finfo(dtype).eps * truth.norm()
    assert (applied - truth).norm() < 8 * band
    error = (logits(merged).double() - truth).norm()
    assert error < 2 * (applied - truth).norm() + band


# Comparison -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [(2, 2), (2, 5), (40, 40)])
def test_compare_equals_dense_algebra(make_adapter, ranks):
    """Also with ranks greater than the sizes, where QR gives wide factors."""
    one, two = (make_adapter(seed, rank, alpha=7) for seed, rank in enumerate(ranks))
    found = one.compare(two)
    assert list(found) == one.modules
    for module, agreement in found.items():
        ours, theirs = (
            update(x, module, 7 / rank) for x, rank in zip((one, two), ranks, strict=True)
        )
        cosine = (ours * theirs).sum() / (ours.norm() * theirs.norm())
        error = (ours - theirs).norm() / theirs.norm()
        assert agreement.cosine == pytest.approx(float(cosine), abs=1e-12)
        assert agreement.relative_error == pytest.approx(float(error), rel=1e-12)


def test_compare_sees_through_factorisations(make_adapter):
    """(B M)(M^-1 A) is the same update: comparing A with A and B with B would find no likeness."""
    adapter = make_adapter(rank=4)
    mixing = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q * torch.arange(1, 5)
    mixed = {
        key: value.double() @ mixing if "lora_B" in key else mixing.inverse() @ value.double()
        for key, value in adapter.tensors.items()
    }
    for other in (adapter, Adapter(mixed, adapter.config)):
        for agreement in other.compare(adapter).values():
            assert agreement.cosine == pytest.approx(1, abs=1e-14)
            assert agreement.relative_error < 1e-13


def test_compare_resolves_tiny_differences(make_adapter):
    """|x|^2 + |y|^2 - 2xy in float64 cannot see below 1e-8."""
    adapter = Adapter(
        {k: v.double() for k, v in make_adapter().tensors.items()}, make_adapter().config
    )
    other = {k: v * (1 + 1e-9) if "lora_B" in k else v for k, v in adapter.tensors.items()}
    for agreement in Adapter(other, adapter.config).compare(adapter).values():
        assert agreement.relative_error == pytest.approx(1e-9, rel=1e-5)


def test_compare_with_zero(make_adapter):
    adapter = make_adapter()
    zero = Adapter({key: 0 * value for key, value in adapter.tensors.items()}, adapter.config)
    for agreement in zero.compare(adapter).values():
        assert math.isnan(agreement.cosine)
        assert agreement.relative_error == pytest.approx(1)
    for agreement in adapter.compare(zero).values():
        assert math.isnan(agreement.cosine)
        assert agreement.relative_error == math.inf


def test_compare_uses_each_modules_own_scaling(peft_adapter, tiny_base):
    """rank_pattern and alpha_pattern change rank and alpha of single modules."""
    folder, live = peft_adapter(
        r=2,
        lora_alpha=4,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"layers.0.self_attn.q_proj": 4},
        alpha_pattern={"layers.0.self_attn.q_proj": 12, "v_proj": 10},
    )
    adapter = Adapter.load(folder)
    merged = live.merge_and_unload()
    for module in adapter.modules:
        weight, before = (
            m.get_submodule(module).weight.detach().double() for m in (merged, tiny_base)
        )
        u, s, v = torch.linalg.svd(weight - before)
        tensors = {
            f"base_model.model.{module}.lora_A.weight": v[:4],
            f"base_model.model.{module}.lora_B.weight": u[:, :4] * s[:4],
        }
        plain = lora_config(rank=4, lora_alpha=4, target_modules=["x"], base_model=None)
        mine = Adapter({k: v for k, v in adapter.tensors.items() if module in k}, adapter.config)
        assert mine.compare(Adapter(tensors, plain))[module].relative_error < 1e-5, module


def test_incomparable_adapters(make_adapter):
    attention = make_adapter(targets=["q_proj"])
    with pytest.raises(InvalidInput, match="12 are in one only"):
        attention.compare(make_adapter())
    key = f"base_model.model.{Q}.lora_A.weight"
    narrow = Adapter(attention.tensors | {key: torch.ones(2, 5)}, attention.config)
    with pytest.raises(InvalidInput, match="different models"):
        narrow.compare(attention)


def test_to_changes_a_copy(make_adapter):
    adapter = make_adapter()
    halved = adapter.to(torch.bfloat16)
    assert {value.dtype for value in halved.tensors.values()} == {torch.bfloat16}
    assert {value.dtype for value in adapter.tensors.values()} == {torch.float32}
    for agreement in halved.compare(adapter).values():
        assert 0 < agreement.relative_error < 2**-7
