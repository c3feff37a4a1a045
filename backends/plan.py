"""The plan of a program whose control flow is known: which kernel runs when, on which bytes.

A plan is data beside the library. The runtime gives each buffer a place in one workspace, makes one list of pointers
and sizes for all calls of kernels, and the library's function ``run`` walks along that list. Whatever the file says is
checked first: no kernel is handed bytes outside of what was promised to it, and buffers that live at the same time
never share any.

Sizes may depend on the dynamic dimensions of the inputs. They are numbers then, or formulas in the names ``d0``, ``d1``
and so on of :attr:`Plan.dims`, with the operators ``+ - * // %`` and the functions ``min`` and ``max``.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shave.backends.memory import Demand, place
from shave.ir.errors import ArtifactError

Memory = Literal["workspace", "input", "weight", "output"]

Size = int | str
"""A number, or a formula."""

_LARGEST = 1 << 62
_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: Mapping[str, Callable[..., int]] = {"min": min, "max": max}


@dataclass(frozen=True)
class Span:
    """Consecutive bytes that a kernel reads or writes.

    Attributes:
        memory: Where they are.
        index: Which buffer of the workspace, or the position of the input, weight or output.
        offset: First byte, from the start of that buffer or tensor.
        size: Number of bytes.
    """

    memory: Memory
    index: int
    offset: int
    size: Size


@dataclass(frozen=True)
class Step:
    """One call of a kernel; its arguments are the spans that it reads, those that it writes, and sizes.

    Attributes:
        kernel: Name of the function in the library.
        reads: Positions in :attr:`Plan.spans`.
        writes: Positions in :attr:`Plan.spans`.
        sizes: Numbers that the kernel needs to know.
    """

    kernel: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    sizes: tuple[Size, ...] = ()

    @property
    def spans(self) -> tuple[int, ...]:
        """All positions, in the order of the kernel's parameters."""
        return (*self.reads, *self.writes)


@dataclass(frozen=True)
class Placed:
    """A plan for inputs of certain shapes.

    Attributes:
        workspace: Bytes that one run needs for what lives between kernels.
        offsets: Where each buffer starts in the workspace.
        sizes: The sizes of each step.
        outputs: Shape of each output.
    """

    workspace: int
    offsets: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Plan:
    """What ``run`` does.

    Attributes:
        dims: Where the value of each dynamic dimension is read: the number of the input, and of its axis.
        outputs: Shape of each output.
        buffers: Bytes of each buffer of the workspace.
        spans: What the steps refer to. Spans of one buffer may overlap: the parts of a joined tensor lie inside of it.
        steps: The calls in their order.
    """

    dims: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[Size, ...], ...]
    buffers: tuple[Size, ...]
    spans: tuple[Span, ...]
    steps: tuple[Step, ...]

    def at(
        self, inputs: Sequence[Sequence[int]], widths: Mapping[str, Sequence[int]], weights: Sequence[int]
    ) -> Placed:
        """Work the plan out for inputs of certain shapes.

        Args:
            inputs: Shape of each input.
            widths: Bytes of one element of each ``input`` and ``output``.
            weights: Bytes of each weight.

        Raises:
            ArtifactError: Under the plan, a kernel would reach into memory that is not its own.
        """
        try:
            dims = {f"d{k}": inputs[number][axis] for k, (number, axis) in enumerate(self.dims)}
            outputs = tuple(tuple(evaluate(size, dims) for size in shape) for shape in self.outputs)
            limits: dict[str, list[int]] = {
                "input": [math.prod(shape) * width for shape, width in zip(inputs, widths["input"], strict=True)],
                "output": [math.prod(shape) * width for shape, width in zip(outputs, widths["output"], strict=True)],
                "weight": list(weights),
                "workspace": [evaluate(size, dims) for size in self.buffers],
            }
            sizes = [evaluate(span.size, dims) for span in self.spans]
            numbers = tuple(tuple(evaluate(size, dims) for size in step.sizes) for step in self.steps)
        except (ValueError, ArithmeticError, IndexError) as error:
            raise ArtifactError(f"its plan cannot be worked out: {error}") from error
        for span, size in zip(self.spans, sizes, strict=True):
            if span.index >= len(limits[span.memory]) or span.offset + size > limits[span.memory][span.index]:
                raise ArtifactError(f"its plan reaches outside of {span.memory} {span.index}")
        self._check_order(sizes, limits["output"])
        demands = [Demand(size, *life) for size, life in zip(limits["workspace"], self._lives(), strict=True)]
        offsets, workspace = place(demands)
        return Placed(workspace, tuple(offsets), numbers, outputs)

    def _lives(self) -> list[tuple[int, int]]:
        """First and last step that touch each buffer."""
        lives: list[tuple[int, int]] = [(0, 0)] * len(self.buffers)
        seen: set[int] = set()
        for number, step in enumerate(self.steps):
            for argument in step.spans:
                span = self.spans[argument]
                if span.memory == "workspace":
                    lives[span.index] = (lives[span.index][0] if span.index in seen else number, number)
                    seen.add(span.index)
        return lives

    def _check_order(self, sizes: Sequence[int], outputs: Sequence[int]) -> None:
        """What is read was written before, constants are not written, and each output is written to its last byte."""
        written: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for step in self.steps:
            for argument in step.reads:
                span = self.spans[argument]
                there = written.get((span.memory, span.index), [])
                if span.memory in ("workspace", "output") and not _covers(there, span.offset, sizes[argument]):
                    raise ArtifactError(f"its plan reads {span.memory} {span.index} before it is written")
            for argument in step.writes:
                span = self.spans[argument]
                if span.memory in ("input", "weight"):
                    raise ArtifactError(f"its plan writes to {span.memory} {span.index}")
                written.setdefault((span.memory, span.index), []).append((span.offset, sizes[argument]))
        for index, size in enumerate(outputs):
            if not _covers(written.get(("output", index), []), 0, size):
                raise ArtifactError(f"its plan does not write output {index}")

    def to_json(self) -> dict[str, Any]:
        """Give plain data that :meth:`from_json` takes back."""
        return {
            "dims": [list(dim) for dim in self.dims],
            "outputs": [list(shape) for shape in self.outputs],
            "buffers": list(self.buffers),
            "spans": [[span.memory, span.index, span.offset, span.size] for span in self.spans],
            "steps": [[step.kernel, list(step.reads), list(step.writes), list(step.sizes)] for step in self.steps],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from :meth:`to_json`'s data.

        Raises:
            ValueError, TypeError, KeyError: The data is not of that form.
        """
        spans = tuple(Span(_memory(m), _number(i), _number(o), _size(s)) for m, i, o, s in data["spans"])
        return Plan(
            dims=tuple((_number(number), _number(axis)) for number, axis in data["dims"]),
            outputs=tuple(tuple(map(_size, shape)) for shape in data["outputs"]),
            buffers=tuple(map(_size, data["buffers"])),
            spans=spans,
            steps=tuple(
                Step(
                    _name(kernel),
                    tuple(_number(k, len(spans)) for k in reads),
                    tuple(_number(k, len(spans)) for k in writes),
                    tuple(map(_size, sizes)),
                )
                for kernel, reads, writes, sizes in data["steps"]
            ),
        )


def evaluate(size: Size, dims: Mapping[str, int]) -> int:
    """The number that a size is.

    Raises:
        ValueError: It is not a formula, or its value is no size.
        ArithmeticError: It divides by zero.
    """
    if isinstance(size, int):
        return size
    try:
        value = _value(ast.parse(size, mode="eval").body, dims)
    except (SyntaxError, KeyError, RecursionError, MemoryError) as error:
        raise ValueError(f"{size!r} is not a formula") from error
    return _number(value)


def _value(node: ast.expr, dims: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return dims[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            value = _OPERATORS[type(op)](_value(left, dims), _value(right, dims))
            return value if abs(value) < _LARGEST else _LARGEST
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if arguments:
            return _FUNCTIONS[name](*(_value(argument, dims) for argument in arguments))
    raise ValueError(f"{ast.unparse(node)!r} has no place in a formula")


def _covers(pieces: Sequence[tuple[int, int]], offset: int, size: int) -> bool:
    """Whether pieces (offset, size) together hold all of a range."""
    end = offset + size
    for start, length in sorted(pieces):
        if start > offset:
            break
        offset = max(offset, start + length)
    return offset >= end


def _memory(value: Any) -> Memory:
    if value not in get_args(Memory):
        raise ValueError(f"{value!r} is no kind of memory")
    memory: Memory = value
    return memory


def _number(value: Any, limit: int = _LARGEST) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise ValueError(f"{value!r} is not a number below {limit}")
    return value


def _size(value: Any) -> Size:
    return value if isinstance(value, str) else _number(value)


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
