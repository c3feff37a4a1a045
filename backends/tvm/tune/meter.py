"""Times the kernels of whole programs, in a process of its own, so that code that crashes costs one measurement.

How long a kernel takes depends on what runs around it: which cache its input was left in, what it evicts, whether its
weights come from memory. So kernels are measured where they will run. A program is run step by step, by turns with its
default code and with other code for the same steps, on the same weights and the same workspace.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shave.backends.artifact import open_artifact
from shave.backends.tvm import vm
from shave.backends.tvm.executor import Executor
from shave.backends.tvm.process import Child, answer
from shave.backends.weights import Array
from shave.ir.errors import CompileError

TOLERANCE = 1e-4
"""Largest difference of two schedules' results that rounding explains, relative to the largest result."""

_FEWEST_ROUNDS, _MOST_ROUNDS = 7, 500
_LONGEST = 60.0

Samples = list[list[float]]
"""Seconds of each step, in each round."""


@dataclass(frozen=True)
class Variants:
    """A program and other code for it.

    Attributes:
        artifact: The program's file.
        libraries: Files of other libraries for the plan of the artifact.
        kernels: The functions that these change: the dtype of what each one writes, by its name.
    """

    artifact: Path
    libraries: Sequence[Path] = ()
    kernels: Mapping[str, str] = field(default_factory=dict)


class Meter:
    """Measures programs, in a process that starts when it is first needed."""

    def __init__(self, threads: int, inputs: Path) -> None:
        """Prepare to measure.

        Args:
            threads: Threads of a call.
            inputs: The inputs of all programs, ``.npz``, in their order.
        """
        self._child = Child(__name__, "serve", "program under test")
        self._fixed = {"threads": threads, "inputs": str(inputs)}

    def steps(self, programs: Sequence[Variants], seconds: float) -> list[list[Samples]]:
        """Time each step of some programs, each with its own code first and then with each other library, in turns.

        Machines have slow moments that outlast many calls: samples of the same round come from the same moment and
        can be compared one by one.

        Args:
            programs: What to run.
            seconds: Time to spend on each.

        Raises:
            CompileError: A library crashed, took too long, or a step of it gives something else than the same step of
                the artifact does.
        """
        return self._ask("steps", programs, seconds)  # type: ignore[no-any-return]

    def whole(self, programs: Sequence[Variants], seconds: float) -> list[list[float]]:
        """Time whole calls of some programs in turns: seconds in each round.

        Raises:
            CompileError: One crashed or took too long.
        """
        return self._ask("whole", programs, seconds)  # type: ignore[no-any-return]

    def _ask(self, what: str, programs: Sequence[Variants], seconds: float) -> Any:
        listed = [[str(p.artifact), [str(library) for library in p.libraries], dict(p.kernels)] for p in programs]
        fields = {**self._fixed, "what": what, "programs": listed, "seconds": seconds}
        count = sum(1 + len(each.libraries) for each in programs)
        return json.loads(self._child.ask("a variant", fields, timeout=_LONGEST + 10 * seconds * count))

    def stop(self) -> None:
        """End the process."""
        self._child.stop()


def serve() -> None:
    """Be the process that measures."""

    def handle(fields: dict[str, Any], _content: bytes) -> bytes:
        vm.use_threads(fields["threads"])
        with np.load(fields["inputs"], allow_pickle=False) as stored:
            inputs = [vm.aligned(stored[name]) for name in stored.files]
        programs = []
        for artifact, libraries, kernels in fields["programs"]:
            first, *others = codes = _load(Path(artifact), list(map(Path, libraries)))
            for other in others:
                _check(first, other, inputs, kernels)
            programs.append(codes)
        measure = _steps if fields["what"] == "steps" else _whole
        return json.dumps(measure(programs, inputs, fields["seconds"])).encode()

    answer(handle)


def _load(artifact: Path, libraries: Sequence[Path]) -> list[Executor]:
    contents = open_artifact(artifact)
    plan = contents.manifest.plan
    assert plan is not None
    first = Executor(contents.library, contents.weights, plan, contents.manifest.signature)
    return [first, *(first.with_code(memoryview(library.read_bytes())) for library in libraries)]


def _steps(programs: Sequence[Sequence[Executor]], inputs: Sequence[Array], seconds: float) -> list[list[Samples]]:
    samples: list[list[Samples]] = [[[] for _ in codes] for codes in programs]
    for _ in range(_rounds(programs, inputs, seconds)):
        for codes, taken in zip(programs, samples, strict=True):
            if len(programs) > 1:
                codes[0](inputs)  # brings its weights and workspace back into the caches
            for code, into in zip(codes, taken, strict=True):
                into.append([elapsed for _, elapsed in code.trace(inputs)])
    return samples


def _whole(programs: Sequence[Sequence[Executor]], inputs: Sequence[Array], seconds: float) -> list[list[float]]:
    samples: list[list[float]] = [[] for _ in programs]
    for _ in range(_rounds(programs, inputs, seconds / 2)):
        for (program, *_), taken in zip(programs, samples, strict=True):
            program(inputs)
            taken.append(_once(program, inputs))
    return samples


def _rounds(programs: Sequence[Sequence[Executor]], inputs: Sequence[Array], seconds: float) -> int:
    once = min(_once(programs[0][0], inputs) for _ in range(3))
    return min(max(round(seconds / once), _FEWEST_ROUNDS), _MOST_ROUNDS)


def _once(program: Executor, inputs: Sequence[Array]) -> float:
    start = time.perf_counter()
    program(inputs)
    return time.perf_counter() - start


def _check(first: Executor, other: Executor, inputs: Sequence[Array], kernels: Mapping[str, str]) -> None:
    """Refuse code by which a step of one of these kernels, whose dtypes are given, gives something else.

    Raises:
        CompileError: It does; names the kernel.
    """
    for (kernel, expected), (_, got) in zip(first.written(inputs), other.written(inputs), strict=True):
        if kernel in kernels:
            for want, have in zip(expected, got, strict=True):
                dtype = np.dtype(kernels[kernel])
                _compare(kernel, want.view(dtype), have.view(dtype))


def _compare(kernel: str, expected: Array, got: Array) -> None:
    """Compare what two schedules of a kernel wrote. What one leaves unwritten is unspecified for all of them.

    Codes next to a tie may be rounded either way.
    """
    known = np.isfinite(expected)
    limit = TOLERANCE * max(float(np.abs(expected[known]).max(initial=0)), 1e-30)
    if expected.dtype == np.uint8:
        limit = 1.0
    with np.errstate(invalid="ignore"):
        wrong = int((~(np.abs(got[known].astype(np.float64) - expected[known]) <= limit)).sum())
    if wrong:
        raise CompileError(f"{kernel}: {wrong} of {known.sum()} results differ from those of the default schedule")
