"""Elementwise operators, each as the formula of one element."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import fx
from torch._prims_common import ELEMENTWISE_TYPE_PROMOTION_KIND as PROMOTION

from shave.backends.tvm.adapter import te, tirx
from shave.backends.tvm.emit import scalar
from shave.backends.tvm.emit.emitter import Emitter
from shave.backends.tvm.emit.pointwise import emit_elements, emit_pointwise, pointwise
from shave.backends.tvm.emit.registry import emits
from shave.backends.tvm.emit.scalar import const
from shave.backends.tvm.layout import Value
from shave.ir.errors import UnsupportedError

_TO_FLOAT = PROMOTION.INT_TO_FLOAT
_TO_BOOL = PROMOTION.ALWAYS_BOOL

# Arithmetic


@pointwise("aten.add")
def _add(a: Any, b: Any, alpha: Any) -> Any:
    if scalar.dtype_of(a) == "bool":
        return tirx.Or(a, b)
    return a + b if float(alpha.value) == 1 else a + alpha * b


@pointwise("aten.sub")
def _sub(a: Any, b: Any, alpha: Any) -> Any:
    return a - b if float(alpha.value) == 1 else a - alpha * b


@pointwise("aten.rsub")
def _rsub(a: Any, b: Any, alpha: Any) -> Any:
    return _sub(b, a, alpha)


@pointwise("aten.mul")
def _mul(a: Any, b: Any) -> Any:
    return tirx.And(a, b) if scalar.dtype_of(a) == "bool" else a * b


@emits("aten.div", "aten.floor_divide")
def _div(emitter: Emitter, node: fx.Node) -> Value:
    arguments = emitter.arguments(node)
    mode = "floor" if "floor_divide" in str(node.target) else arguments.pop("rounding_mode", None)

    def formula(a: Any, b: Any) -> Any:
        if mode is None:
            return a / b
        if not scalar.is_float(a):
            return tirx.floordiv(a, b) if mode == "floor" else tirx.truncdiv(a, b)
        return tirx.floor(a / b) if mode == "floor" else tirx.trunc(a / b)

    return emit_pointwise(emitter, node, formula, arguments, PROMOTION.DEFAULT if mode else _TO_FLOAT)


pointwise("aten.remainder")(scalar.floor_mod)


@pointwise("aten.fmod")
def _fmod(a: Any, b: Any) -> Any:
    return scalar.libm("fmod")(a, b) if scalar.is_float(a) else tirx.truncmod(a, b)


pointwise("aten.pow")(scalar.power)
pointwise("aten.maximum", "aten.max.other")(scalar.maximum)
pointwise("aten.minimum", "aten.min.other")(scalar.minimum)
pointwise("aten.clamp", "aten.hardtanh")(scalar.clamp)
pointwise("aten.clamp_min")(lambda x, low: scalar.at_least(low, x))
pointwise("aten.clamp_max")(lambda x, high: scalar.at_most(high, x))


@pointwise("aten.fmax")
def _fmax(a: Any, b: Any) -> Any:
    return tirx.Select(tirx.Or(a > b, scalar.is_nan(b)), a, b) if scalar.is_float(a) else tirx.max(a, b)


@pointwise("aten.fmin")
def _fmin(a: Any, b: Any) -> Any:
    return tirx.Select(tirx.Or(a < b, scalar.is_nan(b)), a, b) if scalar.is_float(a) else tirx.min(a, b)


@pointwise("aten.addcmul")
def _addcmul(x: Any, a: Any, b: Any, value: Any) -> Any:
    return x + value * a * b


@pointwise("aten.addcdiv")
def _addcdiv(x: Any, a: Any, b: Any, value: Any) -> Any:
    return x + value * (a / b)


@pointwise("aten.lerp")
def _lerp(start: Any, end: Any, weight: Any) -> Any:
    near = tirx.abs(weight) < const(0.5, weight)
    distance = end - start
    return tirx.Select(near, start + weight * distance, end - distance * (const(1, weight) - weight))


pointwise("aten.neg")(lambda x: const(0, x) - x if not scalar.is_float(x) else const(-1, x) * x)
pointwise("aten.square")(lambda x: x * x)


@pointwise("aten.abs")
def _abs(x: Any) -> Any:
    if scalar.is_float(x):
        return tirx.abs(x)
    return x if scalar.dtype_of(x).startswith(("u", "bool")) else tirx.max(x, const(0, x) - x)


@pointwise("aten.sign", "aten.sgn")
def _sign(x: Any) -> Any:
    one, zero = const(1, x), const(0, x)
    if scalar.dtype_of(x).startswith(("u", "bool")):
        return tirx.Select(scalar.differ(x, zero), one, zero)
    return tirx.Select(x > zero, one, tirx.Select(x < zero, const(-1, x), zero))


@pointwise("aten.copysign", kind=_TO_FLOAT)
def _copysign(x: Any, sign: Any) -> Any:
    return tirx.Select(_sign_bit(sign), const(-1, x), const(1, x)) * tirx.abs(x)


def _sign_bit(x: Any) -> Any:
    if not scalar.is_float(x):
        return x < const(0, x)
    bits = {"float16": "int16", "bfloat16": "int16", "float32": "int32", "float64": "int64"}[scalar.dtype_of(x)]
    return tirx.reinterpret(bits, x) < tirx.const(0, bits)


pointwise("aten.signbit", kind=_TO_BOOL)(_sign_bit)

# Functions of one float


def _round_half_even(x: Any, decimals: Any = 0) -> Any:
    if not decimals:
        return tirx.nearbyint(x)
    scale = const(10.0 ** abs(decimals), x)
    return tirx.nearbyint(x * scale) / scale if decimals > 0 else tirx.nearbyint(x / scale) * scale


def _whole(rounding: Callable[..., Any]) -> Callable[..., Any]:
    """Rounding leaves integers alone."""
    return lambda x, *rest: rounding(x, *rest) if scalar.is_float(x) else x


for _name, _rounding in {
    "floor": tirx.floor, "ceil": tirx.ceil, "trunc": tirx.trunc, "fix": tirx.trunc, "round": _round_half_even,
}.items():  # fmt: skip
    pointwise(f"aten.{_name}")(_whole(_rounding))

for _name, _function in {
    "exp": tirx.exp, "log": tirx.log, "tanh": tirx.tanh, "erf": scalar.erf, "sigmoid": tirx.sigmoid,
    "sqrt": tirx.sqrt, "exp2": tirx.exp2, "log2": tirx.log2, "log10": tirx.log10, "sin": tirx.sin, "cos": tirx.cos,
    
    
}.items():  # fmt: skip
    pointwise(f"aten.{_name}", kind=_TO_FLOAT)(_function)

for _name in (
    "tan",
    "sinh",
    "cosh",
    "asin",
    "acos",
    "atan",
    "asinh",
    "acosh",
    "atanh",
    "log1p",
    "atan2",
    "hypot",
    "lgamma",
):
    pointwise(f"aten.{_name}", kind=_TO_FLOAT)(scalar.libm(_name))

pointwise("aten.rsqrt", kind=_TO_FLOAT)(lambda x: const(1, x) / tirx.sqrt(x))
pointwise("aten.reciprocal", kind=_TO_FLOAT)(lambda x: const(1, x) / x)
pointwise("aten.erfc", kind=_TO_FLOAT)(lambda x: const(1, x) - scalar.erf(x))
pointwise("aten.deg2rad", kind=_TO_FLOAT)(lambda x: x * const(math.pi / 180, x))
pointwise("aten.rad2deg", kind=_TO_FLOAT)(lambda x: x * const(180 / math.pi, x))
pointwise("aten.frac")(lambda x: x - tirx.trunc(x))


@pointwise("aten.expm1", kind=_TO_FLOAT)
def _expm1(x: Any) -> Any:
    small = scalar.expm1(tirx.min(x, const(0.35, x)))
    return tirx.Select(x < const(0.35, x), small, tirx.exp(x) - const(1, x))


@pointwise("aten.xlogy", kind=_TO_FLOAT)
def _xlogy(x: Any, y: Any) -> Any:
    product = tirx.Select(scalar.equal(x, const(0, x)), const(0, x), x * tirx.log(y))
    return tirx.Select(scalar.is_nan(y), y, product)


@pointwise("aten.logaddexp")
def _logaddexp(a: Any, b: Any) -> Any:
    return scalar.maximum(a, b) + scalar.log1p(tirx.exp(const(0, a) - tirx.abs(a - b)))


# Activations

pointwise("aten.relu")(lambda x: scalar.at_least(const(0, x), x))
pointwise("aten.relu6")(lambda x: scalar.clamp(x, const(0, x), const(6, x)))
pointwise("aten.silu")(lambda x: x * tirx.sigmoid(x))
pointwise("aten.log_sigmoid")(lambda x: const(0, x) - _softplus(const(0, x) - x))
pointwise("aten.softsign")(lambda x: x / (const(1, x) + tirx.abs(x)))
pointwise("aten.tanhshrink")(lambda x: x - tirx.tanh(x))
pointwise("aten.logit")(lambda x, eps: _logit(x if eps is None else scalar.clamp(x, eps, const(1, x) - eps)))


def _logit(x: Any) -> Any:
    return tirx.log(x / (const(1, x) - x))


@pointwise("aten.gelu")
def _gelu(x: Any, approximate: str) -> Any:
    half, one = const(0.5, x), const(1, x)
    if approximate == "tanh":
        inner = const(math.sqrt(2 / math.pi), x) * (x + const(0.044715, x) * x * x * x)
        return half * x * (one + tirx.tanh(inner))
    return half * x * (one + scalar.erf(x * const(math.sqrt(0.5), x)))


def _hardsigmoid(x: Any) -> Any:
    return scalar.clamp(x + const(3, x), const(0, x), const(6, x)) / const(6, x)


pointwise("aten.hardsigmoid")(_hardsigmoid)
pointwise("aten.hardswish")(lambda x: x * _hardsigmoid(x))
pointwise("aten.leaky_relu")(lambda x, slope: tirx.Select(x > const(0, x), x, x * slope))
pointwise("aten.threshold")(lambda x, bound, value: tirx.Select(x <= bound, value, x))
pointwise("aten.hardshrink")(lambda x, bound: tirx.Select(tirx.abs(x) <= bound, const(0, x), x))


@emits("aten.prelu")
def _prelu(emitter: Emitter, node: fx.Node) -> Any:
    """A slope per channel (axis 1), or one for all."""
    x, slope = emitter.arguments(node).values()
    one = emitter.shape(slope) in ((), (1,))
    value, slopes = emitter.value(x), emitter.plain(slope)
    blocked, channels = value.only_blocked, value.shape[1] if len(value.shape) > 1 else 1

    def compute(x: Any, slope: Any) -> Any:
        def element(*i: Any) -> Any:
            # The lanes of the last block that hold no channel take the last slope.
            channel = tirx.min(i[1] * emitter.lanes + i[-1], channels - 1) if blocked else i[1] if len(i) > 1 else 0
            at = [0] * len(slope.shape) if one else [channel]
            return tirx.Select(x(*i) > const(0, x(*i)), x(*i), x(*i) * slope(*at))

        return te.compute(x.shape, element, name="prelu")

    if blocked:
        return Value(value.shape, value.dtype, blocked=emitter.te(node, compute, value.blocked, slopes))
    return emitter.te(node, compute, emitter.plain(x), slopes)


@pointwise("aten.softshrink")
def _softshrink(x: Any, bound: Any) -> Any:
    zero = const(0, x)
    return tirx.Select(x > bound, x - bound, tirx.Select(x < zero - bound, x + bound, zero * x))


@pointwise("aten.elu")
def _elu(x: Any, alpha: Any, scale: Any, input_scale: Any) -> Any:
    negative = alpha * scalar.expm1(tirx.min(x if float(input_scale.value) == 1 else x * input_scale, const(0, x)))
    return scale * tirx.Select(x > const(0, x), x, negative)


@pointwise("aten.celu")
def _celu(x: Any, alpha: Any) -> Any:
    return tirx.Select(x > const(0, x), x, alpha * scalar.expm1(tirx.min(x / alpha, const(0, x))))


@pointwise("aten.selu")
def _selu(x: Any) -> Any:
    return _elu(x, const(1.6732632423543772, x), const(1.0507009873554805, x), const(1, x))


def _softplus(x: Any) -> Any:
    return scalar.at_least(const(0, x), x) + scalar.log1p(tirx.exp(const(0, x) - tirx.abs(x)))


@pointwise("aten.softplus")
def _softplus_above(x: Any, beta: Any, threshold: Any) -> Any:
    return tirx.Select(x * beta > threshold, x, _softplus(x * beta) / beta)


@pointwise("aten.mish")
def _mish(x: Any) -> Any:
    """Mish: x tanh(log(1 + e)) with e = exp(x) is x (e^2 + 2e) / (e^2 + 2e + 2); the quotient is 1 from x = 20 on."""
    e = tirx.exp(scalar.at_most(const(20, x), x))
    s = e * (e + const(2, x))
    return x * (s / (s + const(2, x)))


# Comparisons and logic

for _name, _comparison in {
    "eq": scalar.equal, "ne": scalar.differ, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}.items():  # fmt: skip

    def _compare(a: Any, b: Any, comparison: Callable[..., Any] = _comparison) -> Any:
        if scalar.dtype_of(a) == "bool":
            a, b = tirx.Cast("int8", a), tirx.Cast("int8", b)
        return comparison(a, b)

    pointwise(f"aten.{_name}", kind=_TO_BOOL)(_compare)


def _true(x: Any) -> Any:
    return scalar.cast(x, "bool")


pointwise("aten.logical_and", kind=_TO_BOOL)(lambda a, b: tirx.And(_true(a), _true(b)))
pointwise("aten.logical_or", kind=_TO_BOOL)(lambda a, b: tirx.Or(_true(a), _true(b)))
pointwise("aten.logical_not", kind=_TO_BOOL)(lambda a: tirx.Not(_true(a)))
pointwise("aten.logical_xor", kind=_TO_BOOL)(
    lambda a, b: scalar.differ(tirx.Cast("int8", _true(a)), tirx.Cast("int8", _true(b)))
)


def _on_floats(test: Callable[[Any], Any], otherwise: bool) -> Callable[[Any], Any]:
    return lambda x: test(x) if scalar.is_float(x) else tirx.const(otherwise, "bool")


pointwise("aten.isnan", kind=_TO_BOOL)(_on_floats(scalar.is_nan, False))
pointwise("aten.isinf", kind=_TO_BOOL)(_on_floats(lambda x: scalar.equal(tirx.abs(x), const(math.inf, x)), False))
pointwise("aten.isfinite", kind=_TO_BOOL)(_on_floats(lambda x: tirx.abs(x) < const(math.inf, x), True))

for _name, _bits, _truth in (
    ("and", lambda a, b: a & b, tirx.And),
    ("or", lambda a, b: a | b, tirx.Or),
    ("xor", lambda a, b: a ^ b, lambda a, b: scalar.differ(tirx.Cast("int8", a), tirx.Cast("int8", b))),
):

    def _bitwise(a: Any, b: Any, bits: Any = _bits, truth: Any = _truth) -> Any:
        return truth(a, b) if scalar.dtype_of(a) == "bool" else bits(a, b)

    pointwise(f"aten.bitwise_{_name}", f"aten.__{_name}__")(_bitwise)

pointwise("aten.bitwise_not")(lambda a: tirx.Not(a) if scalar.dtype_of(a) == "bool" else ~a)
pointwise("aten.bitwise_left_shift", "aten.__lshift__")(lambda a, b: tirx.shift_left(a, b))
pointwise("aten.bitwise_right_shift", "aten.__rshift__")(lambda a, b: tirx.shift_right(a, b))


@pointwise("aten.where", untyped=("condition",))
def _where(condition: Any, a: Any, b: Any) -> Any:
    return tirx.Select(_true(condition), a, b)


@emits("aten.masked_fill")
def _masked_fill(emitter: Emitter, node: fx.Node) -> Value:
    x, mask, value = emitter.arguments(node).values()
    dtype = emitter.dtype(node)

    def value_at(loads: dict[fx.Node, Any], symbols: list[Any]) -> Any:
        filler = scalar.cast(loads[value], dtype) if isinstance(value, fx.Node) else tirx.const(value, dtype)
        return tirx.Select(loads[mask], filler, loads[x])

    tensors = [x, mask, *([value] if isinstance(value, fx.Node) else [])]
    return emit_elements(emitter, node, tensors, [], value_at)


@emits("aten.nan_to_num")
def _nan_to_num(emitter: Emitter, node: fx.Node) -> Value:
    arguments = emitter.arguments(node)
    limit = {"float16": 65504.0, "float32": 3.4028234663852886e38, "float64": 1.7976931348623157e308}
    bound = limit.get(emitter.dtype(node), 3.3895313892515355e38)
    nan, above, below = (arguments[name] for name in ("nan", "posinf", "neginf"))

    def formula(x: Any) -> Any:
        if not scalar.is_float(x):
            return x
        high = tirx.Select(x > const(bound, x), const(bound if above is None else above, x), x)
        low = tirx.Select(x < const(-bound, x), const(-bound if below is None else below, x), high)
        return tirx.Select(scalar.is_nan(x), const(0.0 if nan is None else nan, x), low)

    return emit_pointwise(emitter, node, formula, {"self": arguments["self"]})


# Conversions


@emits("aten.positive", "aten.clone", "aten.contiguous", "aten.detach", "aten.alias", "aten.dropout",
       "aten.feature_dropout", "aten.lift_fresh_copy")  # fmt: skip
def _identity(emitter: Emitter, node: fx.Node) -> Value:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    return emitter.value(x)


@emits(
    "aten._to_copy", "aten.to", "aten.type_as", "aten.float", "aten.half", "aten.bfloat16", "prims.convert_element_type"
)
def _convert(emitter: Emitter, node: fx.Node) -> Value:
    source = emitter.arguments(node)
    x = source.get("self", source.get("a"))
    if not isinstance(x, fx.Node):
        raise UnsupportedError("conversion of something other than a tensor")
    have = emitter.value(x)
    if have.dtype == emitter.dtype(node):
        return have
    return emit_elements(emitter, node, [x], [], lambda loads, _: scalar.cast(loads[x], emitter.dtype(node)))


@emits("aten.glu")
def _glu(emitter: Emitter, node: fx.Node) -> Any:
    x, axis = emitter.arguments(node).values()
    shape, _ = emitter.result(node)
    axis %= len(shape)
    half = shape[axis]

    def compute(x: Any, shape: Any, half: Any) -> Any:
        def element(*index: Any) -> Any:
            gate = [i + half if d == axis else i for d, i in enumerate(index)]
            return x(*index) * tirx.sigmoid(x(*gate))

        return te.compute(shape, element, name="glu")

    return emitter.te(node, compute, emitter.plain(x), shape=shape, half=half)
