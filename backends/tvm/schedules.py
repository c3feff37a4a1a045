"""Which schedule a kernel gets: the analytic default, or what measurements say."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shave.backends.target import Target
from shave.backends.tvm.kernels.epilogue import Epilogue


@dataclass(frozen=True)
class Kernel:
    """A kernel to be built, but for its schedule.

    Attributes:
        family: The module of the kernel family, a :class:`shave.backends.tvm.kernels.base.KernelFamily`.
        shape: Its shape dataclass.
        epilogue: What it does to its result.
        target: What it is built for.
    """

    family: Any
    shape: Any
    epilogue: Epilogue
    target: Target

    @property
    def name(self) -> str:
        """Name of the family."""
        return str(self.family.__name__.rpartition(".")[2])

    @property
    def integers(self) -> bool:
        """Whether it reads codes of 8 bits."""
        return getattr(self.shape, "dtype", None) == "uint8"

    @property
    def key(self) -> str:
        """What it computes, as JSON: equal for equal kernels; the target is left out."""
        steps = [[type(step).__name__, plain(step)] for step in self.epilogue.steps]
        return json.dumps([self.name, plain(self.shape), steps], sort_keys=True)

    @property
    def candidates(self) -> tuple[Any, ...]:
        """Schedules worth measuring, the default first."""
        return _candidates(self)

    @property
    def default(self) -> Any:
        """The schedule to use without measurements."""
        return self.candidates[0]


@functools.lru_cache(maxsize=1024)
def _candidates(kernel: Kernel) -> tuple[Any, ...]:
    default = kernel.family.default(kernel.shape, kernel.target)
    return tuple(dict.fromkeys([default, *kernel.family.candidates(kernel.shape, kernel.target)]))


@dataclass(frozen=True)
class Argument:
    """A tensor that a call gives to its kernel.

    Attributes:
        shape: Its extents; None for one that is only known at run time.
        weight: Whether it is a weight, else an activation.
    """

    shape: tuple[int | None, ...]
    weight: bool


class Schedules(Protocol):
    """Decides on schedules while a program is lowered."""

    def choose(self, kernel: Kernel, arguments: Sequence[Argument]) -> Any:
        """The schedule for a kernel; asked once for each call.

        Args:
            kernel: What is to be built.
            arguments: The inputs of the call in the kernel's order, and its result.
        """


class Analytic:
    """Takes each family's default."""

    def choose(self, kernel: Kernel, arguments: Sequence[Argument]) -> Any:
        """The best schedule by the family's analytic model."""
        return kernel.default


def plain(value: Any) -> Any:
    """A dataclass as JSON data."""
    return json.loads(json.dumps(dataclasses.asdict(value)))
