"""A frozen base model made for training adapters of its upper layers.

It computes what transformers computes under :func:`dnd_fast.lora.batched.with_adapters`, in less
time: the layers below the first adapted one run once per sequence, without a gradient, and what
they put out is kept; linear layers with the same input are one product, and so are their adapters;
an adapter's sequences lie end to end, so that only attention sees padding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from dnd_fast.errors import InvalidInput
from dnd_fast.lora.adapter import PREFIX
from dnd_fast.lora.batched import IGNORE_INDEX, Batch
from dnd_fast.lora.layout import LoraLayout
from dnd_fast.lora.weight_layout import WeightLayout
from dnd_fast.recipe import LoraSpec

Attention = Literal["eager", "sdpa"]

MODEL_TYPES = ("llama", "qwen2")
LAYERS = "model.layers"
CHUNK = 32  # sequences of similar length that run through the lower layers together
KEPT_BYTES = 2 << 30  # of what the lower layers put out
EAGER_LENGTH = 512  # tokens, up to which eager attention is faster in bfloat16 on a CPU


class FrozenBase:
    """Losses of a frozen model under K LoRA adapters, differentiable in the adapters.

    In float32 they equal those of the model itself within rounding. Weights are copied where they
    are put together or converted; the model may be dropped. Not safe to share between threads.

    Args:
        model: a causal LM that :meth:`supports` accepts.
        layout: layout of the adapters: which modules they adapt, rank and alpha.
        dtype: dtype of weights and activations; None: the model's.
        attention: ``"eager"`` or ``"sdpa"``; None: what is faster for the device and each batch.
        recompute: whether to keep only the inputs of layers for the backward pass.

    Attributes:
        device: device of the weights.
        vocabulary: number of tokens that the model has.

    Raises:
        InvalidInput: the model or the layout is not supported.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: LoraLayout,
        *,
        dtype: torch.dtype | None = None,
        attention: Attention | None = None,
        recompute: bool = False,
    ) -> None:
        if not self.supports(model, layout):
            raise InvalidInput(
                f"FrozenBase runs adapters of the layers of {' and '.join(MODEL_TYPES)} models "
                f"with full attention, not these of a {type(model).__name__}; take the model "
                "itself."
            )
        config, dtype = model.config, dtype or model.dtype
        decoder = model.get_decoder()
        layers = [
            _Layer(f"{LAYERS}.{index}", layer, dtype) for index, layer in enumerate(decoder.layers)
        ]
        first = min(map(_layer_index, _names(layout)))
        self.device = model.device
        self._scaling = layout.lora_alpha / layout.rank
        self._attention, self._recompute = attention, recompute
        self._heads = config.num_attention_heads, config.num_key_value_heads
        self._epsilon = config.rms_norm_eps
        self._rotary = decoder.rotary_emb
        self._below, self._above = layers[:first], layers[first:]
        self._embedding = cast(Tensor, decoder.embed_tokens.weight).detach().to(dtype)
        self._norm = decoder.norm.weight.detach().to(dtype)
        self._head = _Linear({"lm_head": cast(nn.Linear, model.get_output_embeddings())}, dtype)
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._room = KEPT_BYTES
        self.vocabulary = len(self._embedding)

    @staticmethod
    def supports(model: PreTrainedModel, layout: WeightLayout) -> bool:
        """Whether the model's arithmetic is known here, and every adapted module is in a layer."""
        config = model.config
        return (
            isinstance(layout, LoraLayout)
            and config.model_type in MODEL_TYPES
            and config.hidden_act == "silu"
            and set(getattr(config, "layer_types", None) or ()) <= {"full_attention"}
            and model.get_output_embeddings() is not None
            and all(re.match(rf"{re.escape(LAYERS)}\.\d+\.", name) for name in _names(layout))
        )

    def summed_losses(self, batch: Batch, adapters: Mapping[str, Tensor]) -> Tensor:
        """Sum the next-token losses of each adapter's own sequences.

        Args:
            batch: sequences ``[K, B, T]``.
            adapters: PEFT's names; A ``[K, r, in]``, B ``[K, out, r]``.

        Returns:
            ``[K]`` in float32.
        """
        answered = batch.labels != IGNORE_INDEX
        ends = answered.flip(-1).int().argmax(-1)  # positions after the last label
        lengths = (answered.shape[-1] - ends) * answered.any(-1)
        with torch.autocast(self.device.type, enabled=False):
            x, chosen = self._packed(batch.input_ids, answered, lengths)
            positions = self._positions(int(lengths.max()), _Packing.of(lengths))
            for layer in self._above:
                pairs = layer.pack(adapters, self._scaling)
                if self._recompute and torch.is_grad_enabled():
                    x = checkpoint(self._run, layer, x, positions, pairs, use_reentrant=False)
                else:
                    x = self._run(layer, x, positions, pairs)
            logits = self._head(self._normalized(x[chosen], self._norm)).float()
        losses = F.cross_entropy(logits, batch.labels[answered], reduction="none")
        return losses.new_zeros(len(batch.labels)).index_add(0, answered.nonzero()[:, 0], losses)

    @torch.no_grad()
    def _packed(self, ids: Tensor, answered: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What the first adapted layer gets ``[K, W, C]``, and which have a label ``[K, W]``.

        Args:
            ids, answered: token ids and which positions have a label, ``[K, B, T]``.
            lengths: tokens of each sequence that count, ``[K, B]``.
        """
        keys = [
            [tuple(row[:length]) for row, length in zip(rows, ends, strict=True)]
            for rows, ends in zip(ids.tolist(), lengths.tolist(), strict=True)
        ]
        hidden = self._hidden([key for own in keys for key in own])
        width = max(sum(map(len, own)) for own in keys)
        x = self._embedding.new_zeros(len(keys), width, self._embedding.shape[1])
        chosen = answered.new_zeros(len(keys), width)
        for k, own in enumerate(keys):
            total = sum(map(len, own))
            x[k, :total] = torch.cat([hidden[key] for key in own])
            chosen[k, :total] = torch.cat(
                [row[: len(key)] for row, key in zip(answered[k], own, strict=True)]
            )
        return x, chosen

    def _hidden(self, keys: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        """What the lower layers put out for sequences of token ids, each ``[tokens, C]``."""
        if not self._below:
            return {
                key: self._embedding[torch.tensor(key, dtype=torch.long, device=self.device)]
                for key in keys
            }
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new = sorted({key for key in keys if key not in found}, key=lambda key: (len(key), key))
        for start in range(0, len(new), CHUNK):
            part = new[start : start + CHUNK]
            ids = nn.utils.rnn.pad_sequence(
                [torch.tensor(key, dtype=torch.long) for key in part], batch_first=True
            )
            x = self._embedding[ids.to(self.device)]
            positions = self._positions(x.shape[1])
            for layer in self._below:
                x = self._run(layer, x, positions, _NO_PAIRS)
            for key, row in zip(part, x, strict=True):
                found[key] = row[: len(key)].clone()
                if found[key].nbytes <= self._room:
                    self._kept[key] = found[key]
                    self._room -= found[key].nbytes
        return found

    def _positions(self, length: int, packing: _Packing | None = None) -> _Positions:
        probe = self._embedding[:1]  # for device and dtype
        cos, sin = self._rotary(probe, torch.arange(length, device=self.device)[None])
        eager = self._attention == "eager" or (
            self._attention is None
            and (probe.device.type, probe.dtype) == ("cpu", torch.bfloat16)
            and length <= EAGER_LENGTH
        )
        mask = None
        if eager:
            heads, key_heads = self._heads
            mask = probe.new_full((length, length), float("-inf")).triu(1)
            mask = mask.repeat(heads // key_heads, 1)
        return _Positions(cos, sin, mask, packing)

    def _run(self, layer: _Layer, x: Tensor, positions: _Positions, pairs: _Pairs) -> Tensor:
        """One transformer layer: ``[n, T, C]``, or packed ``[K, W, C]``, to the same."""
        qkv = layer.qkv(self._normalized(x, layer.attention_norm), pairs.qkv)
        x = x + layer.out(self._attend(qkv, positions), pairs.out)
        gated = layer.gate_up(self._normalized(x, layer.mlp_norm), pairs.gate_up)
        gate, up = gated.chunk(2, -1)
        return x + layer.down(F.silu(gate) * up, pairs.down)

    def _attend(self, qkv: Tensor, positions: _Positions) -> Tensor:
        """Causal attention, ``[n, T, (heads + 2 key heads) * d]`` -> ``[n, T, heads * d]``."""
        packing = positions.packing
        if packing is not None:
            padded = positions._replace(packing=None)
            return packing.pack(self._attend(packing.unpack(qkv), padded))
        n, length = qkv.shape[:2]
        heads, key_heads = self._heads
        split = qkv.unflatten(-1, (heads + 2 * key_heads, -1)).transpose(1, 2)
        turned = split[:, : heads + key_heads]
        first, second = turned.chunk(2, -1)
        turned = turned * positions.cos + torch.cat([-second, first], -1) * positions.sin
        q, k, v = turned[:, :heads], turned[:, heads:], split[:, heads + key_heads :]
        if positions.mask is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            # Queries that share a key are rows of one product.
            grouped = q.reshape(n, key_heads, -1, q.shape[-1]) * q.shape[-1] ** -0.5
            weights = (grouped @ k.mT + positions.mask).softmax(-1)
            mixed = (weights @ v).view(n, heads, length, -1)
        return mixed.transpose(1, 2).flatten(2)

    def _normalized(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._epsilon)


def base_for_training(
    model: PreTrainedModel, layout: WeightLayout, lora: LoraSpec, *, recompute: bool = False
) -> PreTrainedModel | FrozenBase:
    """Return the base in the form that trains fastest.

    Recipes that adapt every layer keep the model itself, and so their results to the last bit.
    """
    if lora.layers is None or not FrozenBase.supports(model, layout):
        return model
    assert isinstance(layout, LoraLayout)
    return FrozenBase(model, layout, recompute=recompute)


class _Packing(NamedTuple):
    """Where tokens are: padded ``[K * B, T]``, and packed ``[K, W]``, end to end by adapter.

    Attributes:
        rows: place of each padded position among the packed ones ``[K * B * T]``, 0 of padding.
        slots: place of each packed one among the padded positions ``[K * W]``, 0 of what fills up.
        padded, packed: which positions hold a token, ``[K * B, T, 1]`` and ``[K, W, 1]``.
    """

    rows: Tensor
    slots: Tensor
    padded: Tensor
    packed: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> _Packing:
        """Lay out sequences of ``[K, B]`` tokens."""
        totals = lengths.sum(1)
        steps = torch.arange(int(lengths.max()), device=lengths.device)
        width = torch.arange(int(totals.max()), device=lengths.device)
        padded, packed = steps < lengths.view(-1, 1), width < totals[:, None]
        rows = torch.zeros(padded.shape, dtype=torch.long, device=lengths.device)
        slots = torch.zeros(packed.shape, dtype=torch.long, device=lengths.device)
        # Both masks enumerate the same tokens in the same order.
        rows[padded] = packed.flatten().nonzero()[:, 0]
        slots[packed] = padded.flatten().nonzero()[:, 0]
        return cls(rows.flatten(), slots.flatten(), padded[..., None], packed[..., None])

    def unpack(self, x: Tensor) -> Tensor:
        """Move tokens ``[K, W, C]`` to ``[K * B, T, C]``; padding holds some token."""
        return _Move.apply(x, self.rows, self.slots, self.padded, self.packed)

    def pack(self, x: Tensor) -> Tensor:
        """Move tokens ``[K * B, T, C]`` to ``[K, W, C]``; what fills up holds some token."""
        return _Move.apply(x, self.slots, self.rows, self.packed, self.padded)


class _Move(torch.autograd.Function):
    """Tokens to other places. Where there is none in the end, nothing may be read."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, places: Tensor, back: Tensor, target: Tensor, source: Tensor
    ) -> Tensor:
        ctx.save_for_backward(back, source)
        moved = x.flatten(0, 1).index_select(0, places)
        return moved.view(*target.shape[:2], x.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        back, source = ctx.saved_tensors
        moved = gradient.flatten(0, 1).index_select(0, back)
        return moved.view(*source.shape[:2], -1) * source, None, None, None, None


class _Positions(NamedTuple):
    """What depends on where tokens are, and not on which.

    Attributes:
        cos, sin: rotary embedding, ``[1, T, d]``.
        mask: causal mask of eager attention ``[heads per key * T, T]``; None: sdpa.
        packing: how sequences lie end to end; None: they are padded.
    """

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    packing: _Packing | None


_Pair = tuple[Tensor, Tensor]


class _Pairs(NamedTuple):
    """The adapters of a layer's products; None where no module is adapted."""

    qkv: _Pair | None = None
    out: _Pair | None = None
    gate_up: _Pair | None = None
    down: _Pair | None = None


_NO_PAIRS = _Pairs()


class _Linear:
    """Linear layers with the same input as one product, under adapters of any of them."""

    def __init__(self, layers: Mapping[str, nn.Linear], dtype: torch.dtype) -> None:
        self._sizes = {name: layer.out_features for name, layer in layers.items()}
        weights = [layer.weight.detach().to(dtype) for layer in layers.values()]
        self._weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        biases = [layer.bias for layer in layers.values() if layer.bias is not None]
        self._bias = torch.cat([bias.detach().to(dtype) for bias in biases]) if biases else None

    def pack(self, adapters: Mapping[str, Tensor], scaling: float) -> _Pair | None:
        """A transposed ``[K, in, R]`` and B ``[K, R, out]``, R the sum of all ranks."""
        halves: tuple[list[Tensor], list[Tensor]] = ([], [])
        start, total = 0, sum(self._sizes.values())
        for name, size in self._sizes.items():
            a = adapters.get(f"{PREFIX}{name}.lora_A.weight")
            if a is not None:
                b = adapters[f"{PREFIX}{name}.lora_B.weight"].mT * scaling
                halves[0].append(a)
                halves[1].append(F.pad(b, (start, total - start - size)))
            start += size
        if not halves[0]:
            return None
        a, b = (torch.cat(parts, dim=1).to(self._weight.dtype) for parts in halves)
        return a.mT, b

    def __call__(self, x: Tensor, pair: _Pair | None = None) -> Tensor:
        y = F.linear(x, self._weight, self._bias)
        if pair is None:
            return y
        down, up = pair
        rows, out = (each.reshape(len(down), -1, each.shape[-1]) for each in (x, y))
        return torch.baddbmm(out, torch.bmm(rows, down), up).view_as(y)


class _Layer:
    """The weights of one transformer layer."""

    def __init__(self, name: str, layer: nn.Module, dtype: torch.dtype) -> None:
        def linear(*names: str) -> _Linear:
            parts = {f"{name}.{short}": layer.get_submodule(short) for short in names}
            return _Linear(cast(dict[str, nn.Linear], parts), dtype)

        self.qkv = linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.out = linear("self_attn.o_proj")
        self.gate_up = linear("mlp.gate_proj", "mlp.up_proj")
        self.down = linear("mlp.down_proj")
        self.attention_norm, self.mlp_norm = (
            layer.get_parameter(f"{norm}.weight").detach().to(dtype)
            for norm in ("input_layernorm", "post_attention_layernorm")
        )

    def pack(self, adapters: Mapping[str, Tensor], scaling: float) -> _Pairs:
        """Put the layer's adapters together, as its products take them."""
        linears = (self.qkv, self.out, self.gate_up, self.down)
        return _Pairs(*(linear.pack(adapters, scaling) for linear in linears))


def _names(layout: LoraLayout) -> list[str]:
    return [module.name for module in layout.adapted_modules]


def _layer_index(name: str) -> int:
    return int(name.removeprefix(f"{LAYERS}.").partition(".")[0])
