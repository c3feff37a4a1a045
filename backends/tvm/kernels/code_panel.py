"""Copies of 8-bit codes that arrive with a call to the order in which integer kernels read weights.

A panel holds the columns of a tile: [steps, vectors, lanes * depth], a step being four neighbours along the reduction.
The dot product takes unsigned codes on its left side and signed weights on its right side, so the codes of a panel are
128 less. What is missing of the last step is 0; what lies beyond the last column is unspecified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

from shave.backends.tvm.adapter import Expr, T, tirx
from shave.backends.tvm.kernels.arithmetic import IntegerArithmetic
from shave.backends.tvm.kernels.base import Flat, bind, loop, quotient, remainder, span
from shave.backends.tvm.kernels.packing import transposed
from shave.backends.tvm.kernels.register_tile import power_of_two_parts
from shave.backends.tvm.kernels.vector_math import local_array

CENTRE = 128
"""What codes of a panel are less."""
_TOGETHER = 4
_BYTE = 8


@dataclass(frozen=True)
class CodePanel:
    """A panel in the making.

    Attributes:
        arithmetic: What reads it.
        source: The codes, uint8.
        start: Position of the first column's first code.
        along: Elements between neighbours along the reduction; 1 where columns are rows of the source.
        across: Elements between neighbouring columns; 1 where they are not.
        inner: Length of the reduction.
        existing: Columns that exist, at least 1.
        vectors: Vectors of columns in the panel.
        lanes: Columns of a vector.
    """

    arithmetic: IntegerArithmetic
    source: Flat
    start: int | Expr
    along: int | Expr
    across: int | Expr
    inner: int | Expr
    existing: int | Expr
    vectors: int
    lanes: int

    @property
    def width(self) -> int:
        """Elements of a step."""
        return self.vectors * self.lanes * _TOGETHER

    def fill(self, panel: Flat, first: int | Expr) -> None:
        """Copy all codes to a panel at position ``first``."""
        with loop(self.vectors) as vector:
            (place,) = bind(first + vector * (self.lanes * _TOGETHER))
            columns = [T.min(vector * self.lanes + lane, self.existing - 1) for lane in range(self.lanes)]
            if isinstance(self.along, int) and self.along == 1:
                self._fill_from_rows(panel, place, columns)
            else:
                self._fill_from_columns(panel, place, vector, columns)

    def sums(self, panel: Flat, first: int | Expr, vector: int | Expr) -> Expr:
        """What the codes of each column of a vector in a panel add up to; emits statements before it."""
        total = local_array(self.lanes, "int32")
        here = span(0, self.lanes)
        T.buffer_store(total, T.broadcast(T.int32(0), self.lanes), [here])
        place = first + vector * (self.lanes * _TOGETHER)
        with loop(quotient(self.inner + (_TOGETHER - 1), _TOGETHER)) as step:
            codes = panel.load(place + step * self.width, self.lanes * _TOGETHER)
            T.buffer_store(total, self.arithmetic.multiply_add(total[here], T.int32(0x01010101), codes), [here])
        return total[here]

    def _store(self, panel: Flat, place: int | Expr, words: Expr) -> None:
        panel.store(place, self.arithmetic.interleaved(words), self.lanes * _TOGETHER)

    def _fill_from_rows(self, panel: Flat, place: int | Expr, columns: list[Expr]) -> None:
        """Four neighbours are a word already: transpose squares of words."""
        starts = bind(*(self.start + column * self.across for column in columns))
        words = quotient(self.inner, _TOGETHER)

        def square(first: int | Expr, count: int) -> None:
            rows = []
            for start in starts:
                loaded = self.source.load(start + first * _TOGETHER, count * _TOGETHER)
                row = tirx.reinterpret(f"int32x{count}" if count > 1 else "int32", loaded)
                rows.append(T.bind(row if count == self.lanes else _repeated(row, count, self.lanes)))
            for word, column in enumerate(transposed(rows)[:count]):
                self._store(panel, place + (first + word) * self.width, _centred(column, _TOGETHER))

        with loop(quotient(words, self.lanes)) as block:
            square(block * self.lanes, self.lanes)
        done, left = quotient(words, self.lanes) * self.lanes, remainder(words, self.lanes)
        if isinstance(left, int):
            for at, count in power_of_two_parts(left):
                square(done + at, count)
        else:
            with T.serial(0, left) as word:
                square(done + word, 1)

        def last(rest: int) -> None:
            codes = [self.source.load_first(start + words * _TOGETHER, rest, _TOGETHER) for start in starts]
            column = tirx.Shuffle([tirx.reinterpret("int32", code) for code in codes], list(range(self.lanes)))
            self._store(panel, place + words * self.width, _centred(column, rest))

        self._last_step(last)

    def _fill_from_columns(self, panel: Flat, place: int | Expr, vector: int | Expr, columns: list[Expr]) -> None:
        """Words are put together from four vectors of neighbouring columns."""
        starts = bind(*(self.start + column * self.across for column in columns))
        (begin,) = bind(self.start + vector * self.lanes)

        def word(step: int | Expr, count: int, whole: bool) -> None:
            parts = []
            for k in range(count):
                ahead = (step * _TOGETHER + k) * self.along
                if whole:
                    codes = self.source.load(begin + ahead, self.lanes)
                else:
                    codes = tirx.Shuffle([self.source.load(s + ahead) for s in starts], list(range(self.lanes)))
                wide = tirx.Cast(f"int32x{self.lanes}", codes)
                parts.append(wide << T.broadcast(T.int32(k * _BYTE), self.lanes) if k else wide)
            joined = reduce(lambda a, b: a | b, parts)
            self._store(panel, place + step * self.width, _centred(joined, count))

        def steps(whole: bool) -> None:
            with loop(quotient(self.inner, _TOGETHER)) as step:
                word(step, _TOGETHER, whole)
            self._last_step(lambda rest: word(quotient(self.inner, _TOGETHER), rest, whole))

        with T.If((vector + 1) * self.lanes <= self.existing):
            with T.Then():
                steps(True)
            with T.Else():
                steps(False)

    def _last_step(self, emit: Callable[[int], None]) -> None:
        """``emit(number of codes)`` for what is left behind the whole steps."""
        rest = remainder(self.inner, _TOGETHER)
        if isinstance(rest, int):
            if rest:
                emit(rest)
            return
        for count in range(1, _TOGETHER):
            with T.If(rest == count), T.Then():
                emit(count)


def _repeated(row: Expr, count: int, lanes: int) -> Expr:
    """A vector that holds a shorter one several times."""
    return T.broadcast(row, lanes) if count == 1 else tirx.Shuffle([row] * (lanes // count), list(range(lanes)))


def _centred(words: Expr, count: int) -> Expr:
    """Words whose first ``count`` codes are 128 less, as signed bytes."""
    flip = sum(CENTRE << (_BYTE * k) for k in range(count))
    return words ^ T.broadcast(tirx.const(flip - (1 << 32) if flip >> 31 else flip, "int32"), int(words.ty.dtype.lanes))
