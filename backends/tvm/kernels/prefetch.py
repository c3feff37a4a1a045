"""Software prefetch of packed weights: while one panel computes, its tiles ask for the lines of the panel behind it.

The weights of a network fit no cache, so each panel comes from memory once per call. Without prefetch the first tile of
a panel waits for it and the others do not; with it, memory works while the arithmetic units do. All tiles of a panel
ask for equal parts, a few lines at a time and in the order of addresses: a core has about 16 requests in flight, and a
burst of them would hold up the loads of the tile itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, T, tirx
from shave.backends.tvm.kernels.base import Flat, bind, ceil_div, only_if

LINE_BYTES = 64
FLOATS = LINE_BYTES // 4
"""Float32 elements of a cache line."""
LEAST_EXPOSED = 0.125
"""Share of the shorter of arithmetic and reading that does not hide behind the longer, for the smallest panels."""


def overlapped(arithmetic: float, memory: float, panel: int, target: Target) -> float:
    """Estimated seconds of computing and reading weights side by side.

    The shorter of the two hides behind the longer but for a part that grows with the share of the level 2 cache which a
    panel of so many bytes takes (fitted to measurements on an AVX-512 core).
    """
    exposed = min(1.0, LEAST_EXPOSED + panel / target.l2_bytes)
    return max(arithmetic, memory) + exposed * min(arithmetic, memory)


@dataclass(frozen=True)
class Prefetch:
    """How the tiles of one panel share the lines of the next.

    Attributes:
        chunks: Steps of a tile at which it asks.
        lines: Lines that it asks for at each.
        tiles: Tiles that ask: the first of those that the panel computes.
        pieces: Offsets of the pieces of the panel, elements. Each step asks for ``lines`` of every piece.
        line: Elements of a cache line.
    """

    chunks: int
    lines: int
    tiles: int
    pieces: tuple[int, ...] = (0,)
    line: int = FLOATS

    @staticmethod
    def of(
        elements: int, chunks: int, tiles: int, pieces: tuple[int, ...] = (0,), line: int = FLOATS
    ) -> Prefetch | None:
        """Share a panel, ``pieces`` of ``elements`` each, among ``tiles`` of ``chunks`` steps.

        None if there is but one tile: then computing takes less time than reading, which the hardware foresees.
        """
        if tiles < 2:
            return None
        total = ceil_div(elements, line)
        lines = ceil_div(total, tiles * chunks)
        return Prefetch(chunks, lines, ceil_div(total, chunks * lines), pieces, line)

    def first(self, panel: int | Expr, tile: int | Expr) -> int | Expr:
        """Element from which tile number ``tile`` asks for lines of the panel at ``panel``; negative if it does not."""
        if isinstance(tile, int) and not 0 <= tile < self.tiles:
            return -1
        start: Any = panel + tile * (self.chunks * self.lines * self.line)
        if isinstance(tile, Expr):
            start = T.Select(T.And(tile >= 0, tile < self.tiles), start, tirx.const(-1, str(start.ty.dtype)))
        (bound,) = bind(start)
        return bound

    def ask(self, weight: Flat, first: int | Expr, chunk: int | Expr) -> None:
        """Ask for the lines of a chunk, ``first`` being what :meth:`first` gave."""
        if isinstance(first, int) and first < 0:
            return
        with only_if(first >= 0):
            (start,) = bind(first + chunk * (self.lines * self.line))
            for piece, number in itertools.product(self.pieces, range(self.lines)):
                weight.prefetch(start + (piece + number * self.line), 2)
