"""Symbolic sizes: from torch's sympy expressions to TIR expressions over named int64 variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, TypeAlias

import sympy
import torch
from tvm_ffi import structural_equal

from shave.backends.tvm.adapter import Expr, tirx
from shave.ir.errors import UnsupportedError

Size: TypeAlias = "int | Expr"
"""An extent: a number, or an int64 expression over the dynamic dimensions."""


class Sizes:
    """Converts sizes of one program.

    Attributes:
        variables: The TIR variable of each of torch's symbols, by the symbol's name (``s77``).
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        """Create a variable per symbol; ``names`` maps symbols to the user's names of them."""
        self.variables = {symbol: tirx.Var(name, "int64") for symbol, name in names.items()}

    def shape(self, shape: Sequence[Any]) -> tuple[Size, ...]:
        """Convert each size of a shape."""
        return tuple(self(size) for size in shape)

    def __call__(self, size: Any) -> Any:
        """Convert a number that torch knows while tracing: int, float and bool stay, symbolic ones become expressions.

        Raises:
            UnsupportedError: The number depends on data, or its formula has no counterpart.
        """
        if not isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return size
        return self._convert(size.node.expr)

    def _convert(self, expression: Any) -> Any:
        if isinstance(expression, sympy.Symbol):
            if str(expression) not in self.variables:
                raise UnsupportedError(
                    f"size {expression} depends on data; only sizes known from the inputs' shapes work"
                )
            return self.variables[str(expression)]
        if isinstance(expression, (sympy.Integer, int)):
            return int(expression)
        if isinstance(expression, (sympy.Float, sympy.Rational, float)):
            return float(expression)
        if expression in (sympy.true, sympy.false):
            return bool(expression)
        return self._operation(expression)

    def _operation(self, expression: Any) -> Any:
        kind = type(expression).__name__
        if isinstance(expression, sympy.Pow):
            return self._power(*expression.args)
        arguments = [self._convert(a) for a in expression.args]
        if isinstance(expression, sympy.Add):
            return reduce(lambda a, b: a + b, arguments)
        if isinstance(expression, sympy.Mul):
            return reduce(lambda a, b: a * b, arguments)
        if kind == "Max":
            return reduce(_larger, arguments)
        if kind == "Min":
            return reduce(_smaller, arguments)
        if kind in ("FloorDiv", "CleanDiv"):
            return _int64(arguments[0]) // _int64(arguments[1])
        if kind in ("PythonMod", "Mod"):
            return _int64(arguments[0]) % _int64(arguments[1])
        if kind == "ModularIndexing":
            return (_int64(arguments[0]) // _int64(arguments[1])) % _int64(arguments[2])
        if kind in ("ToFloat", "IntTrueDiv", "FloatTrueDiv"):
            floats = [_float64(a) for a in arguments]
            return floats[0] if len(floats) == 1 else floats[0] / floats[1]
        if kind in ("TruncToInt", "FloorToInt", "CeilToInt"):
            rounding = {"TruncToInt": tirx.trunc, "FloorToInt": tirx.floor, "CeilToInt": tirx.ceil}[kind]
            return tirx.Cast("int64", rounding(_float64(arguments[0])))
        if kind == "OpaqueUnaryFn_sqrt":
            return tirx.sqrt(_float64(arguments[0]))
        raise UnsupportedError(f"symbolic size {expression} uses {kind}, which cannot be computed at run time")

    def _power(self, base: Any, exponent: Any) -> Any:
        value = self._convert(base)
        if exponent == sympy.Rational(1, 2):
            return tirx.sqrt(_float64(value))
        if exponent == sympy.Rational(-1, 2):
            return tirx.const(1.0, "float64") / tirx.sqrt(_float64(value))
        if isinstance(exponent, sympy.Integer) and exponent > 0:
            return reduce(lambda a, b: a * b, [value] * int(exponent))
        if exponent == -1:
            return tirx.const(1.0, "float64") / _float64(value)
        raise UnsupportedError(f"symbolic size with the power {exponent} cannot be computed at run time")


def is_static(shape: Sequence[Size]) -> bool:
    """Whether all sizes are numbers."""
    return all(isinstance(size, int) for size in shape)


def product(sizes: Sequence[Size]) -> Size:
    """Number of elements of a shape."""
    return reduce(lambda a, b: a * b, sizes, 1)


def same(a: Size, b: Size) -> bool:
    """Whether two sizes are known to be equal."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and bool(a == b)
    return bool(structural_equal(a, b))


def _int64(value: Any) -> Any:
    return tirx.const(value, "int64") if isinstance(value, int) else value


def _float64(value: Any) -> Any:
    return tirx.const(float(value), "float64") if isinstance(value, (int, float)) else tirx.Cast("float64", value)


def _larger(a: Any, b: Any) -> Any:
    return tirx.max(_int64(a), _int64(b))


def _smaller(a: Any, b: Any) -> Any:
    return tirx.min(_int64(a), _int64(b))
