"""Many adapters at once, against PEFT and transformers one at a time."""

import itertools

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import Qwen2Config, Qwen2ForCausalLM

from dnd_fast import InvalidInput
from dnd_fast.demo.tokenizer import build_tokenizer
from dnd_fast.lora.batched import (
    IGNORE_INDEX,
    TokenizedExample,
    adapter_losses,
    after,
    collate,
    encode,
    exact_match,
    generate_responses,
    gradient_checkpointing,
    response_logits,
    summed_losses,
    with_adapters,
)
from dnd_fast.text.datasets import Example

EXAMPLES = [
    [Example("copy the tool cord exactly", "cord"), Example("reverse rice", "ecir")],
    [Example("say bat twice", "batbat"), Example("count the letters in lemon", "5")],
    [Example("list the vowels of tuna", "ua"), Example("echo fig", "[fig]")],
]
# As Qwen's.
TURNS = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}#\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def new_model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=350,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # strong enough for an adapter to matter
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def peft_models():
    """Three PEFT models on the same base, with random adapters."""
    models = []
    for seed in range(3):
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
        model = get_peft_model(new_model(), config).eval()
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.2)
        models.append(model)
    return models


@pytest.fixture(scope="module")
def adapters(peft_models):
    states = [get_peft_model_state_dict(model) for model in peft_models]
    return {key: torch.stack([state[key] for state in states]) for key in states[0]}


def test_encode_and_collate(tokenizer):
    """Labels are the response and its end, shifted by one; guards against an off-by-one."""
    encoded = encode(tokenizer, EXAMPLES[0])
    batch = collate(encoded)
    for row, (prompt, response) in enumerate((e.prompt, e.response) for e in EXAMPLES[0]):
        labels = batch.labels[row]
        kept = labels[labels != IGNORE_INDEX]
        assert tokenizer.decode(kept) == response + "<eos>"
        first = int((labels != IGNORE_INDEX).nonzero()[0])
        assert tokenizer.decode(batch.input_ids[row, : first + 1]) == f"<bos> {prompt}\n"


@pytest.mark.parametrize("system", [None, "be brief"])
def test_encode_follows_the_template(system):
    """The system prompt is asked with; the end of the turn belongs to the response."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TURNS
    (found,) = encode(tokenizer, [Example("copy cord", "cord", system)])
    first = "[system]be brief#\n" if system else ""
    start, end = tokenizer([f"{first}[user]copy cord#\n[assistant]", "cord#\n"])["input_ids"]
    assert found == TokenizedExample(start + end, len(start))


def test_a_response_starts_where_the_template_differs():
    """A template may open a thought when asking that the conversation itself does not have."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TURNS.replace("[assistant]{% endif %}", "[assistant](hm){% endif %}")
    (found,) = encode(tokenizer, [Example("copy cord", "cord")])
    assert tokenizer.decode(found.ids[found.response_start :]) == "cord#\n"


def test_an_empty_system_prompt_switches_a_templates_own_off():
    tokenizer = build_tokenizer()
    own = "{% if messages[0].role != 'system' %}[system]be brief#\n{% endif %}"
    tokenizer.chat_template = own + TURNS
    examples = [Example("copy cord", "cord"), Example("copy cord", "cord", "")]
    texts = [tokenizer.decode(ids[:start]) for ids, start in encode(tokenizer, examples)]
    asked = "[user]copy cord#\n[assistant]"
    assert texts == [f"[system]be brief#\n{asked}", f"[system]#\n{asked}"]


def test_what_follows_the_end_is_left_out():
    """A model that is asked stops there: it is neither trained to give more, nor tested for it."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TURNS
    (whole,) = encode(tokenizer, [Example("copy cord", "cord#")])
    tokenizer.eos_token = "#"
    (found,) = encode(tokenizer, [Example("copy cord", "cord#")])
    assert found == TokenizedExample(whole.ids[:-1], whole.response_start)
    assert tokenizer.decode(found.ids[found.response_start :]) == "cord##"


def test_templates_that_cannot_be_used():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system prompts') }}"
    with pytest.raises(InvalidInput, match="refuses a conversation: no system prompts"):
        encode(tokenizer, EXAMPLES[0])
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(InvalidInput, match="leaves out a response"):
        encode(tokenizer, EXAMPLES[0])
    tokenizer.chat_template = None
    with pytest.raises(InvalidInput, match="no chat template"):
        encode(tokenizer, EXAMPLES[0])


def test_logits_of_responses_only(tokenizer):
    base = new_model()
    batch = collate(encode(tokenizer, EXAMPLES[0]))
    logits, labels = response_logits(base, batch)
    answered = batch.labels != IGNORE_INDEX
    assert torch.equal(labels, batch.labels[answered])
    torch.testing.assert_close(logits, base(batch.input_ids).logits[answered])
    assert base(batch.input_ids).logits.ndim == 3  # the head is as before


def test_a_beginning_that_is_computed_once(tokenizer, adapters):
    """Under one adapter, too; any number of passes, each of any size."""
    model, examples = new_model(), encode(tokenizer, itertools.chain(*EXAMPLES))
    beginning = list(range(5, 45))
    whole = [TokenizedExample(beginning + ids, 40 + start) for ids, start in examples]
    one = {name: value[:1] for name, value in adapters.items()}
    for chosen in ({}, one):
        with with_adapters(model, chosen, 2.0), torch.no_grad():
            expected = summed_losses(model, collate(whole).view(6, 1))
            with after(model, beginning):
                found = [
                    summed_losses(model, collate(part).view(len(part), 1))
                    for part in (examples[:2], examples[2:])
                ]
            again = summed_losses(model, collate(whole).view(6, 1))
        torch.testing.assert_close(torch.cat(found), expected)
        assert torch.equal(again, expected)


def test_losses_equal_peft(tokenizer, peft_models, adapters):
    base = new_model()
    batch = collate(encode(tokenizer, [e for group in EXAMPLES for e in group])).view(3, 2)
    found = adapter_losses(base, adapters, 2.0, batch)
    for k, model in enumerate(peft_models):
        logits = model(batch.input_ids[k]).logits
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels[k].flatten(), ignore_index=IGNORE_INDEX
        )
        torch.testing.assert_close(found[k], expected, rtol=1e-5, atol=1e-5)


def test_hooks_are_gone_afterwards(adapters):
    base = new_model()
    ids = torch.arange(3, 13).view(1, -1).expand(3, -1)
    before = base(ids).logits
    with with_adapters(base, adapters, 2.0):
        assert not torch.equal(base(ids).logits, before)
    with pytest.raises(ZeroDivisionError), with_adapters(base, adapters, 2.0):
        raise ZeroDivisionError
    assert torch.equal(base(ids).logits, before)


def test_gradients_reach_the_adapters(tokenizer, adapters):
    base = new_model().requires_grad_(False)
    live = {key: value.clone().requires_grad_() for key, value in adapters.items()}
    batch = collate(encode(tokenizer, [e for group in EXAMPLES for e in group])).view(3, 2)
    adapter_losses(base, live, 2.0, batch)[1].backward()
    for key, value in live.items():
        assert value.grad[1].abs().sum() > 0, key
        assert value.grad[[0, 2]].abs().sum() == 0, key  # adapters do not mix


def test_recomputed_blocks_give_the_same_gradients(tokenizer, adapters):
    """Guards against a second pass that no longer sees the adapters."""
    base = new_model().requires_grad_(False)
    batch = collate(encode(tokenizer, [e for group in EXAMPLES for e in group])).view(3, 2)
    gradients, passes = [], []
    handle = base.model.layers[0].self_attn.register_forward_hook(lambda *_: passes.append(0))
    for again in (False, True):
        live = {key: value.clone().requires_grad_() for key, value in adapters.items()}
        passes.clear()
        with with_adapters(base, live, 2.0):
            if again:
                with gradient_checkpointing(base):
                    summed_losses(base, batch).sum().backward()
            else:
                summed_losses(base, batch).sum().backward()
        assert len(passes) == 1 + again
        gradients.append({key: value.grad for key, value in live.items()})
    handle.remove()
    for key, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][key])
    assert not any("forward" in vars(block) for block in base.model.layers)


def test_a_bfloat16_base_with_float32_adapters(tokenizer, adapters):
    """Losses and gradients of large models: the adapters' own are float32."""
    truth, base = new_model(), new_model().bfloat16()
    live = {key: value.clone().requires_grad_() for key, value in adapters.items()}
    batch = collate(encode(tokenizer, [e for group in EXAMPLES for e in group])).view(3, 2)
    losses = adapter_losses(base, live, 2.0, batch)
    torch.testing.assert_close(losses, adapter_losses(truth, live, 2.0, batch), rtol=3e-2, atol=0)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert {value.grad.dtype for value in live.values()} == {torch.float32}


def test_respond_is_greedy_decoding(tokenizer, adapters):
    """Left padding, the cache and the hooks together must not change what one prompt gives."""
    base = new_model()
    prompts = [[example.prompt for example in group] for group in EXAMPLES]
    said = generate_responses(base, tokenizer, prompts, adapters, 2.0, max_new_tokens=6)
    for k, group in enumerate(prompts):
        for prompt, text in zip(group, said[k], strict=True):
            ids, start = _greedy(base, tokenizer, prompt, adapters, k)
            assert tokenizer.decode(ids[start:], skip_special_tokens=True) == text


def test_responses_by_a_tokenizer_without_a_padding_token(tokenizer):
    """Llama 3's has none; what is masked needs none."""
    base = new_model()
    prompts = [[example.prompt for example in group] for group in EXAMPLES]
    expected = generate_responses(base, tokenizer, prompts, max_new_tokens=6)
    bare = build_tokenizer()
    bare.pad_token = None
    assert generate_responses(base, bare, prompts, max_new_tokens=6) == expected


def test_responses_under_a_system_prompt():
    """It is what the model is asked with, an empty one too, in place of the template's own."""
    base, tokenizer = new_model(), build_tokenizer()
    own = "{% if messages[0].role != 'system' %}[system]be brief#\n{% endif %}"
    tokenizer.chat_template = own + TURNS
    asked = {None: "[system]be brief#\n", "": "[system]#\n", "echo fig": "[system]echo fig#\n"}
    for system, start in asked.items():
        ids = tokenizer([f"{start}[user]copy cord#\n[assistant]"], return_tensors="pt")["input_ids"]
        expected = base.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
        found = generate_responses(
            base, tokenizer, [["copy cord"]], system=system, max_new_tokens=6
        )
        assert found == [[tokenizer.decode(expected, skip_special_tokens=True)]]


def test_exact_match_is_greedy_decoding(tokenizer, adapters):
    """Score what greedy decoding gave, one token of one response changed."""
    base = new_model()
    sequences = [
        TokenizedExample(*_greedy(base, tokenizer, example.prompt, adapters, k))
        for k, group in enumerate(EXAMPLES)
        for example in group
    ]
    changed = sequences[3].ids
    changed[-1] = (changed[-1] + 1) % 350
    batch = collate(sequences).view(3, 2)
    assert exact_match(base, batch, adapters, 2.0).tolist() == [1.0, 0.5, 1.0]


def _greedy(base, tokenizer, prompt, adapters, k):
    """Token ids of prompt and response, and where the response starts; no cache, no padding."""
    ids = tokenizer(f"<bos> {prompt}\n", return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    one = {key: value[k : k + 1] for key, value in adapters.items()}
    with torch.no_grad(), with_adapters(base, one, 2.0):
        for _ in range(6):
            following = base(ids).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, following], dim=1)
            if following.item() == tokenizer.eos_token_id:
                break
    return ids[0].tolist(), start
