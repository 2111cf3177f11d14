"""Every Triton kernel at the shapes of a recipe: time, bytes, FLOPs, and how near to a limit.

    python -m bench.kernels --recipe coding-7b

Needs an NVIDIA GPU. Each call finds a cold L2 cache, as in a pass, where other layers' weights have
been through it. Bytes and FLOPs are those that the kernel's formula needs; the limits are this
device's measured copy bandwidth and rate of float16 matrix products.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

from dnd_fast.bench.results import append, provenance
from dnd_fast.bench.timing import console
from dnd_fast.kernels.device import DeviceProfile, calibrate
from dnd_fast.kernels.plan import ConvPlan, plan_decoder
from dnd_fast.recipe import Recipe


@dataclass(frozen=True)
class Operation:
    """A kernel at one shape.

    Attributes:
        layer: name of the convolution.
        kernel: name of the kernel.
        run: launches it.
        flops, bytes_moved: that its formula needs.
    """

    layer: str
    kernel: str
    run: Callable[[], object]
    flops: float
    bytes_moved: float


def main(
    recipe: Annotated[str, typer.Option(help="A recipe's name or file.")] = "coding-7b",
    batch: Annotated[int, typer.Option(help="Adapters per pass.", min=1)] = 1,
    memory: Annotated[float, typer.Option(help="GB that the planned weights may take.")] = 20,
    save: Annotated[bool, typer.Option(help="Add them to bench/results/kernels.jsonl.")] = False,
) -> None:
    """Time every kernel of a recipe's plan."""
    if not torch.cuda.is_available():
        raise SystemExit("bench.kernels times Triton kernels: it needs an NVIDIA GPU.")
    from triton.testing import do_bench

    device = torch.device("cuda")
    spec = Recipe.load(recipe).decoder
    profile = calibrate(device, torch.float16, dense=True)
    plan = plan_decoder(spec.features, spec.kernel_size, profile, batch=batch, memory=1e9 * memory)
    rows = []
    for choice in plan.convolutions:
        for operation in operations(choice, batch, torch.float16, device):
            p20, p50, p80 = (1e-3 * ms for ms in do_bench(operation.run, quantiles=[0.2, 0.5, 0.8]))
            rows.append(describe(operation, [p20, p50, p80], profile))
    figures = {"recipe": recipe, "batch": batch, "profile": profile.__dict__, "kernels": rows}
    table = Table("layer", "kernel", "us", "MB", "GFLOP", "of its limit", box=None)
    for row in rows:
        table.add_row(
            row["layer"],
            row["kernel"],
            f"{1e6 * row['p20_p50_p80_seconds'][1]:.1f}",
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['flops'] / 1e9:.1f}",
            f"{row['limit_share']:.0%}",
        )
    console.print(table)
    if save:
        console.print(f"Wrote {append('kernels', figures)}.")
    print(json.dumps(provenance() | figures))


def describe(operation: Operation, seconds: list[float], profile: DeviceProfile) -> dict[str, Any]:
    """A row of results; ``limit_share`` is the nearer limit's time over the median."""
    limit = max(operation.flops / profile.gemm_flops, operation.bytes_moved / profile.bandwidth)
    return {
        "layer": operation.layer,
        "kernel": operation.kernel,
        "p20_p50_p80_seconds": seconds,
        "bytes": operation.bytes_moved,
        "flops": operation.flops,
        "limit_share": limit / seconds[1],
    }


def operations(
    choice: ConvPlan, batch: int, dtype: torch.dtype, device: torch.device
) -> Iterator[Operation]:
    """The kernels of one convolution, on random data laid out as in a pass."""
    from dnd_fast.kernels import triton_conv
    from dnd_fast.kernels.bin_gemm import bin_gemm
    from dnd_fast.kernels.direct_conv import direct_conv2d, pack_weight
    from dnd_fast.kernels.transform import analyze, synthesize

    shape, plan, size = choice.shape, choice.tiles, dtype.itemsize
    c_in, c_out = shape.channels_in, shape.channels_out

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, dtype=dtype, device=device)

    x = random(batch, shape.height, shape.width, c_in).permute(0, 3, 1, 2)
    out = random(batch, shape.height, shape.width, c_out).permute(0, 3, 1, 2)
    if plan is None:
        packed = pack_weight(random(c_out, c_in, shape.kernel, shape.kernel))
        moved = float(x.nbytes + out.nbytes + packed.nbytes)
        flops = batch * shape.direct_flops
        yield Operation(
            shape.name,
            "direct_conv2d",
            lambda: direct_conv2d(x, packed, out, shape.kernel),
            flops,
            moved,
        )
        return
    tiles, bins = batch * plan.tiles, plan.bins
    signal, product = random(bins, 3, tiles, c_in), random(bins, 2, tiles, c_out)
    weight = random(bins, 2, c_out, c_in)
    into, back = (
        triton_conv.input_matrix(plan, dtype, device),
        triton_conv.output_matrix(plan, dtype, device),
    )
    inputs, kept = triton_conv.input_tiling(plan), triton_conv.output_tiling(plan)
    root = math.sqrt(plan.points)
    positions = inputs.size_h * inputs.size_w, kept.size_h * kept.size_w
    bound = torch.ones((), device=device)
    yield Operation(
        shape.name,
        "analyze",
        lambda: analyze(x, into, inputs, signal, planes=3, bound=bound, sqrt_points=root),
        2.0 * positions[0] * bins * tiles * c_in,
        float(x.nbytes + signal.nbytes),
    )
    yield Operation(
        shape.name,
        "bin_gemm",
        lambda: bin_gemm(signal, weight, product),
        8.0 * bins * tiles * c_in * c_out,
        float(signal.nbytes + weight.nbytes + product.nbytes),
    )
    yield Operation(
        shape.name,
        "synthesize",
        lambda: synthesize(product, back, kept, out, bound=bound, sqrt_points=root),
        2.0 * positions[1] * bins * tiles * c_out,
        float(product.nbytes + size * batch * shape.height * shape.width * c_out),
    )


if __name__ == "__main__":
    typer.run(main)
