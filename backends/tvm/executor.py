"""Running static programs: one call of the library runs all kernels, on memory that was prepared before."""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shave.backends.container import ALIGNMENT
from shave.backends.plan import Plan
from shave.backends.tvm import vm
from shave.backends.weights import Array, numpy_dtype
from shave.ir.errors import ArtifactError
from shave.ir.signature import Signature, TensorSpec

_HUGE_PAGE = 1 << 21  # bytes; what Linux offers beside 4 KB on x86 and Arm

_raw_view: Callable[[Any], Any] = ctypes.c_char.from_buffer
_address_of = ctypes.addressof


class Executor:
    """A loaded library with its weights and its plan, which several Python threads may call at once.

    Each call takes an idle workspace, or makes one more; in the long run nothing is allocated but the outputs.
    """

    def __init__(self, library: memoryview, weights: Sequence[Array], plan: Plan, signature: Signature) -> None:
        """Load the library.

        Raises:
            ArtifactError: The plan does not fit the weights or the signature.
        """
        inputs, self._outputs = ([_Form.of(spec) for spec in side] for side in (signature.inputs, signature.outputs))
        plan.check(
            {
                "input": [form.size for form in inputs],
                "weight": [weight.nbytes for weight in weights],
                "output": [form.size for form in self._outputs],
            }
        )
        self._module = vm.load(library)
        self._run = self._module["run"]
        self._plan = plan
        self._weights = [vm.aligned(weight) for weight in weights]
        self._frames: deque[_Frame] = deque()

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the program on contiguous arrays; the results own their memory."""
        results = [form.empty() for form in self._outputs]
        self.run_into(results, inputs)
        return results

    def run_into(self, outputs: Sequence[Array], inputs: Sequence[Array]) -> None:
        """Run the program on contiguous arrays, with its results in arrays of the right shapes and dtypes."""
        try:
            frame = self._frames.pop()
        except IndexError:
            frame = _Frame(self._plan, self._weights)
        frame.bind(inputs, outputs)
        failed = self._run(frame.address, 0, len(self._plan.steps))
        self._frames.append(frame)
        if failed:
            self._raise(failed)

    def trace(self, inputs: Sequence[Array]) -> list[tuple[str, float]]:
        """Run the program once, step by step.

        Returns:
            Name of the kernel and seconds of each step, in their order.
        """
        outputs = [form.empty() for form in self._outputs]
        frame = _Frame(self._plan, self._weights)
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
        return times

    def _raise(self, failed: int) -> None:
        kernel = self._plan.steps[failed - 1].kernel
        try:
            _raise_pending()()
        except Exception as error:
            raise ArtifactError(f"kernel {kernel} failed: {error}") from error


@dataclass(frozen=True)
class _Form:
    """What all arrays for one input or output have in common.

    Attributes:
        shape: Extents.
        dtype: NumPy's dtype.
        size: Bytes.
    """

    shape: tuple[int, ...]
    dtype: Any
    size: int

    @staticmethod
    def of(spec: TensorSpec) -> _Form:
        shape, dtype = tuple(map(int, spec.shape)), numpy_dtype(spec.dtype)
        return _Form(shape, dtype, math.prod(shape) * dtype.itemsize)

    def empty(self) -> Array:
        """A new array that starts at a multiple of 64 bytes, so that no store of a vector crosses a cache line."""
        memory = np.empty(self.size + ALIGNMENT, np.uint8)
        array: Array = np.ndarray(self.shape, self.dtype, memory, -_start(memory) % ALIGNMENT)
        return array


class _Frame:
    """What one run needs: a workspace, and the arguments of all steps.

    Attributes:
        address: Where the arguments are.
    """

    def __init__(self, plan: Plan, weights: Sequence[Array]) -> None:
        self._workspace = _pages(plan.workspace)
        base = self._workspace.ctypes.data
        buffers = [base + offset for offset, _ in plan.buffers]
        starts = {"workspace": buffers, "weight": [weight.ctypes.data for weight in weights]}
        spans = [plan.spans[argument] for step in plan.steps for argument in step.arguments]
        self._slots = (ctypes.c_uint64 * len(spans))(
            *(starts[s.memory][s.index] + s.offset if s.memory in starts else 0 for s in spans)
        )
        self.address = ctypes.addressof(self._slots)
        places: dict[str, dict[int, list[tuple[int, int]]]] = {"input": {}, "output": {}}
        for slot, span in enumerate(spans):
            if span.memory in places:
                places[span.memory].setdefault(span.index, []).append((slot, span.offset))
        self._inputs = sorted(places["input"].items())
        self._outputs = sorted(places["output"].items())

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
