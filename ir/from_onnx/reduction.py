"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, as_ints

Reducer = Callable[[Tensor, "tuple[int, ...]", bool], Tensor]


def _register(name: str, reduce: Reducer, elementwise: Callable[[Tensor], Tensor] | None = None) -> None:
    """Register a reduction; ``elementwise`` is what is left of it when nothing is reduced."""

    @onnx_op(name)
    def reduction(node: OnnxNode, x: Tensor, axes: Value | None = None) -> Value:
        given = node.attr("axes") if axes is None else [int(axis) for axis in as_ints(axes)]
        if not given and node.attr("noop_with_empty_axes", 0):
            return elementwise(x) if elementwise is not None else x
        dims = tuple(sorted(axis % x.ndim for axis in given)) if given else tuple(range(x.ndim))
        return reduce(x, dims, bool(node.attr("keepdims", 1))).to(x.dtype)


def _sum(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return torch.sum(x, dims, keep, dtype=x.dtype) if dims else x


def _mean(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    if not dims:
        return x
    # Integers are averaged in double and cut off, as a sum divided by a count would be.
    return torch.mean(x if x.is_floating_point() else x.double(), dims, keep)


def _prod(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    for dim in reversed(dims):
        x = torch.prod(x, dim, keep, dtype=x.dtype)
    return x


def _extreme(function: Callable[..., Tensor], sign: int) -> Reducer:
    def reduce(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
        if not dims:
            return x
        if any(isinstance(x.shape[dim], int) and x.shape[dim] == 0 for dim in dims):
            return torch.full(_reduced_shape(x, dims, keep), _extreme_number(x.dtype, sign), dtype=x.dtype)
        if x.dtype is torch.bool:
            return function(x.to(torch.uint8), dims, keep)
        return function(x, dims, keep)

    return reduce


def _reduced_shape(x: Tensor, dims: Sequence[int], keep: bool) -> list[int]:
    shape = [1 if axis in dims else size for axis, size in enumerate(x.shape)]
    return shape if keep else [size for axis, size in enumerate(shape) if axis not in dims]


def _extreme_number(dtype: torch.dtype, sign: int) -> float:
    """What the maximum (sign -1) or minimum (sign 1) of nothing is."""
    if dtype.is_floating_point:
        return sign * float("inf")
    if dtype is torch.bool:
        return sign > 0
    info = torch.iinfo(dtype)
    return info.max if sign > 0 else info.min


def _log_sum_exp(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    floats = x if x.is_floating_point() else x.double()
    return torch.logsumexp(floats, dims, keep) if dims else floats


def _l2(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    floats = x if x.is_floating_point() else x.double()
    return torch.linalg.vector_norm(floats, 2, dims, keep) if dims else floats.abs()


_register("ReduceSum", _sum)
_register("ReduceMean", _mean)
_register("ReduceProd", _prod)
_register("ReduceMax", _extreme(torch.amax, -1))
_register("ReduceMin", _extreme(torch.amin, 1))
_register("ReduceL1", lambda x, dims, keep: _sum(x.abs(), dims, keep), torch.abs)
_register("ReduceL2", _l2, torch.abs)
_register("ReduceSumSquare", lambda x, dims, keep: _sum(x * x, dims, keep), torch.square)
_register("ReduceLogSum", lambda x, dims, keep: torch.log(_sum(x, dims, keep)), torch.log)
_register("ReduceLogSumExp", _log_sum_exp)


def _arg_extreme(node: OnnxNode, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    axis, keep = node.attr("axis", 0), bool(node.attr("keepdims", 1))
    if not node.attr("select_last_index", 0):
        first: Tensor = function(x, axis, keep)
        return first
    last: Tensor = x.shape[axis] - 1 - function(x.flip(axis), axis, keep)
    return last


@onnx_op("ArgMax")
def argmax(node: OnnxNode, x: Tensor) -> Value:
    """Index of the largest element along an axis; the first one unless asked otherwise."""
    return _arg_extreme(node, x, torch.argmax)


@onnx_op("ArgMin")
def argmin(node: OnnxNode, x: Tensor) -> Value:
    """Index of the smallest element along an axis; the first one unless asked otherwise."""
    return _arg_extreme(node, x, torch.argmin)
