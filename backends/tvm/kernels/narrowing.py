"""Four vectors of results to one of codes, by the instructions of AVX-512 that pack with saturation.

To narrow each vector by itself takes two instructions on the one unit that shuffles, and a store of a quarter of a
vector. Packing four takes four in all, and one store; the pixels of a block lie one behind the other in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, T, tirx
from shave.backends.tvm.kernels.epilogue import Number, Quantize
from shave.backends.tvm.kernels.vector_math import minimum

TOGETHER = 4
_CURRENT_ROUNDING = 4
_LANES = 16
_IN_ORDER = [part + 4 * lane for part in range(TOGETHER) for lane in range(4)]
"""Packing works within lanes of 128 bits: from the parts of each lane to the lanes of each part."""


def narrows(target: Target) -> bool:
    """Whether a target has the instructions."""
    return target.kind == "x86" and target.vector_bytes == 4 * _LANES


def codes_of(values: Sequence[Expr], quantize: Quantize, number: Number) -> Expr:
    """uint8x64 from four vectors of float32, one behind the other."""
    rounded = [_rounded(value, number) for value in values]
    pairs = [_call("packssdw.512", "int16x32", *rounded[k : k + 2]) for k in (0, 2)]
    if quantize.shifted:
        zero = tirx.reinterpret(f"int16x{2 * _LANES}", T.broadcast(number(2), _LANES))
        pairs = [pair + zero for pair in pairs]
    packed = tirx.reinterpret(f"int32x{_LANES}", _call("packuswb.512", "uint8x64", *pairs))
    codes = tirx.reinterpret("uint8x64", tirx.Shuffle([packed], _IN_ORDER))
    least = tirx.reinterpret("uint8x64", T.broadcast(number(3), _LANES))
    return tirx.Max(codes, least) if quantize.bounded else codes


def _rounded(value: Expr, number: Number) -> Expr:
    """int32 of float32, ties to even. Bounded from above, as what exceeds 32 bits would become the least number."""
    bounded = minimum(tirx.reinterpret("float32", number(1)), T.bind(value))
    nothing = T.broadcast(T.int32(0), _LANES)
    everywhere, rounding = T.int16(-1), T.int32(_CURRENT_ROUNDING)
    return _call("mask.cvtps2dq.512", "int32x16", bounded, nothing, everywhere, rounding)


def _call(name: str, dtype: str, *arguments: Expr) -> Expr:
    return T.call_llvm_pure_intrin(dtype, T.llvm_lookup_intrinsic_id(f"llvm.x86.avx512.{name}"), *arguments)
