"""The hyper-convolutional decoder: condition embeddings in, weight tokens out.

Source: Drag-and-Drop LLMs, section 2.5 and appendix A.3 (equation 5, Table 8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnd_fast.decoder.convolutions import convolutions_of
from dnd_fast.decoder.length_projection import LengthProjection
from dnd_fast.errors import InvalidInput, sizes_named
from dnd_fast.kernels.conv2d import Impl
from dnd_fast.kernels.device import PROFILES
from dnd_fast.kernels.planner.cost_model import (
    DecoderPlan,
    Weights,
    decoder_convolutions,
    plan_decoder,
)
from dnd_fast.kernels.reference import LAYER_NORM_EPS, Convolve, direct, hyper_conv_block

if TYPE_CHECKING:
    from dnd_fast.decoder.planning import WeightChoice
    from dnd_fast.decoder.prepared import Layout, PreparedDecoder

Shape = tuple[int, int, int]


class HyperConvBlock(nn.Module):
    """One block (N, L, C) -> (N', L', C'); see :func:`dnd_fast.kernels.reference.hyper_conv_block`.

    Args:
        shape_in: (N, L, C), all positive.
        shape_out: (N', L', C'). Equal shapes give a residual block.
        kernel_size: side of the five square kernels, odd.
    """

    def __init__(self, shape_in: Shape, shape_out: Shape, kernel_size: int) -> None:
        super().__init__()
        (n_in, l_in, c_in), (n_out, l_out, c_out) = shape_in, shape_out

        def conv(channels_in: int, channels_out: int, bias: bool = False) -> nn.Conv2d:
            return nn.Conv2d(
                channels_in, channels_out, kernel_size, padding=kernel_size // 2, bias=bias
            )

        self.norm = nn.LayerNorm((l_in, c_in), eps=LAYER_NORM_EPS)
        self.a_width = conv(c_in, c_out)
        self.a_height = conv(l_in, l_out)
        self.b_height = conv(l_in, l_out)
        self.b_width = conv(c_in, c_out)
        self.bias = nn.Parameter(torch.zeros(l_out, c_out))
        self.layerwise = conv(n_in, n_out, bias=True)

    def forward(self, x: Tensor, convolve: Convolve = direct) -> Tensor:
        """``[B, N, L, C]`` -> ``[B, N', L', C']``, every convolution run by ``convolve``."""
        assert self.layerwise.bias is not None
        return hyper_conv_block(
            x,
            self.norm.weight,
            self.norm.bias,
            self.a_width.weight,
            self.a_height.weight,
            self.b_height.weight,
            self.b_width.weight,
            self.bias,
            self.layerwise.weight,
            self.layerwise.bias,
            convolve,
        )


class HyperConvDecoder(nn.Module):
    """A cascade of hyper-convolutional blocks, in plain PyTorch and trainable.

    For many passes without gradients :meth:`prepare` makes an object that is ready to run.

    Args:
        features: the shapes (N, L, C) that the tensor takes, the condition's first and the weight
            tokens' last; at least two.
        kernel_size: side of every square kernel, odd.
        projection: applied to the condition first, for prompts longer than ``features[0]`` says.

    Attributes:
        criterion_weight: ``[1, Nw, 1, 1]``, the weight of each token in the training loss, or None.
            It is kept with the weights; the forward pass does not use it.
        checkpointing: whether a pass with gradients keeps only the blocks' inputs, and computes the
            rest again for the backward pass.

    Raises:
        InvalidInput: the kernel size is even, the list of shapes malformed or of sizes that torch
            cannot make, or the projection is to another length.
    """

    criterion_weight: Tensor | None

    def __init__(
        self,
        features: Sequence[Sequence[int]],
        kernel_size: int,
        *,
        projection: LengthProjection | None = None,
    ) -> None:
        super().__init__()
        self.features = _check_features(features)
        self.kernel_size = _check_kernel_size(kernel_size)
        with sizes_named(f"features {self.features} with kernel_size={kernel_size}"):
            self.blocks = nn.ModuleList(
                HyperConvBlock(shape_in, shape_out, kernel_size)
                for shape_in, shape_out in zip(self.features, self.features[1:], strict=False)
            )
        if projection is not None and projection.projected_length != self.features[0][1]:
            raise InvalidInput(
                f"the projection gives length {projection.projected_length}, features[0] has "
                f"length {self.features[0][1]}."
            )
        self.projection = projection
        self.checkpointing = False
        self.register_buffer("criterion_weight", None)
        self._convolutions: Sequence[Convolve] = [direct] * len(self.blocks)

    @property
    def condition_shape(self) -> Shape:
        """(N, L, C) of a condition, before any projection."""
        prompts, length, width = self.features[0]
        return prompts, length if self.projection is None else self.projection.length, width

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def set_plan(self, plan: DecoderPlan | Literal["direct", "fft"]) -> None:
        """Choose the algorithm of every convolution in :meth:`forward`.

        Weights stay what they are, and are transformed anew in every pass, which can be trained
        (there are no second derivatives).

        Args:
            plan: made by :func:`dnd_fast.kernels.planner.cost_model.plan_decoder` for this
                decoder's shapes, or one algorithm for all.

        Raises:
            InvalidInput: the plan is for other shapes, or a word is unknown.
        """
        self._convolutions = convolutions_of(self.checked_plan(plan), impl="auto")

    def checked_plan(self, plan: DecoderPlan | str, weights: Weights = "streamed") -> DecoderPlan:
        """A plan for this decoder's shapes; of one algorithm for all, where that is named.

        Args:
            plan: the plan or name.
            weights: how a plan made from a name keeps transformed weights.

        Raises:
            InvalidInput: the plan is for other shapes, or a word is unknown.
        """
        if weights not in get_args(Weights):
            raise InvalidInput(f"weights={weights!r}; choose one of {get_args(Weights)}.")
        if plan in ("direct", "fft"):
            algorithm = cast(Literal["direct", "fft"], plan)
            return plan_decoder(
                self.features,
                self.kernel_size,
                PROFILES["cpu"],
                weights=weights,
                algorithm=algorithm,
            )
        if not isinstance(plan, DecoderPlan):
            raise InvalidInput(f"plan={plan!r}: give a DecoderPlan, 'direct' or 'fft'.")
        shapes = decoder_convolutions(self.features, self.kernel_size)
        if [choice.shape for choice in plan.convolutions] != shapes:
            raise InvalidInput(
                f"the plan is for another decoder; this one has features {self.features} and "
                f"kernel size {self.kernel_size}."
            )
        return plan

    def prepare(
        self,
        plan: DecoderPlan | Literal["auto", "direct", "fft"] = "auto",
        *,
        batch: int = 1,
        memory: float | None = None,
        weights: WeightChoice = "auto",
        impl: Impl = "auto",
        compile: bool = False,
        layout: Layout | None = None,
    ) -> PreparedDecoder:
        """Make an object that decodes fast: planned, its weights transformed and packed.

        This decoder is not changed. What need not be transformed is shared with it, and a prepared
        decoder refuses to run once that has been changed.

        Args:
            plan: ``"auto"`` takes the algorithm of every convolution that is predicted or measured
                to be the fastest on this device; or one algorithm for all, or a plan.
            batch: samples per pass, which an automatic plan is made for.
            memory: bytes that preparing and a pass may take beside this decoder's own parameters;
                by default there is no limit.
            weights: how transformed weights are kept: ``"cached"``, which is the fastest for many
                passes; ``"streamed"``, anew in every pass, which is the fastest for one;
                ``"int8"``, a quarter of the memory for an error of about 1 %; ``"auto"``:
                ``"cached"`` where it fits into ``memory``, else ``"streamed"``. A DecoderPlan
                knows its own.
            impl: ``"triton"`` for the Triton kernels, which need an NVIDIA GPU; ``"torch"`` for
                plain PyTorch; ``"auto"``: the kernels where they can run, elsewhere on a GPU
                PyTorch under torch.compile, on a CPU plain PyTorch.
            compile: run ``"torch"`` under torch.compile; the first pass compiles.
            layout: of the tokens, for :meth:`PreparedDecoder.lora`.

        Raises:
            InvalidInput: an implementation that was named cannot run, nothing fits into
                ``memory``, the plan is for another decoder, or a word is unknown.
        """
        from dnd_fast.decoder.prepared import PreparedDecoder, choose

        chosen, named, compile = choose(
            self, plan, batch=batch, memory=memory, weights=weights, impl=impl, compile=compile
        )
        return PreparedDecoder(self, chosen, named, compile=compile, layout=layout)

    def forward(self, condition: Tensor) -> Tensor:
        """Decode condition embeddings into weight tokens.

        Args:
            condition: ``[B, N, L, C]``, of shape ``condition_shape`` per sample, in the dtype and
                on the device of the parameters.

        Returns:
            ``[B, Nw, Lw, Cw]`` of shape ``features[-1]`` per sample, same dtype.

        Raises:
            InvalidInput: when shape, dtype or device differ from the decoder's.
        """
        check_condition(condition, self.condition_shape, self.dtype, self.device)
        x = condition if self.projection is None else self.projection(condition)
        recompute = self.checkpointing and torch.is_grad_enabled()
        for block, convolve in zip(self.blocks, self._convolutions, strict=True):
            if recompute:
                x = cast(Tensor, checkpoint(block, x, convolve, use_reentrant=False))
            else:
                x = block(x, convolve)
        return x

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}"


def check_condition(
    condition: Tensor, shape: Shape, dtype: torch.dtype, device: torch.device
) -> None:
    """Raise InvalidInput unless a condition is what a decoder with these parameters takes."""
    if condition.ndim != 4 or tuple(condition.shape[1:]) != shape:
        raise InvalidInput(
            f"the decoder takes a condition of shape [B, {', '.join(map(str, shape))}], "
            f"got {list(condition.shape)}."
        )
    if condition.device != device:
        raise InvalidInput(
            f"the condition is on {condition.device}, the decoder on {device}: "
            "move one of them with .to(device)."
        )
    if condition.dtype != dtype and not torch.is_autocast_enabled(condition.device.type):
        raise InvalidInput(
            f"the condition is {condition.dtype}, the decoder {dtype}: "
            "convert one of them with .to(dtype)."
        )


def _check_features(features: Sequence[Sequence[int]]) -> tuple[Shape, ...]:
    try:
        shapes = tuple(tuple(shape) for shape in features)
    except TypeError:
        raise InvalidInput(
            f"features is {features!r}; it must be a list of shapes (N, L, C)."
        ) from None
    if len(shapes) < 2:
        raise InvalidInput(
            f"features needs at least two shapes, the condition's and the tokens'; got {shapes}."
        )
    for shape in shapes:
        if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
            raise InvalidInput(
                f"features holds {shape}; every shape must be three positive integers (N, L, C)."
            )
    return shapes  # type: ignore[return-value]


def _check_kernel_size(kernel_size: int) -> int:
    if type(kernel_size) is not int or kernel_size < 1 or kernel_size % 2 == 0:
        raise InvalidInput(
            f"kernel_size={kernel_size!r}: it must be an odd positive integer, "
            "so that 'same' padding is symmetric."
        )
    return kernel_size
