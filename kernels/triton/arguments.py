"""Launch arguments that belong together, as the tuples that kernels take them in.

Triton specialises the elements of a tuple as it does other arguments: None and 1 are constants, and
multiples of 16 are known to be such.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dnd_fast.kernels.lora_scatter import LoraScatterTable


class ImageSizes(NamedTuple):
    """Sizes of an image ``[B, C, H, W]``."""

    b: int
    c: int
    h: int
    w: int


class ImageStrides(NamedTuple):
    """Strides of an image ``[B, C, H, W]`` in elements."""

    b: int
    c: int
    h: int
    w: int


class LayerNormArguments(NamedTuple):
    """LayerNorm of a view ``[B, C, H, W]``, as :class:`.checks.LayerNorm` describes it.

    Mean and rstd do not depend on C, weight and bias not on B: those strides would be 0.
    """

    mean_ptr: Tensor
    rstd_ptr: Tensor
    weight_ptr: Tensor
    bias_ptr: Tensor
    stats_strides: tuple[int, int, int]  # (b, h, w)
    affine_strides: tuple[int, int, int]  # (c, h, w)


class ScatterArguments(NamedTuple):
    """Where tokens go in LoRA tensors; see :class:`dnd_fast.kernels.lora_scatter.LoraScatterTable`.

    ``stride_b`` lies between the LoRA tensors of two samples.
    """

    table_ptr: Tensor
    mean_ptr: Tensor | None
    std_ptr: Tensor | None
    stride_b: int

    @classmethod
    def of(cls, scatter: LoraScatterTable, out: Tensor) -> ScatterArguments:
        """For ``out [B, E]``."""
        return cls(scatter.table, scatter.mean, scatter.std, out.stride(0))


class EpilogueArguments(NamedTuple):
    """What is done with a float32 block before and while it is stored; None: it is not done.

    ``bias_strides`` are (c, h, w). ``amax`` is raised to the largest magnitude stored, ``chunks``
    receives counts, means and squared deviations for :func:`.layer_norm.merge_chunks`.
    """

    bias_ptr: Tensor | None
    bias_strides: tuple[int, int, int] | None
    other_ptr: Tensor | None
    amax_ptr: Tensor | None
    chunks_ptr: Tensor | None
    scatter: ScatterArguments | None
