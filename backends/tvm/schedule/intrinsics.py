"""exp, erf, tanh and their like as polynomials, so that they stay in vector registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm_ffi

from shave.backends.tvm.adapter import Expr, PrimFunc, tirx, tvm
from shave.backends.tvm.kernels.vector_math import FUNCTIONS

INTRINSICS = {f"tirx.{name}": name for name in FUNCTIONS if name != "log1p"}
"""``log1p`` is left out: the polynomial holds for arguments from 0 only."""


def _infinity(x: Expr) -> Expr:
    return tirx.const(float("inf"), str(x.ty.dtype))


LARGEST_POWER = 16

PLAIN: dict[str, Callable[[Expr], Expr]] = {
    "tirx.rsqrt": lambda x: tirx.const(1.0, str(x.ty.dtype)) / tirx.sqrt(x),
    "tirx.nearbyint": tirx.round,
    "tirx.isnan": lambda x: x != x,
    "tirx.isinf": lambda x: tirx.abs(x) == _infinity(x),
    "tirx.isfinite": lambda x: tirx.abs(x) < _infinity(x),
}
"""Calls that TVM's vectoriser does not know, and would take apart into scalars, as ones that it knows."""


def _plain(formula: Expr) -> Expr:
    return tvm_ffi.structural_map(
        formula, [(tvm.ir.Call, lambda n: PLAIN[n.op.name](n.args[0]) if getattr(n.op, "name", "") in PLAIN else n)]
    )


def expand_intrinsics(function: PrimFunc) -> PrimFunc:
    """Replace the calls that TVM would lower to one libm call per lane.

    float32 keeps a few units in the last place; float16 is computed in float32 and rounded once; float64 stays with
    libm.
    """
    return function.with_body(tvm_ffi.structural_map(function.body, [(tvm.ir.Call, _expand)]))


def _expand(call: Any) -> Expr:
    name = getattr(call.op, "name", "")
    if name == "tirx.pow":
        return _power(call)
    if name in PLAIN:
        return PLAIN[name](call.args[0])
    if name not in INTRINSICS:
        return call
    argument = call.args[0]
    formula = FUNCTIONS[INTRINSICS[name]]
    dtype = str(argument.ty.dtype)
    if dtype == "float32":
        return _plain(formula(argument))
    if dtype == "float16":
        return tirx.Cast("float16", _plain(formula(tirx.Cast("float32", argument))))
    return call


def _power(call: Any) -> Expr:
    """Whole exponents up to 16 and square roots as products; anything else is libm's, where accuracy is hard won.

    A product of n factors is off by n / 2 units in the last place at most.
    """
    base, exponent = call.args
    if not isinstance(exponent, tirx.FloatImm):
        return call
    power = float(exponent.value)
    one = tirx.const(1.0, str(base.ty.dtype))
    if power in (0.5, -0.5):
        root = tirx.sqrt(base)
        return root if power > 0 else one / root
    if power != int(power) or not 1 <= power <= LARGEST_POWER:
        return call
    squares: list[tuple[Expr, Expr]] = []
    factors = []
    square: Expr = base
    for bit in range(int(power).bit_length()):
        name = tirx.Var("square", base.ty)
        squares.append((name, square))
        square = name * name
        if int(power) >> bit & 1:
            factors.append(name)
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    for name, value in reversed(squares):
        result = tirx.Let(name, value, result)
    return result
