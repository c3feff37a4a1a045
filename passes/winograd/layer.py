"""Convolutions as the pass sees them, and why it cannot take some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.ir.cook_toom import TAPS
from shave.ir.ops import argument, op_name
from shave.passes.problems import Conv2d, WinogradConv2d

MAX_PADDING = TAPS - 1
"""With more zeros around the image, outputs would be computed from zeros alone."""

_OPERATORS = ("aten.conv2d", "aten.convolution")


@dataclass(frozen=True)
class Layer:
    """A convolution that Winograd's method can compute: 3x3, stride 1, constant float32 weights, known size.

    Attributes:
        node: The call.
        source: What it reads.
        weight: The node of its weight [O, C, 3, 3].
        bias: The node of its bias; None if it has none.
        padding: Zeros on either side, (height, width).
        direct: The problem that it solves.
    """

    node: fx.Node
    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    padding: tuple[int, int]
    direct: Conv2d

    def winograd(self, tile: int) -> WinogradConv2d:
        """The same problem by Winograd's method."""
        d = self.direct
        return WinogradConv2d(d.batch, d.in_channels, d.out_channels, d.height, d.width, self.padding, tile)


def is_candidate(node: fx.Node) -> bool:
    """Whether a call is a convolution in two dimensions."""
    return op_name(node) in _OPERATORS and argument(node, "weight").meta["val"].dim() == 4


def read(node: fx.Node) -> Layer | str:
    """Read a candidate, or say why Winograd's method is not for it."""
    source, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
    kernel = tuple(weight.meta["val"].shape[2:])
    stride, dilation = _pair(argument(node, "stride")), _pair(argument(node, "dilation"))
    padding = _padding(argument(node, "padding"), kernel, dilation)
    groups = int(argument(node, "groups"))
    if "transposed" in _names(node) and argument(node, "transposed"):
        return "it is transposed"
    if kernel != (TAPS, TAPS):
        return f"its kernel is {'x'.join(map(str, kernel))}, not 3x3"
    if stride != (1, 1):
        return f"its stride is {_text(stride)}, not 1"
    if dilation != (1, 1):
        return f"its dilation is {_text(dilation)}, not 1"
    if groups != 1:
        return f"it has {groups} groups"
    if max(padding) > MAX_PADDING:
        return f"its padding is {_text(padding)}, more than {MAX_PADDING}"
    if weight.op != "get_attr" or (bias is not None and bias.op != "get_attr"):
        return "its weights are computed"
    value = source.meta["val"]
    if value.dtype != torch.float32:
        return f"it computes in {str(value.dtype).removeprefix('torch.')}, not float32"
    if value.dim() != 4:
        return "it has no batch axis"
    if any(isinstance(size, torch.SymInt) for size in value.shape[2:]):
        return "its height or width is dynamic"
    if not node.users:
        return "nothing reads it"
    batch, channels, height, width = value.shape
    out = int(weight.meta["val"].shape[0])
    known = None if isinstance(batch, torch.SymInt) else int(batch)
    direct = Conv2d(known, int(channels), out, int(height), int(width), (TAPS, TAPS), padding=padding)
    return Layer(node, source, weight, bias, padding, direct)


def _padding(given: Any, kernel: tuple[int, ...], dilation: tuple[int, int]) -> tuple[int, int]:
    if given == "valid":
        return 0, 0
    if given == "same":  # of an even kernel it is not symmetric; such are refused for their kernel
        height, width = (d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
        return height, width
    return _pair(given)


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return int(values[0]), int(values[-1])


def _names(node: fx.Node) -> list[str]:
    return [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]


def _text(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}x{pair[1]}"
