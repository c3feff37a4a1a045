"""Convolutions, transposed and deformable ones included, and folding columns back to an image."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Int, Value, as_ints, as_tensor
from shave.ir.from_onnx.windows import pad_spatial, window_of

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@onnx_op("Conv")
def conv(node: OnnxNode, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Value:
    """Convolution over one to three spatial axes."""
    return convolve(node, x, weight, bias)


def convolve(node: OnnxNode, x: Tensor, weight: Tensor, bias: Tensor | None, fill: float = 0.0) -> Tensor:
    """Convolve as a node's attributes say.

    Args:
        node: gives kernel, strides, dilations, padding and groups.
        x: ``(batch, channels, ...)``.
        weight: ``(out, channels / groups, ...)``.
        bias: ``(out,)``.
        fill: what padding consists of (the zero point of quantized inputs).
    """
    rank = x.ndim - 2
    if rank not in _CONVOLUTIONS:
        raise ValueError(f"convolution over {rank} spatial axes is not supported")
    window = window_of(node, x.shape[2:], kernel=weight.shape[2:])
    padding: tuple[Int, ...] = window.before
    if not window.is_symmetric or fill != 0:
        x, padding = pad_spatial(x, window.before, window.after, fill), (0,) * rank
    return _CONVOLUTIONS[rank](x, weight, bias, window.strides, padding, window.dilations, node.attr("group", 1))


@onnx_op("ConvTranspose")
def conv_transpose(node: OnnxNode, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Value:
    """Transposed convolution over one to three spatial axes."""
    rank = x.ndim - 2
    if rank not in _TRANSPOSED:
        raise ValueError(f"transposed convolution over {rank} spatial axes is not supported")
    window = window_of(node, x.shape[2:], kernel=weight.shape[2:])
    extra = list(node.attr("output_padding", [0] * rank))
    full = [(size - 1) * s + r for size, s, r in zip(x.shape[2:], window.strides, window.reach, strict=True)]
    before, after = _transposed_pads(node, x.shape[2:], full, extra, window.strides, window.before, window.after)
    # torch pads both ends alike; what the end lacks of that is output padding, as far as it allows.
    padding, output_padding, crop_low, crop_high = [], [], [], []
    for low, high, more, stride, dilation in zip(before, after, extra, window.strides, window.dilations, strict=True):
        shared = max(low, 0)
        lacking = shared - (high - more)
        if not 0 <= lacking < max(stride, dilation):
            # Compute more than is asked for, and crop.
            shared = max(min(low, high - more), 0)
            lacking = 0
        padding.append(shared)
        output_padding.append(lacking)
        crop_low.append(shared - low)
        crop_high.append(shared - (high - more) - lacking)
    y = _TRANSPOSED[rank](
        x, weight, bias, window.strides, padding, output_padding, node.attr("group", 1), window.dilations
    )
    return pad_spatial(y, crop_low, crop_high)


def _transposed_pads(
    node: OnnxNode,
    sizes: torch.Size,
    full: list[int],
    extra: list[int],
    strides: tuple[int, ...],
    before: tuple[Int, ...],
    after: tuple[Int, ...],
) -> tuple[list[int], list[int]]:
    """What is cut off at both ends of the full result, from pads or from the shape that is asked for."""
    auto, shape = node.attr("auto_pad", "NOTSET"), node.attr("output_shape")
    if shape is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        shape = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if shape is None:
        return [int(low) for low in before], [int(high) for high in after]
    lows, highs = [], []
    for length, more, wanted in zip(full, extra, shape[-len(full) :], strict=True):
        total = length + more - wanted
        low = total // 2 if auto == "SAME_UPPER" else total - total // 2
        lows.append(low)
        highs.append(total - low)
    return lows, highs


@onnx_op("DeformConv")
def deform_conv(
    node: OnnxNode, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Value:
    """Two-dimensional convolution that reads each element of its window at an own offset (bilinearly), times a mask."""
    if x.ndim != 4:
        raise ValueError(f"deformable convolution over {x.ndim - 2} spatial axes is not supported")
    window = window_of(node, x.shape[2:], kernel=weight.shape[2:])
    n, channels, height, width = x.shape
    groups, offset_groups = node.attr("group", 1), node.attr("offset_group", 1)
    rows, columns = offset.shape[2:]
    kh, kw = window.kernel
    taps = kh * kw
    shifts = offset.reshape([n, offset_groups, kh, kw, 2, rows, columns])
    axes = []
    for axis, (count, k) in enumerate(((rows, kh), (columns, kw))):
        starts = torch.arange(count, dtype=x.dtype) * window.strides[axis] - window.before[axis]
        inside = torch.arange(k, dtype=x.dtype) * window.dilations[axis]
        shape = [1] * 6
        shape[2 + axis], shape[4 + axis] = k, count
        position = inside.unsqueeze(1) + starts
        axes.append(shifts[:, :, :, :, axis] + position.reshape(shape))
    y, x_ = axes
    # grid_sample takes coordinates from -1 to 1, which with align_corners are the centres of the border pixels.
    grid = torch.stack([x_ * (2 / max(width - 1, 1)) - 1, y * (2 / max(height - 1, 1)) - 1], dim=-1)
    images = x.reshape([n * offset_groups, channels // offset_groups, height, width])
    flat_grid = grid.reshape([n * offset_groups, taps * rows, columns, 2])
    sampled = F.grid_sample(images, flat_grid, "bilinear", "zeros", align_corners=True)
    sampled = sampled.reshape([n, offset_groups, channels // offset_groups, taps, rows, columns])
    if mask is not None:
        sampled = sampled * mask.reshape([n, offset_groups, 1, taps, rows, columns])
    columns_ = sampled.reshape([n, groups, channels // groups * taps, rows * columns])
    kernels = weight.reshape([groups, weight.shape[0] // groups, -1])
    result = torch.matmul(kernels, columns_).reshape([n, weight.shape[0], rows, columns])
    return result if bias is None else result + bias.reshape([1, -1, 1, 1])


@onnx_op("Col2Im")
def col2im(node: OnnxNode, columns: Tensor, image_shape: Value, block_shape: Value) -> Value:
    """Add up blocks at their places in an image, over any number of spatial axes."""
    image, block = tuple(as_ints(image_shape)), tuple(as_ints(block_shape))
    window = window_of(node, image, kernel=block)
    if len(image) == 2 and window.is_symmetric:
        return F.fold(columns, image, block, window.dilations, window.before, window.strides)
    counts = [int(count) for count in window.count(image)]
    padded = [size + int(low) + int(high) for size, low, high in zip(image, window.before, window.after, strict=True)]
    # Each element's place in the padded image, first over the elements of a block, then over the blocks.
    linear = np.zeros([1] * (2 * len(image)), np.int64)
    for axis, length in enumerate(padded):
        place = np.arange(block[axis])[:, None] * window.dilations[axis]
        place = place + np.arange(counts[axis]) * window.strides[axis]
        shape = [1] * (2 * len(image))
        shape[axis], shape[len(image) + axis] = place.shape
        linear = linear * length + place.reshape(shape)
    n, channels = columns.shape[0], columns.shape[1] // math.prod(block)
    flat = columns.reshape([n, channels, -1])
    summed = torch.zeros([n, channels, math.prod(padded)], dtype=columns.dtype)
    summed = torch.index_add(summed, 2, as_tensor(linear.reshape(-1)), flat).reshape([n, channels, *padded])
    return pad_spatial(summed, [-low for low in window.before], [-high for high in window.after])
