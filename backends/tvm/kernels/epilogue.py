"""What a kernel does to its result while it is still in registers: bias, scale, residual add, activation.

An :class:`Epilogue` is an ordered tuple of steps. Steps with an operand, :class:`PerChannel`, :class:`PerElement` and
:class:`Quantize`, add one parameter each to the kernel, in their order, between the weights and the output. See
:mod:`operands` for how kernels read them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import erf as scalar_erf
from math import pi, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from shave.backends.tvm.adapter import Expr, tirx
from shave.backends.tvm.kernels import vector_math
from shave.backends.tvm.kernels.vector_math import (
    Bindings,
    Formula,
    Locals,
    as_float32,
    formula,
    lanes,
    maximum,
    minimum,
    splat,
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Function:
    """An activation function.

    Attributes:
        expression: Its formula on vector expressions.
        reference: The same on float64 arrays.
        parameters: Names of its parameters, in order.
        transcendental: Too long a formula to be unrolled once per accumulator.
    """

    expression: Formula
    reference: Callable[..., Array]
    parameters: tuple[str, ...] = ()
    transcendental: bool = False


@formula
def _relu(let: Bindings, x: Expr) -> Expr:
    return maximum(0.0, x)


@formula
def _clip(let: Bindings, x: Expr, low: float, high: float) -> Expr:
    return minimum(high, let(maximum(low, x)))


@formula
def _leaky_relu(let: Bindings, x: Expr, slope: float) -> Expr:
    return maximum(0.0, x) + splat(slope, x) * minimum(0.0, x)


@formula
def _hardsigmoid(let: Bindings, x: Expr, slope: float, offset: float) -> Expr:
    line = let(x * splat(slope, x) + splat(offset, x))
    return minimum(1.0, let(maximum(0.0, line)))


@formula
def _hardswish(let: Bindings, x: Expr) -> Expr:
    return x * _hardsigmoid(x, 1 / 6, 0.5, let=let)


@formula
def _silu(let: Bindings, x: Expr) -> Expr:
    return x / vector_math.one_plus_exp_of_negative(x, let)


@formula
def _gelu_erf(let: Bindings, x: Expr) -> Expr:
    return x * (vector_math.erf(x * splat(sqrt(0.5), x), let=let) * splat(0.5, x) + splat(0.5, x))


@formula
def _gelu_tanh(let: Bindings, x: Expr) -> Expr:
    inner = x * (x * x * splat(sqrt(2 / pi) * 0.044715, x) + splat(sqrt(2 / pi), x))
    return x * (vector_math.tanh(inner, let=let) * splat(0.5, x) + splat(0.5, x))


@formula
def _softplus(let: Bindings, x: Expr) -> Expr:
    decay = vector_math.exp(minimum(0.0, x) - maximum(0.0, x), let=let)
    return maximum(0.0, x) + vector_math.log1p(decay, let=let)


@formula
def _mish(let: Bindings, x: Expr) -> Expr:
    # x tanh(log(1 + e)) with e = exp(x) is x (e^2 + 2e) / (e^2 + 2e + 2); the quotient is 1 from x = 20 on.
    e = let(vector_math.exp(minimum(20.0, x), let=let))
    s = let(e * (e + splat(2.0, x)))
    return x * (s / (s + splat(2.0, x)))


@formula
def _elu(let: Bindings, x: Expr, alpha: float) -> Expr:
    return maximum(0.0, x) + splat(alpha, x) * vector_math.expm1(minimum(0.0, x), let=let)


def _reference_sigmoid(x: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)))


FUNCTIONS: dict[str, Function] = {
    "relu": Function(_relu, lambda x: np.maximum(x, 0)),
    "clip": Function(_clip, lambda x, low, high: np.clip(x, low, high), ("low", "high")),
    "leaky_relu": Function(_leaky_relu, lambda x, slope: np.where(x > 0, x, slope * x), ("slope",)),
    "hardsigmoid": Function(
        _hardsigmoid, lambda x, slope, offset: np.clip(slope * x + offset, 0, 1), ("slope", "offset")
    ),
    "hardswish": Function(_hardswish, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "sigmoid": Function(vector_math.sigmoid, _reference_sigmoid, transcendental=True),
    "tanh": Function(vector_math.tanh, np.tanh, transcendental=True),
    "silu": Function(_silu, lambda x: x * _reference_sigmoid(x), transcendental=True),
    "gelu": Function(_gelu_erf, lambda x: x * (np.vectorize(scalar_erf)(x * sqrt(0.5)) + 1) / 2, transcendental=True),
    "gelu_tanh": Function(
        _gelu_tanh,
        lambda x: x * (np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)) + 1) / 2,
        transcendental=True,
    ),
    "elu": Function(
        _elu,
        lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
        ("alpha",),
        transcendental=True,
    ),
    "softplus": Function(_softplus, lambda x: np.logaddexp(x, 0.0), transcendental=True),
    "mish": Function(_mish, lambda x: x * np.tanh(np.logaddexp(x, 0.0)), transcendental=True),
}


@dataclass(frozen=True)
class PerChannel:
    """A step whose operand has one value per output channel.

    Attributes:
        per_image: The operand has one value per image and channel; blocked kernels only.
    """

    per_image: bool = False


@dataclass(frozen=True)
class Bias(PerChannel):
    """Add the operand."""


@dataclass(frozen=True)
class Scale(PerChannel):
    """Multiply by the operand."""


@dataclass(frozen=True)
class Slope(PerChannel):
    """Multiply what is not above 0 by the operand (PReLU)."""


@dataclass(frozen=True)
class PerElement:
    """A step whose operand has the shape and layout of the output.

    Attributes:
        dtype: Of the operand, whose elements count as what they are: 3 of uint8 as 3.0.
    """

    dtype: str = "float32"


@dataclass(frozen=True)
class Residual(PerElement):
    """Add the operand."""


@dataclass(frozen=True)
class Factor(PerElement):
    """Multiply by the operand."""


@dataclass(frozen=True)
class Activation:
    """Apply a function of :data:`FUNCTIONS`.

    Raises:
        ValueError: The kind is unknown or the number of parameters is wrong.
    """

    kind: str
    parameters: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in FUNCTIONS:
            raise ValueError(f"unknown activation {self.kind!r}: choose one of {', '.join(FUNCTIONS)}")
        names = FUNCTIONS[self.kind].parameters
        if len(self.parameters) != len(names):
            raise ValueError(
                f"activation {self.kind!r} takes ({', '.join(names)}), got {len(self.parameters)} parameters"
            )

    def expression(self, x: Expr, let: Bindings) -> Expr:
        """The function of a vector of float32."""
        return FUNCTIONS[self.kind].expression(x, *self.parameters, let=let)


CODE_NUMBERS = 4
"""Of :attr:`CodeRange.numbers`."""


@dataclass(frozen=True)
class CodeRange:
    """What a :class:`Quantize` gives.

    Attributes:
        zero_point: What 0 becomes.
        low: Least result.
        high: Largest result.
    """

    zero_point: int = 0
    low: int = 0
    high: int = 255

    @property
    def step(self) -> Quantize:
        """The step that gives these codes."""
        return Quantize(shifted=self.zero_point != 0, bounded=self.low != 0)

    @property
    def numbers(self) -> Array:
        """The operand of a :class:`Quantize`, int32 [4], in the forms that instructions take.

        The bits of ``low - zero_point`` and of ``high - zero_point`` as float32, ``zero_point`` twice in 16 bits each,
        ``low`` four times in 8 bits each.
        """
        bounds = np.array([self.low - self.zero_point, self.high - self.zero_point], np.float32)
        repeated = (np.full(2, self.zero_point, np.int16), np.full(4, self.low, np.uint8))
        return np.concatenate([values.view(np.int32) for values in (bounds, *repeated)])

    def reference(self, x: Array) -> Array:
        """The codes of an array of float64."""
        codes: Array = np.clip(np.rint(x) + self.zero_point, self.low, self.high).astype(np.uint8)
        return codes


Number = Callable[[int], Expr]
"""Gives one of the four numbers of :attr:`CodeRange.numbers`, as a scalar."""


@dataclass(frozen=True)
class Quantize:
    """Round to the nearest whole number, ties to even, add the zero point, and bound: always the last step.

    Its operand are the numbers of a :class:`CodeRange`, so that kernels which differ in these alone are one. It has no
    scale: a :class:`Scale` ahead of it divides by that of the output, mostly as a part of another factor.

    Attributes:
        shifted: Whether the zero point may differ from 0. Mostly it does not behind a relu, and where the reduction is
            short, the instructions that this saves take 3 % of a kernel's time.
        bounded: Whether the least result may differ from 0. Mostly it does not.
    """

    shifted: bool = True
    bounded: bool = True

    def expression(self, x: Expr, number: Number, let: Bindings) -> Expr:
        """The integers of a vector of float32."""
        low, high = (tirx.reinterpret("float32", number(k)) for k in (0, 1))
        bounded = minimum(high, let(maximum(low, x)))
        # The sum with 1.5 * 2^23 has the rounded number in its last bits, and no other in the last eight.
        shifted = let(let(bounded) + splat(12582912.0, x))
        bits = tirx.reinterpret(f"int32x{lanes(x)}" if lanes(x) > 1 else "int32", shifted)
        bits = bits + splat(number(2), x) if self.shifted else bits
        return tirx.Cast(f"uint8x{lanes(x)}" if lanes(x) > 1 else "uint8", bits)


OperandStep = PerChannel | PerElement | Quantize
Step = OperandStep | Activation


def _combined(step: PerChannel | PerElement, value: Expr, operand: Expr, let: Bindings) -> Expr:
    if isinstance(step, Slope):
        value = let(value)
        return tirx.Select(value > splat(0.0, value), value, value * operand)
    return value * operand if isinstance(step, (Scale, Factor)) else value + operand


def _combined_arrays(step: PerChannel | PerElement, value: Array, operand: Array) -> Array:
    if isinstance(step, Slope):
        return np.where(value > 0, value, value * operand)
    return value * operand if isinstance(step, (Scale, Factor)) else value + operand


@dataclass(frozen=True)
class Epilogue:
    """Steps applied to each result before it is stored, first to last."""

    steps: tuple[Step, ...] = ()

    @property
    def operands(self) -> tuple[OperandStep, ...]:
        """The steps that bring a tensor, in the order of the kernel's parameters."""
        return tuple(step for step in self.steps if not isinstance(step, Activation))

    @property
    def dtype(self) -> str:
        """Of the result."""
        return "float32" if self.quantize is None else "uint8"

    @property
    def quantize(self) -> Quantize | None:
        """The last step, if it makes codes."""
        last = self.steps[-1] if self.steps else None
        return last if isinstance(last, Quantize) else None

    @property
    def unrounded(self) -> Epilogue:
        """The steps ahead of :attr:`quantize`."""
        return self if self.quantize is None else Epilogue(self.steps[:-1])

    @property
    def transcendental(self) -> bool:
        """Whether a step is too long to be unrolled once per accumulator."""
        return any(isinstance(s, Activation) and FUNCTIONS[s.kind].transcendental for s in self.steps)

    def apply(self, value: Expr, load: Callable[[int], Expr]) -> Expr:
        """The result of all steps as an expression; emits statements before it.

        Args:
            value: Result of the kernel, any number of lanes.
            load: Gives the matching vector of the n-th operand; from the place of a :class:`Quantize` on, each number
                of its operand as a scalar.
        """
        let = Locals() if self.transcendental else Bindings()
        position = 0
        for step in self.steps:
            if isinstance(step, Activation):
                value = step.expression(value, let)
            elif isinstance(step, Quantize):
                value = step.expression(let(value), self.numbers(load), let)
            else:
                value = _combined(step, value, as_float32(load(position)), let)
                position += 1
        return let.around(value)

    def numbers(self, load: Callable[[int], Expr]) -> Number:
        """The numbers of :attr:`quantize`, from the function that :meth:`apply` takes."""
        first = len(self.unrounded.operands)
        return lambda number: load(first + number)

    def reference(self, value: Array, operands: Sequence[Array]) -> Array:
        """The same in NumPy, for plain tensors; ahead of :attr:`quantize`, see :meth:`CodeRange.reference`.

        Args:
            value: Result of the kernel in float64: [N, C, *spatial], or [..., C] with two dimensions or less before.
            operands: One per operand, each broadcastable to ``value``.
        """
        remaining = list(operands)
        for step in self.steps:
            if isinstance(step, Activation):
                value = FUNCTIONS[step.kind].reference(value, *step.parameters)
            elif not isinstance(step, Quantize):
                value = _combined_arrays(step, value, remaining.pop(0))
        return value
