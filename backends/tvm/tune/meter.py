"""Times kernels in a process of its own, so that a schedule that crashes costs one measurement.

What is measured should be what a network does to the kernel. Between two calls of one kernel the whole network runs, so
its weights come from a cache that holds the whole network's weights, or from memory; its activations were written just
before. So each call reads another copy of the weights, and the copies together are as large as the network's weights.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shave.backends.container import ALIGNMENT
from shave.backends.timing import Timing
from shave.backends.tvm import vm
from shave.backends.tvm.process import Child, answer
from shave.ir.errors import CompileError

if TYPE_CHECKING:
    from shave.backends.tvm.schedules import Argument

TOLERANCE = 1e-4
"""Largest difference of two schedules' results that rounding explains, relative to the largest result."""

_SHORTEST_SAMPLE = 20e-6
_FEWEST_ROUNDS, _MOST_ROUNDS = 7, 500
_LONGEST = 60.0
_MOST_COPIES = 1024


class Meter:
    """Measures kernels, in a process that starts when it is first needed."""

    def __init__(self, threads: int, weight_bytes: int) -> None:
        """Prepare to measure.

        Args:
            threads: Threads of a call.
            weight_bytes: Size of all copies of a kernel's weights together.
        """
        self._child = Child(__name__, "serve", "kernel under test")
        self._fixed = {"threads": threads, "pool": weight_bytes}

    def time(self, library: bytes, names: Sequence[str], arguments: Sequence[Argument], seconds: float) -> list[Timing]:
        """Time functions that compute the same, in turns.

        Machines have slow moments that outlast many calls. Turns are short, mostly one call, so that samples of the
        same round come from the same moment and can be compared one by one.

        Args:
            library: Code of the functions.
            names: Their names; results are compared with those of the first.
            arguments: The tensors of a call, the result last.
            seconds: Time to spend on each function.

        Raises:
            CompileError: A function crashed, took too long, or computes something else than the first one.
        """
        shapes = [[argument.shape, argument.weight] for argument in arguments]
        fields = {**self._fixed, "names": list(names), "arguments": shapes, "seconds": seconds}
        samples = json.loads(self._child.ask(names[-1], fields, library, timeout=_LONGEST))
        return [Timing(tuple(taken)) for taken in samples]

    def stop(self) -> None:
        """End the process."""
        self._child.stop()


def serve() -> None:
    """Be the process that measures."""
    stages: dict[str, _Stage] = {}

    def handle(fields: dict[str, Any], content: bytes) -> bytes:
        vm.use_threads(fields["threads"])
        key = json.dumps([fields["arguments"], fields["pool"]])
        if key not in stages:
            stages.clear()
            stages[key] = _Stage(fields["arguments"], fields["pool"])
        module = vm.load(memoryview(content))
        functions = [module[name] for name in fields["names"]]
        return json.dumps(stages[key].measure(functions, fields["seconds"])).encode()

    answer(handle)


class _Stage:
    """The tensors that kernels are called with."""

    def __init__(self, arguments: Sequence[Any], pool_bytes: int) -> None:
        rng = np.random.default_rng(0)
        sizes = [math.prod(shape) for shape, _ in arguments]
        # Copies lie one behind the other in one piece of memory, each tensor on a boundary.
        step = ALIGNMENT // 4
        room = [-(-size // step) * step if weight else 0 for size, (_, weight) in zip(sizes, arguments, strict=True)]
        *starts, each = itertools.accumulate(room, initial=0)
        copies = max(1, min(pool_bytes // 4 // each, _MOST_COPIES)) if each else 1
        some = rng.uniform(-0.5, 0.5, 1 << 20).astype(np.float32)
        pool = vm.aligned(np.resize(some, copies * each))
        fixed: list[Any] = [
            None if weight else vm.to_tensor(vm.aligned(rng.uniform(-0.5, 0.5, shape).astype(np.float32)))
            for shape, weight in arguments
        ]
        self._output: np.ndarray[Any, Any] = vm.aligned(np.zeros(arguments[-1][0], np.float32))
        fixed[-1] = vm.to_tensor(self._output)
        self._sets = []
        for copy in range(copies):
            tensors = list(fixed)
            for position, (shape, weight) in enumerate(arguments):
                if weight:
                    start = copy * each + starts[position]
                    tensors[position] = vm.to_tensor(pool[start : start + sizes[position]].reshape(shape))
            self._sets.append(tensors)

    def measure(self, functions: Sequence[Any], seconds: float) -> list[list[float]]:
        """Seconds per call of each function in each round, after comparing their results."""
        expected = self._result(functions[0])
        for function in functions[1:]:
            _check(self._result(function), expected)
        sets = itertools.cycle(self._sets)  # one for all: no function finds the weights that another just read
        once = min(self._sample(functions[0], sets, 1) for _ in range(3))
        repeats = max(1, math.ceil(_SHORTEST_SAMPLE / once))
        rounds = min(max(round(seconds / (once * repeats)), _FEWEST_ROUNDS), _MOST_ROUNDS)
        samples: list[list[float]] = [[] for _ in functions]
        for _ in range(rounds):
            for function, taken in zip(functions, samples, strict=True):
                taken.append(self._sample(function, sets, repeats))
        return samples

    @staticmethod
    def _sample(function: Any, sets: Iterator[list[Any]], repeats: int) -> float:
        arguments = list(itertools.islice(sets, repeats))
        start = time.perf_counter()
        for tensors in arguments:
            function(*tensors)
        return (time.perf_counter() - start) / repeats

    def _result(self, function: Any) -> np.ndarray[Any, Any]:
        # What a kernel leaves unwritten is unspecified; it must then be so for all schedules.
        self._output.fill(np.nan)
        function(*self._sets[0])
        return np.array(self._output)


def _check(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    """Refuse a schedule that computes something else than the default.

    Raises:
        CompileError: It does.
    """
    known = ~np.isnan(expected)
    limit = TOLERANCE * max(float(np.abs(expected[known]).max(initial=0)), 1e-30)
    with np.errstate(invalid="ignore"):
        wrong = int((~(np.abs(got[known].astype(np.float64) - expected[known]) <= limit)).sum())
    if wrong:
        raise CompileError(f"{wrong} of {known.sum()} results differ from those of the default schedule")
