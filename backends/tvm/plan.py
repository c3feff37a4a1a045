"""From a Relax function whose sizes are all known to a :class:`shave.backends.plan.Plan`.

Values become spans of a few memories: inputs, weights, outputs, and buffers of the workspace. Most of the work is to
find what needs no bytes of its own:

* a reshape is another view of the same bytes;
* a *part* (a function with the attribute :data:`PART`) is a view of some consecutive bytes;
* a *join* (:data:`JOIN`) of tensors that follow each other in memory costs nothing where each of them was written by a
  kernel: the kernels write into the joined buffer. What cannot be placed so (an input, or a tensor that already lies
  in another joined buffer) is copied. Joins of joins, as in DenseNet, grow one buffer;
* an output is written where the caller gets it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shave.backends.plan import Memory, Plan, Span, Step
from shave.backends.tvm.adapter import PrimFunc, relax, tirx
from shave.backends.tvm.memory import Demand, place
from shave.backends.weights import numpy_dtype

JOIN = "shave.join"
"""Marks a PrimFunc whose output is its inputs, one behind the other in memory."""
PART = "shave.part"
"""Marks a PrimFunc whose output is a range of its input's memory; the value is the number of the first element."""

Copy = Callable[[int], str]
"""Gives the name of the kernel that copies that many bytes."""


class NotStatic(Exception):
    """The function holds something that only the virtual machine can do."""


@dataclass(eq=False)
class _Buffer:
    """Memory of its own, or a range of another buffer's.

    Attributes:
        memory: Which kind.
        index: Position of the input, weight or output.
        size: Bytes.
        host: The buffer that this one was put into, and where; None while it stands alone.
        guests: Ranges that were put into this one; it is a joined buffer if there are any.
    """

    memory: Memory
    index: int
    size: int
    host: tuple[_Buffer, int] | None = None
    guests: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class _View:
    """Bytes of a buffer."""

    buffer: _Buffer
    offset: int
    size: int

    def resolved(self) -> _View:
        """The same bytes, as a view of the buffer that stands alone."""
        buffer, offset = self.buffer, self.offset
        while buffer.host is not None:
            buffer, inside = buffer.host
            offset += inside
        return _View(buffer, offset, self.size)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of a buffer of the workspace that stands alone."""
        buffer = self.buffer
        return buffer.memory == "workspace" and buffer.host is None and (self.offset, self.size) == (0, buffer.size)


def plan(module: Any, copy: Copy) -> Plan | None:
    """Plan ``main`` of a lowered module; None if it has sizes or branches that are only known at run time."""
    try:
        return _Planner(module, copy).plan()
    except NotStatic:
        return None


class _Planner:
    def __init__(self, module: Any, copy: Copy) -> None:
        self._module = module
        self._copy = copy
        self._values: dict[Any, Any] = {}
        self._steps: list[tuple[str, list[_View], list[_View]]] = []

    def plan(self) -> Plan:
        main = self._module["main"]
        *inputs, weights = main.params
        for k, variable in enumerate(inputs):
            self._values[variable] = _whole(_Buffer("input", k, _bytes(variable.ty)))
        self._values[weights] = [_whole(_Buffer("weight", k, _bytes(t))) for k, t in enumerate(weights.ty.fields)]
        for block in main.body.blocks:
            for binding in block.bindings:
                if not isinstance(binding, relax.VarBinding):
                    raise NotStatic(binding)
                self._values[binding.var] = self._value(binding.value)
        for k, result in enumerate(self._value(main.body.body)):
            self._give(k, result)
        return self._finish()

    def _value(self, expression: Any) -> Any:
        if isinstance(expression, relax.Var):
            return self._values[expression]
        if isinstance(expression, relax.Tuple):
            return [self._value(item) for item in expression.fields]
        if isinstance(expression, relax.TupleGetItem):
            return self._value(expression.tuple_value)[expression.index]
        if not isinstance(expression, relax.Call):
            raise NotStatic(expression)
        name = getattr(expression.op, "name", None)
        if name == "relax.reshape":
            return self._value(expression.args[0])
        if name == "relax.call_tir" and len(expression.args) == 2:
            return self._call(expression)
        raise NotStatic(expression)

    def _call(self, call: Any) -> Any:
        variable, arguments = call.args
        function = self._module[variable]
        assert isinstance(function, PrimFunc)
        reads = self._value(arguments)
        types = call.ty_args[0]
        if isinstance(types, relax.TupleType):
            writes = [_fresh(_bytes(t)) for t in types.fields]
        else:
            writes = [_fresh(_bytes(types))]
        attributes = function.attrs or {}
        if PART in attributes:
            width = numpy_dtype(str(types.dtype)).itemsize
            (whole,) = reads
            return _View(whole.buffer, whole.offset + int(attributes[PART]) * width, writes[0].size)
        if JOIN in attributes and len(reads) > 1:
            return self._join(reads, writes[0])
        self._steps.append((variable.name_hint, reads, writes))
        return writes if isinstance(types, relax.TupleType) else writes[0]

    def _join(self, pieces: Sequence[_View], fresh: _View) -> _View:
        """Put the pieces one behind the other, moving as few as possible."""
        starts = [0, *np.cumsum([piece.size for piece in pieces]).tolist()]
        pieces = [piece.resolved() for piece in pieces]
        # A buffer that was joined before may grow by the new pieces.
        bases = {
            (piece.buffer, piece.offset - start): None
            for piece, start in zip(pieces, starts, strict=False)
            if piece.buffer.guests and piece.offset >= start
        }
        for host, base in bases:
            if all(_fits(host, base + start, piece) for piece, start in zip(pieces, starts, strict=False)):
                break
        else:
            host, base = fresh.buffer, 0
        for piece, start in zip(pieces, starts, strict=False):
            self._settle(piece, host, base + start)
        host.size = max(host.size, base + fresh.size)
        return _View(host, base, fresh.size)

    def _settle(self, piece: _View, host: _Buffer, offset: int) -> None:
        """Have the bytes of a piece at an offset of a buffer: they are there, they will be written there, or copied."""
        if piece.buffer is host and piece.offset == offset:
            return
        here = piece.resolved()
        host.guests.append((offset, piece.size))
        if here.is_whole and here.buffer is not host:
            here.buffer.host = (host, offset)
        else:
            self._copy_to(here, _View(host, offset, piece.size))

    def _give(self, index: int, result: _View) -> None:
        """Have an output written where the caller gets it."""
        here = result.resolved()
        output = _Buffer("output", index, result.size)
        if here.is_whole:
            here.buffer.memory, here.buffer.index = "output", index
        else:
            self._copy_to(here, _whole(output))

    def _copy_to(self, source: _View, target: _View) -> None:
        if source.size:
            self._steps.append((self._copy(source.size), [source], [target]))

    def _finish(self) -> Plan:
        lives: dict[_Buffer, tuple[int, int]] = {}
        steps = [
            (name, [view.resolved() for view in reads], [view.resolved() for view in writes])
            for name, reads, writes in self._steps
        ]
        for number, (_, reads, writes) in enumerate(steps):
            for view in (*reads, *writes):
                if view.buffer.memory == "workspace":
                    lives[view.buffer] = (lives.get(view.buffer, (number, 0))[0], number)
        offsets, workspace = place([Demand(buffer.size, *life) for buffer, life in lives.items()])
        places = {buffer: k for k, buffer in enumerate(lives)}
        spans: dict[Span, int] = {}

        def span(view: _View) -> int:
            buffer = view.buffer
            index = places[buffer] if buffer.memory == "workspace" else buffer.index
            return spans.setdefault(Span(buffer.memory, index, view.offset, view.size), len(spans))

        calls = tuple(Step(name, tuple(map(span, reads)), tuple(map(span, writes))) for name, reads, writes in steps)
        buffers = tuple((offset, buffer.size) for offset, buffer in zip(offsets, lives, strict=True))
        return Plan(workspace, buffers, tuple(spans), calls)


def _fits(host: _Buffer, offset: int, piece: _View) -> bool:
    """Whether a piece is at that offset of a buffer already, or there is nothing yet."""
    if piece.buffer is host:
        return piece.offset == offset
    return all(start + size <= offset or offset + piece.size <= start for start, size in host.guests)


def _whole(buffer: _Buffer) -> _View:
    return _View(buffer, 0, buffer.size)


def _fresh(size: int) -> _View:
    return _whole(_Buffer("workspace", 0, size))


def _bytes(of: Any) -> int:
    """Bytes of a tensor, of the given type."""
    if not isinstance(of, relax.TensorType) or of.shape is None or str(of.dtype) == "":
        raise NotStatic(of)
    sizes = list(of.shape)
    if not all(isinstance(size, tirx.IntImm) for size in sizes):
        raise NotStatic(of)
    return math.prod(int(size) for size in sizes) * numpy_dtype(str(of.dtype)).itemsize
