"""What the compiler makes of a Triton kernel for a GPU that need not be present."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int8: "i8",
    torch.int32: "i32",
    torch.int64: "i64",
}
# Bytes that one block may use, by compute capability.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


def compile_report(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    num_warps: int,
    num_stages: int,
) -> dict[str, int]:
    """Compile a kernel ahead of time, without a GPU.

    Args:
        kernel: a ``triton.jit`` function; needs Triton's interpreter to be off.
        signature: type of each argument that is no constant: ``"*fp16"``, ``"i32"``, ``"fp32"``,
            ``"tensordesc<fp16[64,64]>"``. Pointers, and integers written ``"i32:16"``, are taken as
            multiples of 16, as a launch finds most of them to be.
        constants: values of the constexpr arguments, and of the others that are None or 1.
        capability: 80, 90 or 100.
        num_warps, num_stages: as for a launch.

    Returns:
        registers (of a thread), spills (bytes stored), shared (bytes), and counts of instructions
        in the PTX: wgmma, mma (the warp-wide and the sm_100 one), async_copies, tma.
    """
    types = {name: kind.removesuffix(":16") for name, kind in signature.items()}
    wide = {name for name, kind in signature.items() if kind[0] == "*" or kind.endswith(":16")}
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs=dict(constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in wide},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    return {
        **_resources(compiled.asm["cubin"], compiled.metadata.shared),
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"mma\.sync|tcgen05\.mma", ptx)),
        "async_copies": len(re.findall(r"cp\.async\.c[ag]", ptx)),
        "tma": len(re.findall(r"cp\.async\.bulk\.tensor", ptx)),
    }


def compile_launch(kernel: Any, arguments: Mapping[str, Any], capability: int) -> dict[str, int]:
    """:func:`compile_report` of a kernel as a launch would compile it.

    Args:
        kernel: as there.
        arguments: all keyword arguments of the launch, num_warps among them; tensors may be on the
            meta device.
        capability: as there.
    """
    signature, constants = {}, {}
    for name in kernel.arg_names:
        value = arguments[name]
        if name.isupper() or value is None or (isinstance(value, int) and value == 1):
            constants[name] = value
        elif isinstance(value, Tensor):
            signature[name] = f"*{TYPES[value.dtype]}"
        elif isinstance(value, TensorDescriptor):
            block = ",".join(map(str, value.block_shape))
            signature[name] = f"tensordesc<{TYPES[value.base.dtype]}[{block}]>"
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            kind = "i32" if abs(value) < 1 << 31 else "i64"
            signature[name] = kind if value % 16 else f"{kind}:16"
    stages = arguments.get("num_stages", 3)  # Triton's default
    return compile_report(kernel, signature, constants, capability, arguments["num_warps"], stages)


def _resources(cubin: bytes, shared: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": found["REG"],
        "spills": found["STACK"] + found["LOCAL"],
        "shared": shared,
    }
