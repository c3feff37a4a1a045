from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from shave.passes.prune.allocation import MOST_POINTS, Damage, Ranked, Uniform, filled_in, kind_of, thrifty, within
from shave.passes.prune.amounts import Room
from shave.passes.prune.groups import find_groups
from tests.passes.prune.nets import residual, transformer

ROOMS = {"a": Room(10, 1, 1), "b": Room(20, 2, 1), "c": Room(8, 1, 4)}
SCORES = {"a": np.arange(10.0), "b": np.arange(20.0) / 2 + 0.25, "c": np.arange(8.0) + 0.125}


def total(counts: Mapping[str, int]) -> float:
    return float(sum(counts.values()))


def test_uniform() -> None:
    assert Uniform(ROOMS).counts(0.0) == {"a": 10, "b": 20, "c": 8}
    assert Uniform(ROOMS).counts(0.5) == {"a": 5, "b": 10, "c": 4}
    assert Uniform(ROOMS).counts(1.0) == {"a": 1, "b": 2, "c": 4}


def test_global_ranking_takes_the_lowest_of_all() -> None:
    everything = np.sort(np.concatenate([SCORES["a"], SCORES["b"]]))
    rooms = {"a": Room(10, 1, 1), "b": Room(20, 1, 1)}
    for going in range(1, 28):
        counts = Ranked(rooms, SCORES, {"a": "", "b": ""}).counts(going / 30)
        gone = np.concatenate([np.sort(SCORES[name])[: rooms[name].units - number] for name, number in counts.items()])
        np.testing.assert_array_equal(np.sort(gone), everything[:going])


def test_isomorphic_ranking_compares_what_is_alike() -> None:
    scores = {"a": np.arange(10.0), "b": np.arange(20.0) * 1000}
    apart = Ranked({name: ROOMS[name] for name in "ab"}, scores, {"a": "x", "b": "y"})
    assert apart.counts(0.5) == {"a": 5, "b": 10}
    together = Ranked({name: ROOMS[name] for name in "ab"}, scores, {"a": "x", "b": "x"})
    assert together.counts(0.3) == {"a": 2, "b": 19}


def test_kinds_of_groups() -> None:
    groups = {group.name: group for group in find_groups(residual()) if not group.reason}
    assert kind_of(groups["stem"]) != kind_of(groups["down"])
    attention = [group for group in find_groups(transformer()) if group.kind == "heads"]
    assert all(kind_of(group).startswith("heads") for group in attention)


@pytest.mark.parametrize("limit", [4.0, 7.0, 18.0, 25.0, 37.0])
@pytest.mark.parametrize("ranked", [False, True])
def test_limits_are_held_and_used_up(limit: float, ranked: bool) -> None:
    family = Ranked(ROOMS, SCORES, dict.fromkeys(ROOMS, "")) if ranked else Uniform(ROOMS)
    found = within(family, total, limit, list(ROOMS))
    if limit < 7:
        assert found is None
        return
    assert found is not None
    assert limit - 4 < total(found) <= limit


def test_no_limit_leaves_all() -> None:
    assert within(Uniform(ROOMS), total, 38, list(ROOMS)) == {"a": 10, "b": 20, "c": 8}


CURVES = {
    "a": [Damage(8, 0.1), Damage(4, 0.2), Damage(2, 0.9)],
    "b": [Damage(15, 0.01), Damage(10, 0.02), Damage(5, 0.5)],
    "c": [Damage(4, 0.001)],
}


def test_thrifty_takes_what_costs_least() -> None:
    assert thrifty(ROOMS, CURVES, total, None, 0.05) == {"a": 10, "b": 10, "c": 4}
    assert thrifty(ROOMS, CURVES, total, None, 0.3) == {"a": 4, "b": 10, "c": 4}
    assert thrifty(ROOMS, CURVES, total, None, 1e-6) == {"a": 10, "b": 20, "c": 8}


def test_between_points_damage_is_on_straight_lines() -> None:
    found = filled_in(ROOMS["a"], [Damage(8, 0.1), Damage(4, 0.5)])
    assert [each.number for each in found] == [9, 8, 7, 6, 5, 4]
    np.testing.assert_allclose([each.error for each in found], [0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert filled_in(ROOMS["c"], [Damage(4, 0.2)]) == [Damage(4, 0.2)]
    assert filled_in(ROOMS["c"], []) == []
    many = filled_in(Room(1000, 1, 1), [Damage(10, 1.0)])
    assert (many[0].number, many[-1]) == (999, Damage(10, 1.0))
    assert len(many) == MOST_POINTS


def test_thrifty_meets_a_limit_and_gives_back_what_it_leaves() -> None:
    assert thrifty(ROOMS, CURVES, total, 24, 0.0) == {"a": 10, "b": 10, "c": 4}
    found = thrifty(ROOMS, CURVES, total, 20, 0.0)
    assert found == {"a": 5, "b": 11, "c": 4}  # down to 4 and 10, and one given back to each
    assert thrifty(ROOMS, CURVES, total, 10, 0.0) is None
