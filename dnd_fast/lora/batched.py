"""Many adapters on one frozen model in one forward pass: responses, and losses of wanted ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.target_modules import transformer_blocks
from dnd_fast.text.datasets import Example

IGNORE_INDEX = -100


class TokenizedExample(NamedTuple):
    """Token ids of a conversation and where its response starts."""

    ids: list[int]
    response_start: int


class Batch(NamedTuple):
    """``input_ids`` and next-token ``labels`` (-100 outside the response), ``[..., T]`` each."""

    input_ids: Tensor
    labels: Tensor

    def view(self, *lead: int) -> Batch:
        """The same with other leading dimensions."""
        return Batch(*(tensor.view(*lead, tensor.shape[-1]) for tensor in self))

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(*(tensor.to(device) for tensor in self))


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example]
) -> list[TokenizedExample]:
    """Tokenise conversations by the tokenizer's chat template.

    A response starts where its conversation first differs from what the model is asked with, and
    ends with the token that ends generation: what the template puts after it is left out.

    Raises:
        InvalidInput: there is no chat template, or it refuses a conversation or a response.
    """
    require_chat_template(tokenizer)
    examples = list(examples)
    conversations = _conversations(examples)
    answered = [
        [*turns, {"role": "assistant", "content": example.response}]
        for turns, example in zip(conversations, examples, strict=True)
    ]
    try:
        starts = tokenizer.apply_chat_template(
            conversations, add_generation_prompt=True, return_dict=False
        )
        whole = tokenizer.apply_chat_template(answered, return_dict=False)
    except TemplateError as error:
        raise InvalidInput(
            f"the chat template of the tokenizer {tokenizer.name_or_path!r} refuses a "
            f"conversation: {error}"
        ) from error
    encoded = [
        _through_end(TokenizedExample(ids, common_length(ids, start)), tokenizer.eos_token_id)
        for ids, start in zip(whole, starts, strict=True)
    ]
    if any(start == len(ids) for ids, start in encoded):
        raise InvalidInput(
            f"the chat template of the tokenizer {tokenizer.name_or_path!r} leaves out a response."
        )
    return encoded


def _through_end(example: TokenizedExample, end: int | None) -> TokenizedExample:
    """The example without what follows the last ``end`` token of its response."""
    ids, start = example
    kept = next((i for i in range(len(ids), start, -1) if ids[i - 1] == end), len(ids))
    return TokenizedExample(ids[:kept], start)


def generation_inputs(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[Example], device: torch.device
) -> BatchEncoding:
    """What a model generates the responses from, padded on the left; theirs do not count.

    Padding is masked, so that the tokenizer needs no token for it.
    """
    rows = tokenizer.apply_chat_template(
        _conversations(examples), add_generation_prompt=True, return_dict=False
    )
    longest = max(map(len, rows))
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(rows):
        input_ids[row, longest - len(ids) :] = torch.tensor(ids)
        mask[row, longest - len(ids) :] = 1
    return BatchEncoding({"input_ids": input_ids, "attention_mask": mask}).to(device)


def _conversations(examples: Iterable[Example]) -> list[list[dict[str, str]]]:
    """The conversations up to the response."""
    return [
        [
            *([{"role": "system", "content": e.system}] if e.system is not None else []),
            *(
                turn
                for shot in e.shots
                for turn in (
                    {"role": "user", "content": shot.prompt},
                    {"role": "assistant", "content": shot.response},
                )
            ),
            {"role": "user", "content": e.prompt},
        ]
        for e in examples
    ]


def require_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise InvalidInput unless the tokenizer knows how a conversation is put together."""
    if tokenizer.chat_template is None:
        raise InvalidInput(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template, which puts a prompt "
            "and its response together; take the tokenizer of a chat model of the same family "
            "(--tokenizer), or set tokenizer.chat_template and save it."
        )


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def collate(sequences: Sequence[TokenizedExample]) -> Batch:
    """Right-pad to the longest; labels are already shifted by one. Padding needs no mask under a
    causal one."""
    longest = max(len(sequence.ids) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    labels = torch.full((len(sequences), longest), IGNORE_INDEX)
    for row, (ids, start) in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
    return Batch(input_ids, labels)


@contextmanager
def with_adapters(
    model: PreTrainedModel, adapters: Mapping[str, Tensor], scaling: float
) -> Iterator[None]:
    """Apply K adapters while the block runs: sequence ``k * B + b`` of a batch sees adapter k.

    Differentiable in the adapters, which multiply in the dtype of what they are applied to. Where
    :func:`gradient_checkpointing` is used, the backward pass belongs into the block, too.

    Args:
        model: a causal LM.
        adapters: PEFT's names; A ``[K, r, in]``, B ``[K, out, r]``.
        scaling: alpha / r.
    """
    handles = []

    def add(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0].reshape(len(a), -1, inputs[0].shape[-1])
            down, up = a.mT.to(x.dtype), (b.mT * scaling).to(x.dtype)
            return output + torch.bmm(torch.bmm(x, down), up).view_as(output)

        return hook

    try:
        for key, a in adapters.items():
            if ".lora_A." not in key:
                continue
            name = key.removeprefix("base_model.model.").partition(".lora_A.")[0]
            b = adapters[key.replace(".lora_A.", ".lora_B.")]
            handles.append(model.get_submodule(name).register_forward_hook(add(a, b)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def gradient_checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Keep only the inputs of the model's blocks for backward passes within, which run them again.

    Raises:
        InvalidInput: the model has no list of blocks.
    """
    blocks = transformer_blocks(model)
    if blocks is None:
        raise InvalidInput(f"{type(model).__name__} has no blocks that could be recomputed.")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own one again


@contextmanager
def after(model: PreTrainedModel, beginning: Sequence[int]) -> Iterator[None]:
    """Let every pass while the block runs go on after these tokens, which are computed once.

    Without gradients, for models that keep keys and values, under one adapter at most.
    """
    ids = torch.tensor([beginning], device=model.device)
    with torch.no_grad():
        cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values

    def go_on(module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Any]) -> Any:
        own = deepcopy(cache)  # a pass adds to it
        own.batch_repeat_interleave(len(args[0]))
        return args, options | {"past_key_values": own, "use_cache": True}

    handle = model.register_forward_pre_hook(go_on, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def response_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits ``[tokens, vocabulary]`` and labels ``[tokens]`` of the response positions only."""
    answered = batch.labels != IGNORE_INDEX

    def select(head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][answered],)

    # Before the head, because logits of every position are large; the whole model, because some
    # scale or cap what the head gives.
    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        logits = model(batch.input_ids, use_cache=False).logits
    finally:
        handle.remove()
    return logits, batch.labels[answered]


def adapter_losses(
    model: PreTrainedModel, adapters: Mapping[str, Tensor], scaling: float, batch: Batch
) -> Tensor:
    """Mean next-token loss of each adapter on its own sequences: ``[K, B, T]`` -> ``[K]``."""
    with with_adapters(model, adapters, scaling):
        total = summed_losses(model, batch)
    return total / (batch.labels != IGNORE_INDEX).sum((1, 2))


def summed_losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Summed next-token losses ``[K]`` of a batch ``[K, B, T]``, under :func:`with_adapters`."""
    count = batch.input_ids.shape[0]
    logits, labels = response_logits(model, batch.view(-1))
    loss = cross_entropy(logits.float(), labels, reduction="none")
    owner = (batch.labels != IGNORE_INDEX).nonzero()[:, 0]
    return loss.new_zeros(count).index_add(0, owner, loss)


@torch.no_grad()
def exact_match(
    model: PreTrainedModel,
    batch: Batch,
    adapters: Mapping[str, Tensor] | None = None,
    scaling: float = 1.0,
) -> Tensor:
    """Share of sequences whose whole response, its end included, is what greedy decoding gives.

    ``[K, B, T]`` -> ``[K]``. Under teacher forcing every token is the most likely one exactly when
    greedy decoding produces this response.
    """
    flat = batch.view(-1)
    with with_adapters(model, adapters or {}, scaling):
        logits, _ = response_logits(model, flat)
    return answered_exactly(flat, logits).view(batch.labels.shape[:2]).float().mean(-1)


def answered_exactly(batch: Batch, logits: Tensor) -> Tensor:
    """Whether every response token of a sequence is the most likely one: ``[B, T]`` -> ``[B]``.

    Args:
        batch: the sequences.
        logits: the logits of their response positions, by :func:`response_logits`.
    """
    answered = batch.labels != IGNORE_INDEX
    correct = torch.ones_like(answered)
    correct[answered] = logits.argmax(-1) == batch.labels[answered]
    return correct.all(-1)


@torch.no_grad()
def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[str]],
    adapters: Mapping[str, Tensor] | None = None,
    scaling: float = 1.0,
    *,
    system: str | None = None,
    max_new_tokens: int = 24,
) -> list[list[str]]:
    """Greedy responses to K lists of B prompts each, list k under adapter k.

    ``system`` is the system prompt of all; None: the chat template's own, if it has one.
    """
    group_size = len(prompts[0])
    examples = [Example(prompt, "", system) for group in prompts for prompt in group]
    inputs = generation_inputs(tokenizer, examples, model.device)
    with with_adapters(model, adapters or {}, scaling):
        ids = model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=max_new_tokens, do_sample=False
        )
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[i : i + group_size] for i in range(0, len(texts), group_size)]
