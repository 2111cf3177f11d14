"""The length of long prompts projected to what a decoder takes.

Source: Drag-and-Drop LLMs, appendix A.3, and its published code.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from dnd_fast.errors import InvalidInput, sizes_named


class LengthProjection(nn.Module):
    """Learned projection of the prompt length, ``[B, N, L, C]`` -> ``[B, N, L', C]``.

    Args:
        length: L.
        projected_length: L'.
        mode: ``"transpose"``: linear, SiLU, linear, along L. ``"view"``: as in the first published
            code, which reinterprets ``[B, N, L, C]`` as ``[B, N, C, L]`` without transposing and
            has no SiLU; for checkpoints trained with it.

    Raises:
        InvalidInput: a length is not positive or more than torch can make, or ``mode`` is unknown.
    """

    def __init__(
        self,
        length: int,
        projected_length: int,
        *,
        mode: Literal["transpose", "view"] = "transpose",
    ) -> None:
        super().__init__()
        if mode not in ("transpose", "view"):
            raise InvalidInput(f"mode={mode!r}; choose 'transpose' or 'view'.")
        for name, size in (("length", length), ("projected_length", projected_length)):
            if type(size) is not int or size < 1:
                raise InvalidInput(f"{name}={size!r}: it must be a positive integer.")
        self.length = length
        self.projected_length = projected_length
        self.mode = mode
        with sizes_named(f"a projection of length {length} to {projected_length}"):
            self.down_proj = nn.Linear(length, projected_length)
            self.gate_proj = nn.Linear(projected_length, projected_length)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, L, C]`` -> ``[B, N, L', C]``, same dtype.

        Raises:
            InvalidInput: when the shape does not fit.
        """
        if x.ndim != 4 or x.shape[2] != self.length:
            raise InvalidInput(
                f"the projection takes [B, N, {self.length}, C], got {list(x.shape)}."
            )
        if self.mode == "view":
            projected = self.gate_proj(self.down_proj(x.reshape(*x.shape[:2], x.shape[3], -1)))
            return projected.reshape(*x.shape[:2], -1, x.shape[3])
        return self.gate_proj(nn.functional.silu(self.down_proj(x.mT))).mT
