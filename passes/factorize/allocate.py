"""How much of an amount each layer gets: choices over all layers at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Item = tuple[float, float]
"""Cost and error of one choice."""

UNITS = 20_000
"""Parts of the budget that costs are rounded up to."""


def knapsack(layers: Sequence[Sequence[Item]], budget: float) -> list[int] | None:
    """One choice for each layer: the least sum of errors whose sum of costs is within a budget.

    A multiple-choice knapsack (H. Kellerer, U. Pferschy, D. Pisinger, "Knapsack Problems", 2004, chapter 11), solved by
    dynamic programming over costs rounded up to a :data:`UNITS`-th of the budget, so that the budget holds.

    Returns:
        The place of the choice in each layer; None if even the cheapest ones exceed the budget.
    """
    scale = UNITS / budget if budget > 0 else 0.0
    best: npt.NDArray[np.float64] = np.zeros(UNITS + 1)  # least error within each cost
    taken = []
    for items in layers:
        trials = np.full((len(items), UNITS + 1), np.inf)
        for trial, (cost, error) in zip(trials, items, strict=True):
            units = _units(cost, scale)
            if units <= UNITS:
                trial[units:] = best[: UNITS + 1 - units] + error
        taken.append(trials.argmin(0).astype(np.int32))
        best = trials.min(0)
    if not np.isfinite(best[UNITS]):
        return None
    left, places = UNITS, []
    for items, choice in zip(reversed(layers), reversed(taken), strict=True):
        places.append(int(choice[left]))
        left -= _units(items[places[-1]][0], scale)
    return places[::-1]


def _units(cost: float, scale: float) -> int:
    return int(np.ceil(cost * scale - 1e-9)) if scale or not cost else UNITS + 1


def moves(layers: Sequence[Sequence[Item]]) -> list[tuple[int, int]]:
    """The way from the most exact choices to the cheapest ones, in steps (layer, place), cheapest error first.

    The steps of a layer follow the lower convex hull of its choices, so that each is worse value than the one before
    and sorting all by what an amount saved costs in error keeps the order within layers.
    """
    found = []
    for layer, items in enumerate(layers):
        places = _hull(items)
        for before, after in pairwise(places):
            saved = items[before][0] - items[after][0]
            found.append(((items[after][1] - items[before][1]) / saved, layer, after))
    return [(layer, place) for _, layer, place in sorted(found)]


def _hull(items: Sequence[Item]) -> list[int]:
    """Places on the lower convex hull, from the most exact to the cheapest."""
    order = sorted(range(len(items)), key=lambda k: (items[k][1], items[k][0]))
    hull: list[int] = []
    for place in order:
        cost, error = items[place]
        if hull and cost >= items[hull[-1]][0]:
            continue
        while len(hull) > 1:
            (c0, e0), (c1, e1) = items[hull[-2]], items[hull[-1]]
            if (e1 - e0) * (c0 - cost) < (error - e0) * (c0 - c1):
                break
            hull.pop()
        hull.append(place)
    return hull


def greedy(steps: Sequence[tuple[int, int]], start: Sequence[int], fits: Callable[[list[int]], bool]) -> list[int]:
    """Go as far along the moves as a judge allows.

    First the longest run of moves that fits is found by bisection, then each later move is tried by itself; a layer
    whose move fails stays.

    Args:
        steps: From :func:`moves`.
        start: The place of each layer that is kept.
        fits: Judges the places of all layers.
    """

    def after(count: int) -> list[int]:
        places = list(start)
        for layer, place in steps[:count]:
            places[layer] = place
        return places

    low, high = 0, len(steps)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(after(middle)) else (low, middle - 1)
    places, stuck = after(low), set[int]()
    for layer, place in steps[low:]:
        if layer in stuck:
            continue
        trial = [*places[:layer], place, *places[layer + 1 :]]
        if fits(trial):
            places = trial
        else:
            stuck.add(layer)
    return places
