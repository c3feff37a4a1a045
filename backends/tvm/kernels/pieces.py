"""Activation functions by pieces: cubic polynomials whose coefficients a permutation of two registers looks up.

A formula for silu or gelu divides and takes a few dozen instructions, more than the products of a layer of integers
take. Here every such function is a line besides an even or odd function that is constant from some limit on. Of that,
32 pieces of the size of x are enough for errors below 1e-5, whatever the function: far below half a step of codes, so
that what is rounded to codes can be had from it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, T, tirx
from shave.backends.tvm.kernels.epilogue import FUNCTIONS, Activation
from shave.backends.tvm.kernels.narrowing import narrows
from shave.backends.tvm.kernels.vector_math import Bindings, lanes, maximum, minimum, splat

Array = npt.NDArray[np.float64]

PIECES = 32
ERROR = 1e-5
"""Largest difference from the exact function."""
_LANES = 16
_DEGREE = 3
_ROUNDING = 12582912.0
"""1.5 * 2^23: a sum with it has the nearest whole number in its last bits."""


@dataclass(frozen=True)
class _Form:
    """A function as a line and a symmetric rest: ``max(0, x)`` or a constant, plus a function of the size of x.

    Attributes:
        limit: From where on the rest is constant.
        rectified: Whether the line is that of relu.
        offset: What is added.
        odd: Whether the rest has the sign of x.
    """

    limit: float
    rectified: bool = False
    offset: float = 0.0
    odd: bool = False

    def line(self, x: Array) -> Array:
        """What the rest is added to."""
        return (np.maximum(x, 0) if self.rectified else np.zeros_like(x)) + self.offset


_FORMS = {
    "silu": _Form(15.0, rectified=True),
    "gelu": _Form(5.2, rectified=True),
    "gelu_tanh": _Form(5.2, rectified=True),
    "softplus": _Form(13.0, rectified=True),
    "sigmoid": _Form(13.0, offset=0.5, odd=True),
    "tanh": _Form(6.5, odd=True),
}


class Pieces(Activation):
    """An activation that is computed by pieces; see :func:`by_pieces`."""

    def expression(self, x: Expr, let: Bindings) -> Expr:
        """The value of a vector of up to 16 lanes."""
        form, width = _FORMS[self.kind], lanes(x)
        x = let(x)
        rest = _narrowed(_rest(_widened(x, width), form, _coefficients(self.kind), let), width)
        if form.rectified:
            return maximum(0.0, x) + rest
        return rest + splat(form.offset, x) if form.offset else rest


def by_pieces(activation: Activation, target: Target) -> Activation:
    """The same activation for results that are rounded to codes: by pieces where that exists and is faster."""
    if activation.kind not in _FORMS or not narrows(target):
        return activation
    return Pieces(activation.kind, activation.parameters)


@functools.cache
def _coefficients(kind: str) -> Array:
    """[degree, pieces], lowest power first, of the distance from the middle of a piece in widths of a piece."""
    form, function = _FORMS[kind], FUNCTIONS[kind].reference
    step = form.limit / (PIECES - 1)
    nodes = np.cos((2 * np.arange(_DEGREE + 1) + 1) * np.pi / (2 * _DEGREE + 2)) / 2
    columns = []
    for piece in range(PIECES):
        # The first piece has no left half, the last one no right half.
        ends = (0.0 if piece == 0 else -0.5, 0.0 if piece == PIECES - 1 else 0.5)
        at = (ends[0] + ends[1]) / 2 + nodes * (ends[1] - ends[0])
        x = (piece + at) * step
        powers = np.vander(at, _DEGREE + 1, increasing=True)
        columns.append(np.linalg.solve(powers, function(x) - form.line(x)))
    return np.stack(columns, axis=1)


def _rest(x: Expr, form: _Form, coefficients: Array, let: Bindings) -> Expr:
    bits = let(tirx.reinterpret(f"int32x{_LANES}", x))
    size = let(tirx.reinterpret(f"float32x{_LANES}", bits & _words(0x7FFFFFFF)))
    place = let(minimum(form.limit, size) * splat((PIECES - 1) / form.limit, x))
    rounded = let(place + splat(_ROUNDING, x))
    inside = let(place - (rounded - splat(_ROUNDING, x)))
    piece = let(tirx.reinterpret(f"int32x{_LANES}", rounded))
    value = _looked_up(coefficients[_DEGREE], piece)
    for power in reversed(range(_DEGREE)):
        value = value * inside + _looked_up(coefficients[power], piece)
    if not form.odd:
        return value
    sign = bits & _words(-0x80000000)
    return tirx.reinterpret(f"float32x{_LANES}", tirx.reinterpret(f"int32x{_LANES}", value) ^ sign)


def _looked_up(table: Array, piece: Expr) -> Expr:
    """An element of a table for each lane, by the last five bits."""
    number = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpermi2var.ps.512")
    low, high = (
        tirx.Shuffle([T.float32(float(value)) for value in half], list(range(_LANES)))
        for half in (table[:_LANES], table[_LANES:])
    )
    return T.call_llvm_pure_intrin(f"float32x{_LANES}", number, low, piece, high)


def _words(value: int) -> Expr:
    return T.broadcast(T.int32(value), _LANES)


def _widened(x: Expr, width: int) -> Expr:
    """A vector of all lanes that holds a shorter one several times."""
    if width == _LANES:
        return x
    return T.broadcast(x, _LANES) if width == 1 else tirx.Shuffle([x] * (_LANES // width), list(range(_LANES)))


def _narrowed(x: Expr, width: int) -> Expr:
    return x if width == _LANES else tirx.Shuffle([x], list(range(width)))
