"""A program with two kernels of own families, one that may be computed in two ways, and what measuring them finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

import shave
from shave.backends.targets import resolve
from shave.backends.tvm.adapter import tvm
from shave.backends.tvm.emit.emitter import own_function
from shave.backends.tvm.lower import lower
from shave.backends.tvm.schedules import Argument, Kernel, plain
from shave.backends.tvm.tune.records import Record, machine_of
from shave.ir.program import Program

X = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))


class TwoKernels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 24, 3, padding=1, stride=2)
        self.head = nn.Linear(24 * 5 * 5, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().flatten(1))


@pytest.fixture(scope="package")
def program() -> Program:
    torch.manual_seed(0)
    return shave.trace(TwoKernels().eval(), (X,))


@pytest.fixture(scope="package")
def two_ways() -> Program:
    """One convolution that may be computed by Winograd's method."""
    torch.manual_seed(0)
    x = torch.randn(1, 32, 12, 12)
    return shave.trace(nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()).eval(), (x,))


class Asked:
    """Notes what it is asked and answers with the defaults."""

    def __init__(self) -> None:
        self.kernels: dict[str, Kernel] = {}
        self.arguments: dict[str, Sequence[Argument]] = {}

    def choose(self, kernel: Kernel, arguments: Sequence[Argument]) -> Any:
        self.kernels[kernel.name] = kernel
        self.arguments[kernel.name] = arguments
        return kernel.family.default(kernel.shape, kernel.target)


@pytest.fixture(scope="package")
def asked(program: Program) -> Asked:
    asked = Asked()
    lower(program, resolve("cpu"), asked)
    return asked


@pytest.fixture(scope="package")
def kernels(asked: Asked) -> dict[str, Kernel]:
    return asked.kernels


def other_schedule(kernel: Kernel) -> Any:
    """A candidate that makes other code than the default."""
    default = kernel.family.default(kernel.shape, kernel.target)
    code = tvm.ir.save_json(own_function(kernel, default))
    candidates = kernel.family.candidates(kernel.shape, kernel.target)
    return next(c for c in candidates if tvm.ir.save_json(own_function(kernel, c)) != code)


def record(kernel: Kernel, schedule: Any, seconds: float | None, **changes: Any) -> Record:
    """A confirmed measurement beside a default of one millisecond."""
    fields = {
        "kernel": kernel.key, "machine": machine_of(kernel.target), "threads": 1, "schedule": plain(schedule),
        "seconds": seconds, "default_seconds": 1e-3, "confirmed": True,
    }  # fmt: skip
    return Record(**{**fields, **changes})
