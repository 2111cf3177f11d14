"""How the two spatial axes of a convolution are cut into tiles for a discrete Fourier transform."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

Positions = tuple[tuple[int, ...], tuple[int, ...]]  # along width and height


@dataclass(frozen=True)
class TileSpan:
    """Tiles along an axis.

    Attributes:
        before: Zeros to put before the axis.
        after: Zeros to put after the axis.
        size: Positions of a tile.
        step: Distance from one tile to the next.
        first: Where a tile's first position lies in the window of the DFT.
    """

    before: int
    after: int
    size: int
    step: int
    first: int

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of a tile in the window of the DFT."""
        return tuple(range(self.first, self.first + self.size))

    def __call__(self, x: Tensor, dim: int) -> Tensor:
        """Cut dimension ``dim`` into two: (tiles, size)."""
        if self.before or self.after:
            x = pad(x, (0, 0) * (x.ndim - 1 - dim) + (self.before, self.after))
        return x.unfold(dim, self.size, self.step).movedim(-1, dim + 1)


@dataclass(frozen=True)
class AxisTiling:
    """How one spatial axis is cut into tiles.

    Attributes:
        length: Positions of the axis.
        kernel: Kernel size k, odd.
        dft: Length n of the DFT; more than half a kernel longer than the axis, or at least k.
    """

    length: int
    kernel: int
    dft: int

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}: it must be odd and positive.")
        if self.length < 1:
            raise ValueError(f"length={self.length}: it must be positive.")
        if self.dft < self.kernel and not self.whole:
            raise ValueError(
                f"a DFT of {self.dft} points is shorter than the kernel of {self.kernel}."
            )

    @property
    def whole(self) -> bool:
        """Whether one tile covers the axis."""
        return self.dft >= self.length + self.kernel // 2

    @property
    def outputs(self) -> int:
        """Outputs m per tile."""
        return self.length if self.whole else self.dft - self.kernel + 1

    @property
    def tiles(self) -> int:
        """Tiles along the axis."""
        return math.ceil(self.length / self.outputs)

    @property
    def offset(self) -> int:
        """Where in its window a tile's first output lies."""
        return 0 if self.whole else self.kernel // 2

    @property
    def inputs(self) -> TileSpan:
        """The windows that outputs are computed from."""
        if self.whole:
            return self.kept
        return self._cut(size=self.dft, before=self.offset, first=0)

    @property
    def kept(self) -> TileSpan:
        """The outputs of each tile."""
        return self._cut(size=self.outputs, before=0, first=self.offset)

    def _cut(self, size: int, before: int, first: int) -> TileSpan:
        after = (self.tiles - 1) * self.outputs + size - before - self.length
        return TileSpan(before, after, size, self.outputs, first)


@dataclass(frozen=True)
class FFTConvPlan:
    """Tiles and transforms of one convolution over (height, width)."""

    height: AxisTiling
    width: AxisTiling

    @classmethod
    def make(
        cls, height: int, width: int, kernel: int, dft_height: int, dft_width: int
    ) -> FFTConvPlan:
        """Plan for a spatial size, a kernel size and DFT lengths.

        Raises:
            ValueError: The kernel is even, or a DFT is shorter than the kernel.
        """
        return cls(AxisTiling(height, kernel, dft_height), AxisTiling(width, kernel, dft_width))

    @property
    def kernel(self) -> int:
        """Kernel size k."""
        return self.height.kernel

    @property
    def window_size(self) -> int:
        """Positions n1 n2 of the window of the DFT."""
        return self.height.dft * self.width.dft

    @property
    def tiles(self) -> int:
        """Tiles per sample."""
        return self.height.tiles * self.width.tiles

    @property
    def bins(self) -> int:
        """Frequency bins F that are kept, one per conjugate pair."""
        self_conjugate, conjugate_pairs = columns(self.width.dft)
        half = self.height.dft // 2 + 1
        return len(self_conjugate) * half + len(conjugate_pairs) * self.height.dft

    @property
    def taps(self) -> Positions:
        """Where the kernel's taps lie in the window: correlation puts tap t at p - t."""
        along = tuple(self.kernel // 2 - t for t in range(self.kernel))
        return along, along


def columns(n: int) -> tuple[list[int], list[int]]:
    """Frequencies along the width that are self-conjugate, and one of each conjugate pair."""
    self_conjugate = [0, n // 2] if n % 2 == 0 else [0]
    return self_conjugate, [b for b in range(n // 2 + 1) if b not in self_conjugate]


@dataclass(frozen=True)
class Tiling:
    """Tiles of an image: how many, from one to the next, and positions of each.

    The first tile's first position is ``before`` positions outside the image (0 for outputs).
    """

    tiles_h: int
    step_h: int
    before_h: int
    size_h: int
    tiles_w: int
    step_w: int
    before_w: int
    size_w: int

    def columns(self, image: Tensor) -> int:
        """Number of columns (tile, channel) of an image ``[B, C, H, W]``."""
        return self.tiles_h * self.tiles_w * image.shape[0] * image.shape[1]

    def arguments(self) -> tuple[int, int, int, int, int]:
        """Where tiles lie, as kernels take it: (tiles_w, step_h, step_w, before_h, before_w)."""
        return self.tiles_w, self.step_h, self.step_w, self.before_h, self.before_w

    @property
    def folded(self) -> int:
        """Positions of a folded tile: half of them, rounded up."""
        return (self.size_h * self.size_w + 1) // 2
