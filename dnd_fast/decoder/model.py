"""The hyper-convolutional decoder: condition embeddings in, weight tokens out.

Source: Drag-and-Drop LLMs, section 2.5 and appendix A.3 (equation 5, Table 8).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnd_fast.decoder.length_projection import LengthProjection
from dnd_fast.errors import InvalidInput
from dnd_fast.kernels.conv2d import WORKSPACE_BYTES, Impl, fft_conv2d
from dnd_fast.kernels.device import PROFILES, can_run_triton
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.fft.weight import TransformedWeight, transform_weight
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.planner.cost_model import (
    CONVOLUTIONS,
    DecoderPlan,
    Weights,
    decoder_convolutions,
    plan_decoder,
)
from dnd_fast.kernels.reference import LAYER_NORM_EPS, direct, hyper_conv_block

if TYPE_CHECKING:
    from dnd_fast.decoder.prepared import Engine
    from dnd_fast.kernels.triton.block import PackedBlock

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

        self.kernel_size = kernel_size
        self.norm = nn.LayerNorm((l_in, c_in), eps=LAYER_NORM_EPS)
        self.a_width = conv(c_in, c_out)
        self.a_height = conv(l_in, l_out)
        self.b_height = conv(l_in, l_out)
        self.b_width = conv(c_in, c_out)
        self.bias = nn.Parameter(torch.zeros(l_out, c_out))
        self.layerwise = conv(n_in, n_out, bias=True)
        # Convolutions that run in the transform domain, and their weights if transformed for good.
        self.tiles: dict[str, FFTConvPlan] = {}
        self.transformed: dict[str, TransformedWeight] = {}
        self.workspace_bytes = WORKSPACE_BYTES
        self.impl: Impl = "auto"

    @torch.no_grad()
    def transform_weight(self, name: str, dtype: torch.dtype | None = None) -> None:
        """Replace the weight of a tiled convolution by its transform."""
        module: nn.Module = getattr(self, name)
        weight = cast(Tensor, module.weight)
        self.transformed[name] = transform_weight(weight, self.tiles[name], dtype=dtype)
        module.register_parameter("weight", None)

    @torch.no_grad()
    def packed(self) -> PackedBlock:
        """The parameters as the Triton kernels take them; waits for the device.

        Raises:
            ValueError: float64 parameters.
        """
        from dnd_fast.kernels.triton.block import PackedBlock

        weights: dict[str, Tensor | TransformedWeight] = {
            name: self.transformed.get(name, cast(nn.Conv2d, getattr(self, name)).weight)
            for name in CONVOLUTIONS
        }
        assert self.layerwise.bias is not None
        return PackedBlock.of(
            self.tiles,
            weights,
            self.norm.weight,
            self.norm.bias,
            self.bias,
            self.layerwise.bias,
            self.kernel_size,
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, L, C]`` -> ``[B, N', L', C']``."""
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
            self._convolve,
        )

    def _convolve(self, name: str, x: Tensor, weight: Tensor | None) -> Tensor:
        used = self.transformed.get(name, weight)
        assert used is not None
        if isinstance(used, TransformedWeight) and torch.is_grad_enabled() and x.requires_grad:
            raise InvalidInput(
                "transformed weights give no gradients: use torch.no_grad(), or "
                "weights='streamed' to train."
            )
        if name not in self.tiles:
            assert isinstance(used, Tensor)
            return direct(name, x, used)

        def convolve(dtype: torch.dtype, weight: Tensor | TransformedWeight) -> Tensor:
            return fft_conv2d(
                x.to(dtype),
                weight,
                self.tiles[name],
                workspace_bytes=self.workspace_bytes,
                impl=self.impl,
            ).to(x.dtype)

        device = x.device.type
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        if not autocast:
            return convolve(self.bias.dtype, used)
        with torch.autocast(device, enabled=False):  # it would narrow what transforms add up
            if isinstance(used, TransformedWeight):
                return convolve(self.bias.dtype, used)
            dtype = torch.get_autocast_dtype(device)  # as a direct convolution would have it
            return convolve(dtype, used.to(dtype))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> HyperConvBlock:
        """Transformed weights follow to another device, but keep their dtype."""
        super()._apply(fn, recurse)
        self.transformed = {
            name: weight.to(self.bias.device) for name, weight in self.transformed.items()
        }
        return self


class HyperConvDecoder(nn.Module):
    """A cascade of hyper-convolutional blocks.

    Args:
        features: the shapes (N, L, C) that the tensor takes, the condition's first and the weight
            tokens' last; at least two.
        kernel_size: side of every square kernel, odd.
        projection: applied to the condition first, for prompts longer than ``features[0]`` says.
        impl: ``"torch"`` is the plain-PyTorch path, ``"triton"`` the Triton kernels, which need an
            NVIDIA GPU, ``"auto"`` these where they can run. A named implementation that cannot run
            raises.
        compile: run the plain-PyTorch path under ``torch.compile`` (the first call compiles).

    Attributes:
        criterion_weight: ``[1, Nw, 1, 1]``, the weight of each token in the training loss, or None.
            Kept with the weights; the forward pass does not use it.
        checkpointing: whether a pass with gradients keeps only the blocks' inputs, and computes the
            rest again for the backward pass.

    Raises:
        InvalidInput: for an even kernel, a malformed shape list, a projection to another length or
            an unusable ``impl``.
    """

    criterion_weight: Tensor | None
    engine: Engine | None

    def __init__(
        self,
        features: Sequence[Sequence[int]],
        kernel_size: int,
        *,
        projection: LengthProjection | None = None,
        impl: Impl = "auto",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.features = _check_features(features)
        self.kernel_size = _check_kernel_size(kernel_size)
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
        self.set_impl(impl, compile=compile)

    @property
    def condition_shape(self) -> Shape:
        """(N, L, C) of a condition, before any projection."""
        prompts, length, width = self.features[0]
        return prompts, length if self.projection is None else self.projection.length, width

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def runs_triton(self) -> bool:
        """Whether convolutions in the transform domain run on the Triton kernels."""
        if self.impl == "auto":
            return can_run_triton(self.device, self.dtype)
        return self.impl == "triton"

    def set_plan(
        self, plan: DecoderPlan | Literal["direct", "fft"], *, weights: Weights = "streamed"
    ) -> None:
        """Choose the algorithm of every convolution.

        Weights transformed at every call (``"streamed"``) can be trained, though there are no
        second derivatives. Transforms that are kept (``"cached"``, and ``"int8"``: a quarter of
        the memory, an error of about 1 %) replace the weights, now, one convolution after the
        other; the decoder can then be neither trained nor saved nor planned anew.

        Args:
            plan: of :func:`dnd_fast.kernels.planner.cost_model.plan_decoder` for this decoder's
                shapes, or one algorithm for all.
            weights: for the two words; a plan knows its own.

        Raises:
            InvalidInput: the plan is for other shapes, a word is unknown, or the weights have been
                replaced already.
        """
        if weights not in get_args(Weights):
            raise InvalidInput(f"weights={weights!r}; choose one of {get_args(Weights)}.")
        shapes = decoder_convolutions(self.features, self.kernel_size)
        if plan in ("direct", "fft"):
            plan = plan_decoder(
                self.features, self.kernel_size, PROFILES["cpu"], weights=weights, algorithm=plan
            )
        if not isinstance(plan, DecoderPlan):
            raise InvalidInput(f"plan={plan!r}: give a DecoderPlan, 'direct' or 'fft'.")
        if [choice.shape for choice in plan.convolutions] != shapes:
            raise InvalidInput(
                f"the plan is for another decoder; this one has features {self.features} and "
                f"kernel size {self.kernel_size}."
            )
        self.engine = None
        blocks = cast(Sequence[HyperConvBlock], self.blocks)
        if any(block.transformed for block in blocks):
            raise InvalidInput(
                "the weights have been replaced by their transforms: load the decoder again to "
                "plan it anew."
            )
        for index, block in enumerate(blocks):
            block.workspace_bytes = plan.workspace_bytes
            block.tiles = {
                name: choice.fft_plan
                for name, choice in plan.block(index).items()
                if choice.fft_plan is not None
            }
        if plan.weights != "streamed":  # largest first: the peak is little more than the result
            dtype = torch.int8 if plan.weights == "int8" else None
            tiled = [(block, name) for block in blocks for name in block.tiles]
            for block, name in sorted(tiled, key=lambda each: -getattr(*each).weight.numel()):
                block.transform_weight(name, dtype)

    def set_impl(self, impl: Impl, *, compile: bool = False) -> None:
        """Choose how the blocks run; see the class's arguments."""
        if impl not in get_args(Impl):
            raise InvalidInput(f"impl={impl!r} is unknown; choose one of {get_args(Impl)}.")
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if impl == "triton" and not (torch.cuda.is_available() or interpreted):
            raise InvalidInput(
                "impl='triton' cannot run: Triton kernels need an NVIDIA GPU, and torch sees none. "
                "Use impl='torch', with compile=True for a compiled decoder."
            )
        self.impl = impl
        self.engine = None
        for block in cast(Sequence[HyperConvBlock], self.blocks):
            block.impl = impl
        # Kept out of the module tree: the compiled callable shares this module's parameters.
        self._run: Callable[[Tensor], Tensor] = (
            torch.compile(self._cascade, dynamic=False) if compile else self._cascade
        )

    def make_engine(self, targets: LoraScatterTable | None = None) -> bool:
        """Let passes without gradients run on the Triton kernels alone, if ``impl`` allows that.

        Weights are packed now: change no parameter afterwards. The engine ends with a change of
        plan, implementation, device or dtype.

        Args:
            targets: for an engine that shall write LoRA tensors too.

        Returns:
            Whether there is an engine.
        """
        if self.runs_triton:
            from dnd_fast.decoder.prepared import Engine

            blocks = [block.packed() for block in cast(Sequence[HyperConvBlock], self.blocks)]
            self.engine = Engine(blocks, self.projection, targets)
        return self.runs_triton

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> HyperConvDecoder:
        self.engine = None
        super()._apply(fn, recurse)
        return self

    def _cascade(self, x: Tensor) -> Tensor:
        if self.projection is not None:
            x = self.projection(x)
        again = self.checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
        return x

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
        if condition.ndim != 4 or tuple(condition.shape[1:]) != self.condition_shape:
            raise InvalidInput(
                f"the decoder takes a condition of shape [B, {_join(self.condition_shape)}], "
                f"got {list(condition.shape)}."
            )
        if condition.device != self.device:
            raise InvalidInput(
                f"the condition is on {condition.device}, the decoder on {self.device}: "
                "move one of them with .to(device)."
            )
        if condition.dtype != self.dtype and not torch.is_autocast_enabled(condition.device.type):
            raise InvalidInput(
                f"the condition is {condition.dtype}, the decoder {self.dtype}: "
                "convert one of them with .to(dtype)."
            )
        if self.engine is not None and not torch.is_grad_enabled():
            return self.engine(condition)
        return self._run(condition)

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, impl={self.impl!r}"


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


def _join(shape: Shape) -> str:
    return ", ".join(map(str, shape))
