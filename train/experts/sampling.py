"""Sampling of responses, as token ids, from exactly the distribution that a gradient assumes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from dnd_fast.lora.batched import TokenizedExample


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float | None,
    max_new_tokens: int,
) -> list[TokenizedExample]:
    """Sample responses to tokenised prompts, with their end token; greedy without a temperature.

    Samples are from softmax(logits / temperature) itself: what the model's own generation config
    says about top-k and the like does not count.
    """
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]).long()
    stops = model.generation_config.eos_token_id
    stops = tokenizer.eos_token_id if stops is None else stops
    config = GenerationConfig(
        do_sample=temperature is not None,
        temperature=temperature,
        top_k=0 if temperature is not None else None,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=stops,
    )
    own, model.generation_config = model.generation_config, config
    try:
        generated = model.generate(  # type: ignore[operator]
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device)
        )
    finally:
        model.generation_config = own
    ends = set(stops if isinstance(stops, list) else [stops])
    responses = []
    for prompt, row in zip(prompts, generated[:, ids.shape[1] :].tolist(), strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        responses.append(TokenizedExample([*prompt, *row[:end]], len(prompt)))
    return responses
