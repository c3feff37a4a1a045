"""The multiply-add of a register tile: floats one by one, or small integers four at a time into 32 bits.

A step of a reduction over ``depth`` channels multiplies what one pixel (or row) has of them with ``lanes`` columns of
weights. Integers are uint8 times int8, exact: by the target's dot product of four, or, where it has none, by widening
both sides to 16 bits and adding pairs. Instructions that saturate on their way (``vpmaddubsw``) are not used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from shave.backends.packing import AS_IT_IS, Packing
from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, T, tirx

InputDtype = Literal["float32", "uint8"]
"""What kernels multiply: floats with floats, or uint8 with int8."""


class Arithmetic(ABC):
    """How one step is computed.

    Attributes:
        inputs: Dtype of the left side.
        weights: Dtype of packed weights.
        sums: Dtype of the accumulators.
        depth: Channels of a step.
        instructions: Arithmetic instructions for each accumulator and step.
        registers: Vector registers that a step takes: for each vector of weights, and besides.
    """

    inputs: ClassVar[InputDtype]
    weights: ClassVar[str]
    sums: ClassVar[str]
    depth: ClassVar[int]
    instructions: ClassVar[int]
    registers: ClassVar[tuple[int, int]]

    @abstractmethod
    def multiply_add(self, total: Expr, x: Expr, weight: Expr) -> Expr:
        """``total`` plus the products of one step: ``depth`` elements x, ``lanes * depth`` packed weights.

        Four elements of 8 bits may come as one of 32.
        """

    @abstractmethod
    def packing(self, shape: Sequence[int]) -> Packing:
        """What brings weights [..., channels, lanes] of a shape to the order of steps, [..., steps, lanes, depth].

        The channels are a multiple of ``depth``, which is an axis only where it is more than 1.
        """


@dataclass(frozen=True)
class FusedFloats(Arithmetic):
    """One float32 multiply-add for each lane; the broadcast may be an operand in memory."""

    inputs = "float32"
    weights = "float32"
    sums = "float32"
    depth = 1
    instructions = 1
    registers = (1, 1)

    def multiply_add(self, total: Expr, x: Expr, weight: Expr) -> Expr:
        """One multiply-add of each lane."""
        return total + T.broadcast(x, int(weight.ty.dtype.lanes)) * weight

    def packing(self, shape: Sequence[int]) -> Packing:
        """As they are."""
        return AS_IT_IS


class IntegerArithmetic(Arithmetic):
    """One that multiplies codes."""

    @abstractmethod
    def interleaved(self, words: Expr) -> Expr:
        """One step of packed weights, made at run time: ``lanes`` words, each of four signed bytes of one column."""


@dataclass(frozen=True)
class DotOfFour(IntegerArithmetic):
    """A dot-product instruction of the target: four products of uint8 with int8, added to each lane of 32 bits.

    Attributes:
        intrinsic: LLVM's name; its arguments are the sums, the unsigned and the signed side.
    """

    intrinsic: str
    inputs = "uint8"
    weights = "int8"
    sums = "int32"
    depth = 4
    instructions = 1
    registers = (1, 3)  # broadcasts are loaded ahead

    def multiply_add(self, total: Expr, x: Expr, weight: Expr) -> Expr:
        """One instruction."""
        lanes = int(total.ty.dtype.lanes)
        return self.dot(total, tirx.reinterpret(f"uint8x{4 * lanes}", T.broadcast(_word(x), lanes)), weight)

    def dot(self, total: Expr, x: Expr, weight: Expr) -> Expr:
        """``total`` plus the products of four codes and four weights in each lane."""
        number = T.llvm_lookup_intrinsic_id(self.intrinsic)
        return T.call_llvm_pure_intrin(str(total.ty.dtype), number, total, x, weight)

    def interleaved(self, words: Expr) -> Expr:
        """As they are."""
        return tirx.reinterpret(f"int8x{4 * int(words.ty.dtype.lanes)}", words)

    def packing(self, shape: Sequence[int]) -> Packing:
        """[..., steps, lanes, 4]."""
        *lead, channels, lanes = shape
        n = len(lead) + 1
        return Packing().reshape(*lead, channels // 4, 4, lanes).transpose(*range(n), n + 1, n)


@dataclass(frozen=True)
class WidenedPairs(IntegerArithmetic):
    """Without a dot product of four: even and odd channels widened to 16 bits, products of which are added in pairs.

    Attributes:
        intrinsic: LLVM's name of the product of int16 vectors that adds neighbours into 32 bits.
    """

    intrinsic: str
    inputs = "uint8"
    weights = "int16"
    sums = "int32"
    depth = 4
    instructions = 4
    registers = (2, 4)

    def multiply_add(self, total: Expr, x: Expr, weight: Expr) -> Expr:
        """Two products of pairs: the even bytes of each 32 bits by a mask, the odd ones by a shift."""
        lanes = int(total.ty.dtype.lanes)
        quads = T.broadcast(_word(x), lanes)
        low = T.broadcast(T.int32(0x00FF00FF), lanes)
        halves = [quads & low, (quads >> T.broadcast(T.int32(8), lanes)) & low]
        number = T.llvm_lookup_intrinsic_id(self.intrinsic)
        for half, pairs in enumerate(halves):
            part = tirx.Shuffle([weight], list(range(half * 2 * lanes, (half + 1) * 2 * lanes)))
            left = tirx.reinterpret(f"int16x{2 * lanes}", pairs)
            total = total + T.call_llvm_pure_intrin(f"int32x{lanes}", number, left, part)
        return total

    def interleaved(self, words: Expr) -> Expr:
        """Even bytes with their signs, then odd ones: each word is two numbers of 16 bits."""
        lanes = 2 * int(words.ty.dtype.lanes)
        pairs, byte = T.bind(tirx.reinterpret(f"int16x{lanes}", words)), T.broadcast(T.int16(8), lanes)
        return tirx.Shuffle([(pairs << byte) >> byte, pairs >> byte], list(range(2 * lanes)))

    def packing(self, shape: Sequence[int]) -> Packing:
        """[..., steps, lanes, 4]; in truth [parity, lanes, 2]: channels 0 and 2 of each lane, then 1 and 3."""
        *lead, channels, lanes = shape
        n = len(lead) + 1
        split = Packing().reshape(*lead, channels // 4, 2, 2, lanes).transpose(*range(n), n + 1, n + 2, n)
        return split.reshape(*lead, channels // 4, lanes, 4)


def _word(x: Expr) -> Expr:
    """Four bytes as 32 bits."""
    return x if str(x.ty.dtype) == "int32" else tirx.reinterpret("int32", x)


FLOATS = FusedFloats()

_DOTS = {
    ("vnni", 64): "llvm.x86.avx512.vpdpbusd.512",
    ("vnni", 32): "llvm.x86.avx512.vpdpbusd.256",
    ("avx-vnni", 32): "llvm.x86.avx512.vpdpbusd.256",
}
_PAIRS = {64: "llvm.x86.avx512.pmaddw.d.512", 32: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.sse2.pmadd.wd"}


def has_integers(target: Target) -> bool:
    """Whether kernels multiply integers on a target."""
    return target.kind == "x86"


def arithmetic_of(dtype: InputDtype, target: Target) -> Arithmetic:
    """How a target multiplies inputs of a dtype with weights."""
    return FLOATS if dtype == "float32" else integers_of(target)


def integers_of(target: Target) -> IntegerArithmetic:
    """How a target multiplies uint8 with int8."""
    assert has_integers(target), f"no integer kernels for {target.kind}"
    dot = _DOTS.get((target.int8_dot, target.vector_bytes))
    return WidenedPairs(_PAIRS[target.vector_bytes]) if dot is None else DotOfFour(dot)
