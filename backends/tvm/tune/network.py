"""Programs made ready to be measured: with default code, and with other code for some of their kernels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shave.backends.artifact import pack
from shave.backends.plan import Plan
from shave.backends.target import Target
from shave.backends.tvm.adapter import PrimFunc, tvm
from shave.backends.tvm.build import build
from shave.backends.tvm.cache import default_cache
from shave.backends.tvm.emit.emitter import own_function
from shave.backends.tvm.lower import Lowered, lower
from shave.backends.tvm.schedules import Kernel, Schedules
from shave.backends.tvm.small_work import share_if_large
from shave.backends.tvm.static import with_pointers
from shave.backends.tvm.worker import workers
from shave.ir.program import Program

_numbers = itertools.count()


class Network:
    """A program, lowered and built.

    Attributes:
        artifact: Its file.
        steps: For each own kernel the numbers of the steps that run it.
        names: The name of its function.
    """

    def __init__(self, program: Program, target: Target, folder: Path, schedules: Schedules | None = None) -> None:
        """Lower and build a program whose sizes and control flow are known.

        Args:
            program: The program.
            target: What for.
            folder: Where its files are kept.
            schedules: Decides on its schedules; by default the analytic models do.

        Raises:
            UnsupportedError: The program cannot be compiled for the target.
            CompileError: Code generation failed.
        """
        self._lowered = lower(program, target, schedules)
        self._target = target
        self._folder = folder
        self.artifact = folder / f"{next(_numbers)}.shave"
        own = [(call.kernel, call) for call in self._lowered.kernels if call.kernel is not None]
        self.names = {kernel: call.name for kernel, call in own}
        self._weights = {kernel: call.weights for kernel, call in own}
        steps = [step.kernel for step in plan_of(self._lowered).steps]
        self.steps = {
            kernel: [number for number, step in enumerate(steps) if step == name] for kernel, name in self.names.items()
        }
        with self.artifact.open("xb") as stream:
            pack(
                stream,
                library=self._build(self._lowered.module),
                weights=self._lowered.weights,
                signature=self._lowered.signature,
                target=target,
                plan=plan_of(self._lowered),
            )

    def variant(self, schedules: Mapping[Kernel, Any]) -> Path:
        """Build the program with other schedules for some kernels, and give the file of the library.

        The plan stays, and so do the names of the functions.

        Raises:
            CompileError: Code generation failed.
        """
        by_name = {self.names[kernel]: (kernel, schedule) for kernel, schedule in schedules.items()}
        functions = {
            variable: self._function(*by_name[variable.name_hint]) if variable.name_hint in by_name else function
            for variable, function in self._lowered.module.functions.items()
        }
        path = self._folder / f"{next(_numbers)}.so"
        path.write_bytes(self._build(tvm.IRModule(functions, attrs=self._lowered.module.attrs)))
        return path

    def _function(self, kernel: Kernel, schedule: Any) -> PrimFunc:
        """The function of a kernel as a lowered program holds it."""
        return with_pointers(share_if_large(own_function(kernel, schedule), self._weights[kernel], self._target))

    def _build(self, module: Any) -> bytes:
        return build(module, self._target, workers.generate, default_cache())


def plan_of(lowered: Lowered) -> Plan:
    """The plan of a program that has one."""
    assert lowered.plan is not None
    return lowered.plan
