"""Sampling images at computed places: grids and regions of interest."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Int, Value, as_ints

# Names of versions before and since 20.
_GRID_MODES = {"linear": "bilinear", "cubic": "bicubic"}


@onnx_op("GridSample")
def grid_sample(node: OnnxNode, x: Tensor, grid: Tensor) -> Value:
    """Read an image or volume at the places that a grid holds, in coordinates from -1 to 1."""
    mode = node.attr("mode", "bilinear")
    return F.grid_sample(
        x,
        grid,
        mode=_GRID_MODES.get(mode, mode),
        padding_mode=node.attr("padding_mode", "zeros"),
        align_corners=bool(node.attr("align_corners", 0)),
    )


@onnx_op("AffineGrid")
def affine_grid(node: OnnxNode, theta: Tensor, size: Value) -> Value:
    """The grid for `grid_sample` that an affine map makes."""
    return F.affine_grid(theta, as_ints(size), align_corners=bool(node.attr("align_corners", 0)))


@onnx_op("RoiAlign")
def roi_align(node: OnnxNode, x: Tensor, rois: Tensor, batch_indices: Tensor) -> Value:
    """Average (or largest) of bilinear samples in each cell of a grid laid over each region (x1, y1, x2, y2)."""
    rows, columns = node.attr("output_height", 1), node.attr("output_width", 1)
    ratio = node.attr("sampling_ratio", 0)
    default = "half_pixel" if node.opset >= 16 else "output_half_pixel"
    half_pixel = node.attr("coordinate_transformation_mode", default) == "half_pixel"
    height, width = x.shape[2:]
    corners = rois * node.attr("spatial_scale", 1.0) - (0.5 if half_pixel else 0.0)
    x1, y1, x2, y2 = corners.unbind(1)
    lengths = (y2 - y1, x2 - x1)
    if not half_pixel:
        lengths = (lengths[0].clamp(min=1.0), lengths[1].clamp(min=1.0))
    y, y_used = _sample_places(y1, lengths[0], rows, ratio, height)
    x_, x_used = _sample_places(x1, lengths[1], columns, ratio, width)
    images = torch.index_select(x, 0, batch_indices.to(torch.int64))
    low_y, high_y, share_y, inside_y = _neighbours(y, height)
    low_x, high_x, share_x, inside_x = _neighbours(x_, width)
    terms = []
    for place_y, weight_y in ((low_y, 1 - share_y), (high_y, share_y)):
        line = torch.gather(images, 2, place_y[:, None, :, None].expand(-1, images.shape[1], -1, images.shape[3]))
        for place_x, weight_x in ((low_x, 1 - share_x), (high_x, share_x)):
            corner = torch.gather(line, 3, place_x[:, None, None, :].expand(-1, line.shape[1], line.shape[2], -1))
            terms.append(corner * (weight_y * inside_y)[:, None, :, None] * (weight_x * inside_x)[:, None, None, :])
    used = y_used[:, None, :, None] & x_used[:, None, None, :]
    samples = _cells(used.to(x.dtype), rows, columns)
    if node.attr("mode", "avg") == "max":
        # The operator takes the largest weighted corner, not the largest interpolated sample.
        best = torch.stack(terms).amax(0)
        return _cells(torch.where(used, best, -math.inf), rows, columns).amax((3, 5))
    total = torch.where(used, terms[0] + terms[1] + terms[2] + terms[3], 0.0)
    return _cells(total, rows, columns).sum((3, 5)) / samples.sum((3, 5)).clamp(min=1.0)


def _sample_places(start: Tensor, length: Tensor, cells: int, ratio: int, size: Int) -> tuple[Tensor, Tensor]:
    """``(regions, cells * samples)``: where each cell is sampled, and which samples count.

    Without a fixed ratio a cell has as many samples as it covers elements, which the data decides: room is made for
    as many as the image has, and those beyond are masked.
    """
    cell = (length / cells).unsqueeze(1).unsqueeze(2)
    room = ratio if ratio > 0 else (size + cells - 1) // cells
    count = torch.full_like(cell, ratio) if ratio > 0 else torch.ceil(cell).clamp(1.0)
    index = torch.arange(room, dtype=start.dtype)
    corner = start[:, None, None] + torch.arange(cells, dtype=start.dtype)[None, :, None] * cell
    places = corner + (index + 0.5) * cell / count
    used = (index < count).expand(places.shape)
    return places.flatten(1), used.flatten(1)


def _neighbours(place: Tensor, size: Int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The elements around a place, the share of the higher one, and whether the place is near the image at all."""
    inside = ((place >= -1.0) & (place <= size)).to(place.dtype)
    place = place.clamp(min=0.0)
    low = torch.floor(place).clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    share = torch.where(low >= size - 1, torch.zeros_like(place), place - low)
    return low.to(torch.int64), high.to(torch.int64), share, inside


def _cells(samples: Tensor, rows: int, columns: int) -> Tensor:
    """``(regions, channels, rows, samples, columns, samples)``."""
    regions, channels, height, width = samples.shape
    return samples.reshape([regions, channels, rows, height // rows, columns, width // columns])
