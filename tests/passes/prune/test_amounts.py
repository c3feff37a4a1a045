from __future__ import annotations

import numpy as np
import pytest

from shave.passes.prune.amounts import Multiple, Room, best, budget, room
from shave.passes.prune.groups import Group


def group(units: int, kind: str = "channels") -> Group:
    return Group("g", kind, units, (), ())


@pytest.mark.parametrize(
    ("written", "limit"),
    [(0.5, 100), ("50%", 100), ("12.5%", 25), (1, 200), (1.0, 200), (150, 150), (150.5, 150.5), ("100%", 200)],
)
def test_limits(written: float | str, limit: float) -> None:
    assert budget("macs", written).limit(200) == limit


@pytest.mark.parametrize("written", [0, -1.0, float("nan"), float("inf"), "0%", "120%", "half", "50", "-5%", "%"])
def test_what_is_no_limit(written: float | str) -> None:
    with pytest.raises(ValueError, match=r"^macs="):
        budget("macs", written)


@pytest.mark.parametrize(
    ("units", "least", "quantum", "numbers"),
    [
        (10, 1, 1, [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]),
        (10, 3, 4, [10, 8, 4]),
        (8, 3, 4, [8, 4]),
        (10, 9, 4, [10]),
        (7, 1, 7, [7]),
        (1, 1, 1, [1]),
    ],
)
def test_numbers_that_are_allowed(units: int, least: int, quantum: int, numbers: list[int]) -> None:
    allowed = Room(units, least, quantum)
    assert allowed.numbers() == numbers
    for wanted in np.arange(-1, units + 0.1, 0.25):
        above = [number for number in numbers if number >= wanted]
        assert allowed.up(wanted) == min(above), wanted
        distance = min(abs(number - wanted) for number in numbers)
        assert allowed.nearest(wanted) == max(number for number in numbers if abs(number - wanted) == distance), wanted


def test_room_of_a_group() -> None:
    assert room(group(64), Multiple(16, 8), 0.1, 64) == Room(64, 7, 16)
    assert room(group(64), Multiple(16, 8), 24, 64) == Room(64, 24, 16)
    assert room(group(127), Multiple(None, 16), 0.1, 127) == Room(127, 13, 16)
    assert room(group(128), Multiple(None, 16), 0.1, 128) == Room(128, 13, 32)
    assert room(group(100), Multiple(None, 16), 0.1, 128) == Room(100, 13, 32)
    assert room(group(128), Multiple(None, None), 0.1, 128) == Room(128, 13, 1)
    assert room(group(32), Multiple(16, 8), 0.25, 64) == Room(32, 16, 16)
    assert room(group(12, "heads"), Multiple(16, 8), 0.1, 12) == Room(12, 2, 1)
    assert room(group(12, "conv groups"), Multiple(16, 8), 0, 12) == Room(12, 1, 1)
    assert room(group(3), Multiple(16, 8), 99, 3) == Room(3, 3, 3)


def test_the_best_units() -> None:
    scores = np.array([5.0, 1.0, 5.0, 3.0, 4.0, 0.0])
    assert best(scores, 3) == [0, 2, 4]
    assert best(scores, 1) == [0]  # of equal ones the first
    assert best(scores, 5) == [0, 1, 2, 3, 4]
