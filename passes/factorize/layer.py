"""Linear layers and convolutions as the pass sees them, and why it cannot split some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import fx
from torch.nn import functional

from shave.ir.cost import one_sample
from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.shapes import hints
from shave.passes.weights import value_of

POSITIONS = 64
"""Rows that one sample of a batch gives at most to the moments of a layer's input: what lies close by is alike."""

_PRODUCTS = {"aten.linear": (0, 1, 2), "aten.matmul": (0, 1, None), "aten.mm": (0, 1, None), "aten.addmm": (1, 2, 0)}
"""Where a matrix product takes its input, its weight and its bias."""
_CONVOLUTIONS = ("aten.conv2d", "aten.convolution")
_OTHERS = ("aten.conv1d", "aten.conv3d", "aten.conv_transpose1d", "aten.conv_transpose2d", "aten.conv_transpose3d")


@dataclass(frozen=True)
class Window:
    """How a convolution goes over its input; each is (height, width).

    Attributes:
        kernel: Taps.
        stride: Steps between outputs.
        padding: Zeros on either side.
        dilation: Distance between taps.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def pointwise(self) -> bool:
        """Whether it has one tap."""
        return self.kernel == (1, 1)

    def outputs(self, size: tuple[int, int]) -> tuple[int, int]:
        """Extents of the output for those of the input."""
        height, width = (
            (extent + 2 * p - d * (k - 1) - 1) // s + 1
            for extent, k, s, p, d in zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        return height, width

    def along(self, axis: int) -> Window:
        """The same along one axis, one tap along the other."""
        return Window(*(_only(pair, axis, rest) for pair, rest in zip(self._pairs, (1, 1, 0, 1), strict=True)))

    @property
    def _pairs(self) -> tuple[tuple[int, int], ...]:
        return self.kernel, self.stride, self.padding, self.dilation


@dataclass(frozen=True)
class Layer:
    """A layer ``y = W x + b``, x being one row of a matrix or one window of an image.

    Attributes:
        node: The call.
        source: What it reads.
        weight_node: The node of its weight, a ``get_attr`` or what unpacks one.
        bias_node: The node of its bias; None if it has none.
        weight: W, float64 [out, in x kernel].
        channels: (out, in).
        window: How a convolution goes over its input; None for a matrix product.
        size: Height and width of a convolution's input.
        rows: Rows of a matrix product, or images of a convolution; a dynamic batch counts as one.
    """

    node: fx.Node
    source: fx.Node
    weight_node: fx.Node
    bias_node: fx.Node | None
    weight: torch.Tensor
    channels: tuple[int, int]
    window: Window | None
    size: tuple[int, int]
    rows: int

    @property
    def features(self) -> int:
        """Length of x."""
        return int(self.weight.shape[1])

    @property
    def tensor(self) -> torch.Tensor:
        """W as [out, in, height, width]."""
        kernel = self.window.kernel if self.window is not None else (1, 1)
        return self.weight.reshape(*self.channels, *kernel)

    def run(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """What the layer gives for what it reads, with another weight [out, features] and bias."""
        if self.window is None:
            return functional.linear(x, weight, bias)
        kernel, window = weight.reshape(self.tensor.shape), self.window
        return functional.conv2d(x, kernel, bias, window.stride, window.padding, window.dilation)

    def sampler(self, seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """What turns the tensor that the layer reads into some of the rows x, drawn at random.

        Returns:
            A function to rows [samples, features], at most :data:`POSITIONS` for each sample of the batch.
        """
        generator = torch.Generator().manual_seed(seed)

        def draw(total: int, samples: int) -> torch.Tensor:
            return torch.randperm(total, generator=generator)[: samples * POSITIONS]

        def rows(x: torch.Tensor) -> torch.Tensor:
            flat = x.reshape(-1, x.shape[-1])
            return flat[draw(flat.shape[0], x.shape[0] if x.dim() > 1 else 1)]

        def windows(x: torch.Tensor) -> torch.Tensor:
            assert self.window is not None
            (height, width), window = self.window.padding, self.window
            x = functional.pad(x, (width, width, height, height)).contiguous()
            rows, columns = window.outputs((x.shape[2] - 2 * height, x.shape[3] - 2 * width))
            n, c, h, w = x.stride()
            steps = (n, c, h * window.stride[0], w * window.stride[1], h * window.dilation[0], w * window.dilation[1])
            view = x.as_strided((*x.shape[:2], rows, columns, *window.kernel), steps)
            picked = draw(x.shape[0] * rows * columns, x.shape[0])
            image, place = picked // (rows * columns), picked % (rows * columns)
            return view[image, :, place // columns, place % columns].flatten(1)

        return rows if self.window is None else windows


def is_candidate(node: fx.Node) -> bool:
    """Whether a call multiplies its input by weights."""
    name = op_name(node)
    if name in _PRODUCTS:
        weight = node.args[_PRODUCTS[name][1]]
        return isinstance(weight, fx.Node) and _is_weight(weight) and weight.meta["val"].dim() == 2
    return name in _CONVOLUTIONS or name in _OTHERS


def read(program: Program, node: fx.Node) -> Layer | str:
    """Read a candidate, or say why it cannot be split."""
    name = op_name(node)
    if name in _OTHERS:
        return f"it is a {name.removeprefix('aten.')}: only linear layers and convolutions in two dimensions are split"
    source, weight, bias = _operands(node)
    if not _is_weight(weight) or (bias is not None and not _is_weight(bias)):
        return "its weights are computed"
    if not node.users:
        return "nothing reads it"
    if others := [user.name for user in weight.users if user is not node]:
        return f"its weight is shared with {', '.join(others)}"
    if not weight.meta["val"].dtype.is_floating_point:
        return f"its weights are {weight.meta['val'].dtype}".replace("torch.", "")
    reason = _why_not_convolution(node) if name in _CONVOLUTIONS else _why_not_product(node, bias)
    if reason:
        return reason
    values = value_of(program, weight).detach().double()
    if not values.isfinite().all() or (bias is not None and not value_of(program, bias).isfinite().all()):
        return "its weights are not finite"
    if not values.any():
        return "its weights are zero"
    shape = hints(source.meta["val"].shape, one_sample(program))
    if name in _CONVOLUTIONS:
        out, channels, *kernel = values.shape
        window = _window(node, (kernel[0], kernel[1]))
        size = (shape[2], shape[3])
        return Layer(node, source, weight, bias, values.flatten(1), (out, channels), window, size, shape[0])
    matrix = values if name == "aten.linear" else values.T.contiguous()
    out, features = matrix.shape
    return Layer(node, source, weight, bias, matrix, (out, features), None, (1, 1), prod(shape[:-1]))


def _is_weight(node: fx.Node) -> bool:
    packed = "dequantize" in str(node.target) and all(used.op == "get_attr" for used in node.all_input_nodes)
    return node.op == "get_attr" or packed


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node | None]:
    if op_name(node) in _CONVOLUTIONS:
        return argument(node, "input"), argument(node, "weight"), argument(node, "bias")
    places = _PRODUCTS[op_name(node)]
    source, weight, bias = (None if place is None or place >= len(node.args) else node.args[place] for place in places)
    return cast(fx.Node, source), cast(fx.Node, weight), cast("fx.Node | None", bias)


def _why_not_product(node: fx.Node, bias: fx.Node | None) -> str:
    if any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return "its sum is scaled"
    if bias is not None and bias.meta["val"].dim() != 1:
        return "what it adds is no bias"
    return ""


def _why_not_convolution(node: fx.Node) -> str:
    weight = argument(node, "weight").meta["val"]
    parameters = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
    if weight.dim() != 4:
        return f"it is a convolution in {weight.dim() - 2} dimensions"
    if "transposed" in parameters and argument(node, "transposed"):
        return "it is transposed"
    if (groups := int(argument(node, "groups"))) != 1:
        return f"it has {groups} groups"
    if node.meta["val"].dim() != 4:
        return "it has no batch axis"
    if argument(node, "padding") == "same" and any(size % 2 == 0 for size in weight.shape[2:]):
        return "its padding differs from side to side"
    return ""


def _window(node: fx.Node, kernel: tuple[int, int]) -> Window:
    stride, dilation = _pair(argument(node, "stride")), _pair(argument(node, "dilation"))
    padding = argument(node, "padding")
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True)]
    return Window(kernel, stride, (0, 0) if padding == "valid" else _pair(padding), dilation)


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return int(values[0]), int(values[-1])


def _only(pair: tuple[int, int], axis: int, rest: int) -> tuple[int, int]:
    return (pair[0], rest) if axis == 0 else (rest, pair[1])
