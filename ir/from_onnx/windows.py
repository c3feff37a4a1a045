"""Sliding windows: sizes, paddings and their ``auto_pad`` forms, shared by convolutions and poolings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shave.ir.from_onnx.registry import OnnxNode
from shave.ir.from_onnx.values import Int, max_int


@dataclass(frozen=True)
class Window:
    """A sliding window over the spatial axes of a tensor, with one entry per axis.

    Attributes:
        kernel: how many elements it covers.
        strides: how far it moves.
        dilations: the distance between the elements it covers.
        before, after: padding at both ends; negative values crop.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Int, ...]
    after: tuple[Int, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """Elements from the first to the last that is covered."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def is_symmetric(self) -> bool:
        """Whether both ends are padded alike, by numbers that are not negative."""
        return all(
            isinstance(low, int) and isinstance(high, int) and low == high >= 0
            for low, high in zip(self.before, self.after, strict=True)
        )

    def count(self, sizes: Sequence[Int], ceil_mode: bool = False) -> list[Int]:
        """How many positions the window takes on axes of the given sizes.

        With ``ceil_mode`` the last position may hang over the end, but must start within the input or its padding
        before it.
        """
        counts: list[Int] = []
        for size, low, high, reach, stride in zip(
            sizes, self.before, self.after, self.reach, self.strides, strict=True
        ):
            room = size + low + high - reach
            if ceil_mode:
                count = (room + stride - 1) // stride + 1
                count = count - 1 if (count - 1) * stride >= size + low else count
            else:
                count = room // stride + 1
            counts.append(count)
        return counts


def window_of(node: OnnxNode, sizes: Sequence[Int], kernel: Sequence[int] | None = None) -> Window:
    """The window that a node's attributes describe, on spatial axes of the given sizes.

    Args:
        node: a convolution or pooling.
        sizes: the input's spatial sizes.
        kernel: the kernel's sizes, where they are not in ``kernel_shape``.
    """
    rank = len(sizes)
    shape = tuple(kernel if kernel is not None else node.attr("kernel_shape"))
    strides = tuple(node.attr("strides", [1] * rank))
    dilations = tuple(node.attr("dilations", [1] * rank))
    if not len(shape) == len(strides) == len(dilations) == rank:
        raise ValueError(f"kernel, strides or dilations do not have one entry for each of the {rank} spatial axes")
    auto, pads = node.attr("auto_pad", "NOTSET"), node.attr("pads", [0] * (2 * rank))
    if auto == "VALID":
        pads = [0] * (2 * rank)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, k, stride, dilation in zip(sizes, shape, strides, dilations, strict=True):
            total = max_int(((size + stride - 1) // stride - 1) * stride + (k - 1) * dilation + 1 - size, 0)
            low = total // 2 if auto == "SAME_UPPER" else total - total // 2
            before.append(low)
            after.append(total - low)
        return Window(shape, strides, dilations, tuple(before), tuple(after))
    return Window(shape, strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]))


def pad_spatial(x: Tensor, before: Sequence[Int], after: Sequence[Int], fill: float = 0.0) -> Tensor:
    """Pad (or crop, by negative amounts) the last axes of a tensor with a constant."""
    flat: list[Int] = []
    for low, high in zip(reversed(before), reversed(after), strict=True):
        flat += [low, high]
    if all(isinstance(amount, int) and amount == 0 for amount in flat):
        return x
    return torch.nn.functional.pad(x, flat, value=fill)
