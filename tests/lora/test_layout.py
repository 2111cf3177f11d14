"""Weight tokens against the published code's numbers, PEFT's own names, and a naive loop."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2_5_VLForConditionalGeneration

from dnd_fast import InvalidInput, Recipe, TokenLayout
from dnd_fast.lora.layout import LoraModule

GOLDEN = Path(__file__).parents[1] / "golden"
TARGETS = {
    "0.5b": ("common-sense-0.5b", 4296, (8, 128)),
    "1.5b": ("coding-1.5b", 4508, (16, 256)),
    "7b": ("coding-7b", 4928, (16, 512)),
    "vl-3b": ("multimodal-3b", 7308, (16, 256)),
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def recipe_config(recipe, layers=None):
    fields = dict(Recipe.load(recipe).base.config)
    if layers is not None:
        cut = {"num_hidden_layers": layers}
        fields |= {"text_config": fields["text_config"] | cut} if "text_config" in fields else cut
    return AutoConfig.for_model(**fields)


def vl_config():
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24}
    return AutoConfig.for_model(
        "qwen2_5_vl", text_config=TINY, vision_config=vision | {"out_hidden_size": 16}
    )


def make_layout(sizes, rank, chunk=None, scale="static"):
    modules = [LoraModule(f"model.layers.{i}.q_proj", *pair) for i, pair in enumerate(sizes)]
    return TokenLayout(
        modules, rank, lora_alpha=2 * rank, target_modules=["q_proj"], scale=scale, chunk=chunk
    )


def random_state(layout, *lead, seed=0, dtype=torch.float64, std=1.0):
    rng = torch.Generator().manual_seed(seed)
    return {
        key: std * torch.randn(*lead, *shape, generator=rng, dtype=dtype)
        for key, shape in layout.tensor_shapes().items()
    }


def naive_tokens(layout, state):
    """One token at a time, element-wise definition of the border."""
    tokens = []
    for key, tensor in state.items():
        matrix = tensor.transpose(-1, -2) if "lora_B" in key else tensor
        for start in range(0, matrix.shape[-1], layout.chunk):
            piece = matrix[..., start : start + layout.chunk]
            token = piece.new_full((*piece.shape[:-1], layout.chunk), torch.nan)
            token[..., : piece.shape[-1]] = piece
            if layout.scale == "border":
                mean = piece.mean((-2, -1), keepdim=True)
                std = piece.std((-2, -1), keepdim=True)  # unbiased
                pair = (8 * mean, torch.log(0.9 * std + 0.1) + 1.6)
                inner = (token - mean) / std
                token = inner.new_empty((*inner.shape[:-2], inner.shape[-2] + 2, layout.chunk + 2))
                for column in range(layout.chunk + 2):
                    token[..., column] = pair[column % 2][..., 0]
                token[..., :-2, :-2] = inner
            tokens.append(token)
    return torch.stack(tokens, dim=-3)


@st.composite
def layouts(draw, scale):
    border = scale == "border"
    size = st.integers(2 if border else 1, 13)
    sizes = draw(st.lists(st.tuples(size, size), min_size=1, max_size=4))
    # Rank 2 and an even chunk leave no chunk of a single element, which has no variance.
    rank = draw(st.integers(2 if border else 1, 4))
    chunk = draw(st.sampled_from([2, 4, 6]) if border else st.none() | st.integers(1, 9))
    return make_layout(sizes, rank, chunk, scale)


LEADS = st.lists(st.integers(1, 3), max_size=2)


# Published numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_published_tokens(target):
    """Guards against any other order, cut, transposition, std or border than the published one."""
    with safe_open(GOLDEN / f"tokens_qwen2.5-{target}.safetensors", "pt") as file:
        golden = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        order = json.loads(file.metadata()["key_order"])
        rank = int(file.metadata()["rank"])
    state = {key.removeprefix("lora."): v for key, v in golden.items() if key.startswith("lora.")}
    whole = any("up_proj" in key for key in state)
    layout = TokenLayout.for_model(
        recipe_config(TARGETS[target][0], layers=1),
        rank,
        scale="border",
        target_modules="all-linear" if whole else ATTENTION,
        chunk=golden["tokens"].shape[-1] - 2,
    )

    tokens = layout.tokenize(state)
    assert (tokens - golden["tokens"]).abs().max() <= 1e-6 * golden["tokens"].abs().max()

    found = layout.detokenize(golden["predicted_tokens"])
    expected = [key for key in order if f"detok.{key}" in golden]
    assert len(found) == len(expected) == len(state)
    for key, published in zip(found, expected, strict=True):
        assert key.endswith(published.removeprefix("model."))
        numbers = golden[f"detok.{published}"]
        # Decoding takes 0.1 from an exp of little more: exp's last bit, in which processors differ,
        # is 2e-6 of what remains. The published numbers are themselves up to 6e-6 from float64.
        assert (found[key] - numbers).abs().max() <= 4e-6 * numbers.abs().max(), key
        assert found[key].is_contiguous()


@pytest.mark.parametrize(("recipe", "num_tokens", "shape"), TARGETS.values(), ids=TARGETS)
def test_the_papers_token_counts(recipe, num_tokens, shape):
    layout = TokenLayout.for_model(recipe_config(recipe), shape[0])
    assert (layout.num_tokens, layout.token_shape) == (num_tokens, shape)


def test_the_chunk_divides_every_size():
    """It is the greatest common divisor, not the smallest size."""
    layout = make_layout([(12, 8), (18, 4)], rank=3)
    assert (layout.num_tokens, layout.token_shape) == (6 + 4 + 9 + 2, (3, 2))


# Any base model ---------------------------------------------------------------------------------


def assert_peft_agrees(layout, model):
    peft_model = get_peft_model(
        model, LoraConfig(r=layout.rank, target_modules=layout.target_modules)
    )
    theirs = get_peft_model_state_dict(peft_model)
    assert {key: tuple(value.shape) for key, value in theirs.items()} == layout.tensor_shapes()
    return theirs


@pytest.mark.parametrize(
    "model_type", ["qwen2", "qwen3", "llama", "mistral", "gemma", "gemma2", "gemma3_text"]
)
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_names_and_shapes_are_pefts(model_type, targets):
    """Head sizes of its own (Qwen3, Gemma) included; guards against adapters PEFT ignores."""
    extra = {"head_dim": 8} if model_type == "qwen3" or "gemma" in model_type else {}
    config = AutoConfig.for_model(model_type, **TINY, **extra)
    layout = TokenLayout.for_model(config, 3, target_modules=targets)
    theirs = assert_peft_agrees(layout, AutoModelForCausalLM.from_config(config))
    assert len(theirs) == 2 * 2 * (7 if targets == "all-linear" else 2)


def test_of_a_vision_language_model_only_the_language_part_is_adapted():
    """Its vision tower has an up_proj, gate_proj and down_proj too, which short names match."""
    config = vl_config()
    model = Qwen2_5_VLForConditionalGeneration(config)
    assert any("visual" in name and "gate_proj" in name for name, _ in model.named_modules())
    layout = TokenLayout.for_model(config, 2)
    theirs = assert_peft_agrees(layout, model)
    assert len(theirs) == 2 * 2 * 7
    assert not any("visual" in key for key in theirs)


@pytest.mark.parametrize(
    ("config", "targets", "message"),
    [
        (AutoConfig.for_model("t5"), "all-linear", "no causal"),
        (AutoConfig.for_model("gpt2", n_layer=1), "all-linear", "no list 'layers'"),
        (AutoConfig.for_model("qwen2", **TINY), ["c_attn"], "have the linear layers q_proj"),
        (AutoConfig.for_model("qwen2", **TINY), [], "have the linear layers q_proj"),
    ],
)
def test_models_that_cannot_be_adapted(config, targets, message):
    """GPT-2's blocks are called ``h``: that was an AttributeError."""
    with pytest.raises(InvalidInput, match=message):
        TokenLayout.for_model(config, 2, target_modules=targets)


# Round trips ------------------------------------------------------------------------------------


@given(layouts("static"), LEADS, st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_static_round_trip(layout, lead, seed):
    """Bit-exact, NaN exactly where a chunk is padded, whatever the sizes."""
    state = random_state(layout, *lead, seed=seed)
    tokens = layout.tokenize(state)
    assert tokens.shape == (*lead, layout.num_tokens, *layout.token_shape)
    torch.testing.assert_close(tokens, naive_tokens(layout, state), rtol=0, atol=0, equal_nan=True)
    back = layout.detokenize(tokens.nan_to_num(99.0))  # what is in the padding must not matter
    assert list(back) == list(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


@given(layouts("border"), LEADS, st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_border_round_trip(layout, lead, seed):
    """Mean and std of a padded chunk must be those of its valid columns."""
    state = random_state(layout, *lead, seed=seed)
    tokens = layout.tokenize(state)
    expected = naive_tokens(layout, state)
    torch.testing.assert_close(tokens, expected, rtol=1e-9, atol=1e-9, equal_nan=True)
    back = layout.detokenize(tokens)
    for key, value in state.items():
        torch.testing.assert_close(back[key], value, rtol=1e-9, atol=1e-9)


@given(layouts("static"), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_fitted_statistics(layout, seed):
    """Element-wise mean, one std per chunk, padding not counted."""
    adapters = 4
    state = random_state(layout, adapters, seed=seed)
    raw = layout.tokenize(state)
    layout.fit(raw)
    for token in range(layout.num_tokens):
        valid = raw[:, token][:, ~raw[0, token].isnan()]  # [adapters, elements]
        std = valid.var(0, correction=0).mean().sqrt()
        torch.testing.assert_close(layout.std[token].flatten(), std.float().view(1))
    torch.testing.assert_close(layout.mean, raw.mean(0).nan_to_num().float())
    tokens = layout.tokenize(state)
    assert torch.equal(tokens.isnan(), raw.isnan())
    back = layout.detokenize(tokens)
    for key, value in state.items():
        torch.testing.assert_close(back[key], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_chunk_that_never_varies_decodes_to_its_mean(dtype):
    """A mean over three equal doubles is off by one bit: the std must be 0 all the same."""
    layout = make_layout([(6, 4)], rank=2, chunk=2)
    raw = layout.tokenize(random_state(layout, 3, dtype=dtype))
    raw[:, 1] = 0.1
    raw[:, 4] = 0  # B at its initialisation
    layout.fit(raw)
    assert (layout.std.flatten() == 0).tolist() == [i in (1, 4) for i in range(5)]
    wild = torch.full((5, 2, 2), 1e30, dtype=dtype)
    decoded = layout.denormalize(wild)
    assert torch.equal(decoded[[1, 4]], raw[0, [1, 4]].float().to(dtype))
    # Another adapter's deviation cannot be expressed there: its token is 0, not infinite or NaN.
    assert torch.equal(layout.normalize(raw[0] + 1)[[1, 4]], torch.zeros(2, 2, 2, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_statistics_stay_float32(dtype):
    """model.to(torch.bfloat16) would round every std to eight bits."""
    layout = make_layout([(6, 4)], rank=2)
    layout.fit(layout.tokenize(random_state(layout, 3)))
    mean, std = layout.mean.clone(), layout.std.clone()
    parent = torch.nn.Sequential(layout, torch.nn.Linear(2, 2)).to(dtype)
    assert parent[1].weight.dtype == dtype
    assert layout.mean.dtype == layout.std.dtype == torch.float32
    assert torch.equal(layout.mean, mean)
    assert torch.equal(layout.std, std)
    assert {"mean", "std"} <= layout.state_dict().keys()


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (torch.zeros(5, 2, 3), torch.ones(5, 1, 1), "mean has shape"),
        (torch.zeros(5, 2, 2), torch.ones(5), "std has shape"),
        (torch.full((5, 2, 2), torch.nan), torch.ones(5, 1, 1), "mean holds NaN"),
        (torch.zeros(5, 2, 2), -torch.ones(5, 1, 1), "negative"),
    ],
)
def test_unusable_statistics(mean, std, message):
    with pytest.raises(InvalidInput, match=message):
        make_layout([(6, 4)], rank=2, chunk=2).set_statistics(mean, std)


# Known faults of the published border -----------------------------------------------------------


def test_border_loses_chunks_without_variance():
    """Published fault, kept for its checkpoints: an all-zero B becomes 0/0."""
    layout = make_layout([(4, 6)], rank=2, chunk=2, scale="border")
    state = random_state(layout)
    state[list(state)[1]].zero_()
    broken = layout.tokenize(state)[:, :-2, :-2].isnan().flatten(1)
    assert broken.all(1).tolist() == [False, False, True, True, True]
    assert broken.any(1).tolist() == [False, False, True, True, True]


def test_border_scales_do_not_survive_bfloat16():
    """Published fault: the reason why border values are computed in float32 here."""
    border = make_layout([(64, 64)], rank=8, chunk=64, scale="border")
    static = make_layout([(64, 64)], rank=8, chunk=64)
    _, b = border.tensor_shapes()
    lost = []
    for std in torch.linspace(0.001, 0.003, 9).tolist():
        state = random_state(border, std=std, dtype=torch.float32)
        tokens = border.tokenize(state)
        rounded = tokens.bfloat16().float()
        rounded[:, :-2, :-2] = tokens[:, :-2, :-2]  # the weights stay exact, the scales do not
        lost.append(float((border.detokenize(rounded)[b] - state[b]).norm() / state[b].norm()))
        # Tokens rounded likewise lose half a percent where the scales are kept in float32.
        static.set_statistics(torch.zeros(2, 8, 64), torch.full((2, 1, 1), std))
        back = static.detokenize(static.tokenize(state).bfloat16())[b]
        assert (back - state[b]).norm() < 0.005 * state[b].norm()
    assert max(lost) > 0.1, lost


@pytest.mark.parametrize(
    ("rank", "chunk", "size"),
    [(2, 3, 6), (1, 1, 4), (1, 2, 3)],
    ids=["odd chunk", "one element", "one element beside padding"],
)
def test_border_without_room_is_refused(rank, chunk, size):
    """The last case gave NaN tokens for every adapter."""
    with pytest.raises(InvalidInput, match="scale='border'"):
        make_layout([(size, size)], rank, chunk, "border")
