"""What a Winograd convolution computes, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shave.backends.tvm.kernels.base import Dimension, ceil_div
from shave.backends.tvm.kernels.geometry import ConvShape

TAPS = 3


@dataclass(frozen=True)
class WinogradShape:
    """A 3x3 convolution of stride 1 over [batch, in_channels, *spatial].

    Attributes:
        batch: Images per call; None where only the call knows.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        spatial: (height, width) of the input.
        padding: Zeros before and after, per axis.
        tile: m, the extent of a tile of outputs.
        pooled: Of each 2x2 window of outputs, the largest is stored; an odd row or column at the end is left out.
    """

    batch: Dimension
    in_channels: int
    out_channels: int
    spatial: tuple[int, int]
    padding: tuple[int, int]
    tile: int
    pooled: bool = False

    @property
    def out_spatial(self) -> tuple[int, int]:
        """Extents of the output, ahead of pooling."""
        height, width = (size + 2 * p - TAPS + 1 for size, p in zip(self.spatial, self.padding, strict=True))
        return height, width

    @property
    def stored_spatial(self) -> tuple[int, int]:
        """Extents of what is stored."""
        height, width = self.out_spatial
        return (height // 2, width // 2) if self.pooled else (height, width)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles along each axis."""
        height, width = self.out_spatial
        return ceil_div(height, self.tile), ceil_div(width, self.tile)

    @property
    def direct(self) -> ConvShape:
        """The same as a direct convolution."""
        pads = tuple((p, p) for p in self.padding)
        return ConvShape(self.batch, self.in_channels, self.out_channels, self.spatial, (TAPS, TAPS), (), pads)


@dataclass(frozen=True)
class WinogradSchedule:
    """Choices of a Winograd convolution.

    Attributes:
        rows: Tiles of the image in a register tile.
        vectors: Largest number of output channel blocks in a register tile.
        block: Register tiles along the tiles of the image that go through the phases together.
        order: ``elements``: threads share blocks of tiles, and one element after the other is multiplied for all
            channels, by weights transformed once per call. ``channels``: threads share the output channels of a block,
            and transform their weights anew in each block, which must have many tiles to be worth it.
        depth: Input channel blocks whose transformed weights are in cache at a time, by ``channels`` only.
    """

    rows: int
    vectors: int
    block: int
    order: Literal["elements", "channels"]
    depth: int
