"""Indexing: gathering, scattering, sorting, and outputs whose size depends on the data."""

from __future__ import annotations

import torch
from torch import Tensor

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, as_int, as_tensor, is_host


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices that count from the end made plain; an unsigned type cannot hold them to begin with."""
    indices = indices.to(torch.int64)
    return torch.where(indices < 0, indices + size, indices)


@onnx_op("Gather")
def gather(node: OnnxNode, x: Tensor, indices: Value) -> Value:
    """Slices of an axis by index."""
    axis = node.attr("axis", 0) % x.ndim
    if is_host(indices) and indices.ndim == 0:
        return torch.select(x, axis, as_int(indices))
    if is_host(indices) and indices.ndim == 1 and indices.shape[0] == 1:
        index = as_int(indices)
        return torch.select(x, axis, index).unsqueeze(axis)
    positions = _positions(indices, x.shape[axis])
    if axis == 0 and x.ndim == 2 and x.is_floating_point():
        return torch.nn.functional.embedding(positions, x)
    if positions.ndim == 1:
        return torch.index_select(x, axis, positions)
    taken = torch.index_select(x, axis, positions.reshape(-1))
    return taken.reshape([*x.shape[:axis], *positions.shape, *x.shape[axis + 1 :]])


def _positions(indices: Value, size: int) -> Tensor:
    if isinstance(indices, Tensor):
        return _wrapped(indices, size)
    if indices.dtype != object and (indices >= 0).all():
        return as_tensor(indices.astype("int64"))
    return _wrapped(as_tensor(indices), size)


@onnx_op("GatherElements")
def gather_elements(node: OnnxNode, x: Tensor, indices: Tensor) -> Value:
    """One element per index, along an axis."""
    axis = node.attr("axis", 0) % x.ndim
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


@onnx_op("GatherND")
def gather_nd(node: OnnxNode, x: Tensor, indices: Tensor) -> Value:
    """Slices by index tuples, after leading batch axes."""
    batch, depth = node.attr("batch_dims", 0), indices.shape[-1]
    coordinates = list(indices.to(torch.int64).unbind(-1))
    grid = [
        torch.arange(x.shape[i]).reshape([-1 if j == i else 1 for j in range(indices.ndim - 1)]) for i in range(batch)
    ]
    assert isinstance(depth, int)
    index = (*grid, *coordinates)
    return x[index]


_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@onnx_op("ScatterElements", "Scatter")
def scatter_elements(node: OnnxNode, x: Tensor, indices: Tensor, updates: Tensor) -> Value:
    """Write or accumulate one element per index, along an axis."""
    axis, reduction = node.attr("axis", 0) % x.ndim, node.attr("reduction", "none")
    positions = _wrapped(indices, x.shape[axis])
    if reduction == "none":
        return torch.scatter(x, axis, positions, updates)
    return torch.scatter_reduce(x, axis, positions, updates, _REDUCTIONS[reduction])


@onnx_op("ScatterND")
def scatter_nd(node: OnnxNode, x: Tensor, indices: Tensor, updates: Tensor) -> Value:
    """Write or accumulate slices at index tuples."""
    reduction = node.attr("reduction", "none")
    coordinates = [_wrapped(part, x.shape[axis]) for axis, part in enumerate(indices.unbind(-1))]
    if reduction in ("none", "add"):
        return torch.index_put(x, tuple(coordinates), updates, accumulate=reduction == "add")
    # Flatten the indexed axes and the slices, so that one-axis reduction does the rest.
    depth = len(coordinates)
    rest = list(x.shape[depth:])
    linear = torch.zeros_like(coordinates[0])
    for axis, part in enumerate(coordinates):
        linear = linear * x.shape[axis] + part
    flat = x.reshape([-1, *rest])
    source = updates.reshape([-1, *rest])
    positions = linear.reshape([-1] + [1] * len(rest)).expand(source.shape)
    return torch.scatter_reduce(flat, 0, positions, source, _REDUCTIONS[reduction]).reshape(x.shape)


@onnx_op("TensorScatter")
def tensor_scatter(node: OnnxNode, cache: Tensor, update: Tensor, start: Tensor | None = None) -> Value:
    """Write the update into a cache along its time axis, at an own position for each batch entry."""
    axis = node.attr("axis", -2) % cache.ndim
    length, capacity = update.shape[axis], cache.shape[axis]
    steps = torch.arange(length).unsqueeze(0)
    positions = steps if start is None else start.to(torch.int64).unsqueeze(1) + steps
    if node.attr("mode", "linear") == "circular":
        positions = torch.remainder(positions, capacity)
    view = [1] * cache.ndim
    view[0], view[axis] = positions.shape[0], length
    return torch.scatter(cache, axis, positions.reshape(view).expand(update.shape), update)


@onnx_op("OneHot")
def one_hot(node: OnnxNode, indices: Tensor, depth: Value, values: Tensor) -> Value:
    """A new axis that holds the second value at each index, else the first."""
    count = int(as_int(depth))
    axis = node.attr("axis", -1)
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    positions = torch.remainder(indices.to(torch.int64), count).unsqueeze(axis)
    # An index outside of the depth selects nothing at all.
    valid = ((indices >= -count) & (indices < count)).unsqueeze(axis)
    classes = torch.arange(count).reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    return torch.where((positions == classes) & valid, values[1], values[0])


@onnx_op("TopK")
def top_k(node: OnnxNode, x: Tensor, k: Value | None = None) -> tuple[Tensor, Tensor]:
    """The largest or smallest elements along an axis and their indices; the lower index wins among equals."""
    count = node.attr("k") if k is None else as_int(k)
    axis, largest = node.attr("axis", -1), bool(node.attr("largest", 1))
    # torch.topk leaves the order of equal elements open; a stable sort does not.
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)


@onnx_op("NonZero")
def non_zero(node: OnnxNode, x: Tensor) -> Value:
    """Indices of the elements that are not zero, one row per axis."""
    return torch.nonzero(x).t()


@onnx_op("Compress")
def compress(node: OnnxNode, x: Tensor, condition: Tensor) -> Value:
    """Slices of an axis (or elements) where a condition holds; it may be shorter than the axis."""
    axis = node.attr("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    return torch.index_select(x, axis, torch.nonzero(condition).reshape(-1))


@onnx_op("Unique")
def unique(node: OnnxNode, x: Tensor) -> tuple[Tensor, ...]:
    """Distinct slices, where each comes first, which one each input slice is, and how often each comes."""
    axis = node.attr("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    inverse = inverse.reshape(-1)
    positions = torch.arange(inverse.shape[0])
    first = torch.scatter_reduce(
        torch.full_like(counts, torch.iinfo(torch.int64).max), 0, inverse, positions, "amin", include_self=True
    )
    if not node.attr("sorted", 1):
        order = torch.argsort(first)
        rank = torch.scatter(torch.zeros_like(order), 0, order, torch.arange(order.shape[0]))
        values, first, counts, inverse = (
            torch.index_select(values, axis, order),
            first[order],
            counts[order],
            rank[inverse],
        )
    return values, first, inverse, counts
