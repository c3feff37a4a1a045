"""What a pass may ask a cost oracle about: operators by their sizes alone, as plain data.

An oracle is a callable that takes such a problem and gives the seconds of one call on some machine, or None where it
knows none. Passes get it through :attr:`shave.passes.base.Context.oracle`, so that they depend on no backend; where its
figures come from (an analytic model, a database of measurements) is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "int8"]
"""float32 throughout, or codes of 8 bits in, weights of 8 bits, sums of 32 bits, and codes out."""


@dataclass(frozen=True)
class Conv2d:
    """A direct convolution of [batch, in_channels, height, width] with constant weights.

    Attributes:
        batch: Images per call; None where only the call knows, which counts as 1.
        in_channels: Channels of the input, of all groups.
        out_channels: Channels of the output, of all groups.
        height: Of the input.
        width: Of the input.
        kernel: (height, width).
        stride: (height, width).
        padding: Zeros on either side, (height, width).
        dilation: (height, width).
        groups: Number of groups.
        precision: Of the arithmetic.
    """

    batch: int | None
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    precision: Precision = "float32"


@dataclass(frozen=True)
class WinogradConv2d:
    """The same in float32 by Winograd's method: 3x3, stride 1, no dilation, one group.

    Attributes:
        batch: As in :class:`Conv2d`; so are all but the last.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        height: Of the input.
        width: Of the input.
        padding: Zeros on either side, (height, width).
        tile: Outputs along one axis of a tile: 2, 4 or 6.
    """

    batch: int | None
    in_channels: int
    out_channels: int
    height: int
    width: int
    padding: tuple[int, int]
    tile: int

    @property
    def direct(self) -> Conv2d:
        """The convolution that it computes."""
        sizes = (self.batch, self.in_channels, self.out_channels, self.height, self.width)
        return Conv2d(*sizes, (3, 3), padding=self.padding)


class Measured(float):
    """Seconds that were measured, not estimated. An oracle gives all ways to compute a thing in one of the two.

    Attributes:
        estimate: What would have been estimated, to set beside estimates of other things; None if nothing would.
    """

    estimate: float | None

    def __new__(cls, seconds: float, estimate: float | None = None) -> Measured:
        """Seconds, and what was estimated."""
        made = super().__new__(cls, seconds)
        made.estimate = estimate
        return made


@dataclass(frozen=True)
class Matmul:
    """A product of [rows, inputs] with constant weights [inputs, outputs].

    Attributes:
        rows: Of the product; None where only the call knows, which counts as in :class:`Conv2d`.
        inputs: Length of the sums.
        outputs: Columns of the product.
        precision: Of the arithmetic.
    """

    rows: int | None
    inputs: int
    outputs: int
    precision: Precision = "float32"


@dataclass(frozen=True)
class BatchMatmul:
    """Products of two tensors that come with the call: [batch, rows, inputs] times [batch, inputs, outputs].

    Attributes:
        batch: Number of products.
        rows: Of each.
        inputs: Length of the sums.
        outputs: Columns of each.
        precision: Of the arithmetic.
    """

    batch: int
    rows: int
    inputs: int
    outputs: int
    precision: Precision = "float32"


@dataclass(frozen=True)
class Transpose:
    """A float32 tensor written anew with its axes in another order.

    Attributes:
        elements: Of the tensor.
    """

    elements: int


@dataclass(frozen=True)
class Conversion:
    """A float32 tensor turned into codes of 8 bits, or back, by a kernel of its own: a border between precisions.

    Attributes:
        elements: Of the tensor.
        measured: Whether the range of the values is found first.
    """

    elements: int
    measured: bool = False


Convolution = Conv2d | WinogradConv2d
Problem = Convolution | Matmul | BatchMatmul | Transpose | Conversion
Oracle = Callable[[Problem], "float | None"]
