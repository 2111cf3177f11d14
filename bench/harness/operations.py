"""The operations that a decoder consists of, at its shapes: what runs, bytes and FLOPs.

Bytes and FLOPs are those that an operation's formula needs: operands read once, results written
once, a multiplication and an addition being two FLOPs. With F kept bins, T tiles, C and C'
channels:

* ``direct_conv2d``: 2 k^2 C C' per position; image and weight in, image out, and what is added.
* ``dft_forward``: the image in, F 3 T C out; the Triton kernel's single product with folded
  windows of P positions takes 2 P F per tile and channel, the separable form of plain PyTorch less.
* ``bin_gemm``: 8 F T C C'; signal F 3 T C and weight F 2 C C' in, product F 2 T C' out.
* ``dft_inverse``: the product in, the image out, and what is added; FLOPs as for ``dft_forward``.
* ``weight_gradient``: 8 F T C C'; both signals in, F 2 C C' out.
* ``layer_norm_stats``: 3 per element, which is read once; only for a decoder's input, since every
  other block's are found by the convolution before it.
* ``detokenize``: 2 per element of the LoRA matrices; tokens and means in, elements out; where the
  last convolution does not write the matrices itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from dnd_fast.generator import GeneratorConfig
from dnd_fast.kernels.fft import dft
from dnd_fast.kernels.fft.tiling import FFTConvPlan, columns
from dnd_fast.kernels.lora_scatter import LoraScatterTable
from dnd_fast.kernels.planner.cost_model import ConvPlan, DecoderPlan
from dnd_fast.lora.layout import TokenLayout
from dnd_fast.recipe import DecoderSpec, Recipe


@dataclass(frozen=True)
class Operation:
    """An operation at one shape.

    Attributes:
        layer: Name of the convolution, with its DFT's lengths, or of the block.
        name: Name of the operation.
        flops: Operations that its formula needs.
        bytes_moved: Bytes that its formula needs to be moved.
        make: Takes memory for random operands, and gives what runs the operation on them.
    """

    layer: str
    name: str
    flops: float
    bytes_moved: float
    make: Callable[[], Callable[[], object]]


def torch_operations(choice: ConvPlan, batch: int) -> Iterator[Operation]:
    """A convolution in plain PyTorch: float32, on a CPU."""
    shape, plan = choice.shape, choice.fft_plan
    c_in, c_out, size = shape.channels_in, shape.channels_out, 4
    images = tuple(size * batch * shape.height * shape.width * c for c in (c_in, c_out))
    if plan is None:

        def make_direct() -> Callable[[], object]:
            x = torch.randn(batch, shape.height, shape.width, c_in).permute(0, 3, 1, 2)
            weight = torch.randn(c_out, c_in, shape.kernel, shape.kernel)
            return lambda: conv2d(x, weight, padding=shape.kernel // 2)

        moved = sum(images) + size * shape.weights
        flops = batch * shape.direct_flops
        yield Operation(f"{shape.name} direct", "direct_conv2d", flops, moved, make_direct)
        return
    bins, tiles, layer = plan.bins, batch * plan.tiles, f"{shape.name} {choice.algorithm}"
    inputs = plan.width.inputs.positions, plan.height.inputs.positions
    kept = plan.width.kept.positions, plan.height.kept.positions

    def make_forward() -> Callable[[], object]:
        x = torch.randn(shape.width, shape.height, batch, c_in)
        spans = plan.width.inputs, plan.height.inputs
        return lambda: dft.dft_forward(x, plan, inputs, norm="ortho", spans=spans, planes=3)

    def make_bin_gemm() -> Callable[[], object]:
        signal = torch.randn(bins, 3 * tiles, c_in)
        weight = torch.randn(bins, 2, c_out, c_in)

        def run() -> Tensor:
            product = torch.bmm(signal[:, tiles:], weight[:, 0].mT)
            return product.baddbmm_(signal[:, : 2 * tiles], weight[:, 1].mT)

        return run

    def make_inverse() -> Callable[[], object]:
        product = torch.randn(bins, 2, tiles, c_out)
        return lambda: dft.dft_inverse(product, plan, kept, norm="ortho")

    signal, product = size * bins * 3 * tiles * c_in, size * bins * 2 * tiles * c_out
    across = 2.0 * len(inputs[0]) * _real_columns(plan)  # per row, once for all tiles along height
    flops = across * batch * shape.height * plan.width.tiles * c_in
    flops += _height_flops(plan, len(inputs[1]), 3) * tiles * c_in
    yield Operation(layer, "dft_forward", flops, images[0] + signal, make_forward)
    weight = size * bins * 2 * c_out * c_in
    flops = 8.0 * bins * tiles * c_in * c_out
    yield Operation(layer, "bin_gemm", flops, signal + weight + product, make_bin_gemm)
    flops = 2.0 * len(kept[0]) * _real_columns(plan) * len(kept[1])
    flops = (flops + _height_flops(plan, len(kept[1]), 2)) * tiles * c_out
    yield Operation(layer, "dft_inverse", flops, product + images[1], make_inverse)


def _real_columns(plan: FFTConvPlan) -> int:
    """Real numbers per row of a window after the transform along its width."""
    self_conjugate, conjugate_pairs = columns(plan.width.dft)
    return len(self_conjugate) + 2 * len(conjugate_pairs)


def _height_flops(plan: FFTConvPlan, positions: int, planes: int) -> float:
    """Between some positions along the height and the planes of all bins, one tile and channel."""
    n, (self_conjugate, conjugate_pairs) = plan.height.dft, columns(plan.width.dft)
    frequencies = len(self_conjugate) * (n // 2 + 1) + 2 * len(conjugate_pairs) * n
    return 2.0 * positions * planes * frequencies


def triton_operations(
    choice: ConvPlan,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    scatter: LoraScatterTable | None = None,
) -> Iterator[Operation]:
    """A convolution on the Triton kernels, as in a pass: data laid out, LayerNorm on load, what is
    done before the store (but no residual); and its gradient's product.

    ``scatter`` is for a decoder's last convolution.
    """
    from dnd_fast.kernels.triton import fft_conv as triton_conv
    from dnd_fast.kernels.triton.bin_gemm import bin_gemm, bin_gemm_weight_gradient
    from dnd_fast.kernels.triton.block import image_order
    from dnd_fast.kernels.triton.checks import LayerNorm
    from dnd_fast.kernels.triton.dft_forward import dft_forward_triton
    from dnd_fast.kernels.triton.dft_inverse import dft_inverse_triton
    from dnd_fast.kernels.triton.direct_conv import direct_conv2d, pack_weight

    shape, plan, size = choice.shape, choice.fft_plan, dtype.itemsize
    c_in, c_out = shape.channels_in, shape.channels_out
    images = [size * batch * shape.height * shape.width * c for c in (c_in, c_out)]
    convolution = shape.convolution
    if convolution.epilogue == "mix":
        images[1] *= 2  # what is there already is added to
    if scatter is not None:
        images[1] = 4 * batch * scatter.elements + 4 * c_out * shape.height * shape.width

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=dtype, device=device)

    def image(channels: int, order: tuple[int, ...]) -> Tensor:
        sizes = batch, channels, shape.height, shape.width
        return random(*(sizes[order.index(dim)] for dim in range(4))).permute(order)

    def loaded() -> tuple[Tensor, LayerNorm | None]:
        """The input, and its LayerNorm."""
        order = image_order(convolution, convolution.source)
        x = image(c_in, order)
        if convolution.source != "x":
            return x, None
        _, n, length, c = x.permute([order.index(dim) for dim in range(4)]).shape
        stats, affine = torch.ones(2, batch, n, device=device), random(2, length, c)
        return x, LayerNorm(*stats, *affine, order)

    def stored() -> tuple[Tensor, dict[str, Any]]:
        """The output, and what is done before it is stored."""
        options: dict[str, Any] = {"epilogue": convolution.epilogue}
        if convolution.epilogue == "bias_residual":
            options["bias"] = random(c_out)
        if scatter is not None:
            options["scatter"] = scatter
            return torch.empty(batch, scatter.elements, device=device), options
        out = image(c_out, image_order(convolution, convolution.target))
        if convolution.epilogue == "tanh_bias":
            options["bias"] = out[0]
        elif convolution.epilogue == "bias_residual":
            options["stats"] = torch.empty(2, batch, c_out, device=device).unbind()
        else:
            options["amax"] = torch.zeros(1, device=device)
        if convolution.epilogue == "mix":
            options["other"] = out
        return out, options

    if plan is None:

        def make_direct() -> Callable[[], object]:
            (x, norm), (out, options) = loaded(), stored()
            packed = pack_weight(random(c_out, c_in, shape.kernel, shape.kernel))
            return lambda: direct_conv2d(x, packed, out, shape.kernel, norm=norm, **options)

        moved = sum(images) + size * shape.weights
        flops = batch * shape.direct_flops
        yield Operation(f"{shape.name} direct", "direct_conv2d", flops, moved, make_direct)
        return
    bins, tiles, layer = plan.bins, batch * plan.tiles, f"{shape.name} {choice.algorithm}"
    root = math.sqrt(plan.window_size)
    inputs, kept = triton_conv.input_tiling(plan), triton_conv.output_tiling(plan)

    def make_forward() -> Callable[[], object]:
        (x, norm), signal = loaded(), random(bins, 3, tiles, c_in)
        matrix = triton_conv.input_matrix(plan, dtype, device)
        scaling = {"bound": torch.ones((), device=device), "sqrt_window_size": root}
        return lambda: dft_forward_triton(x, matrix, inputs, signal, planes=3, norm=norm, **scaling)

    def make_bin_gemm() -> Callable[[], object]:
        signal, product = random(bins, 3, tiles, c_in), random(bins, 2, tiles, c_out)
        weight = random(bins, 2, c_out, c_in)
        return lambda: bin_gemm(signal, weight, product)

    def make_inverse() -> Callable[[], object]:
        product, (out, options) = random(bins, 2, tiles, c_out), stored()
        matrix = triton_conv.output_matrix(plan, dtype, device)
        options |= {"bound": torch.ones((), device=device), "sqrt_window_size": root}
        return lambda: dft_inverse_triton(product, matrix, kept, out, **options)

    def make_gradient() -> Callable[[], object]:
        signal, dy = random(bins, 3, tiles, c_in), random(bins, 2, tiles, c_out)
        gradient = torch.empty(bins, 2, c_out, c_in, device=device)
        return lambda: bin_gemm_weight_gradient(dy, signal, gradient)

    signal, product = size * bins * 3 * tiles * c_in, size * bins * 2 * tiles * c_out
    weight = bins * 2 * c_out * c_in
    window, outputs = inputs.size_h * inputs.size_w, kept.size_h * kept.size_w
    products = 8.0 * bins * tiles * c_in * c_out
    for name, flops, moved, make in (
        ("dft_forward", 2.0 * window * bins * tiles * c_in, images[0] + signal, make_forward),
        ("bin_gemm", products, signal + size * weight + product, make_bin_gemm),
        ("dft_inverse", 2.0 * outputs * bins * tiles * c_out, product + images[1], make_inverse),
        ("weight_gradient", products, signal + product + 4 * weight, make_gradient),
    ):
        yield Operation(layer, name, flops, moved, make)


def recipe_scatter(recipe: Recipe, device: torch.device) -> LoraScatterTable:
    """Where a recipe's tokens go, with random statistics where tokens do not carry their own."""
    layout = TokenLayout.from_dict(GeneratorConfig.from_recipe(recipe).layout)
    if layout.scale == "static":
        mean = torch.randn(layout.num_tokens, *layout.token_shape)
        layout.set_statistics(mean, torch.ones(layout.num_tokens, 1, 1))
    return layout.to(device).targets(device)


def other_operations(
    spec: DecoderSpec,
    scatter: LoraScatterTable | None,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[Operation]:
    """On the Triton kernels: LayerNorm's statistics of the input, and a recipe's detokenising."""
    from dnd_fast.kernels.triton.detokenize import detokenize
    from dnd_fast.kernels.triton.layer_norm import layer_norm_stats

    def make_stats() -> Callable[[], object]:
        x = torch.randn(batch, *spec.features[0], dtype=dtype, device=device)
        return lambda: layer_norm_stats(x)

    elements = batch * math.prod(spec.features[0])
    moved = dtype.itemsize * elements
    yield Operation("input", "layer_norm_stats", 3.0 * elements, moved, make_stats)
    if scatter is None:
        return

    def make_detokenize() -> Callable[[], object]:
        tokens = torch.randn(batch, *spec.features[-1], dtype=dtype, device=device)
        out = torch.empty(batch, scatter.elements, device=device)
        return lambda: detokenize(tokens, scatter, out)

    elements = batch * math.prod(spec.features[-1])
    moved = dtype.itemsize * elements + 4 * batch * 2 * scatter.elements
    flops = 2.0 * batch * scatter.elements
    yield Operation("tokens", "detokenize", flops, moved, make_detokenize)


def operations(
    spec: DecoderSpec,
    recipe: Recipe | None,
    plan: DecoderPlan,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Iterator[Operation]:
    """Of a whole decoder: the Triton kernels on a GPU, plain PyTorch on a CPU."""
    if device.type != "cuda":
        for choice in plan.convolutions:
            yield from torch_operations(choice, batch)
        return
    scatter = None if recipe is None else recipe_scatter(recipe, device)
    *others, last = plan.convolutions
    for choice in others:
        yield from triton_operations(choice, batch, dtype, device)
    written = None if scatter is None or scatter.border else scatter
    yield from triton_operations(last, batch, dtype, device, written)
    yield from other_operations(spec, scatter, batch, dtype, device)
