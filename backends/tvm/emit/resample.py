"""Interpolation and sampling on grids, by torch's formulas (aten/src/ATen/native/UpSample.h, GridSampler.h).

A kernel interpolates blocked floats of known extents; whatever else is a tensor expression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product as combinations
from typing import Any, cast

from torch import fx

from shave.backends.tvm import layout
from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.emit.reduction import accumulator
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.kernels import resize
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.resize import Mode, ResizeShape
from shave.backends.tvm.layout import Value
from shave.backends.tvm.sizes import Size, is_static
from shave.ir.errors import UnsupportedError
from shave.ir.ops import op_name

_CUBIC = -0.75
"""Keys' parameter, as torch has it."""

Tap = tuple[Any, Any]
"""(position along one axis, weight)."""


def _float(value: float) -> Any:
    return tirx.const(value, "float32")


def _scales(emitter: Emitter, node: fx.Node, axes: int) -> list[Any]:
    """The scale factors that the caller gave, per axis; None where the sizes decide."""
    arguments = emitter.arguments(node)
    given = arguments.get("scale_factors")
    if given is None:
        names = {1: ["scales"], 2: ["scales_h", "scales_w"], 3: ["scales_d", "scales_h", "scales_w"]}[axes]
        given = [arguments.get(name) for name in names]
    return [*given] if given else [None] * axes


def _upsample(emitter: Emitter, node: fx.Node, mode: Mode, taps: Any) -> Value:
    """Emit a separable interpolation.

    ``taps(place, have, want, scale)``, extents of input and output, are those of ``mode`` as expressions.
    """
    x = node.args[0]
    assert isinstance(x, fx.Node)
    shape, dtype = emitter.result(node)
    have = emitter.shape(x)
    # Rows of few channels in the plain layout would leave most lanes empty.
    many = emitter.value(x).blocked is not None or (isinstance(have[1], int) and have[1] >= emitter.lanes)
    if many and dtype in ("float32", "float16") and is_static((*have[1:], *shape[1:])):
        return _kernel(emitter, node, x, mode)
    axes = len(shape) - 2
    scales = _scales(emitter, node, axes)
    work = accumulator(dtype)

    def compute(x: Any, full: Sequence[Size], shape: Sequence[Size]) -> Any:
        along = [
            _tabled(partial(taps, have=x.shape[a], want=full[a], scale=scales[a - 2]), full[a], work)
            for a in range(2, 2 + axes)
        ]

        def element(*index: Any) -> Any:
            lead, places, rest = index[:2], index[2 : 2 + axes], index[2 + axes :]
            total: Any = None
            for combination in combinations(*[at(place) for at, place in zip(along, places, strict=True)]):
                value = scalar.cast(x(*lead, *[position for position, _ in combination], *rest), work)
                for _, weight in combination:
                    if weight is not None:
                        value = value * weight
                total = value if total is None else total + value
            return scalar.cast(total, dtype)

        return te.compute(shape, element, name="upsample")

    inside = layout.blocked_shape(shape, emitter.lanes) if many else shape
    source = emitter.blocked(x) if many else emitter.plain(x)
    made = emitter.te(node, compute, source, shape, shape=inside)
    return Value(shape, dtype, blocked=made) if many else Value(shape, dtype, plain=made)


def _kernel(emitter: Emitter, node: fx.Node, x: fx.Node, mode: Mode) -> Value:
    """Emit the kernel for a blocked value of known extents."""
    shape, dtype = emitter.result(node)
    batch, channels, *spatial = cast("list[int]", emitter.shape(x))
    out = tuple(cast("list[int]", shape[2:]))
    align = bool(emitter.arguments(node).get("align_corners"))
    problem = ResizeShape(
        mode, batch if isinstance(batch, int) else None, channels, tuple(spatial), out, align,
        tuple(_scales(emitter, node, len(out))),
    )  # fmt: skip
    name = "x".join([mode + ".aligned" * align, *map(str, (*spatial, *out, *problem.scales))])
    inputs = [
        emitter.as_float32(node, emitter.blocked(x)),
        emitter.weights.add(f"resize.{name}", resize.pack(problem)),
    ]
    stored = layout.blocked_shape(shape, emitter.lanes)
    made = emitter.call_kernel(resize, problem, Epilogue(), inputs, stored, (node,))
    return Value(shape, dtype, blocked=emitter.from_float32(node, made, dtype))


def _tabled(taps: Callable[[Any], list[Tap]], size: Any, work: str) -> Callable[[Any], list[Tap]]:
    """The taps of an axis, computed once for each position along it instead of for each element."""
    sample = taps(tirx.Var("place", "int64"))
    if all(weight is None and "float" not in str(position) for position, weight in sample):
        return taps

    def table(part: Callable[[Tap], Any], k: int) -> Any:
        return te.compute((size,), lambda place: part(taps(place)[k]), name="taps")

    # As narrow as the weights, so that vectors of elements are not cut in two for the sake of an index.
    positions = [table(lambda tap: tirx.Cast("int32", tap[0]), k) for k in range(len(sample))]
    weights = [
        None if weight is None else table(lambda tap: scalar.cast(tap[1], work), k)
        for k, (_, weight) in enumerate(sample)
    ]

    def tabled(place: Any) -> list[Tap]:
        pairs = zip(positions, weights, strict=True)
        return [(tirx.Cast("int64", p(place)), None if w is None else w(place)) for p, w in pairs]

    return tabled


def _ratio(have: Any, want: Any, scale: Any) -> Any:
    """Input positions per output position."""
    if scale is not None:
        return _float(1.0 / scale)
    return tirx.Cast("float32", have) / tirx.Cast("float32", want)


def _aligned_ratio(have: Any, want: Any) -> Any:
    steps = tirx.max(want - 1, tirx.const(1, "int64"))
    return tirx.Select(want > 1, tirx.Cast("float32", have - 1) / tirx.Cast("float32", steps), _float(0))


def _clamped(position: Any, size: Any) -> Any:
    return tirx.max(tirx.min(position, size - 1), tirx.const(0, "int64"))


def _whole(position: Any) -> Any:
    return tirx.Cast("int64", tirx.floor(position))


_NEAREST = [f"aten.{name}{axes}d" for name in ("upsample_nearest", "_upsample_nearest_exact") for axes in (1, 2, 3)]


@emits(*_NEAREST)
def _nearest(emitter: Emitter, node: fx.Node) -> Value:
    exact = "exact" in op_name(node)

    def taps(out: Any, have: Any, want: Any, scale: Any) -> list[Tap]:
        known = isinstance(have, tirx.IntImm) and isinstance(want, tirx.IntImm)
        if not exact and scale is None and known and int(want.value) % int(have.value) == 0:
            return [(tirx.floordiv(out, int(want.value) // int(have.value)), None)]
        place = tirx.Cast("float32", out) + _float(0.5 if exact else 0.0)
        return [(tirx.min(_whole(place * _ratio(have, want, scale)), have - 1), None)]

    return _upsample(emitter, node, "nearest-exact" if exact else "nearest", taps)


@emits("aten.upsample_linear1d", "aten.upsample_bilinear2d", "aten.upsample_trilinear3d")
def _linear(emitter: Emitter, node: fx.Node) -> Value:
    align = bool(emitter.arguments(node)["align_corners"])

    def taps(out: Any, have: Any, want: Any, scale: Any) -> list[Tap]:
        place = tirx.Cast("float32", out)
        if align:
            source = place * _aligned_ratio(have, want)
        else:
            source = (place + _float(0.5)) * _ratio(have, want, scale) - _float(0.5)
            source = tirx.max(source, _float(0))
        low = tirx.min(_whole(source), have - 1)
        fraction = tirx.max(tirx.min(source - tirx.Cast("float32", low), _float(1)), _float(0))
        return [(low, _float(1) - fraction), (tirx.min(low + 1, have - 1), fraction)]

    return _upsample(emitter, node, "linear", taps)


@emits("aten.upsample_bicubic2d")
def _bicubic(emitter: Emitter, node: fx.Node) -> Value:
    align = bool(emitter.arguments(node)["align_corners"])

    def taps(out: Any, have: Any, want: Any, scale: Any) -> list[Tap]:
        place = tirx.Cast("float32", out)
        source = (
            place * _aligned_ratio(have, want)
            if align
            else (place + _float(0.5)) * _ratio(have, want, scale) - _float(0.5)
        )
        low = _whole(source)
        t = source - tirx.Cast("float32", low)
        weights = [_outer(t + _float(1)), _inner(t), _inner(_float(1) - t), _outer(_float(2) - t)]
        return [(_clamped(low + k - 1, have), weight) for k, weight in enumerate(weights)]

    return _upsample(emitter, node, "cubic", taps)


def _inner(x: Any) -> Any:
    """The cubic convolution kernel for |x| <= 1."""
    return ((_float(_CUBIC + 2) * x - _float(_CUBIC + 3)) * x) * x + _float(1)


def _outer(x: Any) -> Any:
    """The same for 1 < |x| < 2."""
    return ((_float(_CUBIC) * x - _float(5 * _CUBIC)) * x + _float(8 * _CUBIC)) * x - _float(4 * _CUBIC)


@emits("aten.grid_sampler_2d", "aten.grid_sampler_3d", "aten.grid_sampler")
def _grid_sampler(emitter: Emitter, node: fx.Node) -> Any:
    x, grid, mode, padding, align = emitter.arguments(node).values()
    if mode not in (0, 1):
        raise UnsupportedError("grid sampling with bicubic interpolation")
    shape, dtype = emitter.result(node)
    axes = len(shape) - 2

    def place(value: Any, size: Any) -> Any:
        """From [-1, 1] to a position, brought inside by the padding mode."""
        extent = tirx.Cast("float32", size)
        if align:
            position = (value + _float(1)) * _float(0.5) * (extent - _float(1))
        else:
            position = ((value + _float(1)) * extent - _float(1)) * _float(0.5)
        if padding == 2:
            position = _reflected(position, extent, align)
        if padding:
            position = tirx.max(tirx.min(position, extent - _float(1)), _float(0))
        return position

    def compute(x: Any, grid: Any, shape: Sequence[Size]) -> Any:
        def element(n: Any, c: Any, *out: Any) -> Any:
            # The grid holds (x, y, z): the last axis first.
            along = [place(grid(n, *out, axes - 1 - a), x.shape[2 + a]) for a in range(axes)]

            def at(positions: Sequence[Any]) -> Any:
                inside = tirx.all(*[tirx.And(p >= 0, p < s) for p, s in zip(positions, x.shape[2:], strict=True)])
                safe = [_clamped(p, s) for p, s in zip(positions, x.shape[2:], strict=True)]
                return tirx.Select(inside, x(n, c, *safe), tirx.const(0, dtype))

            if mode == 1:
                return at([tirx.Cast("int64", tirx.nearbyint(p)) for p in along])
            lows = [_whole(p) for p in along]
            parts = [p - tirx.Cast("float32", low) for p, low in zip(along, lows, strict=True)]
            total: Any = tirx.const(0, dtype)
            for corner in combinations((0, 1), repeat=axes):
                value = at([low + k for low, k in zip(lows, corner, strict=True)])
                for part, k in zip(parts, corner, strict=True):
                    value = value * (part if k else _float(1) - part)
                total = total + value
            return total

        return te.compute(shape, element, name="grid_sample")

    if dtype != "float32":
        raise UnsupportedError(f"grid sampling in {dtype}")
    return emitter.te(node, compute, emitter.plain(x), emitter.plain(grid), shape=shape)


def _reflected(position: Any, extent: Any, align: bool) -> Any:
    """Reflect at the centres of the border pixels (``align``) or at their outer edges."""
    low = _float(0 if align else -0.5)
    span = tirx.max(extent - _float(1) if align else extent, _float(1))
    distance = tirx.abs(position - low)
    flips = tirx.floor(distance / span)
    rest = distance - flips * span
    odd = flips - _float(2) * tirx.floor(flips * _float(0.5)) > _float(0.5)
    return tirx.Select(odd, span - rest, rest) + low
