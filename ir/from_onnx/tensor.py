"""Shapes and data movement: reshaping, slicing, joining, padding, repeating, constants and ranges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import (
    Int,
    Value,
    as_ints,
    as_number,
    as_tensor,
    host,
    is_host,
    is_symbolic,
    onnx_dtype,
    torch_dtype,
)

# A constant made by repeating one value stays on the host up to this many elements: enough for any shape.
_LARGEST_FILL = 1024


@onnx_op("Constant")
def constant(node: OnnxNode) -> Value:
    """A value written in the node."""
    (kind,) = node.spec.attributes
    value = node.attr(kind)
    if kind in ("value", "sparse_value"):
        array: np.ndarray = value
        return array
    if kind in ("value_float", "value_floats"):
        return np.array(value, np.float32)
    if kind in ("value_int", "value_ints"):
        return np.array(value, np.int64)
    raise ValueError("strings are not supported")


@onnx_op("Identity")
def identity(node: OnnxNode, x: Value) -> Value:
    """The same value."""
    return x


@onnx_op("Shape")
def shape(node: OnnxNode, x: Value) -> Value:
    """The shape, known while tracing."""
    return host(list(x.shape[node.attr("start", 0) : node.attr("end")]))


@onnx_op("Size")
def size(node: OnnxNode, x: Value) -> Value:
    """The number of elements, known while tracing."""
    return host(math.prod(x.shape))


@onnx_op("ConstantOfShape", opaque=True)
def constant_of_shape(node: OnnxNode, dims: Value) -> Value:
    """One value, repeated."""
    fill = node.attr("value", np.zeros(1, np.float32))
    sizes = as_ints(dims)
    if not is_symbolic(dims) and math.prod(sizes) <= _LARGEST_FILL:
        return np.full(sizes, fill[0], fill.dtype)
    return torch.full(sizes, as_number(fill), dtype=torch_dtype(onnx_dtype(fill)))


@onnx_op("EyeLike")
def eye_like(node: OnnxNode, x: Tensor) -> Value:
    """Ones on a diagonal."""
    to = node.attr("dtype")
    rows, columns = x.shape
    # Row i, column j holds whether j - i is the diagonal asked for.
    offsets = torch.arange(columns).unsqueeze(0) - torch.arange(rows).unsqueeze(1)
    diagonal: Tensor = offsets == node.attr("k", 0)
    return diagonal.to(x.dtype if to is None else torch_dtype(to))


@onnx_op("Range")
def range_(node: OnnxNode, start: Value, limit: Value, delta: Value) -> Value:
    """Numbers from a start in steps; as many as fit before the limit."""
    if any(is_symbolic(bound) for bound in (start, limit, delta)):
        return torch.arange(*(as_ints(bound)[0] for bound in (start, limit, delta)))
    if not all(is_host(bound) for bound in (start, limit, delta)):
        raise ValueError(
            "needs bounds that are known before the model runs, but the model computes them from its inputs"
        )
    first, last, step = (np.asarray(bound).reshape(()) for bound in (start, limit, delta))
    count = max(math.ceil((last.item() - first.item()) / step.item()), 0)
    numbers: np.ndarray = first + np.arange(count, dtype=first.dtype) * step
    return numbers.astype(first.dtype)


@onnx_op("Reshape")
def reshape(node: OnnxNode, x: Tensor, dims: Value) -> Value:
    """The same elements in another shape; 0 copies a size of the input, -1 is what is left over."""
    sizes = as_ints(dims)
    if not node.attr("allowzero", 0):
        sizes = [x.shape[i] if isinstance(want, int) and want == 0 else want for i, want in enumerate(sizes)]
    return x.reshape(sizes)


@onnx_op("Flatten")
def flatten(node: OnnxNode, x: Tensor) -> Value:
    """To a matrix: axes before ``axis`` are its rows."""
    axis = node.attr("axis", 1)
    if axis == 1 and x.ndim > 1:
        return torch.flatten(x, 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape([math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


@onnx_op("Transpose")
def transpose(node: OnnxNode, x: Tensor) -> Value:
    """Axes in another order; reversed by default."""
    return x.permute(node.attr("perm", list(reversed(range(x.ndim)))))


def _axes(node: OnnxNode, axes: Value | None) -> list[int] | None:
    """Axes from the attribute of old versions or the input of new ones."""
    given: list[int] | None = node.attr("axes")
    return given if axes is None else [int(axis) for axis in as_ints(axes)]


@onnx_op("Squeeze")
def squeeze(node: OnnxNode, x: Tensor, axes: Value | None = None) -> Value:
    """Drop axes of size one."""
    given = _axes(node, axes)
    if given is not None and any(isinstance(x.shape[axis], int) and x.shape[axis] != 1 for axis in given):
        raise ValueError(f"axes {given} of shape {list(x.shape)} cannot be dropped: they are not all of size 1")
    return torch.squeeze(x) if given is None else torch.squeeze(x, given)


@onnx_op("Unsqueeze")
def unsqueeze(node: OnnxNode, x: Tensor, axes: Value | None = None) -> Value:
    """Insert axes of size one, at positions counted in the result."""
    given = _axes(node, axes) or []
    rank = x.ndim + len(given)
    for axis in sorted(axis % rank for axis in given):
        x = x.unsqueeze(axis)
    return x


@onnx_op("Expand")
def expand(node: OnnxNode, x: Tensor, dims: Value) -> Value:
    """Repeat by broadcasting; a size of one in the target keeps the input's."""
    sizes = as_ints(dims)
    missing = len(sizes) - x.ndim
    own = [1] * missing + list(x.shape) if missing > 0 else list(x.shape)
    wanted = [1] * -missing + sizes if missing < 0 else sizes
    return x.expand(
        [have if isinstance(want, int) and want == 1 else want for have, want in zip(own, wanted, strict=True)]
    )


@onnx_op("Tile")
def tile(node: OnnxNode, x: Tensor, repeats: Value) -> Value:
    """Repeat along each axis."""
    return x.repeat(as_ints(repeats))


@onnx_op("Concat")
def concat(node: OnnxNode, *values: Tensor) -> Value:
    """Join along an axis."""
    return torch.cat(values, dim=node.attr("axis", 1 if node.opset < 4 else None))


@onnx_op("Split")
def split(node: OnnxNode, x: Tensor, sizes: Value | None = None) -> tuple[Tensor, ...]:
    """Cut along an axis, in parts of given sizes or in as many equal ones as there are outputs."""
    axis = node.attr("axis", 0)
    given = node.attr("split") if sizes is None else as_ints(sizes)
    if given is None:
        count = node.attr("num_outputs", node.n_outputs)
        length = x.shape[axis]
        part = (length + count - 1) // count
        given = [part] * (count - 1) + [length - part * (count - 1)]
    return torch.split(x, given, axis)


@onnx_op("Slice")
def slice_attributes(node: OnnxNode, x: Tensor) -> Value:
    """Ranges along axes, given as attributes."""
    starts, ends = node.attr("starts"), node.attr("ends")
    return _slice(x, starts, ends, node.attr("axes"), None)


@onnx_op("Slice", since=10)
def slice_(
    node: OnnxNode, x: Tensor, starts: Value, ends: Value, axes: Value | None = None, steps: Value | None = None
) -> Value:
    """Ranges along axes; negative steps run backwards."""
    return _slice(x, as_ints(starts), as_ints(ends), _given(axes), _given(steps))


def _given(value: Value | None) -> list[Any] | None:
    return None if value is None else as_ints(value)


def _slice(
    x: Tensor, starts: Sequence[Int], ends: Sequence[Int], axes: Sequence[Any] | None, steps: Sequence[Any] | None
) -> Tensor:
    axes = list(range(len(starts))) if axes is None else axes
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        if step > 0:
            x = _forward_slice(x, axis, start, end, step)
        else:
            length = x.shape[axis]
            if not isinstance(length, int):
                raise ValueError(f"a backward slice along axis {axis}, whose size is dynamic, is not supported")
            positions = range(*slice(start, None if end < -length else end, step).indices(length))
            x = x.flip(axis) if len(positions) == length and step == -1 else _take(x, axis, positions)
    return x


def _forward_slice(x: Tensor, axis: int, start: Int, end: Int, step: int) -> Tensor:
    last = torch.iinfo(torch.int64).max
    # "To the end" is written in many ways; one form spares the graph a guard on a dynamic size.
    if isinstance(end, int) and end >= 2**31 - 1:
        end = last
    if isinstance(start, int) and start == 0 and isinstance(end, int) and end == last and step == 1:
        return x
    result: Tensor = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    return result


def _take(x: Tensor, axis: int, positions: Sequence[int]) -> Tensor:
    return torch.index_select(x, axis, as_tensor(np.array(positions, np.int64)))


@onnx_op("Pad")
def pad_attributes(node: OnnxNode, x: Tensor) -> Value:
    """Pad by amounts given as attributes (called ``paddings`` in version 1)."""
    pads = node.attr("pads", node.attr("paddings"))
    return pad(x, pads, list(range(x.ndim)), node.attr("mode", "constant"), node.attr("value", 0.0))


@onnx_op("Pad", since=11)
def pad_inputs(node: OnnxNode, x: Tensor, pads: Value, fill: Value | None = None, axes: Value | None = None) -> Value:
    """Pad some or all axes; negative amounts crop."""
    where = list(range(x.ndim)) if axes is None else [int(axis) % x.ndim for axis in as_ints(axes)]
    number = 0.0 if fill is None else as_number(fill)
    return pad(x, as_ints(pads), where, node.attr("mode", "constant"), number)


def pad(x: Tensor, pads: Sequence[Int], axes: Sequence[int], mode: str, fill: float = 0.0) -> Tensor:
    """Pad ``axes`` of a tensor: ``pads`` holds all amounts before, then all amounts after."""
    before = dict(zip(axes, pads[: len(axes)], strict=True))
    after = dict(zip(axes, pads[len(axes) :], strict=True))
    amounts = [(axis, before[axis], after[axis]) for axis in axes]
    used = [amount for amount in amounts if not all(isinstance(n, int) and n == 0 for n in amount[1:])]
    if mode == "constant":
        flat: list[Int] = []
        for axis in range(x.ndim - 1, min((axis for axis, *_ in used), default=x.ndim) - 1, -1):
            flat += [before.get(axis, 0), after.get(axis, 0)]
        return F.pad(x, flat, value=_typed(fill, x.dtype)) if used else x
    for axis, low, high in used:
        x = _pad_by_index(x, axis, int(low), int(high), mode)
    return x


def _typed(fill: float, dtype: torch.dtype) -> float:
    return bool(fill) if dtype is torch.bool else fill if dtype.is_floating_point else int(fill)


def _pad_by_index(x: Tensor, axis: int, low: int, high: int, mode: str) -> Tensor:
    """Padding with the tensor's own elements, gathered: torch's own ``F.pad`` does it for some ranks only."""
    length = x.shape[axis]
    if not isinstance(length, int):
        positions = torch.arange(-low, length + high)
    else:
        positions = as_tensor(np.arange(-low, length + high))
    if mode == "edge":
        positions = positions.clamp(0, length - 1)
    elif mode == "wrap":
        positions = torch.remainder(positions, length)
    elif mode == "reflect":
        period = max(2 * (length - 1), 1) if isinstance(length, int) else 2 * (length - 1)
        positions = torch.remainder(positions, period)
        positions = torch.minimum(positions, period - positions)
    else:
        raise ValueError(f"padding mode '{mode}' is unknown")
    return torch.index_select(x, axis, positions)


@onnx_op("Trilu")
def trilu(node: OnnxNode, x: Tensor, k: Value | None = None) -> Value:
    """The upper or lower triangle."""
    diagonal = 0 if k is None else int(as_ints(k)[0])
    return torch.triu(x, diagonal) if node.attr("upper", 1) else torch.tril(x, diagonal)


@onnx_op("DepthToSpace")
def depth_to_space(node: OnnxNode, x: Tensor) -> Value:
    """Channels to blocks of pixels."""
    block = node.attr("blocksize")
    if node.attr("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    blocks = x.reshape([n, block, block, c // block**2, h, w]).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape([n, c // block**2, h * block, w * block])


@onnx_op("SpaceToDepth")
def space_to_depth(node: OnnxNode, x: Tensor) -> Value:
    """Blocks of pixels to channels."""
    block = node.attr("blocksize")
    if node.attr("mode", "DCR") == "CRD":
        return F.pixel_unshuffle(x, block)
    n, c, h, w = x.shape
    blocks = x.reshape([n, c, h // block, block, w // block, block]).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape([n, c * block**2, h // block, w // block])


@onnx_op("ReverseSequence")
def reverse_sequence(node: OnnxNode, x: Tensor, lengths: Tensor) -> Value:
    """Reverse the first elements of each sequence, as many as its length says."""
    time, batch = node.attr("time_axis", 0), node.attr("batch_axis", 1)
    steps = torch.arange(x.shape[time]).unsqueeze(1)
    positions = torch.where(steps < lengths, lengths - 1 - steps, steps)
    positions = positions if time < batch else positions.t()
    view = [1] * x.ndim
    view[time], view[batch] = x.shape[time], x.shape[batch]
    return torch.gather(x, time, positions.reshape(view).expand(x.shape))


@onnx_op("CenterCropPad")
def center_crop_pad(node: OnnxNode, x: Tensor, dims: Value) -> Value:
    """Crop or pad axes to sizes, around the centre."""
    axes = node.attr("axes", list(range(x.ndim)))
    pads = []
    for axis, size_ in zip(axes, as_ints(dims), strict=True):
        missing = size_ - x.shape[axis]
        low = missing // 2 if missing > 0 else -(-missing // 2)
        pads.append((low, missing - low))
    return pad(x, [low for low, _ in pads] + [high for _, high in pads], [axis % x.ndim for axis in axes], "constant")
