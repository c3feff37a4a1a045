"""Compile a program in this process and run it, for tests of lowering."""

from __future__ import annotations

import torch

from shave.backends import targets
from shave.backends.target import Target
from shave.backends.tvm import vm
from shave.backends.tvm.build import build
from shave.backends.tvm.executor import Executor
from shave.backends.tvm.lower import Lowered, lower
from shave.ir.program import Program


def host() -> Target:
    return targets.resolve("cpu")


class Compiled:
    """A lowered and built program; takes and gives torch tensors."""

    def __init__(self, program: Program, target: Target | None = None) -> None:
        self.lowered: Lowered = lower(program, target or host())
        self._library = build(self.lowered.module, target or host())
        library, arrays = memoryview(self._library), [array for _, array in self.lowered.weights]
        self._engine: Executor | vm.Machine
        if self.lowered.plan is None:
            self._engine = vm.Machine(library, arrays)
        else:
            self._engine = Executor(library, arrays, self.lowered.plan, self.lowered.signature)

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        results = self._engine([vm.to_array(vm.ffi().from_dlpack(x.contiguous().clone())) for x in inputs])
        return [torch.from_dlpack(vm.to_tensor(result)) for result in results]

    def functions(self) -> list[str]:
        """Names of the kernels of the library."""
        names = [name.name_hint for name in self.lowered.module.get_global_vars()]
        return [name for name in names if name not in ("main", "__tvm_ffi_run")]


def worst(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value; infinite where NaN, infinities, shape or dtype differ."""
    if result.shape != expected.shape or result.dtype != expected.dtype:
        return float("inf")
    if not expected.dtype.is_floating_point:
        return 0.0 if torch.equal(result, expected) else float("inf")
    a, b = result.double(), expected.double()
    finite = torch.isfinite(b)
    if not torch.equal(torch.isfinite(a), finite) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return float("inf")
    if not torch.equal(torch.isnan(a), torch.isnan(b)):
        return float("inf")
    if not finite.any():
        return 0.0
    return float((a - b)[finite].abs().max() / b[finite].abs().max().clamp_min(1e-12))
