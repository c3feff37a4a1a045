"""What all kernel families share: the contract, tensor layouts, and the frame of a TIR function.

A family is a module with the functions of :class:`KernelFamily`. Kernels are written with TVM's IR builder: a Python
loop unrolls, ``T.serial`` loops at run time, ``T.parallel`` spreads over the threads of the call.

Layouts. A *plain* tensor is row-major [N, C, *spatial] or [M, K]. A *blocked* tensor is [N, ceil(C / B), *spatial, B]
with B = ``target.lanes``: one vector holds B channels of one pixel. Where C is no multiple of B the last block has
unused lanes. Kernels leave unspecified values there (what the epilogue makes of 0) and **no kernel reads them**:
reductions over channels stop at C. Nobody has to keep them zero, so sigmoid(0) = 0.5 in an unused lane is harmless.

Tensors are contiguous and aligned to 64 bytes. Argument order: inputs, packed weights, operands of the epilogue in
its order, output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from shave.backends.target import Target
from shave.backends.tvm.adapter import Expr, PrimFunc, T, tirx
from shave.backends.tvm.kernels.epilogue import Epilogue
from shave.backends.tvm.kernels.vector_math import local_array

Dimension = int | None
"""An extent known at compile time, or None: given by the tensors of each call."""

Array = npt.NDArray[Any]
ShapeT = TypeVar("ShapeT", contravariant=True)
ScheduleT = TypeVar("ScheduleT")


class KernelFamily(Protocol[ShapeT, ScheduleT]):
    """The functions of a kernel module. ``shape`` and ``schedule`` are frozen dataclasses of the module."""

    def candidates(self, shape: ShapeT, target: Target) -> list[ScheduleT]:
        """Schedules worth measuring, the most promising first."""

    def default(self, shape: ShapeT, target: Target) -> ScheduleT:
        """The schedule to use without measurements."""

    def seconds(self, shape: ShapeT, schedule: ScheduleT, target: Target) -> float:
        """Estimated time of a call: arithmetic at the target's clock, bytes at its bandwidth.

        Weights count as read from main memory, as in a network whose weights no cache holds from one call to the next.
        A dimension that only the call knows counts as 1.
        """

    def build(self, shape: ShapeT, schedule: ScheduleT, target: Target, epilogue: Epilogue) -> PrimFunc:
        """The kernel, with a root block, without side effects; its name is the family's."""


def ceil_div(a: int, b: int) -> int:
    """Quotient, rounded up."""
    return -(-a // b)


def block_channels(array: Array, lanes: int) -> Array:
    """[N, C, *spatial] to blocked [N, ceil(C / lanes), *spatial, lanes], zeros in the unused lanes."""
    n, c, *spatial = array.shape
    blocks = ceil_div(c, lanes)
    padded = np.zeros((n, blocks * lanes, *spatial), array.dtype)
    padded[:, :c] = array
    return np.ascontiguousarray(np.moveaxis(padded.reshape(n, blocks, lanes, *spatial), 2, -1))


def unblock_channels(array: Array, channels: int) -> Array:
    """Blocked [N, blocks, *spatial, lanes] to [N, channels, *spatial]."""
    n, blocks, *spatial, lanes = array.shape
    plain = np.moveaxis(array, -1, 2).reshape(n, blocks * lanes, *spatial)
    return np.ascontiguousarray(plain[:, :channels])


def pad_channels(vector: Array, lanes: int, dtype: str = "float32") -> Array:
    """A per-channel vector [C] as blocked kernels read it: [ceil(C / lanes), lanes], zeros in the unused lanes."""
    padded = np.zeros(ceil_div(vector.size, lanes) * lanes, dtype)
    padded[: vector.size] = vector
    return padded.reshape(-1, lanes)


def tensor(name: str, shape: Sequence[int | Expr], dtype: str = "float32") -> Any:
    """Declare a parameter of the function being built; extents may be symbols."""
    return T.match_buffer(T.arg(name, T.handle()), tuple(shape), dtype, layout=None)


def extent(dimension: Dimension) -> int | Expr:
    """The dimension itself, or a new symbol for one that is only known at run time."""
    return T.int64() if dimension is None else dimension


@contextmanager
def root() -> Iterator[None]:
    """The root block, without which a function cannot live in a Relax module."""
    with T.sblock("root"):
        T.reads()
        T.writes()
        yield


@contextmanager
def loop(count: int | Expr) -> Iterator[int | Expr]:
    """A serial loop; none at all, and 0 for its variable, where it would run exactly once."""
    if isinstance(count, int) and count == 1:
        yield 0
    else:
        with T.serial(0, count) as variable:
            yield variable


@contextmanager
def only_if(condition: Expr | bool) -> Iterator[None]:
    """Statements that run where a condition holds; no test where it is known to."""
    if condition is True:
        yield
    else:
        with T.If(condition), T.Then():
            yield


@contextmanager
def unrolled(start: int, stop: int) -> Iterator[int | Expr]:
    """A loop that TVM unrolls, so that its variable counts as a constant for LLVM."""
    if stop - start == 1:
        yield start
    else:
        with T.unroll(start, stop) as variable:
            yield variable


def span(start: int | Expr, width: int) -> Expr | int:
    """Index of ``width`` consecutive elements.

    Use it inside the brackets of an access only: a ramp bound to a name is an opaque vector of indices to LLVM, which
    then gathers and scatters.
    """
    return start if width == 1 else T.ramp(start, 1, width)


def bind(*values: int | Expr) -> list[int | Expr]:
    """Give names to expressions that many statements will use; numbers stay numbers.

    The names are variables on the stack (for LLVM: registers). TVM's passes put the value of a ``let`` back wherever
    its name is used, which makes compiling several times slower, and exponential for chains of names.
    """

    def variable(value: Expr) -> Expr:
        array = local_array(1, str(value.ty.dtype))
        T.buffer_store(array, value, [0])
        return array[0]

    return [value if isinstance(value, int) else variable(value) for value in values]


def offset(sizes: Sequence[int], *indices: int | Expr) -> int | Expr:
    """Row-major position of an element, as a bound name.

    Args:
        sizes: Extents of all axes but the first.
        indices: One per axis.
    """
    position: int | Expr = indices[0]
    for index, size in zip(indices[1:], sizes, strict=True):
        position = position * size + index
    return bind(position)[0]


class Flat:
    """A tensor seen as one row of elements.

    Kernels bind the offset of a tile once and add small constants to it; repeating a many-dimensional index for each of
    hundreds of accesses makes compiling several times slower.
    """

    def __init__(self, buffer: Any) -> None:
        """See the whole of ``buffer``, which must be contiguous."""
        elements: int | Expr = 1
        for size in buffer.shape:
            elements = elements * size
        self._flat = T.decl_buffer((elements,), buffer.dtype, data=buffer.data, layout=None)

    def load(self, offset: int | Expr, width: int = 1) -> Expr:
        """``width`` elements from ``offset`` on."""
        return self._flat[span(offset, width)]

    def load_first(self, offset: int | Expr, count: int, width: int) -> Expr:
        """The first ``count`` of ``width`` elements from ``offset`` on, and zeros; reads no others."""
        zero = tirx.const(0, self._flat.dtype)
        lanes = [self._flat[offset + k] if k < count else zero for k in range(width)]
        return tirx.Shuffle(lanes, list(range(width)))

    def prefetch(self, offset: int | Expr, level: int) -> None:
        """Ask for the cache line of an element in a level of cache; any offset will do, also one beyond the end."""
        read, locality, data = 0, 4 - level, 1
        T.evaluate(T.call_intrin("void", "tirx.prefetch", T.address_of(self._flat[offset]), read, locality, data))

    def store(self, offset: int | Expr, value: Expr, width: int) -> None:
        """Write ``width`` elements from ``offset`` on."""
        T.buffer_store(self._flat, value, [span(offset, width)])


def quotient(a: int | Expr, b: int | Expr) -> int | Expr:
    """A / b rounded towards zero.

    The operator // of TIR rounds down: for symbols of unknown sign that is a tree of tests which repeats its operands,
    and nested divisions grow exponentially.
    """
    return a // b if isinstance(a, int) and isinstance(b, int) else tirx.truncdiv(a, b)


def remainder(a: int | Expr, b: int | Expr) -> int | Expr:
    """What :func:`quotient` leaves."""
    return a % b if isinstance(a, int) and isinstance(b, int) else tirx.truncmod(a, b)


def unravel(index: Expr, extents: Sequence[int | Expr]) -> list[int | Expr]:
    """Split a fused loop variable; extents are outermost first."""
    parts: list[int | Expr] = []
    for size in reversed(extents[1:]):
        if isinstance(size, int) and size == 1:
            parts.append(0)
        else:
            parts.append(remainder(index, size))
            index = quotient(index, size)
    parts.append(index)
    return parts[::-1]


@dataclass(frozen=True)
class Run:
    """``count`` consecutive tiles of ``size`` units each; the count may be an expression."""

    count: int | Expr
    size: int


def even_runs(total: int, largest: int) -> list[Run]:
    """Cut ``total`` into the fewest tiles of at most ``largest`` units, of at most two sizes that differ by 1.

    15 units in tiles of at most 14 become 8 + 7, which costs less than 14 + 1.
    """
    tiles = ceil_div(total, largest)
    small, bigger = divmod(total, tiles)
    return [run for run in (Run(bigger, small + 1), Run(tiles - bigger, small)) if run.count]


def busiest_share(runs: Sequence[tuple[int, float]], repeats: int, cores: int) -> float:
    """Cost of the thread with the most work, when threads take equal numbers of consecutive tiles.

    Args:
        runs: (tiles, cost of each) in their order, the most expensive first, as :func:`even_runs` has them.
        repeats: How often that sequence comes, one behind the other.
        cores: Threads.
    """
    count = sum(tiles for tiles, _ in runs)
    whole, left = divmod(ceil_div(count * repeats, cores), count)
    total = whole * sum(tiles * cost for tiles, cost in runs)
    for tiles, cost in runs:
        total += min(left, tiles) * cost
        left -= min(left, tiles)
    return total


def row_runs(rows: int | Expr, largest: int) -> list[Run]:
    """Cut rows into tiles; a number known only at run time into full tiles, then tiles of 4, then of 1."""
    if isinstance(rows, int):
        return even_runs(rows, largest)
    runs: list[Run] = []
    for size in (largest, 4, 1):
        if not runs or size < runs[-1].size:
            runs.append(Run(quotient(rows, size), size))
            rows = remainder(rows, size)
    return runs


def for_tile(index: int | Expr, runs: Sequence[Run], emit: Callable[[int | Expr, Run], None]) -> None:
    """Emit the body of tile number ``index``: ``emit(first unit, its run)``, specialised for each run."""

    def branch(first: int | Expr, index: int | Expr, runs: Sequence[Run]) -> None:
        head, *rest = runs
        if not rest:
            emit(first + index * head.size, head)
            return
        with T.If(index < head.count):
            with T.Then():
                emit(first + index * head.size, head)
            with T.Else():
                branch(first + head.count * head.size, index - head.count, rest)

    branch(0, index, runs)
