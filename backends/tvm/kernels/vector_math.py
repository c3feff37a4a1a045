"""Elementary functions on float32 vectors as TIR expressions: no calls, no tables, no branches.

LLVM turns ``exp`` of a vector into one libm call per lane; these polynomials stay in vector registers. Each function
takes a float32 expression of any number of lanes (1 too) and returns one of the same type. Largest error against
float64 over all finite inputs (the tests hold them to it), in units in the last place of the result:

=============  =====  ==============================================================================
function       ULP    method
=============  =====  ==============================================================================
``exp``        1      2^n times a polynomial on [-ln2/2, ln2/2]; 0 below -86.99, where exact is below 1.7e-38
``expm1``      2      the same without the 1, so nothing cancels near 0; for x <= 88
``log``        1      exponent and mantissa, polynomial on [sqrt(1/2), sqrt(2)] (Cephes)
``log1p``      2      log(1 + x) plus the first-order term of what rounding 1 + x lost; for x >= 0
``tanh``       6      odd rational function of degree 13/6 on [-8.99, 8.99] (Eigen)
``erf``        7      odd rational function of degree 13/8 on [-3.91, 3.91] (Eigen)
``sigmoid``    2      1 / (1 + exp(-x)); 0 below -88.72, where the exact value is subnormal
=============  =====  ==============================================================================

NaN in gives NaN out; infinities give the limit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from shave.backends.tvm.adapter import Expr, T, tirx

STACK_ARRAY_BYTES = 1024


def local_array(elements: int, dtype: str) -> Any:
    """Declare an array on the stack of the function being built, which LLVM turns into registers.

    TVM puts an array on the stack if its scope is ``global`` and its size below ``STACK_ARRAY_BYTES``; any other takes
    memory from a pool at run time, with two calls for each array and iteration.
    """
    assert elements * np.dtype(dtype).itemsize < STACK_ARRAY_BYTES, f"{elements} x {dtype} is too much for the stack"
    return T.alloc_buffer((elements,), dtype, layout=None)


class Bindings:
    """Names values that a formula uses more than once, as ``let`` expressions around it.

    TIR expressions are trees: a value used twice without a name would be computed twice, and its operands four times.
    """

    def __init__(self) -> None:
        self._bound: list[tuple[Expr, Expr]] = []

    def __call__(self, value: Expr) -> Expr:
        """Give ``value`` a name and return the name."""
        name = tirx.Var(f"t{len(self._bound)}", value.ty)
        self._bound.append((name, value))
        return name

    def around(self, body: Expr) -> Expr:
        """``body`` with every name bound, in the order they were given."""
        for name, value in reversed(self._bound):
            body = tirx.Let(name, value, body)
        return body


class Locals(Bindings):
    """Names values as local arrays of the function being built, which LLVM turns into registers.

    For long formulas inside own kernels: many of TVM's passes look at a ``let`` with all earlier names put back in,
    which takes seconds for a formula like softplus. Nothing looks through an array.
    """

    def __call__(self, value: Expr) -> Expr:
        """Store ``value`` and return what reads it."""
        width = lanes(value)
        element = str(value.ty.dtype).partition("x")[0]
        buffer = local_array(width, element)
        at = T.ramp(0, 1, width) if width > 1 else 0
        T.buffer_store(buffer, value, [at])
        return buffer[at]


class Formula(Protocol):
    """A function of vector expressions."""

    def __call__(self, x: Expr, *parameters: float, let: Bindings | None = None) -> Expr:
        """The value at ``x``; names go into ``let`` (that of the larger formula), by default around the value."""


def formula(body: Callable[..., Expr]) -> Formula:
    """Make a formula of ``body(let, x, *parameters)``, where x is a name already."""

    @functools.wraps(body)
    def whole(x: Expr, *parameters: float, let: Bindings | None = None) -> Expr:
        if let is not None:
            return body(let, let(x), *parameters)
        own = Bindings()
        return own.around(body(own, own(x), *parameters))

    return whole


def lanes(x: Expr) -> int:
    """Number of lanes of an expression."""
    return int(x.ty.dtype.lanes)


def splat(value: float | Expr, like: Expr) -> Expr:
    """A float32 constant, or any scalar, with as many lanes as ``like``."""
    scalar = value if isinstance(value, Expr) else T.float32(value)
    return T.broadcast(scalar, lanes(like)) if lanes(like) > 1 else scalar


def as_float32(x: Expr) -> Expr:
    """``x`` lane by lane in float32."""
    return x if str(x.ty.dtype).startswith("float32") else tirx.Cast(_dtype("float32", x), x)


def polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's rule, highest power first; the code generator contracts each step to one FMA."""
    result = splat(coefficients[0], x)
    for c in coefficients[1:]:
        result = result * x + splat(c, x)
    return result


def maximum(bound: float | Expr, x: Expr) -> Expr:
    """Larger of a scalar and ``x``; NaN stays NaN (TIR's own ``max`` may return the scalar)."""
    return tirx.Select(x < splat(bound, x), splat(bound, x), x)


def minimum(bound: float | Expr, x: Expr) -> Expr:
    """Smaller of a scalar and ``x``; NaN stays NaN."""
    return tirx.Select(x > splat(bound, x), splat(bound, x), x)


def is_nan(x: Expr) -> Expr:
    """Whether x is NaN, lane by lane and by its bits: TVM simplifies x != x to False."""
    magnitude = tirx.reinterpret(_dtype("int32", x), x) & _integer(0x7FFFFFFF, x)
    return magnitude > _integer(0x7F800000, x)


def larger(a: Expr, b: Expr) -> Expr:
    """The larger of two vectors, lane by lane: the first of equal ones, NaN where either is."""
    return tirx.Select(is_nan(b), b, tirx.Select(b > a, b, a))


def _integer(value: int, like: Expr) -> Expr:
    return T.broadcast(T.int32(value), lanes(like)) if lanes(like) > 1 else T.int32(value)


def _dtype(base: str, like: Expr) -> str:
    return f"{base}x{lanes(like)}" if lanes(like) > 1 else base


_LN2 = (0.693145752, 1.42860677e-6)
"""In two parts; products of the first with whole numbers up to 2^11 are exact."""
_EXP = (1.38144556e-3, 8.36878549e-3, 4.16683964e-2, 1.66665196e-1, 4.99999940e-1, 1.0, 1.0)
"""e^r on [-ln2/2, ln2/2], highest power first, fitted for the smallest relative error, 3e-9."""


def _split_exponent(bounded: Expr, bias: int, let: Bindings) -> tuple[Expr, Expr]:
    """(r, 2^(n + bias - 127)) with x = n ln2 + r and n whole; 0 as the power where n + bias is 0.

    Adding 1.5 * 2^23 rounds to a whole number and leaves its bits at the end of the sum's, from where one shift makes
    them the exponent of a power of two.

    Args:
        bounded: x, such that n + bias lies in [0, 254]; or NaN, which r becomes as well.
        bias: 127 for 2^n itself.
        let: Takes the names.
    """
    magic = splat(12582912.0 + bias, bounded)
    shifted = let(bounded * splat(1.44269504, bounded) + magic)
    n = let(shifted - magic)
    r = let(bounded - n * splat(_LN2[0], bounded) - n * splat(_LN2[1], bounded))
    bits = tirx.reinterpret(_dtype("int32", bounded), shifted) << _integer(23, bounded)
    return r, let(tirx.reinterpret(_dtype("float32", bounded), bits))


@formula
def exp(let: Bindings, x: Expr) -> Expr:
    """e^x; infinity above 88.72, 0 below -86.99."""
    # Twice e^r times half of 2^n, since 2^128 itself is infinite; half of 2^-126 counts as 0.
    r, half = _split_exponent(let(minimum(89.0, let(maximum(-87.5, x)))), 126, let)
    return polynomial(r, [2 * c for c in _EXP]) * half


@formula
def expm1(let: Bindings, x: Expr) -> Expr:
    """e^x - 1 without cancellation near 0; for x <= 88."""
    r, scale = _split_exponent(let(maximum(-30.0, x)), 127, let)
    # The term r by itself: the others are small beside it, so that their rounding does not count.
    tail = polynomial(r, _EXP[:-2]) * (r * r) + r
    return scale * tail + (scale - splat(1.0, x))


@formula
def log(let: Bindings, x: Expr) -> Expr:
    """Natural logarithm; -infinity at 0, NaN below."""
    smallest_normal = 1.17549435e-38
    subnormal = x < splat(smallest_normal, x)
    scaled = tirx.Select(subnormal, x * splat(8388608.0, x), x)
    bits = let(tirx.reinterpret(_dtype("int32", x), scaled))
    # Bias the bits so that the mantissa comes out in [sqrt(1/2), sqrt(2)).
    shifted = let(bits - _integer(0x3F3504F3, x))
    exponent = let(
        tirx.Cast(_dtype("float32", x), shifted >> _integer(23, x))
        - tirx.Select(subnormal, splat(23.0, x), splat(0.0, x))
    )
    mantissa_bits = (shifted & _integer(0x7FFFFF, x)) + _integer(0x3F3504F3, x)
    m = let(tirx.reinterpret(_dtype("float32", x), mantissa_bits) - splat(1.0, x))
    z = let(m * m)
    coefficients = (
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    )
    y = polynomial(m, coefficients) * (m * z) + exponent * splat(-2.12194440e-4, x) - z * splat(0.5, x)
    value = m + y + exponent * splat(0.693359375, x)
    infinity = float("inf")
    outside = tirx.Select(
        x == splat(0.0, x), splat(-infinity, x), tirx.Select(x > splat(0.0, x), x, splat(float("nan"), x))
    )
    inside = tirx.And(x > splat(0.0, x), x < splat(infinity, x))
    return tirx.Select(inside, value, outside)


@formula
def log1p(let: Bindings, x: Expr) -> Expr:
    """log(1 + x) for x >= 0, accurate for small x."""
    w = let(x + splat(1.0, x))
    lost = x - (w - splat(1.0, x))
    # From 2^24 on nothing of the sum is lost that matters, and infinity less infinity must not enter.
    correction = tirx.Select(w < splat(16777216.0, x), lost / w, splat(0.0, x))
    return log(w, let=let) + correction


def _odd_rational(
    let: Bindings, x: Expr, bound: float, numerator: Sequence[float], denominator: Sequence[float]
) -> Expr:
    """Odd function x * P(x^2) / Q(x^2) on [-bound, bound].

    The bound is in the middle of a dozen neighbours for which float32 arithmetic gives exactly 1, so that nothing has
    to be selected beyond it.
    """
    bounded = let(minimum(bound, let(maximum(-bound, x))))
    z = let(bounded * bounded)
    # The quotient first: it is close to 1 near 0, where x times the numerator may be subnormal and lose its digits.
    return bounded * (polynomial(z, numerator) / polynomial(z, denominator))


@formula
def tanh(let: Bindings, x: Expr) -> Expr:
    """Hyperbolic tangent."""
    numerator = (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    )
    denominator = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
    return _odd_rational(let, x, 8.9949465, numerator, denominator)


@formula
def erf(let: Bindings, x: Expr) -> Expr:
    """Error function."""
    numerator = (
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    )
    denominator = (
        -1.45660718464996e-05,
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    )
    return _odd_rational(let, x, 3.914029, numerator, denominator)


def one_plus_exp_of_negative(x: Expr, let: Bindings) -> Expr:
    """1 + e^-x, by which sigmoid and silu divide; infinity below -88.72."""
    r, half = _split_exponent(let(minimum(89.0, let(maximum(-87.5, splat(0.0, x) - x)))), 126, let)
    return polynomial(r, [2 * c for c in _EXP]) * half + splat(1.0, x)


@formula
def sigmoid(let: Bindings, x: Expr) -> Expr:
    """Logistic function 1 / (1 + e^-x)."""
    return splat(1.0, x) / one_plus_exp_of_negative(x, let)


FUNCTIONS: dict[str, Formula] = {
    "exp": exp,
    "expm1": expm1,
    "log": log,
    "log1p": log1p,
    "tanh": tanh,
    "erf": erf,
    "sigmoid": sigmoid,
}
