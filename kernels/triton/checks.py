"""Operands that several kernels take, and what they refuse: blocks, LayerNorm, epilogues."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import math
from dataclasses import dataclass

import triton
from torch import Tensor

from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.reference import EpilogueName
from dnd_fast.kernels.triton.arguments import (
    EpilogueArguments,
    ImageStrides,
    LayerNormArguments,
    ScatterArguments,
)


@dataclass(frozen=True)
class Config:
    """Blocks of a matrix product [M, K] @ [K, N], and how its kernel is compiled."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm over (L, C) of ``[B, N, L, C]``, to be applied to a permuted view of that tensor.

    Attributes:
        mean: Means ``[B, N]``, float32, contiguous.
        rstd: Reciprocal standard deviations ``[B, N]``, float32, contiguous.
        weight: Weight ``[L, C]``, contiguous.
        bias: Bias ``[L, C]``, contiguous.
        order: The permutation of (B, N, L, C) that makes the view; B stays first.
    """

    mean: Tensor
    rstd: Tensor
    weight: Tensor
    bias: Tensor
    order: tuple[int, int, int, int]

    def arguments(self) -> LayerNormArguments:
        """As kernels take it."""
        stats = tuple((self.mean.shape[1], 1, 0, 0)[dim] for dim in self.order)
        affine = tuple((0, 0, self.weight.shape[1], 1)[dim] for dim in self.order)
        return LayerNormArguments(
            self.mean,
            self.rstd,
            self.weight,
            self.bias,
            stats_strides=(stats[0], stats[2], stats[3]),
            affine_strides=(affine[1], affine[2], affine[3]),
        )


def require_gpu(*tensors: Tensor) -> None:
    """Refuse tensors that no kernel can run on.

    Raises:
        ValueError: A tensor is not on an NVIDIA GPU, and Triton's interpreter is off.
    """
    for tensor in tensors:
        if not tensor.is_cuda and not triton.knobs.runtime.interpret:
            raise ValueError(
                f"found a tensor on {tensor.device}; Triton kernels need an NVIDIA GPU. Move it "
                "there, or use the plain PyTorch form."
            )


def require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that is not contiguous or not of a shape.

    Raises:
        ValueError: The tensor is such.
    """
    if tuple(tensor.shape) != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{name} has shape {list(tensor.shape)} and strides {list(tensor.stride())}; expected "
            f"a contiguous tensor of shape {list(shape)}."
        )


def require_operands(
    epilogue: EpilogueName, shape: tuple[int, ...], bias: Tensor | None, other: Tensor | None
) -> None:
    """Refuse operands that an epilogue to an output ``[B, C, H, W]`` does not take, or lacks.

    Raises:
        ValueError: An operand is missing, superfluous, or of another shape.
    """
    bias_shape = {"tanh_bias": shape[1:], "bias_residual": shape[1:2]}.get(epilogue)
    if epilogue == "bias_residual" and bias is not None and not bias.is_contiguous():
        raise ValueError(f"bias has strides {bias.stride()}; expected a contiguous tensor.")
    takes_other = epilogue == "mix" or (epilogue == "bias_residual" and other is not None)
    other_shape = shape if takes_other else None
    for name, tensor, expected in (("bias", bias, bias_shape), ("other", other, other_shape)):
        actual = None if tensor is None else tuple(tensor.shape)
        if actual != expected:
            raise ValueError(
                f"{name} has shape {actual}; epilogue {epilogue!r} and an output of shape {shape} "
                f"expect {expected}."
            )


def output_shape(out: Tensor, scatter: LoraScatterTable | None) -> tuple[int, int, int, int]:
    """Shape ``[B, C, H, W]`` of an output, which may be tokens on their way into LoRA tensors.

    Raises:
        ValueError: The output does not fit the scatter.
    """
    if scatter is None:
        batch, channels, height, width = out.shape
        return batch, channels, height, width
    require_shape("out", out, (out.shape[0], scatter.elements))
    return out.shape[0], len(scatter.table), scatter.rank, scatter.chunk


def image_strides(
    out: Tensor, scatter: LoraScatterTable | None, other: Tensor | None
) -> ImageStrides:
    """Strides of an output ``[B, C, H, W]`` and of what is added to it; 0 where there is neither.

    Raises:
        ValueError: They differ in strides.
    """
    if scatter is not None:
        return ImageStrides(*(other.stride() if other is not None else (0, 0, 0, 0)))
    if other is not None and any(
        mine != theirs and size > 1
        for mine, theirs, size in zip(out.stride(), other.stride(), out.shape, strict=True)
    ):
        raise ValueError(
            f"other has strides {other.stride()} and the output {out.stride()}; expected the same."
        )
    return ImageStrides(*out.stride())


def epilogue_arguments(
    bias: Tensor | None,
    other: Tensor | None,
    amax: Tensor | None,
    chunks: Tensor | None,
    scatter: LoraScatterTable | None,
    out: Tensor,
) -> EpilogueArguments:
    """The operands of an epilogue as kernels take them."""
    strides = None
    if bias is not None and bias.ndim == 3:
        strides = bias.stride(0), bias.stride(1), bias.stride(2)
    into_lora = None if scatter is None else ScatterArguments.of(scatter, out)
    return EpilogueArguments(bias, strides, other, amax, chunks, into_lora)


def alignment(image: Tensor) -> int:
    """Largest power of two up to 16 that divides the channels and, where those are innermost, every
    other stride."""
    _, channels, *_ = image.shape
    strides = (image.stride(dim) for dim in (0, 2, 3)) if image.stride(1) == 1 else ()
    return math.gcd(16, channels, *strides)


def require_flat(name: str, tensor: Tensor, count: int) -> None:
    """Refuse a tensor that is not contiguous or has another number of elements.

    Raises:
        ValueError: The tensor is such.
    """
    if tensor.numel() != count or not tensor.is_contiguous():
        raise ValueError(
            f"{name} has shape {list(tensor.shape)} and strides {list(tensor.stride())}; expected "
            f"a contiguous tensor of {count} elements."
        )
