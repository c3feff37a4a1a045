"""torch's scalar arithmetic as TIR expressions: NaN is kept, integers round as torch rounds them.

All functions take and return scalar expressions of one dtype. The tail schedule later turns ``exp``, ``log``, ``tanh``,
``erf`` and ``sigmoid`` of float32 vectors into vector code.
"""

from __future__ import annotations

from typing import Any

from shave.backends.tvm.adapter import tirx


def is_float(x: Any) -> bool:
    """Whether an expression is of a floating dtype."""
    return "float" in str(x.ty.dtype)


def dtype_of(x: Any) -> str:
    """The dtype of an expression."""
    return str(x.ty.dtype)


def const(value: float, like: Any) -> Any:
    """A constant of the dtype of ``like``."""
    return tirx.const(value, dtype_of(like))


def cast(x: Any, dtype: str) -> Any:
    """Convert as ``Tensor.to`` does: truncate towards zero, wrap around, anything but 0 is True."""
    have = dtype_of(x)
    if have == dtype:
        return x
    if dtype == "bool":
        return differ(x, const(0, x))
    if have in ("float16", "bfloat16", "float32", "float64") and dtype == "uint8":
        return tirx.Cast("uint8", tirx.Cast("int32", x))
    return tirx.Cast(dtype, x)


def equal(a: Any, b: Any) -> Any:
    """Give a == b as an expression (Python's operator compares identities where it is asked for a truth value)."""
    return (a == b).asobject()


def differ(a: Any, b: Any) -> Any:
    """Give a != b as an expression."""
    return (a != b).asobject()


def is_nan(x: Any) -> Any:
    """Whether x is NaN, by its bits: TVM simplifies x != x to False."""
    bits, magnitude, infinity = {
        "float16": ("uint16", 0x7FFF, 0x7C00),
        "bfloat16": ("uint16", 0x7FFF, 0x7F80),
        "float32": ("uint32", 0x7FFFFFFF, 0x7F800000),
        "float64": ("uint64", 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000),
    }[dtype_of(x)]
    return (tirx.reinterpret(bits, x) & tirx.const(magnitude, bits)) > tirx.const(infinity, bits)


def libm(name: str) -> Any:
    """A function of the C library, which TVM has no lowering for."""

    def call(*x: Any) -> Any:
        dtype = dtype_of(x[0])
        if dtype == "float64":
            return tirx.call_pure_extern(dtype, name, *x)
        wide = tirx.call_pure_extern("float32", f"{name}f", *[cast(v, "float32") for v in x])
        return cast(wide, dtype)

    return call


def maximum(a: Any, b: Any) -> Any:
    """The larger one; NaN if either is NaN."""
    if dtype_of(a) == "bool":
        return tirx.Or(a, b)
    if not is_float(a):
        return tirx.max(a, b)
    # One instruction takes the larger one and b where either is NaN; so only a has to be looked at.
    return tirx.Select(is_nan(a), a, tirx.Select(a > b, a, b))


def minimum(a: Any, b: Any) -> Any:
    """The smaller one; NaN if either is NaN."""
    if dtype_of(a) == "bool":
        return tirx.And(a, b)
    if not is_float(a):
        return tirx.min(a, b)
    return tirx.Select(tirx.Or(a < b, is_nan(a)), a, b)


def at_least(low: Any, x: Any) -> Any:
    """``x``, but no less than ``low``; NaN stays."""
    return tirx.Select(x < low, low, x)


def at_most(high: Any, x: Any) -> Any:
    """``x``, but no more than ``high``; NaN stays."""
    return tirx.Select(x > high, high, x)


def clamp(x: Any, low: Any, high: Any) -> Any:
    """Keep within bounds, either of which may be None; NaN stays; ``high`` wins over ``low``."""
    x = x if low is None else at_least(low, x)
    return x if high is None else at_most(high, x)


def expm1(x: Any) -> Any:
    """e^x - 1 for x <= 0: near 0, where the difference would cancel, by its series."""
    if dtype_of(x) == "float64":
        return libm("expm1")(x)
    series = const(1, x)
    for n in (7, 6, 5, 4, 3, 2):
        series = series * x * const(1 / n, x) + const(1, x)
    return tirx.Select(x > const(-0.35, x), series * x, tirx.exp(x) - const(1, x))


def log1p(x: Any) -> Any:
    """log(1 + x), accurate near 0; a call per element, since a polynomial inside of another takes TVM seconds."""
    return libm("log1p")(x)


def erf(x: Any) -> Any:
    """The error function."""
    if dtype_of(x) == "float32":
        return tirx.erf(x)
    return libm("erf")(x)


def floor_mod(a: Any, b: Any) -> Any:
    """The remainder with the sign of the divisor (Python's %)."""
    if not is_float(a):
        return tirx.floormod(a, b)
    remainder = libm("fmod")(a, b)
    wrong = tirx.And(
        differ(remainder, const(0, a)),
        differ(tirx.Cast("int8", remainder < const(0, a)), tirx.Cast("int8", b < const(0, a))),
    )
    return tirx.Select(wrong, remainder + b, remainder)


def power(base: Any, exponent: Any) -> Any:
    """``base ** exponent``; by multiplication where the exponent is a small whole constant."""
    known = getattr(exponent, "value", None)
    if known is not None and float(known) in (1.0, 2.0, 3.0, 4.0):
        result = base
        for _ in range(int(known) - 1):
            result = result * base
        return result
    if not is_float(base):
        return _integer_power(base, exponent)
    if known is not None and float(known) == 0.5:
        return tirx.sqrt(base)
    if known is not None and float(known) == -1.0:
        return const(1, base) / base
    if known is not None and float(known) == -0.5:
        return const(1, base) / tirx.sqrt(base)
    return tirx.pow(base, exponent)


def _integer_power(base: Any, exponent: Any) -> Any:
    """Whole powers by squaring, wrapping around as integers do; negative exponents give what truncation gives."""
    one, zero = const(1, base), const(0, base)
    result, square = one, base
    for bit in range(6):
        odd = (tirx.shift_right(exponent, const(bit, exponent)) & const(1, exponent)) > const(0, exponent)
        result = tirx.Select(odd, result * square, result)
        square = square * square
    reciprocal = tirx.Select(
        equal(base, one), one, tirx.Select(equal(base, const(-1, base)), _sign_of_power(exponent, one), zero)
    )
    return tirx.Select(exponent < const(0, exponent), reciprocal, result)


def _sign_of_power(exponent: Any, one: Any) -> Any:
    even = equal(exponent & const(1, exponent), const(0, exponent))
    return tirx.Select(even, one, const(0, one) - one)
