"""Convolutions and linear layers as rows of features and outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.ir.rewrite import Rewriter, as_trainable

_CONVOLUTIONS = {"aten.conv1d": 1, "aten.conv2d": 2, "aten.conv3d": 3}


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with constant weights.

    Attributes:
        node: The call.
        source: What it reads.
        weight: The node of its weight [out, in / groups, *kernel].
        bias: The node of its bias [out]; None if it has none.
        groups: Groups of channels.
        spatial: Number of spatial axes: 0 for a linear layer.
    """

    node: fx.Node
    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    groups: int
    spatial: int

    @property
    def axis(self) -> int:
        """Axis of the output's channels."""
        return int(self.node.meta["val"].dim()) - self.spatial - 1

    def outputs(self, value: torch.Tensor) -> torch.Tensor:
        """A value of the output's form as [rows, channels]."""
        return value.movedim(self.axis, -1).reshape(-1, value.shape[self.axis])

    def features(self, value: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """What some rows of the output are computed from.

        Args:
            value: The value of the source.
            rows: Numbers of rows of :meth:`outputs`.

        Returns:
            [groups, rows, features of a group + 1], the last being 1.
        """
        patches = value.reshape(-1, value.shape[-1])[rows] if not self.spatial else self._patches(value, rows)
        grouped = patches.reshape(len(rows), self.groups, -1).transpose(0, 1)
        return functional.pad(grouped, (0, 1), value=1.0)

    def _patches(self, value: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """[rows, channels, *kernel], by strides and without unfolding the whole."""
        kernel = self.weight.meta["val"].shape[2:]
        stride, dilation = (_each(argument(self.node, name), self.spatial) for name in ("stride", "dilation"))
        before, after = _padding(argument(self.node, "padding"), kernel, dilation)
        pads = [width for pair in zip(reversed(before), reversed(after), strict=True) for width in pair]
        padded = functional.pad(value, pads).contiguous()
        batch, channels, *extents = padded.shape
        sizes = [
            (extent - d * (k - 1) - 1) // s + 1
            for extent, k, s, d in zip(extents, kernel, stride, dilation, strict=True)
        ]
        steps = padded.stride()
        view = padded.as_strided(
            [batch, *sizes, channels, *kernel],
            [
                steps[0],
                *(step * s for step, s in zip(steps[2:], stride, strict=True)),
                steps[1],
                *(step * d for step, d in zip(steps[2:], dilation, strict=True)),
            ],
        )
        return view[torch.unravel_index(rows, (batch, *sizes))]

    def matrix(self, program: Program) -> torch.Tensor:
        """Weight and bias as [groups, features + 1, outputs of a group], float64."""
        weight = program.weight(self.weight).detach().double()
        rows = weight.reshape(self.groups, weight.shape[0] // self.groups, -1)
        bias = torch.zeros(len(weight), dtype=torch.float64)
        if self.bias is not None:
            bias = program.weight(self.bias).detach().double()
        return torch.cat([rows, bias.reshape(self.groups, -1, 1)], 2).mT

    def set_matrix(self, program: Program, rewriter: Rewriter, matrix: torch.Tensor) -> None:
        """Give the layer another weight and bias, in the form of :meth:`matrix`."""
        old = program.weight(self.weight)
        weight = matrix[:, :-1].mT.reshape(old.shape).to(old.dtype).contiguous()
        rewriter.set_weight(self.node, self.weight, weight)
        self.set_bias(program, rewriter, matrix[:, -1].reshape(-1))

    def set_bias(self, program: Program, rewriter: Rewriter, bias: torch.Tensor) -> None:
        """Give the layer another bias [out]."""
        old = program.weight(self.weight if self.bias is None else self.bias)
        bias = bias.to(old.dtype).contiguous()
        if self.bias is not None:
            rewriter.set_weight(self.node, self.bias, bias)
            return
        name = f"{str(self.weight.target).rpartition('.')[0]}.bias".lstrip(".")
        fresh = rewriter.weight(name, as_trainable(bias, old), sources=[self.node])
        rewriter.set_argument(self.node, 2, fresh)


def layer_of(program: Program, node: fx.Node) -> Layer | None:
    """Read a call as a layer; None if it is none, or if its weights are computed."""
    name = op_name(node)
    if name not in _CONVOLUTIONS and name != "aten.linear":
        return None
    source, weight, bias = (argument(node, each) for each in ("input", "weight", "bias"))
    if weight.op != "get_attr" or (bias is not None and bias.op != "get_attr"):
        return None
    if not program.weight(weight).is_floating_point() or source.meta["val"].dim() < weight.meta["val"].dim():
        return None  # the rare form without a batch axis
    spatial = _CONVOLUTIONS.get(name, 0)
    return Layer(node, source, weight, bias, int(argument(node, "groups")) if spatial else 1, spatial)


def _each(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(each) for each in (values if len(values) == count else values * count)]


def _padding(given: Any, kernel: Any, dilation: list[int]) -> tuple[list[int], list[int]]:
    """Zeros before and behind each spatial axis."""
    if given == "valid":
        given = 0
    if given == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = [math.floor(each / 2) for each in total]
        return before, [each - first for each, first in zip(total, before, strict=True)]
    both = _each(given, len(dilation))
    return both, both
