from __future__ import annotations

import itertools
import random

import pytest

from shave.passes.factorize.allocate import UNITS, greedy, knapsack, moves


def layers(seed: int, count: int = 4) -> list[list[tuple[float, float]]]:
    drawn = random.Random(seed)
    return [
        [(drawn.uniform(0.5, 9), drawn.random()) for _ in range(drawn.randint(0, 4))] + [(10.0, 0.0)]
        for _ in range(count)
    ]


def total(items: list[list[tuple[float, float]]], places: list[int]) -> tuple[float, float]:
    costs, errors = zip(*(each[place] for each, place in zip(items, places, strict=True)), strict=True)
    return sum(costs), sum(errors)


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_within_the_budget_errs_less(seed: int) -> None:
    items = layers(seed)
    for budget in (12.0, 20.0, 30.0, 40.0):
        every = [total(items, list(c)) for c in itertools.product(*(range(len(each)) for each in items))]
        places = knapsack(items, budget)
        # costs are rounded up, so that what fits by less than that may be missed
        clear = [error for cost, error in every if cost <= budget * (1 - len(items) / UNITS)]
        if places is None:
            assert not clear
            continue
        cost, error = total(items, places)
        assert cost <= budget
        assert error == pytest.approx(min(clear)) or error < min(clear)


def test_a_budget_that_nothing_meets() -> None:
    assert knapsack([[(3.0, 0.5), (5.0, 0.0)]], 2.9) is None
    assert knapsack([[(3.0, 0.5), (5.0, 0.0)]], -1.0) is None
    assert knapsack([[(3.0, 0.5), (5.0, 0.0)]], 3.0) == [0]
    assert knapsack([], 1.0) == []


@pytest.mark.parametrize("seed", range(8))
def test_moves_save_ever_less_for_an_error(seed: int) -> None:
    items = layers(seed, 6)
    places = [len(each) - 1 for each in items]
    rates = []
    for layer, place in moves(items):
        (cost, error), (was, had) = items[layer][place], items[layer][places[layer]]
        assert cost < was
        assert error >= had
        rates.append((error - had) / (was - cost))
        places[layer] = place
    assert rates == sorted(rates)
    assert all(cost == min(c for c, _ in each) for each, (cost, _) in zip(items, _chosen(items, places), strict=True))


def _chosen(items, places):
    return [each[place] for each, place in zip(items, places, strict=True)]


@pytest.mark.parametrize("seed", range(8))
def test_greed_goes_as_far_as_it_may(seed: int) -> None:
    items = layers(seed, 6)
    start, limit = [len(each) - 1 for each in items], 0.8
    asked = []

    def fits(places: list[int]) -> bool:
        asked.append(list(places))
        return total(items, places)[1] <= limit

    steps = moves(items)
    places = greedy(steps, start, fits)
    assert total(items, places)[1] <= limit
    assert len(asked) <= len(steps) + 6
    following = {}
    for layer, place in steps:  # the step that each layer would take next
        if items[layer][place][0] < items[layer][places[layer]][0]:
            following.setdefault(layer, place)
    for layer, place in following.items():
        assert total(items, [*places[:layer], place, *places[layer + 1 :]])[1] > limit


def test_greed_keeps_all_where_nothing_fits() -> None:
    items = layers(1)
    start = [len(each) - 1 for each in items]
    assert greedy(moves(items), start, lambda places: False) == start
