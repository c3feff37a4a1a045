"""Places in one workspace for buffers that live for a while each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shave.backends.container import ALIGNMENT


@dataclass(frozen=True)
class Demand:
    """A buffer that needs a place.

    Attributes:
        size: Bytes.
        born: First step that touches it.
        died: Last step that touches it.
    """

    size: int
    born: int
    died: int


def place(demands: Sequence[Demand]) -> tuple[list[int], int]:
    """Give each buffer an offset such that no two that live at the same step overlap.

    The largest goes first; each takes the smallest gap that holds it between those that are already placed and live at
    the same time. Method: Y. Pisarchyk and J. Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020
    (arXiv 2001.03288), greedy by size.

    Returns:
        The offsets, multiples of 64 bytes, and the size of the workspace.
    """
    offsets = [0] * len(demands)
    placed: list[int] = []
    total = 0
    for k in sorted(range(len(demands)), key=lambda k: (-demands[k].size, demands[k].born)):
        wanted = demands[k]
        taken = sorted(
            (offsets[j], offsets[j] + _rounded(demands[j].size))
            for j in placed
            if demands[j].born <= wanted.died and wanted.born <= demands[j].died
        )
        offsets[k] = _smallest_gap(taken, _rounded(wanted.size))
        placed.append(k)
        total = max(total, offsets[k] + _rounded(wanted.size))
    return offsets, total


def _smallest_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """Start of the smallest gap that holds ``size`` bytes, or the end of everything."""
    best: tuple[int, int] | None = None
    end = 0
    for start, stop in taken:
        if start - end >= size and (best is None or start - end < best[0]):
            best = (start - end, end)
        end = max(end, stop)
    return end if best is None else best[1]


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
