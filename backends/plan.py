"""The plan of a program whose sizes are all known: which kernel runs when, on which bytes.

A plan is data beside the library: the runtime makes one list of pointers out of it, once for each workspace, and the
library's function ``run`` walks along that list. Whatever the file says is checked first: no kernel is handed bytes
outside of what it was promised, and no two tensors that live at the same time share any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from shave.backends.container import ALIGNMENT
from shave.ir.errors import ArtifactError

Memory = Literal["workspace", "input", "weight", "output"]
_LARGEST = 1 << 62


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
    size: int


@dataclass(frozen=True)
class Step:
    """One call of a kernel; its arguments are the spans that it reads, then those that it writes.

    Attributes:
        kernel: Name of the function in the library.
        reads: Positions in :attr:`Plan.spans`.
        writes: Positions in :attr:`Plan.spans`.
    """

    kernel: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]

    @property
    def arguments(self) -> tuple[int, ...]:
        """All positions, in the order of the kernel's parameters."""
        return (*self.reads, *self.writes)


@dataclass(frozen=True)
class Plan:
    """What ``run`` does.

    Attributes:
        workspace: Bytes that one run needs for what lives between kernels.
        buffers: Offset in the workspace and size of each buffer. Buffers that live at different times may overlap.
        spans: What the steps refer to. Spans of one buffer may overlap: the parts of a joined tensor lie inside of it.
        steps: The calls in their order.
    """

    workspace: int
    buffers: tuple[tuple[int, int], ...]
    spans: tuple[Span, ...]
    steps: tuple[Step, ...]

    def lives(self) -> list[tuple[int, int]]:
        """First and last step that touch each buffer; (-1, -1) for one that none does."""
        lives = [(-1, -1)] * len(self.buffers)
        for number, step in enumerate(self.steps):
            for argument in step.arguments:
                span = self.spans[argument]
                if span.memory == "workspace":
                    first = lives[span.index][0]
                    lives[span.index] = (number if first < 0 else first, number)
        return lives

    def check(self, sizes: Mapping[Memory, Sequence[int]]) -> None:
        """Refuse a plan under which kernels would reach into memory that is not theirs.

        Args:
            sizes: Bytes of each input, weight and output.

        Raises:
            ArtifactError: Says what is wrong.
        """
        for offset, size in self.buffers:
            if offset % ALIGNMENT or offset + size > self.workspace:
                raise ArtifactError(f"its plan has a buffer of {size} bytes at {offset}, outside of the workspace")
        limits = {**sizes, "workspace": [size for _, size in self.buffers]}
        for span in self.spans:
            if span.index >= len(limits[span.memory]) or span.offset + span.size > limits[span.memory][span.index]:
                raise ArtifactError(f"its plan reaches outside of {span.memory} {span.index}")
        self._check_lives()
        self._check_order(sizes)

    def _check_lives(self) -> None:
        alive = [(born, died, *self.buffers[k], k) for k, (born, died) in enumerate(self.lives()) if born >= 0]
        alive.sort()
        for position, (_, died, offset, size, k) in enumerate(alive):
            for born, _, other_offset, other_size, other in alive[position + 1 :]:
                if born > died:
                    break
                if offset < other_offset + other_size and other_offset < offset + size:
                    raise ArtifactError(f"its plan gives the same bytes to buffers {k} and {other} at the same time")

    def _check_order(self, sizes: Mapping[Memory, Sequence[int]]) -> None:
        """What is read was written before, constants are not written, and each output is written to its last byte."""
        written: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for step in self.steps:
            for argument in step.reads:
                span = self.spans[argument]
                there = written.get((span.memory, span.index), [])
                if span.memory in ("workspace", "output") and not _covers(there, span.offset, span.size):
                    raise ArtifactError(f"its plan reads {span.memory} {span.index} before it is written")
            for argument in step.writes:
                span = self.spans[argument]
                if span.memory in ("input", "weight"):
                    raise ArtifactError(f"its plan writes to {span.memory} {span.index}")
                written.setdefault((span.memory, span.index), []).append((span.offset, span.size))
        for index, size in enumerate(sizes["output"]):
            if not _covers(written.get(("output", index), []), 0, size):
                raise ArtifactError(f"its plan does not write output {index}")

    def to_json(self) -> dict[str, Any]:
        """Give plain data that :meth:`from_json` takes back."""
        return {
            "workspace": self.workspace,
            "buffers": [list(buffer) for buffer in self.buffers],
            "spans": [[span.memory, span.index, span.offset, span.size] for span in self.spans],
            "steps": [[step.kernel, list(step.reads), list(step.writes)] for step in self.steps],
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from :meth:`to_json`'s data.

        Raises:
            ValueError, TypeError, KeyError: The data is not of that form.
        """
        spans = tuple(Span(_memory(m), _number(i), _number(o), _number(s)) for m, i, o, s in data["spans"])
        steps = tuple(
            Step(
                _name(kernel),
                tuple(_number(k, len(spans)) for k in reads),
                tuple(_number(k, len(spans)) for k in writes),
            )
            for kernel, reads, writes in data["steps"]
        )
        buffers = tuple((_number(offset), _number(size)) for offset, size in data["buffers"])
        return Plan(_number(data["workspace"]), buffers, spans, steps)


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


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
