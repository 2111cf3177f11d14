"""A decoder that is ready to run: planned, its weights transformed and packed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from dnd_fast.decoder.model import HyperConvDecoder, check_condition
from dnd_fast.decoder.planning import NamedImpl, WeightChoice, is_small, plan_for, resolve_impl
from dnd_fast.decoder.torch_pass import TorchPass
from dnd_fast.errors import InvalidInput
from dnd_fast.kernels.conv2d import Impl
from dnd_fast.kernels.device import device_name
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.planner.cost_model import DecoderPlan


class Layout(Protocol):
    """What a prepared decoder needs of a layout of weight tokens."""

    mean: Tensor | None
    std: Tensor | None

    def scatter(self, tokens: Tensor) -> Tensor:
        """``[B, Nw, Lw, Cw]`` -> ``[B, E]`` float32, all tensors one after another."""

    def scatter_table(self, device: torch.device) -> LoraScatterTable:
        """Where a kernel writes tokens, with the statistics as they are now."""

    def unpack(self, weights: Tensor) -> dict[str, Tensor]:
        """``[B, E]`` -> views ``[B, ...]`` of it, by name."""


class PreparedDecoder:
    """A decoder that is ready to run; :meth:`HyperConvDecoder.prepare` makes it.

    It never changes, and may be called from several threads. Passes give no gradients.

    Attributes:
        plan: the algorithm of every convolution, and how weights are kept.
        impl: ``"triton"`` or ``"torch"``.
        compiled: whether PyTorch runs under torch.compile.
        condition_shape: (N, L, C) of a condition.
        dtype, device: those of conditions and tokens.
    """

    def __init__(
        self,
        decoder: HyperConvDecoder,
        plan: DecoderPlan,
        impl: NamedImpl,
        *,
        compile: bool = False,
        layout: Layout | None = None,
    ) -> None:
        self.plan, self.impl, self.compiled = plan, impl, compile
        self.condition_shape = decoder.condition_shape
        self.dtype, self.device = decoder.dtype, decoder.device
        self._layout = layout
        # The version counters of parameters that are shared with the decoder.
        module = TorchPass(decoder, plan)
        self._shared = [(tensor, version(tensor)) for tensor in module.shared()]
        self._run: Callable[[Tensor], Tensor] = module
        self._write: Callable[[Tensor], Tensor] | None = None
        if impl == "triton":
            from dnd_fast.decoder.triton_pass import TritonPass

            table = None if layout is None else layout.scatter_table(self.device)
            if table is not None and table.border:
                table = None  # scales of these tokens are known only once they are whole
            triton_pass = TritonPass(module, table)
            self._run = triton_pass.tokens
            self._write = None if table is None else triton_pass.lora
        elif compile:
            self._run = torch.compile(module, dynamic=False)

    def tokens(self, condition: Tensor) -> Tensor:
        """Decode condition embeddings into weight tokens.

        Args:
            condition: ``[B, N, L, C]``, of shape ``condition_shape`` per sample, of ``dtype`` and
                on ``device``.

        Returns:
            ``[B, Nw, Lw, Cw]``, same dtype.

        Raises:
            InvalidInput: the condition does not fit, or the decoder's parameters have changed
                since it was prepared.
        """
        return self._call(self._run, condition)

    def weights(self, condition: Tensor) -> Tensor:
        """Decode condition embeddings into all LoRA tensors, one after another.

        Args:
            condition: see :meth:`tokens`.

        Returns:
            ``[B, E]`` float32, which the layout's ``unpack`` takes apart.

        Raises:
            InvalidInput: as :meth:`tokens`, or no layout was given when this was prepared.
        """
        if self._layout is None:
            raise InvalidInput(
                "LoRA tensors need to know their layout: prepare(layout=generator.layout), or "
                "detokenize the tokens."
            )
        if self._write is None:
            return self._layout.scatter(self.tokens(condition))
        return self._call(self._write, condition)

    def lora(self, condition: Tensor) -> dict[str, Tensor]:
        """Decode condition embeddings into LoRA tensors.

        Args:
            condition: see :meth:`tokens`.

        Returns:
            Tensors ``[B, r, in]`` and ``[B, out, r]`` under PEFT's names, float32, on ``device``;
            what they are for other layouts is theirs to say.

        Raises:
            InvalidInput: as :meth:`weights`.
        """
        weights = self.weights(condition)
        assert self._layout is not None
        return self._layout.unpack(weights)

    def describe(self) -> str:
        """One line on what runs."""
        return describe(self.plan, self.impl, self.compiled, self.dtype, self.device)

    def _call(self, run: Callable[[Tensor], Tensor], condition: Tensor) -> Tensor:
        check_condition(condition, self.condition_shape, self.dtype, self.device)
        if condition.requires_grad and torch.is_grad_enabled():
            raise InvalidInput(
                "a prepared decoder gives no gradients: use torch.no_grad(), or the decoder itself."
            )
        if any(version(tensor) != seen for tensor, seen in self._shared):
            raise InvalidInput(
                "the decoder's parameters have changed since it was prepared: prepare it again."
            )
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return run(condition)


def choose(
    decoder: HyperConvDecoder,
    plan: DecoderPlan | Literal["auto", "direct", "fft"] = "auto",
    *,
    batch: int = 1,
    memory: float | None = None,
    weights: WeightChoice = "auto",
    impl: Impl = "auto",
    compile: bool = False,
) -> tuple[DecoderPlan, NamedImpl, bool]:
    """Plan, implementation, and whether it is compiled, for the arguments of
    :meth:`dnd_fast.decoder.model.HyperConvDecoder.prepare`."""
    named, compile = resolve_impl(impl, compile, decoder.device, decoder.dtype)
    if plan == "auto" and memory is None and is_small(decoder, batch):
        plan = "direct"
    if plan == "auto":
        chosen = plan_for(decoder, batch=batch, memory=memory, weights=weights, impl=named)
    else:
        chosen = decoder.checked_plan(plan, "cached" if weights == "auto" else weights)
    return chosen, named, compile


def describe(
    plan: DecoderPlan, impl: str, compiled: bool, dtype: torch.dtype, device: torch.device
) -> str:
    """One line on what runs."""
    how = "Triton kernels" if impl == "triton" else "PyTorch, compiled" if compiled else "PyTorch"
    total = len(plan.convolutions)
    line = (
        f"{how}, {str(dtype).removeprefix('torch.')}, on {device_name(device)}: "
        f"{total - len(plan.direct)} of {total} convolutions in the transform domain"
    )
    if len(plan.direct) < total:
        line += f", weights {plan.weights} ({plan.weight_bytes / 1e9:.2g} GB)"
    return f"{line}, {1e3 * plan.seconds:.3g} ms a pass predicted"


def version(tensor: Tensor) -> int:
    """How often a tensor has been changed in place; 0 for those that do not count."""
    return 0 if tensor.is_inference() else tensor._version
