"""What a search for faster schedules and methods has found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shave.backends.tvm.schedules import Kernel
    from shave.backends.tvm.tune.records import Comparison, Outcome


@dataclass
class TunedKernel:
    """One kernel of the program.

    Attributes:
        kernel: What it is.
        calls: How often one run of the program calls it.
        seconds: Duration of one call with the default schedule, inside of the program; 0 until it is measured.
        ratio: Duration with the best schedule that is confirmed, relative to the default's.
        schedule: That schedule; None for the default.
        waiting: Candidates that were not measured yet, the most promising first.
        measured: Number of candidates that were.
    """

    kernel: Kernel
    calls: int
    seconds: float = 0.0
    ratio: float = 1.0
    schedule: Any = None
    waiting: list[Any] = field(default_factory=list)
    measured: int = 0


@dataclass
class Tuning:
    """How a search stands.

    Attributes:
        kernels: Those with a choice of schedules, slowest first once all are measured.
        comparisons: The ways to compute an operator, where this search compared them.
        outcome: The whole program with all that is in the database, beside the default one; None until that is
            measured, and if there is no difference between the two.
        skipped: Names of kernels that cannot be measured, since sizes or steps of the program are only known at run
            time.
        elapsed: Seconds since the start.
        interrupted: Whether the user ended the search.
    """

    kernels: list[TunedKernel] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    outcome: Outcome | None = None
    skipped: list[str] = field(default_factory=list)
    elapsed: float = 0.0
    interrupted: bool = False

    @property
    def default_seconds(self) -> float:
        """Time of these kernels in one run of the program, with default schedules."""
        return sum(entry.calls * entry.seconds for entry in self.kernels)

    @property
    def seconds(self) -> float:
        """The same with the best schedules known."""
        return sum(entry.calls * entry.seconds * entry.ratio for entry in self.kernels)

    @property
    def measured(self) -> int:
        """Number of candidates measured so far, earlier searches included."""
        return sum(entry.measured for entry in self.kernels)

    @property
    def waiting(self) -> int:
        """Number of candidates that were not measured yet."""
        return sum(len(entry.waiting) for entry in self.kernels)
