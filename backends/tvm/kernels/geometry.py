"""Which input position meets which weight tap at which output position: convolutions of any rank, also transposed.

Along one spatial axis a convolution is a :class:`Phase`: output position ``q`` and tap ``t`` meet input position
``q * stride + offset + t * tap_input``. A transposed convolution with stride s writes the output positions of each
residue modulo s from taps of its own, so it is s phases (per axis) of stride 1, each an ordinary convolution whose
outputs lie s apart; nothing is scattered and no zeros are multiplied.

Padding is never materialised: taps that fall outside of the input are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

from shave.backends.tvm.adapter import Expr, T
from shave.backends.tvm.kernels.arithmetic import InputDtype
from shave.backends.tvm.kernels.base import Dimension, Run, ceil_div, even_runs, quotient

QUAD = 4
"""Channels of 8 bits that fill 32."""


@dataclass(frozen=True)
class ConvShape:
    """A convolution over a tensor [batch, in_channels, *spatial] of any rank.

    Attributes:
        batch: Images per call; None where only the call knows.
        in_channels: Channels of the input, of all groups.
        out_channels: Channels of the output, of all groups.
        spatial: Extents of the input, such as (height, width).
        kernel: Extents of the weights.
        stride: Step between outputs (between inputs where transposed), per axis.
        padding: (before, after) per axis, in input positions (cut from the output where transposed).
        dilation: Distance between taps, per axis.
        groups: Number of groups.
        transposed: Whether this is the adjoint (``conv_transpose``).
        output_padding: Extra outputs at the end of each axis, transposed only; none by default.
        plain_input: The input is plain [N, C, *spatial], as the first layer of a network finds it; else blocked. Of
            uint8 it is [N, *spatial] instead, up to four channels of a pixel side by side in one int32.
        dtype: Of the input; float32 meets float32 weights, uint8 meets int8 weights.
    """

    batch: Dimension
    in_channels: int
    out_channels: int
    spatial: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    plain_input: bool = False
    dtype: InputDtype = "float32"

    def __post_init__(self) -> None:
        rank = len(self.spatial)
        filled = {"stride": (1,), "padding": ((0, 0),), "dilation": (1,), "output_padding": (0,)}
        for name, value in filled.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value * rank)
        for name in ("kernel", "stride", "padding", "dilation", "output_padding"):
            if len(getattr(self, name)) != rank:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {rank} spatial axes")
        if self.plain_input and self.dtype == "uint8" and (self.in_channels > QUAD or self.groups > 1):
            raise ValueError(f"{self.in_channels} channels in {self.groups} groups are no quad of one")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(f"{name} = {getattr(self, name)} is no multiple of groups = {self.groups}")

    def input_width(self, lanes: int) -> int:
        """Channels of a block of the input, on as many lanes."""
        if not self.plain_input:
            return lanes
        return 1 if self.dtype == "float32" else QUAD

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """Extents of the output."""
        extents = []
        for size, kernel, stride, padding, dilation, extra in zip(
            self.spatial, self.kernel, self.stride, self.padding, self.dilation, self.output_padding, strict=True
        ):
            reach = dilation * (kernel - 1) + 1
            if self.transposed:
                extents.append((size - 1) * stride + reach - sum(padding) + extra)
            else:
                extents.append((size + sum(padding) - reach) // stride + 1)
        return tuple(extents)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the plain weights: [out, in / groups, *kernel], transposed [in, out / groups, *kernel]."""
        if self.transposed:
            return (self.in_channels, self.out_channels // self.groups, *self.kernel)
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-adds per image, padding and all."""
        positions = prod(self.spatial if self.transposed else self.out_spatial)
        return positions * prod(self.weight_shape)

    @property
    def pointwise(self) -> bool:
        """Whether each output pixel depends on the input pixel at the same position only."""
        return (
            not self.transposed
            and set(self.kernel) == {1}
            and set(self.stride) == {1}
            and set(self.padding) == {(0, 0)}
        )


@dataclass(frozen=True)
class Phase:
    """Outputs ``first_output + q * output_step``, q < extent, along one axis (see the module's text).

    Attributes:
        extent: Number of output positions.
        first_output: The first of them.
        output_step: Distance between two of them.
        input_extent: Extent of the input.
        stride: Input positions from one output to the next.
        offset: Input position of output 0 and tap 0; negative inside the padding.
        taps: Number of taps.
        tap_input: Input positions from one tap to the next; positive.
        first_tap: Index into the weights of tap 0.
        tap_step: Weight indices from one tap to the next.
    """

    extent: int
    first_output: int
    output_step: int
    input_extent: int
    stride: int
    offset: int
    taps: int
    tap_input: int
    first_tap: int
    tap_step: int

    def meets(self, q: int, tap: int) -> bool:
        """Whether tap ``tap`` of output ``q`` lies inside the input."""
        return 0 <= q * self.stride + self.offset + tap * self.tap_input < self.input_extent

    @property
    def met_taps(self) -> int:
        """Pairs of an output and a tap that lies inside the input."""
        return sum(self.meets(q, tap) for q, tap in itertools.product(range(self.extent), range(self.taps)))

    @property
    def padded(self) -> bool:
        """Whether any tap of any output falls outside of the input."""
        corners = itertools.product((0, self.extent - 1), (0, self.taps - 1))
        return self.taps > 0 and not all(self.meets(q, tap) for q, tap in corners)


@dataclass(frozen=True)
class TapClasses:
    """The outputs along one axis in classes that meet the same taps: one by one at both ends, and all between.

    Attributes:
        first: Position of the first output of the class between.
        behind: Position behind its last one.
        extent: Number of outputs.
    """

    first: int
    behind: int
    extent: int

    @staticmethod
    def of(axis: Phase) -> TapClasses:
        """Those of an axis: the longest run of outputs that meet the same taps is the class between."""
        met = [tuple(axis.meets(q, tap) for tap in range(axis.taps)) for q in range(axis.extent)]
        longest, start = range(1), 0
        for _, group in itertools.groupby(met):
            run = range(start, start + len(list(group)))
            longest, start = max(longest, run, key=len), run.stop
        return TapClasses(longest.start, longest.stop, axis.extent)

    @property
    def count(self) -> int:
        """Number of classes."""
        return self.first + 1 + self.extent - self.behind

    @property
    def members(self) -> list[int]:
        """An output of each class."""
        return [*range(self.first + 1), *range(self.behind, self.extent)]

    def number(self, q: int | Expr) -> int | Expr:
        """The class of output ``q``."""
        if isinstance(q, int):
            return min(q, self.first) + max(q - self.behind + 1, 0)
        before = T.min(q, self.first) if self.first else 0
        return before + T.max(q - (self.behind - 1), 0) if self.behind < self.extent else before


def phases(shape: ConvShape) -> list[tuple[Phase, ...]]:
    """All combinations of phases over the spatial axes; exactly one for a convolution that is not transposed."""
    axes = [_axis_phases(shape, axis) for axis in range(len(shape.spatial))]
    return list(itertools.product(*axes))


def _axis_phases(shape: ConvShape, axis: int) -> list[Phase]:
    size, kernel, stride = shape.spatial[axis], shape.kernel[axis], shape.stride[axis]
    before, dilation, out = shape.padding[axis][0], shape.dilation[axis], shape.out_spatial[axis]
    if not shape.transposed:
        return [Phase(out, 0, 1, size, stride, -before, kernel, dilation, 0, 1)]
    result = []
    for residue in range(min(stride, out)):
        extent = ceil_div(out - residue, stride)
        # Taps k with (residue + before - k * dilation) divisible by the stride: an arithmetic progression in k.
        # Reversed, so that input positions rise with the tap.
        taps = [k for k in reversed(range(kernel)) if (residue + before - k * dilation) % stride == 0]
        offset = (residue + before - taps[0] * dilation) // stride if taps else 0
        tap_step = taps[1] - taps[0] if len(taps) > 1 else -1
        tap_input = max(1, -tap_step * dilation // stride)
        first = taps[0] if taps else 0
        result.append(Phase(extent, residue, stride, size, 1, offset, len(taps), tap_input, first, tap_step))
    return result


def met_taps(axis: Phase, base: int | Expr) -> tuple[int | Expr, int | Expr]:
    """First tap inside the input and number of such taps, for an output whose tap 0 lies at ``base``."""
    if not axis.padded:
        return 0, axis.taps
    low = T.max(0, quotient(axis.tap_input - 1 - base, axis.tap_input))
    high = T.min(axis.taps, quotient(axis.input_extent - base + axis.tap_input - 1, axis.tap_input))
    return low, T.max(0, high - low)


@dataclass(frozen=True)
class TapRun:
    """Consecutive taps that meet the same pixels of a tile: those of ``rows``."""

    first: int
    count: int
    rows: range


@dataclass(frozen=True)
class PixelRun:
    """``tiles.count`` tiles of ``tiles.size`` pixels from ``first`` on, all alike in which taps meet which pixels."""

    first: int
    tiles: Run
    taps: tuple[TapRun, ...] = field(default=())


def pixel_runs(phase: Phase, tile: int) -> list[PixelRun]:
    """Cut an axis into tiles and group the neighbours for which the same code works.

    Tiles at the borders differ from those inside by the taps they leave out, so borders cost nothing elsewhere.
    """
    tiles: list[tuple[int, int, tuple[TapRun, ...]]] = []
    first = 0
    for run in even_runs(phase.extent, tile):
        for _ in range(int(run.count)):
            tiles.append((first, run.size, _tap_runs(phase, first, run.size)))
            first += run.size
    grouped = itertools.groupby(tiles, key=lambda t: t[1:])
    runs = []
    for (size, taps), members in grouped:
        starts = [member[0] for member in members]
        runs.append(PixelRun(starts[0], Run(len(starts), size), taps))
    return runs


def _tap_runs(phase: Phase, first: int, size: int) -> tuple[TapRun, ...]:
    met = []
    for tap in range(phase.taps):
        inside = [r for r in range(size) if phase.meets(first + r, tap)]  # without gaps: positions rise with r
        met.append(range(inside[0], inside[-1] + 1) if inside else range(0))
    runs = []
    tap = 0
    for rows, group in itertools.groupby(met):
        count = len(list(group))
        if rows:
            runs.append(TapRun(tap, count, rows))
        tap += count
    return tuple(runs)


def merged_groups(shape: ConvShape, lanes: int) -> int:
    """How many neighbouring groups to compute as one dense group whose weights are zero off its diagonal blocks.

    Blocked kernels need whole blocks of channels per group. Merging m groups costs m times the multiply-adds, at full
    speed: 32 groups of 4 channels on 16 lanes become 8 groups of 16.
    """
    inputs, outputs = shape.in_channels // shape.groups, shape.out_channels // shape.groups
    for merged in range(1, shape.groups):
        whole_inputs = shape.plain_input or merged * inputs % lanes == 0
        if shape.groups % merged == 0 and whole_inputs and merged * outputs % lanes == 0:
            return merged
    return shape.groups


def merge_axes(spatial: Sequence[int], rows: int) -> tuple[int, ...]:
    """Spatial extents with ``rows`` rows of the last axis but one laid end to end (their number must divide)."""
    *outer, height, width = spatial
    return (*outer, height // rows, rows * width)
