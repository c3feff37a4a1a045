"""Which layers are split, how, and how far: each rule gives every layer a choice, or the reason why it stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import fx

from shave.ir.errors import PipelineError
from shave.passes.factorize import ranks
from shave.passes.factorize.allocate import greedy, knapsack, moves
from shave.passes.factorize.chain import Costs, costs, whole
from shave.passes.factorize.factorization import Factorization, Fitted, Ranks
from shave.passes.factorize.layer import Layer
from shave.passes.factorize.options import Choice, Measure, choices
from shave.passes.problems import Oracle

Amount = Literal["time", "macs", "params"]

MIN_GAIN = 1.05
"""Estimates of time are no better than that, and what is split loses accuracy."""
SWEEPS = 6
"""Rounds of least squares over the factors of what was chosen."""


@dataclass(eq=False)
class Candidate:
    """A layer that can be split.

    Attributes:
        layer: The layer.
        methods: Ways to split it, the one that takes ranks from the user first.
        costs: Of the layer as it is.
    """

    layer: Layer
    methods: Sequence[Factorization]
    costs: Costs
    _fitted: dict[tuple[str, Ranks], Fitted] = field(default_factory=dict)

    def moved(self, nodes: Mapping[str, fx.Node]) -> Candidate:
        """The same in a copy of the program, given its nodes by name; weights that were fitted go along."""
        layer = self.layer
        bias = None if layer.bias_node is None else nodes[layer.bias_node.name]
        there = (nodes[node.name] for node in (layer.node, layer.source, layer.weight_node))
        node, source, weight = there
        copy = replace(layer, node=node, source=source, weight_node=weight, bias_node=bias)
        return Candidate(copy, self.methods, self.costs, self._fitted)

    def fitted(self, choice: Choice) -> Fitted:
        """The weights of a choice."""
        key = (choice.method.name, choice.ranks)
        if key not in self._fitted:
            sweeps = SWEEPS if choice.method.metric.by_data else 0  # starts are nearly the best for weights
            self._fitted[key] = choice.method.fit(choice.ranks, sweeps)
        return self._fitted[key]


Decision = Choice | str
"""What to do with a layer, or why not."""


@dataclass(frozen=True)
class Terms:
    """What all rules go by.

    Attributes:
        amount: What a chain has to save.
        oracle: Seconds of operators; None without one.
        multiple: What ranks should be multiples of, where they are chosen.
        max_error: Largest error of a layer that is chosen, energy of the output's error as a share of the output's.
    """

    amount: Amount
    oracle: Oracle | None
    multiple: int
    max_error: float

    @property
    def measure(self) -> Measure:
        """What is to be saved of a chain's costs; seconds that nobody knows are endless."""
        if self.amount == "time":
            return lambda c: float("inf") if c.time is None else c.time
        return (lambda c: c.macs) if self.amount == "macs" else (lambda c: c.params)

    def limit(self, candidate: Candidate) -> float:
        """The cost that a chain in a layer's place must be below."""
        return self.measure(candidate.costs) / (MIN_GAIN if self.amount == "time" else 1)

    def choices(self, candidate: Candidate) -> list[Choice]:
        """The ways to split a layer that save something, from the cheapest to the most exact."""
        found = choices(candidate.methods, self.measure, self.limit(candidate), self.oracle, self.multiple)
        return [choice for choice in found if choice.error <= self.max_error]

    def checked(self, candidate: Candidate, rank: Ranks | str) -> Decision:
        """The choice of given ranks with the first method, unless it saves nothing."""
        if isinstance(rank, str):
            return rank
        method, before = candidate.methods[0], candidate.costs
        after = costs(method.steps(rank), self.oracle)
        if after.macs >= before.macs and after.params >= before.params:
            full = f"rank {ranks.text(rank)} is too close to full, {ranks.text(method.limits)}"
            return f"{full}: {saving(before, after, 'macs')}"
        if self.measure(after) >= self.limit(candidate):
            return f"no gain: {saving(before, after, self.amount)}"
        choice = Choice(method, rank, after, 0.0)
        error = candidate.fitted(choice).error
        if error > self.max_error:
            return f"its output would err by {error**0.5:.2g}; the limit is {self.max_error**0.5:.2g}"
        return Choice(method, rank, after, error)


def saving(before: Costs, after: Costs, amount: Amount) -> str:
    """``0.26 ms instead of 0.53 ms``."""
    if amount == "time":
        return " instead of ".join(
            "unknown time" if c.time is None else f"{1e3 * c.time:.3g} ms" for c in (after, before)
        )
    what = "M multiply-adds" if amount == "macs" else "M weights"
    return " instead of ".join(f"{1e-6 * getattr(c, amount):.3g} {what}" for c in (after, before))


def by_rank(candidates: Sequence[Candidate], terms: Terms, rank: int | tuple[int, ...] | float) -> list[Decision]:
    """Ranks as given: numbers, or a share of the full ones."""
    return [
        terms.checked(
            c, ranks.share(c.methods[0], rank) if isinstance(rank, float) else ranks.fixed(c.methods[0], rank)
        )
        for c in candidates
    ]


def by_vbmf(candidates: Sequence[Candidate], terms: Terms, energy: float) -> list[Decision]:
    """Ranks of variational Bayes; where it finds none, those that keep the energy."""

    def decide(candidate: Candidate) -> Decision:
        found = ranks.vbmf(candidate.methods[0])
        return by_error([candidate], terms, 1 - energy)[0] if found is None else terms.checked(candidate, found)

    return [decide(candidate) for candidate in candidates]


def by_error(candidates: Sequence[Candidate], terms: Terms, limit: float) -> list[Decision]:
    """The cheapest way of each layer that errs no more than a limit, energy as a share."""

    def decide(candidate: Candidate) -> Decision:
        cheaper = terms.choices(candidate)
        within = [choice for choice in cheaper if choice.error <= limit]
        if within:
            return within[0]
        if cheaper:
            return f"its output would err by {cheaper[-1].error ** 0.5:.2g}; the limit is {limit**0.5:.2g}"
        return _nothing(candidate, terms)

    return [decide(candidate) for candidate in candidates]


def by_budget(
    candidates: Sequence[Candidate], curves: Sequence[Sequence[Choice]], terms: Terms, keep: float, total: float
) -> list[Decision]:
    """The least sum of losses over all layers that keeps a share of an amount.

    Args:
        candidates: All layers that can be split.
        curves: The choices of each.
        terms: Whose amount it is.
        keep: The share.
        total: The amount of the whole program.

    Raises:
        PipelineError: Not even the cheapest ways keep so little.
    """
    fixed = total - sum(terms.measure(candidate.costs) for candidate in candidates)
    items = [_items(*pair, terms) for pair in zip(candidates, curves, strict=True)]
    places = knapsack(items, keep * total - fixed)
    if places is None:
        least = fixed + sum(min(cost for cost, _ in each) for each in items)
        raise PipelineError(
            f"{terms.amount}={keep:g} cannot be reached: what can be split leaves {least / total:.3g} at least, "
            f"within the limits given"
        )
    return _decisions(candidates, curves, places, terms, "other layers save the same at a lower loss")


def by_greed(
    candidates: Sequence[Candidate],
    curves: Sequence[Sequence[Choice]],
    terms: Terms,
    fits: Callable[[Mapping[int, Choice]], bool],
) -> list[Decision]:
    """As far as the quality of the whole program allows.

    Args:
        candidates: All layers that can be split.
        curves: The choices of each.
        terms: What is to be saved.
        fits: Tells whether a program with these choices, by place of the layer, is good enough.
    """
    items = [_items(*pair, terms) for pair in zip(candidates, curves, strict=True)]
    kept = [len(curve) for curve in curves]

    def judge(places: list[int]) -> bool:
        chosen = {k: curves[k][place] for k, place in enumerate(places) if place < kept[k]}
        return not chosen or fits(chosen)

    places = greedy(moves(items), kept, judge)
    return _decisions(candidates, curves, places, terms, "splitting it costs more quality than is allowed")


def _items(candidate: Candidate, curve: Sequence[Choice], terms: Terms) -> list[tuple[float, float]]:
    """Cost and loss of each choice, and behind them of the layer as it is."""
    split = [(terms.measure(choice.costs), choice.loss) for choice in curve]
    return [*split, (terms.measure(candidate.costs), 0.0)]


def _decisions(
    candidates: Sequence[Candidate],
    curves: Sequence[Sequence[Choice]],
    places: Sequence[int],
    terms: Terms,
    reason: str,
) -> list[Decision]:
    return [
        curve[place] if place < len(curve) else reason if curve else _nothing(candidate, terms)
        for candidate, curve, place in zip(candidates, curves, places, strict=True)
    ]


def _nothing(candidate: Candidate, terms: Terms) -> str:
    """Why no way to split a layer is among the choices."""
    best = min(
        (costs(method.steps(rank), terms.oracle) for method in candidate.methods for rank in method.candidates(1)),
        key=terms.measure,
    )
    if terms.measure(best) >= terms.limit(candidate):
        return f"no gain at any rank: at best {saving(candidate.costs, best, terms.amount)}"
    return f"no rank saves enough at an error below {terms.max_error**0.5:.2g}"


def whole_costs(layer: Layer, oracle: Oracle | None) -> Costs:
    """What a layer costs as it is."""
    return costs([whole(layer)], oracle)
