"""Resizing images: torch's interpolation where it computes the same, else a resampling matrix for each axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Int, Value, as_ints, as_tensor, is_host, is_symbolic

_TORCH_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Sampling:
    """How output positions map to input positions, and how elements there are mixed.

    Attributes:
        mode: ``nearest``, ``linear`` or ``cubic``.
        transform: the coordinate transformation.
        nearest: how a position is rounded.
        cubic: the coefficient of the cubic kernel.
        exclude_outside: whether weights outside of the input are dropped, not given to the border.
        antialias: whether the kernel widens when it shrinks the input.
    """

    mode: str = "nearest"
    transform: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False

    def positions(self, size: int, out: int, scale: float, roi: tuple[float, float]) -> np.ndarray:
        """Where in the input each output element lies.

        In single precision, as every runtime computes it: rounding decides which of two elements is nearest.
        """
        place, ratio, half = np.arange(out, dtype=np.float32), np.float32(scale), np.float32(0.5)
        places: np.ndarray = (place + half) / ratio - half
        if self.transform == "asymmetric":
            places = place / ratio
        elif self.transform == "align_corners":
            places = place * (np.float32(size - 1) / np.float32(max(out - 1, 1)))
        elif self.transform == "pytorch_half_pixel" and out == 1:
            places = np.zeros_like(place)
        elif self.transform == "half_pixel_symmetric":
            # The rounding of the output size is made up for at both ends.
            places = places + np.float32(size / 2) * (1 - np.float32(out) / (ratio * np.float32(size)))
        elif self.transform == "tf_half_pixel_for_nn":
            places = (place + half) / ratio
        elif self.transform == "tf_crop_and_resize":
            low, high, last = np.float32(roi[0]), np.float32(roi[1]), np.float32(size - 1)
            if out == 1:
                places = np.full(1, half * (low + high) * last)
            else:
                places = low * last + place * ((high - low) * last / np.float32(out - 1))
        return places

    def nearest_indices(self, positions: np.ndarray, size: int) -> np.ndarray:
        """The input element that is nearest, in the sense asked for."""
        floor = np.floor(positions)
        rounded = {
            "round_prefer_floor": np.ceil(positions - 0.5),
            "round_prefer_ceil": np.floor(positions + 0.5),
            "floor": floor,
            "ceil": np.ceil(positions),
        }[self.nearest]
        indices: np.ndarray = np.clip(rounded, 0, size - 1).astype(np.int64)
        return indices

    def matrix(self, positions: np.ndarray, size: int, scale: float) -> np.ndarray:
        """``(out, in)``: the share of each input element in each output element."""
        widen = min(scale, 1.0) if self.antialias else 1.0
        reach = (1 if self.mode == "linear" else 2) / widen
        base = np.floor(positions)
        taps = np.arange(math.floor(-reach) + 1, math.ceil(reach) + 1)
        places = base[:, None] + taps
        weights = self._kernel((places - positions[:, None]) * widen)
        if self.exclude_outside:
            weights = np.where((places >= 0) & (places < size), weights, 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
        result = np.zeros((len(positions), size))
        columns = np.clip(places, 0, size - 1).astype(np.int64)
        np.add.at(result, (np.arange(len(positions))[:, None], columns), weights)
        return result

    def _kernel(self, distance: np.ndarray) -> np.ndarray:
        d, a = np.abs(distance), self.cubic
        if self.mode == "linear":
            return np.where(d < 1, 1 - d, 0.0)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@onnx_op("Upsample")
def upsample_attributes(node: OnnxNode, x: Tensor) -> Value:
    """Enlarge by scales given as an attribute."""
    return _upsample(node, x, node.attr("scales"))


@onnx_op("Upsample", since=9)
def upsample(node: OnnxNode, x: Tensor, scales: Value) -> Value:
    """Enlarge by scales given as an input."""
    return _upsample(node, x, as_floats(scales))


@onnx_op("Resize", since=10)
def resize_by_scales(node: OnnxNode, x: Tensor, scales: Value) -> Value:
    """The first version: scales alone, always asymmetric."""
    return _upsample(node, x, as_floats(scales))


def _upsample(node: OnnxNode, x: Tensor, scales: Sequence[float]) -> Tensor:
    sampling = Sampling(node.attr("mode", "nearest"), "asymmetric", "floor")
    sizes = [_scaled(size, scale) for size, scale in zip(x.shape, scales, strict=True)]
    return _resample(x, list(range(x.ndim)), sizes, list(scales), sampling, None, 0.0)


@onnx_op("Resize", since=11)
def resize(
    node: OnnxNode, x: Tensor, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None
) -> Value:
    """Resize axes by scales or to sizes."""
    axes = [axis % x.ndim for axis in node.attr("axes", list(range(x.ndim)))]
    sampling = Sampling(
        node.attr("mode", "nearest"),
        node.attr("coordinate_transformation_mode", "half_pixel"),
        node.attr("nearest_mode", "round_prefer_floor"),
        node.attr("cubic_coeff_a", -0.75),
        bool(node.attr("exclude_outside", 0)),
        bool(node.attr("antialias", 0)),
    )
    own = [x.shape[axis] for axis in axes]
    wanted = as_ints(sizes) if sizes is not None and sizes.shape[0] else None
    if wanted is None:
        if scales is None:
            raise ValueError("has neither scales nor sizes")
        factors = as_floats(scales)
        wanted = [_scaled(size, factor) for size, factor in zip(own, factors, strict=True)]
    else:
        wanted = _keep_ratio(own, wanted, node.attr("keep_aspect_ratio_policy", "stretch"))
        # A symbolic size that stays is no change; division would hide that.
        factors = [
            1.0 if statically_known_true(new == old) else new / old for new, old in zip(wanted, own, strict=True)
        ]
    region = None
    if sampling.transform == "tf_crop_and_resize":
        if roi is None:
            raise ValueError("crops to a region, but has none")
        region = as_floats(roi)
    return _resample(x, axes, wanted, factors, sampling, region, node.attr("extrapolation_value", 0.0))


def as_floats(value: Value) -> list[float]:
    """The elements of a host value as floats, symbolic ones included."""
    if not is_host(value):
        raise ValueError(
            "needs scales that are known before the model runs, but the model computes them from its inputs"
        )
    return list(value.reshape(-1).tolist()) if is_symbolic(value) else [float(f) for f in value.reshape(-1)]


def _scaled(size: Int, scale: float) -> Int:
    """A size times a scale, cut off; whole scales spare symbolic sizes the way through floats."""
    if isinstance(scale, float) and scale == int(scale):
        return size * int(scale)
    return math.floor(size * scale)


def _keep_ratio(own: Sequence[Int], wanted: list[Int], policy: str) -> list[Int]:
    if policy == "stretch":
        return wanted
    ratios = [new / old for new, old in zip(wanted, own, strict=True)]
    ratio = min(ratios) if policy == "not_larger" else max(ratios)
    return [math.floor(size * ratio + 0.5) for size in own]


def _resample(
    x: Tensor,
    axes: list[int],
    sizes: Sequence[Int],
    scales: Sequence[float],
    sampling: Sampling,
    roi: Sequence[float] | None,
    extrapolation: float,
) -> Tensor:
    region = (
        dict(zip(axes, zip(roi[: len(axes)], roi[len(axes) :], strict=True), strict=True)) if roi is not None else {}
    )
    changed = {
        axis: (size, scale)
        for axis, size, scale in zip(axes, sizes, scales, strict=True)
        if axis in region or not (isinstance(scale, float) and scale == 1)
    }
    if not changed:
        return x
    interpolated = _interpolate(x, changed, sampling)
    if interpolated is not None:
        return interpolated
    dtype = x.dtype
    outside: dict[int, np.ndarray] = {}
    for axis, (size, scale) in changed.items():
        length = x.shape[axis]
        if not isinstance(length, int) or not isinstance(size, int):
            raise ValueError(
                f"resizing with mode {sampling.mode}, {sampling.transform} needs axis {axis} to be of a fixed size; "
                "give the input's shape"
            )
        positions = sampling.positions(length, size, float(scale), region.get(axis, (0.0, 1.0)))
        if axis in region:
            outside[axis] = (positions < 0) | (positions > length - 1)
        if sampling.mode == "nearest":
            x = torch.index_select(x, axis, as_tensor(sampling.nearest_indices(positions, length)))
            continue
        matrix = sampling.matrix(positions, length, float(scale)).astype(np.float32)
        weights = as_tensor(matrix).to(dtype if dtype.is_floating_point else torch.float32)
        x = torch.matmul(x.movedim(axis, -1).to(weights.dtype), weights.t()).movedim(-1, axis)
    for axis, mask in outside.items():
        shape = [1] * x.ndim
        shape[axis] = -1
        x = torch.where(as_tensor(mask.reshape(shape)), torch.full((), extrapolation, dtype=x.dtype), x)
    return x.to(dtype)


def _interpolate(x: Tensor, changed: dict[int, tuple[Int, float]], sampling: Sampling) -> Tensor | None:
    """Resize by torch's own interpolation, if it gives the same on the changed axes; else None."""
    rank = x.ndim - 2
    if not 1 <= rank <= 3 or min(changed) < 2 or not x.is_floating_point() or sampling.antialias:
        return None
    sizes = [changed.get(axis, (x.shape[axis], 1.0))[0] for axis in range(2, x.ndim)]
    static = all(isinstance(size, int) and isinstance(x.shape[axis], int) for axis, (size, _) in changed.items())
    if sampling.mode == "nearest":
        same = all(
            _nearest_is_torchs(x.shape[axis], size, scale, sampling) if static else _nearest_is_exact(scale, sampling)
            for axis, (size, scale) in changed.items()
        )
        return F.interpolate(x, sizes, mode="nearest") if same else None
    # With a scale whose product with the size is not whole, positions are not those that torch derives from sizes.
    whole = all(not static or x.shape[axis] * scale == size for axis, (size, scale) in changed.items())
    corners = sampling.transform == "align_corners"
    if not corners and not (whole and sampling.transform in ("half_pixel", "pytorch_half_pixel")):
        return None
    if static and any(size == 1 for size, _ in changed.values()) and sampling.transform == "pytorch_half_pixel":
        return None
    if sampling.mode == "linear":
        return F.interpolate(x, sizes, mode=_TORCH_MODES[rank], align_corners=corners)
    if rank == 2 and sampling.cubic == -0.75 and not sampling.exclude_outside:
        return F.interpolate(x, sizes, mode="bicubic", align_corners=corners)
    return None


def _nearest_is_torchs(length: int, size: int, scale: float, sampling: Sampling) -> bool:
    wanted = sampling.nearest_indices(sampling.positions(length, size, scale, (0.0, 1.0)), length)
    return bool((wanted == np.arange(size) * length // size).all())


def _nearest_is_exact(scale: float, sampling: Sampling) -> bool:
    """Whether, at any size, the nearest element is the one that torch takes: enlarging by a whole number."""
    if not isinstance(scale, float) or scale != int(scale):
        return False
    if sampling.transform == "asymmetric":
        return sampling.nearest == "floor"
    return sampling.transform in ("half_pixel", "pytorch_half_pixel") and sampling.nearest.startswith("round")
