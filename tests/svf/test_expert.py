"""SVF: the algebra against float64, what is on the model, and experts on disk."""

import copy
import json
import time

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, Qwen2ForCausalLM

from dnd_fast import InvalidInput
from dnd_fast.lora.adapter import Adapter, lora_config
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.lora.target_modules import find_lora_modules
from dnd_fast.svf.decomposition import initial_vectors, scales_of
from dnd_fast.svf.expert import (
    CONFIG_FILE,
    MODULES,
    WEIGHTS_FILE,
    DecomposedModel,
    Expert,
)

IDS = torch.arange(24).view(2, 12)


@pytest.fixture
def base(tiny_base):
    return DecomposedModel(tiny_base)


def random_vectors(base, seed=0, count=None):
    generator = torch.Generator().manual_seed(seed)
    lead = () if count is None else (count,)
    return {
        name: 1 + 0.3 * torch.randn(*lead, size, generator=generator)
        for name, size in base.sizes.items()
    }


@torch.no_grad()
def logits(model, ids=IDS):
    return model(ids).logits


def exact_weight(weight, z):
    """W' in float64 from float64's own decomposition."""
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return (u * (s * z.double())) @ vh


def test_merged_weights_are_the_formula(base):
    vectors = random_vectors(base)
    weights = {name: each.weight.clone() for name, each in base._linears.items()}
    with base.merged(base.expert(vectors)):
        for name, linear in base._linears.items():
            expected = exact_weight(weights[name], vectors[name])
            assert (linear.weight - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restored_bit_by_bit(tiny_base, dtype):
    """Subtracting what was added would leave rounding behind."""
    model = tiny_base.to(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    base = DecomposedModel(model)
    with base.merged(base.expert(random_vectors(base))):
        changed = [k for k, value in model.state_dict().items() if not value.equal(before[k])]
        assert len(changed) == len(base.sizes)
    assert all(value.equal(before[k]) for k, value in model.state_dict().items())


@pytest.mark.parametrize("how", ["merged", "factored"])
def test_restored_after_an_error(base, how):
    vectors = random_vectors(base)
    before = logits(base.model)
    block = base.merged(base.expert(vectors)) if how == "merged" else base.factored(vectors)
    with pytest.raises(KeyboardInterrupt), block:
        raise KeyboardInterrupt
    assert logits(base.model).equal(before)
    with base.merged(base.expert(vectors)):  # nothing is occupied any more
        assert not logits(base.model).equal(before)


@pytest.mark.parametrize("parametrisation", ["plain", "published"])
@pytest.mark.parametrize("length", [1, 12])  # few tokens: factored; many: one small product
def test_factored_and_merged_agree(base, parametrisation, length):
    vectors = random_vectors(base)
    ids = IDS[:, :length]
    plain = logits(base.model, ids)
    with base.merged(base.expert(vectors, parametrisation)):
        merged = logits(base.model, ids)
    with base.factored(vectors, parametrisation):
        factored = logits(base.model, ids)
    assert (merged - factored).abs().max() < 2e-6
    assert (merged - plain).abs().max() > 1e-3


def test_several_experts_in_one_pass(base):
    """Sequence k * B + b must see expert k and no other."""
    vectors = random_vectors(base, count=3)
    with base.factored(vectors):
        together = logits(base.model, IDS.repeat(3, 1)).view(3, 2, 12, -1)
    for k in range(3):
        with base.factored({name: z[k] for name, z in vectors.items()}):
            assert (logits(base.model) - together[k]).abs().max() < 2e-6


@pytest.mark.parametrize("parametrisation", ["plain", "published"])
@pytest.mark.parametrize("length", [1, 12])
def test_gradient(base, parametrisation, length):
    """Through the hooks, against autograd through whole weights U diag(s z) Vᵀ."""
    vectors = {name: z.requires_grad_() for name, z in random_vectors(base).items()}
    ids = IDS[:, :length]
    with base.factored(vectors, parametrisation):
        loss = base.model(ids).logits.square().sum()
    gradients = torch.autograd.grad(loss, vectors.values())
    weights = {
        f"{name}.weight": (svd.u * (svd.s * scales_of(vectors[name], svd.s, parametrisation)))
        @ svd.vh
        for name, svd in base.svds.items()
    }
    expected = torch.func.functional_call(base.model, weights, (ids,)).logits.square().sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for found, wanted in zip(
        gradients, torch.autograd.grad(expected, vectors.values()), strict=True
    ):
        assert (found - wanted).norm() < 1e-3 * wanted.norm() + 1e-8  # q has none for one token


def test_one_expert_at_a_time(base):
    expert = base.expert(random_vectors(base))
    with base.merged(expert), pytest.raises(InvalidInput, match="already"), base.merged(expert):
        pass


@pytest.mark.parametrize("first", ["svf", "lora"])
def test_together_with_lora(tiny_base, tiny_config, first):
    """Both changes add up, in whichever order they come, wrapped by PEFT or not."""
    torch.manual_seed(1)
    shapes = TokenLayout.for_model(tiny_config, 2).tensor_shapes()
    tensors = {key: 0.1 * torch.randn(shape) for key, shape in shapes.items()}
    lora = Adapter(
        tensors,
        lora_config(rank=2, lora_alpha=4, target_modules="all-linear", base_model=None),
    )
    reference = lora.merge_into(copy.deepcopy(tiny_base))
    base = None if first == "lora" else DecomposedModel(tiny_base)
    model = lora.apply(tiny_base)
    base = base or DecomposedModel(tiny_base)
    vectors = random_vectors(base)
    with torch.no_grad():
        for name, svd in base.svds.items():
            reference.get_submodule(name).weight += svd.change(vectors[name])
    for block in (base.merged(base.expert(vectors)), base.factored(vectors)):
        with block:
            assert (logits(model) - logits(reference)).abs().max() < 5e-6


def test_modules():
    """The paper's Table 4: 0.16 M, 0.39 M; its LoRA's 6.82 M say that attention is q and v."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=100,
    )
    counts, lora = {}, {}
    for name, targets in MODULES.items():
        modules, _ = find_lora_modules(config, targets)
        counts[name] = sum(min(m.size_in, m.size_out) for m in modules)
        lora[name] = sum(16 * (m.size_in + m.size_out) for m in modules)
    assert counts == {"attention": 163_840, "mlp": 393_216, "both": 557_056}
    assert lora["attention"] == 6_815_744
    assert lora["both"] == 35_127_296


def test_unknown_modules(tiny_base):
    with pytest.raises(InvalidInput, match="q_projector"):
        DecomposedModel(tiny_base, ["q_projector"])


def test_unusable_models(tiny_base, tiny_config):
    """A decomposition of NaN would fail deep inside LAPACK, one of 8-bit codes would not at all."""
    layer = tiny_base.model.layers[1].mlp.down_proj
    name = r"model\.layers\.1\.mlp\.down_proj"
    with torch.no_grad():
        layer.weight[0, 0] = float("nan")
    with pytest.raises(InvalidInput, match=f"{name} holds NaN"):
        DecomposedModel(tiny_base)
    layer.weight = nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), requires_grad=False)
    with pytest.raises(InvalidInput, match=f"{name} is torch.int8"):
        DecomposedModel(tiny_base)
    layer.weight = nn.Parameter(torch.zeros(32, 48))
    DecomposedModel(tiny_base)
    shapes = TokenLayout.for_model(tiny_config, 2).tensor_shapes()
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    config = lora_config(rank=2, lora_alpha=4, target_modules="all-linear", base_model=None)
    wrapped = Adapter(tensors, config).apply(tiny_base)
    with pytest.raises(InvalidInput, match="get_base_model"):
        DecomposedModel(wrapped)
    DecomposedModel(wrapped.get_base_model())


def test_cache(tiny_base, tmp_path, monkeypatch, caplog):
    first = DecomposedModel(tiny_base, "attention", cache=tmp_path)
    files = sorted(tmp_path.glob("*-svd.safetensors"))
    assert len(files) == 4
    with monkeypatch.context() as patched:
        patched.setattr(torch.linalg, "svd", None)  # anything computed would raise
        again = DecomposedModel(tiny_base, "attention", cache=tmp_path)
    for name, svd in first.svds.items():
        assert all(a.equal(b) for a, b in zip(svd, again.svds[name], strict=True))
    assert not caplog.records

    other = copy.deepcopy(tiny_base)
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight[0, 0] += 1e-3
    DecomposedModel(other, "attention", cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5  # one weight differs, one entry more

    files[0].write_bytes(files[0].read_bytes()[:100])
    mended = DecomposedModel(tiny_base, "attention", cache=tmp_path)
    assert "is damaged" in caplog.text
    for name, svd in first.svds.items():
        assert torch.allclose(svd.weight, mended.svds[name].weight, atol=1e-6)


def test_saved_and_loaded(base, tmp_path):
    expert = base.expert(random_vectors(base), "published")
    expert.save(tmp_path / "expert")
    loaded = Expert.load(tmp_path / "expert")
    assert loaded.config == expert.config
    assert all(z.equal(loaded.vectors[name]) for name, z in expert.vectors.items())
    assert loaded.parameters == sum(base.sizes.values())
    base.check(loaded)


def test_the_same_base_in_another_dtype(tiny_base, tmp_path):
    """A base stored in bfloat16 and loaded in float32 is the same base."""
    low = copy.deepcopy(tiny_base).to(torch.bfloat16)
    high = copy.deepcopy(low).float()
    expert = DecomposedModel(low).expert(random_vectors(DecomposedModel(low)))
    DecomposedModel(high).check(expert)


def test_switching_is_quick(tiny_base):
    base = DecomposedModel(tiny_base)
    expert = base.expert(random_vectors(base))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        with base.merged(expert):
            seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05


def test_transfer(tiny_base, tiny_config):
    """Ordered: the same z on another base. Shuffled: the same numbers elsewhere."""
    torch.manual_seed(9)
    other = DecomposedModel(Qwen2ForCausalLM(tiny_config).eval())
    base = DecomposedModel(tiny_base)
    expert = base.expert(random_vectors(base))
    with pytest.raises(InvalidInput, match="trained on other weights"), other.merged(expert):
        pass
    ordered, shuffled = other.transferred(expert), other.transferred(expert, shuffle_seed=0)
    for name, z in expert.vectors.items():
        assert ordered.vectors[name].equal(z)
        assert not shuffled.vectors[name].equal(z)
        assert shuffled.vectors[name].sort().values.equal(z.sort().values)
    before = logits(other.model)
    with other.merged(ordered):
        assert not logits(other.model).equal(before)


def damaged(config=None, vectors=None):
    """Make a change to an expert's folder."""

    def change(folder):
        if config is not None:
            content = json.loads((folder / CONFIG_FILE).read_text()) | config
            (folder / CONFIG_FILE).write_text(json.dumps(content))
        if vectors is not None:
            (folder / WEIGHTS_FILE).write_bytes(vectors)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (damaged(config={"format_version": 2}), "format version 2"),
        (damaged(config={"parametrisation": "cubic"}), "cubic"),
        (damaged(config={"colour": "red"}), "colour"),
        (damaged(vectors=b"abc"), "truncated or not a safetensors file"),
    ],
)
def test_damaged_folders(base, tmp_path, change, message):
    base.expert(random_vectors(base)).save(tmp_path)
    change(tmp_path)
    with pytest.raises(InvalidInput, match=message):
        Expert.load(tmp_path)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"svf_config\.json is missing"):
        Expert.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.ones(2, 3), "shape"),
        (torch.tensor([1.0, float("nan")]), "NaN"),
        (torch.ones(3, dtype=torch.long), "int64"),
    ],
)
def test_unusable_vectors(base, vector, message):
    config = base.expert(random_vectors(base)).config
    with pytest.raises(InvalidInput, match=message):
        Expert({"a": vector}, config)
    with pytest.raises(InvalidInput, match="no vectors"):
        Expert({}, config)


def test_experts_that_do_not_fit(base):
    vectors = random_vectors(base)
    name = next(iter(vectors))
    with pytest.raises(InvalidInput, match=f"{name} has 32 singular values, z has length 31"):
        base.expert(vectors | {name: torch.ones(31)})
    with pytest.raises(InvalidInput, match=r"scales elsewhere"):
        base.expert({"elsewhere": torch.ones(3)})
    attention = DecomposedModel(base.model, "attention")
    with pytest.raises(InvalidInput, match="not among the 4 modules"):
        attention.check(base.expert(vectors))
    part = attention.expert({key: vectors[key] for key in attention.sizes})
    base.check(part)  # an expert for attention alone fits where both are decomposed


def test_half_precision_adds_only_the_change(tiny_base):
    """At z = 1 a bfloat16 model must give its own logits bit by bit, not nearly."""
    base = DecomposedModel(tiny_base.to(torch.bfloat16))
    before = logits(base.model)
    ones = initial_vectors(base.sizes, "plain", 0)
    with base.factored(ones):
        assert logits(base.model).equal(before)
    with base.merged(base.expert(ones)):
        assert logits(base.model).equal(before)
