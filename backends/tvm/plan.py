"""From a Relax function without branches to a :class:`shave.backends.plan.Plan`.

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
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from shave.backends.plan import Memory, Plan, Size, Span, Step
from shave.backends.tvm.adapter import Expr, PrimFunc, relax, tirx
from shave.backends.weights import numpy_dtype

JOIN = "shave.join"
"""Marks a PrimFunc whose output is its inputs, one behind the other in memory."""
PART = "shave.part"
"""Marks a PrimFunc whose output is a range of its input's memory; the value is the number of the first element."""

COPY = "copy"
"""Kernel that copies bytes; how many is its size argument."""


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
    size: Size
    host: tuple[_Buffer, int] | None = None
    guests: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True)
class _View:
    """Bytes of a buffer."""

    buffer: _Buffer
    offset: int
    size: Size

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


def plan(module: Any) -> Plan | None:
    """Plan ``main`` of a lowered module; None if it has branches, or sizes that shapes of inputs do not tell."""
    try:
        return _Planner(module).plan()
    except NotStatic:
        return None


class _Planner:
    def __init__(self, module: Any) -> None:
        self._module = module
        self._dims: dict[Any, str] = {}
        self._values: dict[Any, Any] = {}
        self._steps: list[tuple[str, list[_View], list[_View], list[Size]]] = []

    def plan(self) -> Plan:
        main = self._module["main"]
        *inputs, weights = main.params
        dims: list[tuple[int, int]] = []
        for k, variable in enumerate(inputs):
            for axis, size in enumerate(_shape(variable.ty)):
                if isinstance(size, tirx.Var) and size not in self._dims:
                    self._dims[size] = f"d{len(dims)}"
                    dims.append((k, axis))
        for k, variable in enumerate(inputs):
            self._values[variable] = _whole(_Buffer("input", k, self._bytes(variable.ty)))
        weight_types = [] if not isinstance(weights.ty, relax.TupleType) else weights.ty.fields
        self._values[weights] = [_whole(_Buffer("weight", k, self._bytes(t))) for k, t in enumerate(weight_types)]
        for block in main.body.blocks:
            for binding in block.bindings:
                if not isinstance(binding, relax.VarBinding):
                    raise NotStatic(binding)
                self._values[binding.var] = self._value(binding.value)
        for k, result in enumerate(self._value(main.body.body)):
            self._give(k, result)
        outputs = tuple(tuple(self._size(size) for size in _shape(of)) for of in main.ret_ty.fields)
        return self._finish(tuple(dims), outputs)

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
        if name == "relax.call_tir":
            return self._call(expression)
        raise NotStatic(expression)

    def _call(self, call: Any) -> Any:
        variable, arguments, *given = call.args
        function = self._module[variable]
        assert isinstance(function, PrimFunc)
        reads = [self._value(field) for field in arguments.fields if _is_tensor(field.ty)]
        types = call.ty_args[0]
        result_types = list(types.fields) if isinstance(types, relax.TupleType) else [types]
        writes = [_whole(_Buffer("workspace", 0, self._bytes(of))) for of in result_types]
        attributes = function.attrs or {}
        fixed = all(isinstance(view.size, int) for view in (*reads, *writes))
        if PART in attributes and fixed:
            width = numpy_dtype(str(types.dtype)).itemsize
            (whole,) = reads
            return _View(whole.buffer, whole.offset + int(attributes[PART]) * width, writes[0].size)
        if JOIN in attributes and fixed:
            return self._join(reads, writes[0])
        sizes = self._size_arguments(function, [*arguments.fields, *result_types, *(given[0].values if given else ())])
        self._steps.append((variable.name_hint, reads, writes, sizes))
        return writes if isinstance(types, relax.TupleType) else writes[0]

    def _size_arguments(self, function: PrimFunc, arguments: Sequence[Any]) -> list[Size]:
        """What the sizes of a function are in one call of it, in the order of :func:`size_variables`."""
        known: dict[Any, Any] = {}
        for parameter, argument in zip(function.params, arguments, strict=True):
            of = argument if _is_tensor(argument) else argument.ty
            if _is_tensor(of):
                known |= {p: a for p, a in zip(parameter.ty.shape, _shape(of), strict=True) if isinstance(p, tirx.Var)}
            else:
                known[parameter] = argument
        return [self._size(known[variable]) for variable in size_variables(function)]

    def _bytes(self, of: Any) -> Size:
        """Bytes of a tensor of the given type."""
        width = numpy_dtype(str(of.dtype)).itemsize
        sizes = [self._size(size) for size in _shape(of)]
        if all(isinstance(size, int) for size in sizes):
            return math.prod(map(int, sizes)) * width
        return "*".join(str(size) for size in (*sizes, width))

    def _size(self, size: Any) -> Size:
        """A size as a number or a formula."""
        if isinstance(size, (int, tirx.IntImm)):
            return int(size)
        return formula(size, self._dims)

    def _join(self, pieces: Sequence[_View], fresh: _View) -> _View:
        """Put the pieces one behind the other, moving as few as possible."""
        starts = list(accumulate((_fixed(piece) for piece in pieces), initial=0))
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
        host.size = max(_fixed(_whole(host)), base + _fixed(fresh))
        return _View(host, base, fresh.size)

    def _settle(self, piece: _View, host: _Buffer, offset: int) -> None:
        """Have the bytes of a piece at an offset of a buffer: they are there, they will be written there, or copied."""
        if piece.buffer is host and piece.offset == offset:
            return
        here = piece.resolved()
        host.guests.append((offset, _fixed(piece)))
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
        self._steps.append((COPY, [source], [target], [source.size]))

    def _finish(self, dims: tuple[tuple[int, int], ...], outputs: tuple[tuple[Size, ...], ...]) -> Plan:
        places: dict[_Buffer, int] = {}
        spans: dict[Span, int] = {}

        def span(view: _View) -> int:
            view = view.resolved()
            buffer, index = view.buffer, view.buffer.index
            if buffer.memory == "workspace":
                index = places.setdefault(buffer, len(places))
            return spans.setdefault(Span(buffer.memory, index, view.offset, view.size), len(spans))

        steps = tuple(
            Step(name, tuple(map(span, reads)), tuple(map(span, writes)), tuple(sizes))
            for name, reads, writes, sizes in self._steps
        )
        return Plan(dims, outputs, tuple(buffer.size for buffer in places), tuple(spans), steps)


def size_variables(function: PrimFunc) -> list[Any]:
    """The symbolic sizes of a function's tensors, and its parameters that are no tensors, each once."""
    found: dict[Any, None] = {}
    for parameter in function.params:
        if hasattr(parameter.ty, "shape"):
            found |= dict.fromkeys(size for size in parameter.ty.shape if isinstance(size, tirx.Var))
        else:
            found[parameter] = None
    return list(found)


_SIGNS = {tirx.Add: "+", tirx.Sub: "-", tirx.Mul: "*", tirx.FloorDiv: "//", tirx.FloorMod: "%"}


def formula(size: Expr, names: dict[Any, str]) -> str:
    """A size in the words of :func:`shave.backends.plan.evaluate`.

    Raises:
        NotStatic: It has no such form.
    """
    if isinstance(size, tirx.IntImm):
        return str(int(size))
    if isinstance(size, tirx.Var) and size in names:
        return names[size]
    if type(size) in _SIGNS:
        return f"({formula(size.a, names)}{_SIGNS[type(size)]}{formula(size.b, names)})"
    if isinstance(size, (tirx.Max, tirx.Min)):
        return f"{'max' if isinstance(size, tirx.Max) else 'min'}({formula(size.a, names)},{formula(size.b, names)})"
    if isinstance(size, tirx.Cast) and str(size.ty.dtype) == "int64":
        return formula(size.value, names)
    raise NotStatic(size)


def _fits(host: _Buffer, offset: int, piece: _View) -> bool:
    """Whether a piece is at that offset of a buffer already, or there is nothing yet."""
    if piece.buffer is host:
        return piece.offset == offset
    return all(start + size <= offset or offset + _fixed(piece) <= start for start, size in host.guests)


def _whole(buffer: _Buffer) -> _View:
    return _View(buffer, 0, buffer.size)


def _fixed(view: _View) -> int:
    assert isinstance(view.size, int)
    return view.size


def _is_tensor(of: Any) -> bool:
    return isinstance(of, relax.TensorType)


def _shape(of: Any) -> list[Any]:
    if not _is_tensor(of) or of.shape is None:
        raise NotStatic(of)
    return list(of.shape)
