"""Running planned programs: one call of the library runs all kernels, on memory that was prepared before."""

from __future__ import annotations

import copy
import ctypes
import functools
import math
import mmap
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shave.backends.container import ALIGNMENT
from shave.backends.plan import Placed, Plan, Size
from shave.backends.tvm import vm
from shave.backends.weights import Array, numpy_dtype
from shave.ir.errors import ArtifactError
from shave.ir.signature import Signature

_HUGE_PAGE = 1 << 21  # bytes; what Linux offers beside 4 KB on x86 and Arm
_KEPT_SHAPES = 8

_Uses = list[tuple[int, list[tuple[int, int]]]]
"""For each input or output the arguments that point to it: their numbers, with offsets in bytes."""

_raw_view: Callable[[Any], Any] = ctypes.c_char.from_buffer
_address_of = ctypes.addressof


class Executor:
    """A loaded library with its weights and its plan, which several Python threads may call at once.

    Each call takes an idle workspace, or makes one more; in the long run nothing is allocated but the outputs. The
    workspaces of the last few combinations of input shapes are kept.
    """

    def __init__(self, library: memoryview, weights: Sequence[Array], plan: Plan, signature: Signature) -> None:
        """Load the library.

        Raises:
            ArtifactError: The plan does not fit the weights or the signature.
        """
        self._plan = plan
        self._inputs, self._outputs = (
            [numpy_dtype(spec.dtype) for spec in side] for side in (signature.inputs, signature.outputs)
        )
        self._weights = [vm.aligned(weight) for weight in weights]
        self._rooms: dict[tuple[tuple[int, ...], ...], _Room] = {}
        if not plan.dims:
            self._room(tuple(tuple(map(int, spec.shape)) for spec in signature.inputs))
        self._module = vm.load(library)
        self._run = self._module["run"]

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the program on contiguous arrays; the results own their memory."""
        room = self._room(tuple([array.shape for array in inputs]))
        results = [form.empty() for form in room.outputs]
        self._run_in(room, inputs, results)
        return results

    def run_into(self, outputs: Sequence[Array], inputs: Sequence[Array]) -> None:
        """Run the program on contiguous arrays, with its results in arrays of the right shapes and dtypes."""
        self._run_in(self._room(tuple([array.shape for array in inputs])), inputs, outputs)

    def output_shapes(self, inputs: Sequence[Array]) -> list[tuple[int, ...]]:
        """Shapes of the results for these inputs."""
        return [form.shape for form in self._room(tuple([array.shape for array in inputs])).outputs]

    def trace(self, inputs: Sequence[Array]) -> list[tuple[str, float]]:
        """Run the program once, step by step.

        Returns:
            Name of the kernel and seconds of each step, in their order.
        """
        room = self._room(tuple([array.shape for array in inputs]))
        frame = room.take()
        outputs = [form.empty() for form in room.outputs]
        frame.bind(inputs, outputs)
        clock, run, address = time.perf_counter, self._run, frame.address
        times = []
        for number, step in enumerate(self._plan.steps):
            before = clock()
            run(address, 0, 0)  # what a call costs by itself
            start = clock()
            failed = run(address, number, number + 1)
            end = clock()
            if failed:
                self._raise(failed)
            times.append((step.kernel, max(0.0, end - start - (start - before))))
        room.idle.append(frame)
        return times

    def with_code(self, library: memoryview) -> Executor:
        """The same program by other code for the same plan; the two share weights and workspaces."""
        other = copy.copy(self)
        other._module = vm.load(library)
        other._run = other._module["run"]
        return other

    def written(self, inputs: Sequence[Array]) -> Iterator[tuple[str, list[Array]]]:
        """Run the program once: the kernel of each step, with copies of the bytes that it wrote; all sizes known."""
        room = self._room(tuple([array.shape for array in inputs]))
        frame = room.take()
        outputs = [form.empty() for form in room.outputs]
        frame.bind(inputs, outputs)
        slot = 0
        for number, step in enumerate(self._plan.steps):
            if failed := self._run(frame.address, number, number + 1):
                self._raise(failed)
            at = slot + len(step.reads)
            yield step.kernel, [frame.content(at + k, self._plan.spans[s].size) for k, s in enumerate(step.writes)]
            slot += len(step.spans) + len(step.sizes)
        room.idle.append(frame)

    def _room(self, shapes: tuple[tuple[int, ...], ...]) -> _Room:
        """What is prepared for inputs of these shapes."""
        room = self._rooms.get(shapes)
        if room is None:
            widths = {"input": self._inputs, "output": self._outputs}
            placed = self._plan.at(
                shapes,
                {side: [dtype.itemsize for dtype in dtypes] for side, dtypes in widths.items()},
                [weight.nbytes for weight in self._weights],
            )
            outputs = [_Form.of(shape, dtype) for shape, dtype in zip(placed.outputs, self._outputs, strict=True)]
            room = _Room(self._plan, placed, self._weights, outputs)
            for old in list(self._rooms)[: 1 - _KEPT_SHAPES]:
                self._rooms.pop(old, None)
            self._rooms[shapes] = room
        return room

    def _run_in(self, room: _Room, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        frame = room.take()
        frame.bind(inputs, outputs)
        failed = self._run(frame.address, 0, room.steps)
        room.idle.append(frame)
        if failed:
            self._raise(failed)

    def _raise(self, failed: int) -> None:
        kernel = self._plan.steps[failed - 1].kernel
        try:
            _raise_pending()()
        except Exception as error:
            raise ArtifactError(f"kernel {kernel} failed: {error}") from error


@dataclass(frozen=True)
class _Form:
    """What all arrays for one output have in common.

    Attributes:
        shape: Extents.
        dtype: NumPy's dtype.
        size: Bytes.
    """

    shape: tuple[int, ...]
    dtype: Any
    size: int

    @staticmethod
    def of(shape: tuple[int, ...], dtype: Any) -> _Form:
        return _Form(shape, dtype, math.prod(shape) * dtype.itemsize)

    def empty(self) -> Array:
        """A new array that starts at a multiple of 64 bytes, so that no store of a vector crosses a cache line."""
        memory = np.empty(self.size + ALIGNMENT, np.uint8)
        array: Array = np.ndarray(self.shape, self.dtype, memory, -_start(memory) % ALIGNMENT)
        return array


class _Room:
    """What runs on inputs of the same shapes share.

    Attributes:
        steps: Number of steps of the plan.
        outputs: What the results look like.
        idle: Frames that no run uses now.
    """

    def __init__(self, plan: Plan, placed: Placed, weights: Sequence[Array], outputs: list[_Form]) -> None:
        self._workspace = placed.workspace
        self.steps = len(plan.steps)
        self.outputs = outputs
        self.idle: deque[_Frame] = deque()
        starts = {"workspace": list(placed.offsets), "weight": [weight.ctypes.data for weight in weights]}
        self._slots: list[int] = []
        self._relative: list[int] = []
        self._places: dict[str, dict[int, list[tuple[int, int]]]] = {"input": {}, "output": {}}
        for step, sizes in zip(plan.steps, placed.sizes, strict=True):
            for span in (plan.spans[k] for k in step.spans):
                slot = len(self._slots)
                if span.memory in self._places:
                    self._places[span.memory].setdefault(span.index, []).append((slot, span.offset))
                elif span.memory == "workspace":
                    self._relative.append(slot)
                self._slots.append(starts[span.memory][span.index] + span.offset if span.memory in starts else 0)
            self._slots += sizes

    def take(self) -> _Frame:
        """A workspace that no run uses; one that was used before has its pages, others get them while they run."""
        try:
            return self.idle.pop()
        except IndexError:
            return self._frame()

    def _frame(self) -> _Frame:
        workspace = _pages(self._workspace)
        base = workspace.ctypes.data
        slots = (ctypes.c_int64 * len(self._slots))(*self._slots)
        for slot in self._relative:
            slots[slot] += base
        return _Frame(workspace, slots, *(sorted(self._places[side].items()) for side in ("input", "output")))


class _Frame:
    """What one run needs: a workspace, and the arguments of all steps.

    Attributes:
        address: Where the arguments are.
    """

    def __init__(self, workspace: Array, slots: Any, inputs: _Uses, outputs: _Uses) -> None:
        self._workspace = workspace
        self._slots = slots
        self._inputs = inputs
        self._outputs = outputs
        self.address = ctypes.addressof(slots)

    def content(self, slot: int, size: Size) -> Array:
        """A copy of the bytes that an argument points to."""
        assert isinstance(size, int)
        return np.frombuffer(ctypes.string_at(self._slots[slot], size), np.uint8)

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> None:
        """Have the steps read and write these arrays."""
        slots = self._slots
        for index, uses in self._inputs:
            start = _start(inputs[index])
            for slot, offset in uses:
                slots[slot] = start + offset
        for index, uses in self._outputs:
            start = _start(outputs[index])
            for slot, offset in uses:
                slots[slot] = start + offset


def _start(array: Array) -> int:
    """Address of the first element; the usual way through NumPy takes six times as long."""
    try:
        return _address_of(_raw_view(array))
    except (TypeError, ValueError, BufferError):  # read-only, empty, or of a dtype that the buffer protocol lacks
        address: int = array.ctypes.data
        return address


def _pages(size: int) -> Array:
    """Private memory that starts at a page, at a huge one where it is worth it."""
    huge = size >= _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE")
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    memory = mmap.mmap(-1, max(1, size) + (_HUGE_PAGE if huge else 0), **private)
    whole = np.frombuffer(memory, np.uint8)
    if not huge:
        return whole
    start = -whole.ctypes.data % _HUGE_PAGE
    memory.madvise(mmap.MADV_HUGEPAGE, start, size)
    return whole[start : start + size]


@functools.cache
def _raise_pending() -> Any:
    """A function that fails without saying why: tvm_ffi then raises the error that a kernel left in this thread."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
    fail = kind(lambda *_: -1)
    return vm.ffi().Function.__from_extern_c__(ctypes.cast(fail, ctypes.c_void_p).value, keep_alive_object=fail)
