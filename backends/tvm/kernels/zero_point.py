"""Where sums of integers start in a convolution, so that codes count less their zero point.

The sum of (code - zero point) * weight is that of code * weight less the zero point times the sum of the weights, which
is known ahead of time. Taps in the padding are left out of both, so outputs at the borders need values of their own:
one for each class of outputs that meet the same taps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr
from shave.backends.tvm.kernels.base import Array, Flat, bind, ceil_div, pad_channels, tensor
from shave.backends.tvm.kernels.geometry import ConvShape, Phase, PixelRun, TapClasses, phases
from shave.backends.tvm.kernels.register_tile import RegisterTile


def corrections(weight: Array, zero_point: int, shape: ConvShape, target: Target) -> Array:
    """What sums start from.

    Args:
        weight: ``shape.weight_shape``, int8.
        zero_point: The code that stands for 0.
        shape: The convolution, not transposed.
        target: Gives the number of lanes.

    Returns:
        [*classes of each axis, output blocks, lanes], int32.
    """
    (axes,) = phases(shape)
    classes = [TapClasses.of(axis) for axis in axes]
    sums = weight.astype(np.int64).sum(axis=1)
    made = np.zeros(_extents(shape, target), np.int32)
    for place in np.ndindex(*made.shape[:-2]):
        met = sums
        for axis, of, number in zip(axes, classes, place, strict=True):
            inside = [axis.meets(of.members[number], tap) for tap in range(axis.taps)]
            met = met[:, inside].sum(axis=1)
        made[place] = pad_channels(-zero_point * met, target.lanes, "int32")
    return made


def _extents(shape: ConvShape, target: Target) -> tuple[int, ...]:
    (axes,) = phases(shape)
    return (*(TapClasses.of(a).count for a in axes), ceil_div(shape.out_channels, target.lanes), target.lanes)


class Corrections:
    """The parameter of a kernel that holds them."""

    def __init__(self, shape: ConvShape, target: Target) -> None:
        """Declare it."""
        self._lanes = target.lanes
        self._blocks = _extents(shape, target)[-2]
        self._values: Any = tensor("corrections", _extents(shape, target), "int32")

    def flatten(self) -> None:
        """See it as a row of elements; inside the root block, ahead of :meth:`load_into`."""
        self._values = Flat(self._values)

    def load_into(
        self,
        tile: RegisterTile,
        phase: tuple[Phase, ...],
        run: PixelRun,
        block: int | Expr,
        position: list[int | Expr],
    ) -> None:
        """Start the sums of a tile.

        Args:
            tile: Its rows are neighbours along the last axis.
            phase: All axes; rows of the image that are laid end to end are one class.
            run: The tiles of which this is one.
            block: Its first block of output channels.
            position: Its first output.
        """
        values = self.starts(phase, run, block, position[:-1])
        tile.load(lambda row, part: values(row, part.vector))

    def starts(
        self, phase: tuple[Phase, ...], run: PixelRun, block: int | Expr, outer: Sequence[int | Expr]
    ) -> Callable[[int | Expr, int], Expr]:
        """Give a function (pixel of a tile, block of channels from ``block`` on) to what its sums start from.

        Args:
            phase: All axes.
            run: The tiles of which this is one.
            block: Number of a block of output channels.
            outer: The position of the tile along all axes but the last.
        """
        classes = [TapClasses.of(axis) for axis in phase]
        number: int | Expr = 0
        for of, q in zip(classes[:-1], outer, strict=True):
            number = number * of.count + of.number(q)
        (start,) = bind((number * (classes[-1].count * self._blocks) + block) * self._lanes)

        def value(pixel: int | Expr, vector: int) -> Expr:
            # The tiles of a run are alike in which taps they meet, so the first one speaks for all.
            inside = classes[-1].number(run.first + pixel) * (self._blocks * self._lanes)
            return self._values.load(start + inside + vector * self._lanes, self._lanes)

        return value
