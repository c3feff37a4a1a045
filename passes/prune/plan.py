"""Decides which units of which groups stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.passes.prune.allocation import Allocation, Counts, Ranked, Uniform, kind_of
from shave.passes.prune.amounts import Budget, Room
from shave.passes.prune.estimate import Estimator
from shave.passes.prune.groups import Group

Scores = Mapping[str, np.ndarray]
"""[units] of each group, by its name."""

_TRIES = 4


@dataclass(frozen=True)
class Limit:
    """What a program may cost.

    Attributes:
        budget: As the user gave it.
        value: Largest cost, in the budget's unit.
        whole: What the whole program costs.
    """

    budget: Budget
    value: float
    whole: float


def costs(program: Program) -> dict[str, float]:
    """The costs that budgets limit."""
    cost = program.cost()
    return {"macs": cost.macs, "params": cost.parameters, "size": cost.weight_bytes}


class Overrun:
    """How far a cut is from its limits: the largest share of a limit that it takes, at most 1 where all hold.

    Args:
        program: Before the cut.
        groups: Its groups.
        limits: What it may cost.
    """

    def __init__(self, program: Program, groups: Sequence[Group], limits: Sequence[Limit]) -> None:
        self._estimator = Estimator(program, groups)
        self.limits = limits

    def __call__(self, counts: Mapping[str, int]) -> float:
        """Estimate it."""
        found = self._estimator(counts)
        return max(float(getattr(found, limit.budget.cost)) / limit.value for limit in self.limits)

    def macs(self, counts: Mapping[str, int]) -> float:
        """Estimate the multiply-accumulates."""
        return self._estimator(counts).macs


def meet(
    allot: Callable[[float], Counts | None],
    measure: Callable[[Counts], float],
) -> Counts | None:
    """Find counts that really hold the limits, as estimates may be off.

    Args:
        allot: Gives counts whose estimated overrun is at most a number; None if there are none.
        measure: Cuts, and measures the overrun.

    Returns:
        None if there are none.
    """
    aim = 1.0
    for _ in range(_TRIES):
        counts = allot(aim)
        if counts is None:
            return None
        overrun = measure(counts)
        if overrun <= 1 + 1e-9:
            return counts
        aim *= 0.995 / overrun
    return None


def unreachable(limits: Sequence[Limit], least: Mapping[str, float]) -> PipelineError:
    """The error for limits that cannot be met, with what can be."""
    missed = [limit for limit in limits if least[limit.budget.cost] > limit.value]
    limit = (missed or list(limits))[0]
    reached = least[limit.budget.cost]
    return PipelineError(
        f"{limit.budget.text} cannot be met: the least that can be reached is {reached:.6g} "
        f"({reached / limit.whole:.1%}); lower floor or multiple, or cut more groups"
    )


def family(ranking: str, groups: Sequence[Group], rooms: Mapping[str, Room], scores: Scores) -> Allocation:
    """The cuts that a ranking allows; ``scores`` are comparable among the groups."""
    if ranking == "uniform":
        return Uniform(rooms)
    kinds = {group.name: kind_of(group) if ranking == "isomorphic" else "" for group in groups}
    return Ranked(rooms, scores, kinds)
