"""TVM's runtime through tvm_ffi and libtvm_runtime alone: neither TVM's Python package nor torch is imported.

Here are its virtual machine, which runs programs whose sizes are only known at run time, and what it shares with the
executor of static programs: loading, tensors, threads.

What it takes from TVM are a few functions in its global registry; ``tests/backends/tvm/test_vm.py`` pins them.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from shave.backends import host
from shave.backends.container import ALIGNMENT
from shave.backends.weights import Array, numpy_dtype
from shave.ir.errors import ArtifactError

_CPU, _DEVICE_0, _POOLED = 1, 0, 2  # kDLCPU, its number, and the allocator that keeps freed memory for the next call
_SHARE_ALL_CORES = -3  # affinity mode: any thread on any of the given processors
_USER_DEFINED = 2  # what NumPy says of dtypes that other packages registered
_CARRIERS: dict[int, Any] = {2: np.dtype("uint16"), 1: np.dtype("uint8")}  # stand in for those, by their size

BETWEEN_KERNELS = "(virtual machine)"
"""What :meth:`Machine.trace` calls the work between kernels."""

Tensor = Any
"""A ``tvm_ffi.Tensor`` in CPU memory."""


class Machine:
    """A loaded library with its weights, which several Python threads may call at once.

    One virtual machine runs one call at a time, so each call takes an idle one, or starts another (about 15
    microseconds; code and weights are shared, activations come from TVM's pool).
    """

    def __init__(self, library: memoryview, weights: Sequence[Array]) -> None:
        self._module = load(library)
        tensors = [to_tensor(aligned(weight)) for weight in weights]
        self._weights = ffi().convert(tuple(tensors))
        self._borrowed = {tensor.data_ptr() for tensor in tensors}
        self._idle: deque[Any] = deque()  # the function ``main`` of each machine at rest, which keeps it alive

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """Run ``main``; the results own their memory."""
        tensors = [to_tensor(aligned(array)) for array in inputs]
        try:
            main = self._idle.pop()
        except IndexError:
            main = self._start()["main"]
        results = _flat(main(*tensors, self._weights))
        self._idle.append(main)
        taken = self._borrowed.union(tensor.data_ptr() for tensor in tensors)
        outputs = []
        for result in results:
            # A program may return an input, a weight or one value twice; who writes to a result must not change those.
            output = to_array(result)
            outputs.append(output.copy() if result.data_ptr() in taken else output)
            taken.add(result.data_ptr())
        return outputs

    def trace(self, inputs: Sequence[Array]) -> list[tuple[str, float]]:
        """Run ``main`` once on a machine of its own.

        Returns:
            Name of the function and seconds of each call that the virtual machine made, in their order.
        """
        started: list[float] = []
        times: list[tuple[str, float]] = []

        def instrument(_function: Any, name: str, before: bool, _result: Any, *_arguments: Any) -> int:
            if before:
                started.append(time.perf_counter())
            else:
                seconds = time.perf_counter() - started.pop()
                times.append((BETWEEN_KERNELS if name.startswith("vm.builtin.") else name, seconds))
            return 0  # go on

        machine = self._start()
        machine["set_instrument"](instrument)
        machine["main"](*[to_tensor(aligned(array)) for array in inputs], self._weights)
        return times

    def _start(self) -> Any:
        machine = self._module["vm_load_executable"]()
        machine["vm_initialization"](_CPU, _DEVICE_0, _POOLED)
        return machine


@functools.cache
def ffi() -> Any:
    """The module ``tvm_ffi``, after TVM's runtime was loaded into the process.

    Raises:
        ArtifactError: TVM is not installed.
    """
    # Threads that move freely are right wherever other work runs beside; who owns the machine may set it to 1.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    # Idle workers look for work that often before they sleep: long enough for the serial kernels of a call (about a
    # millisecond), not for the rest of the process, whose processors they would hold.
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "2000")
    spec = find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise ArtifactError("TVM's runtime is not installed: pip install apache-tvm")
    folders = [Path(location) / "lib" for location in spec.submodule_search_locations]
    with _without_torch():
        import tvm_ffi
    for folder in folders:
        # The second holds sort, top-k and random numbers.
        for library in ("libtvm_runtime.so", "libtvm_runtime_extra.so"):
            if (folder / library).exists():
                ctypes.CDLL(str(folder / library), ctypes.RTLD_GLOBAL)
    return tvm_ffi


class _TorchHider(MetaPathFinder):
    """Finds torch to be absent, for the thread that made it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torch" and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(name)


@contextmanager
def _without_torch() -> Iterator[None]:
    """Keep ``import tvm_ffi`` from importing torch, which it does wherever torch is installed (2 seconds)."""
    hider = _TorchHider()
    sys.meta_path.insert(0, hider)
    try:
        yield
    finally:
        sys.meta_path.remove(hider)


def load(library: memoryview) -> Any:
    """Load a shared library as a module of TVM, which unloads it when it dies."""
    open_module = ffi().get_global_func("ffi.Module.load_from_file.so")

    def opened() -> Any:
        with _private_file(library) as path:
            return open_module(path, "")

    # In a thread of its own, by which the file is named.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(opened).result()


_loads = itertools.count(1)


@contextmanager
def _private_file(content: memoryview) -> Iterator[str]:
    """A path that only this process knows, for as long as the block lasts; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("shave"), "wb") as stream:
            stream.write(content)
            stream.flush()
            # Numbers of closed files come back, but what prints a stack trace reads every library anew, by its path: so
            # the path leads through this thread and is dead with it. And the dynamic linker takes equal paths for equal
            # libraries without a look at the file, so each load spells it another way: "/" and "./" for the bits of a
            # count.
            spelling = f"{next(_loads):b}".replace("0", "/").replace("1", "./")
            yield f"/proc/self/task/{threading.get_native_id()}/fd/{spelling}{stream.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(suffix=".so") as stream:
            stream.write(content)
            stream.flush()
            yield stream.name


# Tensors


def to_tensor(array: Array) -> Tensor:
    """Lend an aligned, contiguous, writable array to TVM without a copy."""
    if array.dtype.isbuiltin == _USER_DEFINED:
        carrier = ffi().from_dlpack(array.view(_CARRIERS[array.dtype.itemsize]))
        return _view_as()(carrier, ffi().Shape(array.shape), ffi().dtype(array.dtype.name), 0)
    return ffi().from_dlpack(array)


def to_array(tensor: Tensor) -> Array:
    """Take a tensor of TVM without a copy; the array keeps its memory alive."""
    dtype = numpy_dtype(str(tensor.dtype))
    if dtype.isbuiltin == _USER_DEFINED:
        carrier = ffi().dtype(_CARRIERS[dtype.itemsize].name)
        return np.from_dlpack(_view_as()(tensor, ffi().Shape(tensor.shape), carrier, 0)).view(dtype)
    return np.from_dlpack(tensor)


def aligned(array: Array) -> Array:
    """The array itself if kernels behind TVM's calling convention can use it, else an aligned, contiguous, native copy.

    They assume the alignment and do not check.
    """
    flags = array.flags
    usable = flags.c_contiguous and flags.writeable and array.dtype.isnative and array.ctypes.data % ALIGNMENT == 0
    # NumPy may give an empty array strides of zero, which TVM takes for a broadcast; a view of memory has proper ones.
    if usable and array.size:
        return array
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy: Array = memory[start : start + array.nbytes].view(array.dtype.newbyteorder("=")).reshape(array.shape)
    copy[...] = array
    return copy


@functools.cache
def _view_as() -> Any:
    return ffi().get_global_func("runtime.TVMTensorCreateView")


def _flat(result: Any) -> list[Tensor]:
    # By index, since iterating over an array of TVM's ends with an exception and takes three times as long.
    return [result] if isinstance(result, ffi().Tensor) else [result[index] for index in range(len(result))]


# Threads


class _Pool(threading.local):
    """TVM keeps one pool of worker threads for each thread that calls it, of a size that is fixed when it starts."""

    threads = 0


_pool = _Pool()
_forked = False


def use_threads(threads: int) -> None:
    """Let calls from this Python thread run on that many threads, itself included."""
    if _forked:
        threads = 1
    if _pool.threads == threads:
        return
    configure = ffi().get_global_func("runtime.config_threadpool")
    processors = [str(number) for number in host.usable_processors()]
    if _pool.threads == 0:
        configure(_SHARE_ALL_CORES, 0, processors)
    configure(_SHARE_ALL_CORES, threads, processors[:threads])
    _pool.threads = threads


def _after_fork() -> None:
    """The workers do not survive a fork, and a call that waits for them would wait forever."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
