"""Many adapters on one frozen model in one forward pass, and what training measures with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100


class Encoded(NamedTuple):
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


def encode(
    tokenizer: PreTrainedTokenizerBase, examples: Iterable[tuple[str, str]]
) -> list[Encoded]:
    """Tokenise (prompt, response) pairs by the tokenizer's chat template."""
    examples = list(examples)
    asked = [[{"role": "user", "content": prompt}] for prompt, _ in examples]
    answered = [
        [*turns, {"role": "assistant", "content": response}]
        for turns, (_, response) in zip(asked, examples, strict=True)
    ]
    starts = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(answered, return_dict=False)
    return [Encoded(ids, len(start)) for ids, start in zip(whole, starts, strict=True)]


def collate(sequences: Sequence[Encoded]) -> Batch:
    """Right-pad to the longest; labels are already shifted by one. Padding needs no mask under a
    causal one."""
    longest = max(len(sequence.ids) for sequence in sequences)
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    labels = torch.full((len(sequences), longest), IGNORED)
    for row, (ids, start) in enumerate(sequences):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, start - 1 : len(ids) - 1] = torch.tensor(ids[start:])
    return Batch(input_ids, labels)


@contextmanager
def applied(
    model: PreTrainedModel, adapters: Mapping[str, Tensor], scaling: float
) -> Iterator[None]:
    """Apply K adapters while the block runs: sequence ``k * B + b`` of a batch sees adapter k.

    Differentiable in the adapters.

    Args:
        model: a causal LM.
        adapters: PEFT's names; A ``[K, r, in]``, B ``[K, out, r]``.
        scaling: alpha / r.
    """
    handles = []

    def add(a: Tensor, b: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0].reshape(len(a), -1, inputs[0].shape[-1])
            return output + torch.bmm(torch.bmm(x, a.mT), b.mT * scaling).view_as(output)

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


def response_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits ``[tokens, vocabulary]`` and labels ``[tokens]`` of the response positions only."""
    hidden = model.get_decoder()(batch.input_ids, use_cache=False).last_hidden_state
    answered = batch.labels != IGNORED
    return model.get_output_embeddings()(hidden[answered]), batch.labels[answered]


def adapter_losses(
    model: PreTrainedModel, adapters: Mapping[str, Tensor], scaling: float, batch: Batch
) -> Tensor:
    """Mean next-token loss of each adapter on its own sequences: ``[K, B, T]`` -> ``[K]``."""
    count = batch.input_ids.shape[0]
    with applied(model, adapters, scaling):
        logits, labels = response_logits(model, batch.view(-1))
    loss = cross_entropy(logits.float(), labels, reduction="none")
    owner = (batch.labels != IGNORED).nonzero()[:, 0]
    total = loss.new_zeros(count).index_add(0, owner, loss)
    return total / torch.bincount(owner, minlength=count)


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
    with applied(model, adapters or {}, scaling):
        logits, labels = response_logits(model, flat)
    correct = torch.ones_like(flat.labels, dtype=torch.bool)
    correct[flat.labels != IGNORED] = logits.argmax(-1) == labels
    return correct.all(-1).view(batch.labels.shape[:2]).float().mean(-1)


@torch.no_grad()
def respond(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[str]],
    adapters: Mapping[str, Tensor] | None = None,
    scaling: float = 1.0,
    *,
    max_new_tokens: int = 24,
) -> list[list[str]]:
    """Greedy responses to K lists of B prompts each, list k under adapter k."""
    each = len(prompts[0])
    turns = [[{"role": "user", "content": prompt}] for group in prompts for prompt in group]
    templated = tokenizer.apply_chat_template(
        turns,
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
        tokenizer_kwargs={"padding_side": "left"},
    )
    inputs = cast(BatchEncoding, templated).to(model.device)
    with applied(model, adapters or {}, scaling):
        ids = model.generate(  # type: ignore[operator]
            **inputs, max_new_tokens=max_new_tokens, do_sample=False
        )
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [texts[i : i + each] for i in range(0, len(texts), each)]
