"""What can become of one layer: the ways to split it, with what each costs and loses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shave.passes.factorize.chain import Costs, costs
from shave.passes.factorize.factorization import Factorization, Ranks
from shave.passes.problems import Oracle

Measure = Callable[[Costs], float]
"""Which of the costs counts."""

FITTED = 8
"""Ranks of a method without a closed form whose error is computed, of those that its estimate holds for best."""
SWEEPS = 1
"""Least squares behind the start while ranks are chosen; what is chosen is fitted anew."""


@dataclass(frozen=True)
class Choice:
    """One way to split a layer.

    Attributes:
        method: How.
        ranks: How far.
        costs: Of the chain.
        error: Energy of the output's error as a share of the output's, 0 to 1.
        drift: Of the program's outputs; see :mod:`shave.passes.factorize.drift`. None where it was not measured.
    """

    method: Factorization
    ranks: Ranks
    costs: Costs
    error: float
    drift: float | None = None

    @property
    def loss(self) -> float:
        """What counts beside the losses of other layers."""
        return self.error if self.drift is None else self.drift


def choices(
    methods: Sequence[Factorization], measure: Measure, limit: float, oracle: Oracle | None, multiple: int
) -> list[Choice]:
    """The ways worth choosing: whatever costs less than one of them errs more.

    Args:
        methods: To try.
        measure: What counts as cost.
        limit: Cost that a chain must be below.
        oracle: See :func:`shave.passes.factorize.chain.costs`.
        multiple: What ranks should be multiples of.

    Returns:
        From the cheapest to the most exact.
    """
    found = []
    for method in methods:
        cheap = []
        for ranks in method.candidates(multiple):
            cost = costs(method.steps(ranks), oracle)
            if measure(cost) < limit:
                cheap.append(Choice(method, ranks, cost, method.estimate(ranks)))
        best = frontier(cheap, measure)
        if best and not method.closed(best[0].ranks):
            step = max(1.0, len(best) / FITTED)
            best = [best[int(k * step)] for k in range(min(FITTED, len(best)))]
            sweeps = SWEEPS if method.metric.by_data else 0  # starts are nearly the best for weights
            best = [Choice(method, c.ranks, c.costs, method.fit(c.ranks, sweeps).error) for c in best]
        found += best
    return frontier(found, measure)


def frontier(given: Sequence[Choice], measure: Measure) -> list[Choice]:
    """Those that no other beats in both cost and error, from the cheapest to the most exact."""
    kept: list[Choice] = []
    for choice in sorted(given, key=lambda c: (measure(c.costs), c.error)):
        if not kept or choice.error < kept[-1].error:
            kept.append(choice)
    return kept
