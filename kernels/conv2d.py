"""Convolution in the transform domain as one operator: plain PyTorch, or the Triton kernels.

The algorithm is described in :mod:`dnd_fast.kernels.fft.torch_conv`. As operators, convolutions are
opaque to torch.compile and torch.export.
"""

from __future__ import annotations

import importlib
from typing import Any, Literal

import torch
from torch import Tensor

from dnd_fast.kernels.device import can_run_triton
from dnd_fast.kernels.fft.tiling import FFTConvPlan
from dnd_fast.kernels.fft.torch_conv import fft_conv2d_torch, weight_gradient_torch
from dnd_fast.kernels.fft.weight import TransformedWeight

WORKSPACE_BYTES = 1 << 30
Impl = Literal["auto", "triton", "torch"]


def fft_conv2d(
    x: Tensor,
    weight: Tensor | TransformedWeight,
    plan: FFTConvPlan,
    *,
    dtype: torch.dtype | None = None,
    workspace_bytes: int = WORKSPACE_BYTES,
    impl: Impl = "auto",
) -> Tensor:
    """``conv2d(x, weight, padding="same")`` in the transform domain; differentiable once.

    Args:
        x: Image ``[B, C, H, W]``, any floating-point dtype, any strides.
        weight: Weight ``[C', C, k, k]`` of x's dtype, or what :func:`transform_weight` made of it,
            which gets no gradient.
        plan: Plan made for H, W and k.
        dtype: Dtype of the transformed data; by default x's, and for 16-bit x float16 on a GPU and
            float32 on a CPU, which multiplies no 16-bit numbers fast. Products accumulate in
            float32 at least.
        workspace_bytes: Batch and output channels are cut so that transformed data stays below
            this, as far as one sample and one output channel allow.
        impl: ``"torch"``, or ``"triton"`` for the Triton kernels, which need an NVIDIA GPU;
            ``"auto"``: these where they can run.

    Returns:
        ``[B, C', H, W]`` in x's dtype, a view of ``[H, W, B, C']``.

    Raises:
        ValueError: The input or the weight does not fit the plan, or ``impl`` cannot run.
    """
    if tuple(x.shape[2:]) != (plan.height.length, plan.width.length):
        raise ValueError(
            f"x has spatial size {list(x.shape[2:])}, the plan is for "
            f"{[plan.height.length, plan.width.length]}."
        )
    if dtype is None:
        dtype = transform_dtype(x)
    if x.is_meta:  # step by step: memory is counted that way
        return fft_conv2d_torch(x, weight, plan, dtype, workspace_bytes)
    lengths = [plan.height.length, plan.width.length, plan.kernel]
    lengths += [plan.height.dft, plan.width.dft]
    triton = impl == "triton" or (impl == "auto" and can_run_triton(x.device, dtype))
    options = lengths, dtype, workspace_bytes, triton
    if isinstance(weight, TransformedWeight):
        values = weight.values
        if tuple(values.shape) != (plan.bins, 2, values.shape[2], x.shape[1]):
            raise ValueError(
                f"the transformed weight has shape {list(values.shape)}; expected "
                f"[{plan.bins}, 2, C', {x.shape[1]}]."
            )
        if dtype == torch.float16 and weight.bound is None:
            raise ValueError("float16 data needs weights transformed to float16 or int8.")
        return _transformed(x, values, weight.scale, weight.bound, *options)
    if tuple(weight.shape[1:]) != (x.shape[1], plan.kernel, plan.kernel):
        raise ValueError(
            f"the weight has shape {list(weight.shape)}; expected [C', {x.shape[1]}, "
            f"{plan.kernel}, {plan.kernel}]."
        )
    return _raw(x, weight, *options)


def transform_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the transformed data of ``x`` unless another is asked for."""
    if x.dtype.itemsize > 2:
        return x.dtype
    return torch.float16 if x.is_cuda else torch.float32


# An operator's arguments are plain: ``lengths`` are those of FFTConvPlan.make.


@torch.library.custom_op("dnd_fast::fft_conv2d", mutates_args=())
def _raw(
    x: Tensor,
    weight: Tensor,
    lengths: list[int],
    dtype: torch.dtype,
    workspace: int,
    triton: bool,
) -> Tensor:
    convolve = triton_conv().fft_conv2d_triton if triton else fft_conv2d_torch
    return convolve(x, weight, FFTConvPlan.make(*lengths), dtype, workspace)


@torch.library.custom_op("dnd_fast::fft_conv2d_transformed", mutates_args=())
def _transformed(
    x: Tensor,
    values: Tensor,
    scale: Tensor | None,
    bound: Tensor | None,
    lengths: list[int],
    dtype: torch.dtype,
    workspace: int,
    triton: bool,
) -> Tensor:
    convolve = triton_conv().fft_conv2d_triton if triton else fft_conv2d_torch
    weight = TransformedWeight(values, scale, bound)
    return convolve(x, weight, FFTConvPlan.make(*lengths), dtype, workspace)


@torch.library.custom_op("dnd_fast::fft_conv2d_weight_gradient", mutates_args=())
def _weight_gradient(
    x: Tensor,
    dy: Tensor,
    lengths: list[int],
    dtype: torch.dtype,
    workspace: int,
    triton: bool,
) -> Tensor:
    """The gradient ``[C', C, k, k]`` in x's dtype."""
    outer = triton_conv().weight_gradient_triton if triton else weight_gradient_torch
    return outer(x, dy, FFTConvPlan.make(*lengths), dtype, workspace).to(x.dtype)


def triton_conv() -> Any:
    """The module :mod:`.triton.fft_conv`, imported on first use: a CPU needs no Triton."""
    return importlib.import_module("dnd_fast.kernels.triton.fft_conv")


def _empty_output(x: Tensor, channels: int) -> Tensor:
    return x.new_empty(*x.shape[2:], x.shape[0], channels).permute(2, 3, 0, 1)


_raw.register_fake(lambda x, weight, *_: _empty_output(x, weight.shape[0]))
_transformed.register_fake(lambda x, values, *_: _empty_output(x, values.shape[2]))
_weight_gradient.register_fake(
    lambda x, dy, lengths, *_: x.new_empty(dy.shape[1], x.shape[1], lengths[2], lengths[2])
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *ctx.options = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "fft_conv2d has no second derivatives: use create_graph=False, or conv2d."
        )
    x, weight = ctx.saved_tensors
    dx = dw = None
    if ctx.needs_input_grad[0]:  # the convolution with the kernel rotated by 180 degrees
        dx = _raw(dy, weight.transpose(0, 1).flip(2, 3), *ctx.options)
    if ctx.needs_input_grad[1]:
        dw = _weight_gradient(x, dy, *ctx.options)
    return dx, dw, *(None for _ in ctx.options)


_raw.register_autograd(_backward, setup_context=_save)
