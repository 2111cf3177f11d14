"""What the compiler makes of a Triton kernel for a GPU that need not be present."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

# Bytes that one block may use, by compute capability.
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


def compile_launch(kernel: Any, arguments: Mapping[str, Any], capability: int) -> dict[str, int]:
    """Compile a kernel ahead of time, without a GPU, as a launch would compile it.

    Args:
        kernel: A ``triton.jit`` function; needs Triton's interpreter to be off.
        arguments: All keyword arguments of the launch, num_warps among them. Tensors may be on the
            meta device and are then taken to be aligned to 16 bytes.
        capability: 80, 90 or 100.

    Returns:
        registers (of a thread), spills (bytes stored), shared (bytes), and counts of instructions
        in the PTX: wgmma, mma (the warp-wide and the sm_100 one), async_copies and tma.
    """
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    # Triton's own way from a call to what it compiles, which needs no device.
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(**arguments)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=parsed.__dict__)
    ptx = compiled.asm["ptx"]
    return {
        **_resources(compiled.asm["cubin"], compiled.metadata.shared),
        "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
        "mma": len(re.findall(r"mma\.sync|tcgen05\.mma", ptx)),
        "async_copies": len(re.findall(r"cp\.async\.c[ag]", ptx)),
        "tma": len(re.findall(r"cp\.async\.bulk\.tensor", ptx)),
    }


def _resources(cubin: bytes, shared: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage_of = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": usage_of["REG"],
        "spills": usage_of["STACK"] + usage_of["LOCAL"],
        "shared": shared,
    }
