"""Pooling: maximum, average, p-norm, global and inverse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Int, Value, as_ints
from shave.ir.from_onnx.windows import Window, pad_spatial, window_of


def _as_image(pool: Callable[..., Any]) -> Callable[..., Any]:
    """A pooling of one dimension done in two: torch's own ties the program to the length it is traced with."""

    def pool_line(x: Tensor, *arguments: Any) -> Any:
        # Kernel, stride, padding and (for the maximum) dilation: lists of one entry; flags stay.
        neutral = iter((1, 1, 0, 1))
        widened = [[next(neutral), *a] if isinstance(a, (list, tuple)) else a for a in arguments]
        result = pool(x.unsqueeze(2), *widened)
        return tuple(part.squeeze(2) for part in result) if isinstance(result, tuple) else result.squeeze(2)

    return pool_line


_MAX_POOLS: dict[int, Callable[..., Any]] = {1: _as_image(F.max_pool2d), 2: F.max_pool2d, 3: F.max_pool3d}
_MAX_POOLS_WITH_INDICES: dict[int, Callable[..., Any]] = {
    1: _as_image(F.max_pool2d_with_indices),
    2: F.max_pool2d_with_indices,
    3: F.max_pool3d_with_indices,
}
_AVERAGE_POOLS: dict[int, Callable[..., Any]] = {1: _as_image(F.avg_pool2d), 2: F.avg_pool2d, 3: F.avg_pool3d}
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _suits_torch(window: Window) -> bool:
    """Whether torch's own pooling takes the padding: the same at both ends and at most half of the kernel."""
    return window.is_symmetric and all(int(low) <= k // 2 for low, k in zip(window.before, window.kernel, strict=True))


def _filled(x: Tensor, window: Window, ceil_mode: bool, fill: float) -> tuple[Tensor, list[Int]]:
    """Pad so that windows fit without hanging over; gives the tensor and how many windows there are."""
    sizes = x.shape[2:]
    counts = window.count(sizes, ceil_mode)
    after = [
        (count - 1) * stride + reach - size - low
        for count, stride, reach, size, low in zip(
            counts, window.strides, window.reach, sizes, window.before, strict=True
        )
    ]
    return pad_spatial(x, window.before, after, fill), counts


@onnx_op("MaxPool")
def max_pool(node: OnnxNode, x: Tensor) -> tuple[Tensor, ...]:
    """Largest element of each window, and on demand its index in the whole input."""
    rank = x.ndim - 2
    window = window_of(node, x.shape[2:])
    ceil_mode = bool(node.attr("ceil_mode", 0))
    dtype = x.dtype
    if not dtype.is_floating_point:
        # Pooling has kernels for floats only; in float64 these integers are exact.
        x = x.to(torch.float64 if dtype.itemsize > 2 else torch.float32)
    before: Sequence[Int] = (0,) * rank
    padding = [0] * rank
    spatial = x.shape[2:]
    if _suits_torch(window):
        padding = [int(low) for low in window.before]
    else:
        before, (x, _), ceil_mode = window.before, _filled(x, window, ceil_mode, -math.inf), False
    arguments = (x, window.kernel, window.strides, padding, window.dilations, ceil_mode)
    if node.n_outputs == 1:
        return (_MAX_POOLS[rank](*arguments).to(dtype),)
    values, local = _MAX_POOLS_WITH_INDICES[rank](*arguments)
    return values.to(dtype), _global_indices(local, x.shape[2:], before, spatial, node.attr("storage_order", 0))


def _global_indices(
    local: Tensor, padded: Sequence[Int], before: Sequence[Int], spatial: Sequence[Int], column_major: int
) -> Tensor:
    """Indices within a (padded) channel plane as indices in the whole unpadded tensor."""
    coordinates = []
    rest = local
    for size, low in zip(reversed(padded), reversed(before), strict=True):
        coordinates.append(rest % size - low)
        rest = torch.div(rest, size, rounding_mode="floor")
    order = list(zip(reversed(coordinates), spatial, strict=True))
    plane = torch.zeros_like(local)
    for coordinate, size in reversed(order) if column_major else order:
        plane = plane * size + coordinate
    n, channels = local.shape[:2]
    offsets = torch.arange(n * channels).reshape([n, channels] + [1] * len(spatial))
    return plane + offsets * math.prod(spatial)


@onnx_op("AveragePool")
def average_pool(node: OnnxNode, x: Tensor) -> Value:
    """Mean of each window; padding counts only if it is asked to."""
    rank = x.ndim - 2
    window = window_of(node, x.shape[2:])
    ceil_mode, include_pad = bool(node.attr("ceil_mode", 0)), bool(node.attr("count_include_pad", 0))
    if _suits_torch(window) and set(window.dilations) == {1}:
        padding = [int(low) for low in window.before]
        averages: Tensor = _AVERAGE_POOLS[rank](x, window.kernel, window.strides, padding, ceil_mode, include_pad)
        return averages
    padded, counts = _filled(x, window, ceil_mode, 0.0)
    return _window_sum(padded, window) / _element_counts(window, x.shape[2:], counts, include_pad).to(x.dtype)


def _window_sum(x: Tensor, window: Window) -> Tensor:
    """Sum of each window of an input that is padded already: a convolution of each channel with ones."""
    n, channels, *spatial = x.shape
    rank = len(spatial)
    ones = torch.ones([1, 1, *window.kernel], dtype=x.dtype)
    summed = _CONVOLUTIONS[rank](x.reshape([-1, 1, *spatial]), ones, None, window.strides, 0, window.dilations)
    return summed.reshape([n, channels, *summed.shape[2:]])


def _element_counts(window: Window, sizes: Sequence[Int], counts: Sequence[Int], include_pad: bool) -> Tensor:
    """How many elements each window averages over: those of the input, and on demand those of its padding."""
    result = torch.ones([1] * len(sizes))
    for axis, (size, count) in enumerate(zip(sizes, counts, strict=True)):
        low, high = (-window.before[axis], size + window.after[axis]) if include_pad else (0, size)
        starts = torch.arange(count) * window.strides[axis] - window.before[axis]
        places = starts.unsqueeze(1) + torch.arange(window.kernel[axis]) * window.dilations[axis]
        covered = ((places >= low) & (places < high)).sum(1)
        shape = [1] * len(sizes)
        shape[axis] = -1
        result = result * covered.reshape(shape)
    return result


@onnx_op("LpPool")
def lp_pool(node: OnnxNode, x: Tensor) -> Value:
    """p-norm of each window."""
    p = node.attr("p", 2)
    window = window_of(node, x.shape[2:])
    padded, _ = _filled(x.abs(), window, bool(node.attr("ceil_mode", 0)), 0.0)
    return torch.pow(_window_sum(torch.pow(padded, p), window), 1 / p)


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.ndim))


@onnx_op("GlobalAveragePool")
def global_average_pool(node: OnnxNode, x: Tensor) -> Value:
    """Mean over the spatial axes."""
    return torch.mean(x, _spatial(x), keepdim=True)


@onnx_op("GlobalMaxPool")
def global_max_pool(node: OnnxNode, x: Tensor) -> Value:
    """Maximum over the spatial axes."""
    return torch.amax(x, _spatial(x), keepdim=True)


@onnx_op("GlobalLpPool")
def global_lp_pool(node: OnnxNode, x: Tensor) -> Value:
    """p-norm over the spatial axes."""
    p: float = node.attr("p", 2)
    norm: Tensor = torch.linalg.vector_norm(x, p, _spatial(x), keepdim=True)
    return norm


@onnx_op("MaxUnpool")
def max_unpool(node: OnnxNode, x: Tensor, indices: Tensor, output_shape: Value | None = None) -> Value:
    """Put pooled elements back to where they came from, zeros elsewhere."""
    window = window_of(node, x.shape[2:])
    sizes = [
        (size - 1) * stride + reach - low - high
        for size, stride, reach, low, high in zip(
            x.shape[2:], window.strides, window.reach, window.before, window.after, strict=True
        )
    ]
    shape = [*x.shape[:2], *sizes]
    flat = torch.zeros([math.prod(shape)], dtype=x.dtype)
    y = torch.scatter(flat, 0, indices.reshape(-1), x.reshape(-1)).reshape(shape)
    if output_shape is None:
        return y
    wanted = as_ints(output_shape)
    return pad_spatial(y, [0] * x.ndim, [want - have for want, have in zip(wanted, shape, strict=True)])


@onnx_op("MaxRoiPool")
def max_roi_pool(node: OnnxNode, x: Tensor, rois: Tensor) -> Value:
    """Largest element of each cell of a grid laid over each region (batch index, x1, y1, x2, y2)."""
    rows, columns = node.attr("pooled_shape")
    corners = torch.floor(rois[:, 1:] * node.attr("spatial_scale", 1.0) + 0.5)
    # The cells of a region, separably: which rows and which columns of the image each cell covers.
    inside_y = _cells(corners[:, 1], corners[:, 3], rows, x.shape[2])
    inside_x = _cells(corners[:, 0], corners[:, 2], columns, x.shape[3])
    images = torch.index_select(x, 0, rois[:, 0].to(torch.int64))
    lowest = torch.full((), -math.inf, dtype=x.dtype)
    by_column = torch.where(inside_x[:, None, None], images.unsqueeze(3), lowest).amax(-1)
    by_cell = torch.where(inside_y[:, None, :, :, None], by_column.unsqueeze(2), lowest).amax(3)
    return torch.where(by_cell == -math.inf, torch.zeros_like(by_cell), by_cell)


def _cells(first: Tensor, last: Tensor, count: int, size: Int) -> Tensor:
    """``(regions, count, size)``: whether a cell covers a row or column."""
    length = torch.clamp(last - first + 1, min=1.0) / count
    cell = torch.arange(count, dtype=first.dtype)
    starts = torch.floor(cell * length.unsqueeze(1)) + first.unsqueeze(1)
    ends = torch.ceil((cell + 1) * length.unsqueeze(1)) + first.unsqueeze(1)
    place = torch.arange(size, dtype=first.dtype)
    return (place >= starts.unsqueeze(2)) & (place < ends.unsqueeze(2))
