"""How many units of each group stay: evenly, by a ranking of all, or by what each group can spare."""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shave.passes.prune.amounts import Room
from shave.passes.prune.groups import Group

Counts = dict[str, int]
"""For each group, by name, the number of units that stay."""


MOST_POINTS = 32
"""Numbers of units of one group that a thrifty cut chooses from."""


class Allocation(ABC):
    """A family of cuts, from none at strength 0 to the most that is allowed at strength 1."""

    @abstractmethod
    def counts(self, strength: float) -> Counts:
        """Numbers of units that stay; they do not rise with the strength."""


@dataclass(frozen=True)
class Uniform(Allocation):
    """The same share of each group.

    Attributes:
        rooms: What each group allows.
    """

    rooms: Mapping[str, Room]

    def counts(self, strength: float) -> Counts:
        """See the base class."""
        return {name: room.nearest(room.units * (1 - strength)) for name, room in self.rooms.items()}


@dataclass(frozen=True)
class Ranked(Allocation):
    """The lowest scores of all groups of a class together, the same share of each class.

    One class for all groups is global ranking. Classes of groups that are built alike make it isomorphic (Fang et al.
    2024, "Isomorphic Pruning for Vision Models"): only what compares is compared.

    Attributes:
        rooms: What each group allows.
        scores: [units] of each group, made comparable.
        classes: The class of each group.
    """

    rooms: Mapping[str, Room]
    scores: Mapping[str, np.ndarray]
    classes: Mapping[str, str]

    def counts(self, strength: float) -> Counts:
        """See the base class."""
        found: Counts = {}
        for kind in dict.fromkeys(self.classes.values()):
            members = [name for name in self.rooms if self.classes[name] == kind]
            together = np.sort(np.concatenate([self.scores[name] for name in members]))
            going = round(strength * len(together))
            # All scores below the limit go; equal ones stay together, as nothing tells them apart.
            limit = together[going] if going < len(together) else np.inf
            for name in members:
                found[name] = self.rooms[name].nearest(int((self.scores[name] >= limit).sum()))
        return {name: found[name] for name in self.rooms}


def kind_of(group: Group) -> str:
    """What a group is built of: groups of one kind have the same operators around them."""
    around = sorted({f"{part.role.value} {part.reader.target} {part.axis}" for part in group.slices})
    return "; ".join([group.kind, *around])


def within(
    allocation: Allocation, cost: Callable[[Mapping[str, int]], float], limit: float, names: Sequence[str]
) -> Counts | None:
    """The weakest cut of a family that costs no more than a limit; None if none does.

    Numbers of units that come in multiples jump together, and may overshoot: groups are then given back one by one what
    they had before the jump, as long as the limit holds.

    Args:
        allocation: The family.
        cost: Of a cut.
        limit: Largest cost.
        names: Groups in the order in which they are given something back.
    """
    low, high = 0.0, 1.0
    if cost(allocation.counts(high)) > limit:
        return None
    if cost(allocation.counts(low)) <= limit:
        return allocation.counts(low)
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(allocation.counts(middle)) <= limit else (middle, high)
    before, found = allocation.counts(low), allocation.counts(high)
    for name in names:
        raised = {**found, name: before[name]}
        if raised != found and cost(raised) <= limit:
            found = raised
    return found


@dataclass(frozen=True)
class Damage:
    """What a cut of one group alone does to the outputs.

    Attributes:
        number: Units that stay.
        error: Squared error of the outputs, relative to their mean square.
    """

    number: int
    error: float


def filled_in(room: Room, points: Sequence[Damage]) -> list[Damage]:
    """Numbers of units down to the smallest cut that was tried, the damages between points on straight lines."""
    tried = [Damage(room.units, 0.0), *points][::-1]
    numbers = [number for number in room.numbers() if tried[0].number <= number < room.units]
    places = np.unique(np.linspace(0, len(numbers) - 1, min(len(numbers), MOST_POINTS)).round().astype(int))
    some = [numbers[place] for place in places]
    errors = np.interp(some, [each.number for each in tried], [each.error for each in tried])
    return [Damage(number, float(error)) for number, error in zip(some, errors, strict=True)]


def thrifty(
    rooms: Mapping[str, Room],
    curves: Mapping[str, Sequence[Damage]],
    cost: Callable[[Mapping[str, int]], float],
    limit: float | None,
    max_error: float,
) -> Counts | None:
    """Cut again and again where the least damage is done for what is saved.

    Damages of groups are taken to add up.

    Args:
        rooms: What each group allows.
        curves: By group, damages with ever fewer units.
        cost: Of a cut.
        limit: Cut until the cost is no more than this; None if the damage decides.
        max_error: Without a limit, the largest sum of damages.

    Returns:
        None if the limit cannot be met.
    """
    counts = {name: room.units for name, room in rooms.items()}
    damage = dict.fromkeys(rooms, 0.0)
    now, spent = cost(counts), 0.0

    def price(name: str, point: Damage) -> float:
        """Damage for what a cut saves now: it only rises while other groups are cut, as there is less to save."""
        saved = now - cost({**counts, name: point.number})
        return max(0.0, point.error - damage[name]) / saved if saved > 0 else math.inf

    waiting = [
        (price(name, point), place, name, point)
        for place, (name, point) in enumerate((name, point) for name, curve in curves.items() for point in curve)
    ]
    heapq.heapify(waiting)
    while waiting and (limit is None or now > limit):
        _, place, name, point = heapq.heappop(waiting)
        if point.number >= counts[name]:
            continue
        current = price(name, point)
        if current == math.inf:
            continue
        if waiting and current > waiting[0][0]:
            heapq.heappush(waiting, (current, place, name, point))
            continue
        step = max(0.0, point.error - damage[name])
        if limit is None and spent + step > max_error:
            continue
        counts[name], damage[name], spent = point.number, max(damage[name], point.error), spent + step
        now = cost(counts)
    if limit is None:
        return counts
    return _given_back(rooms, counts, damage, cost, limit) if now <= limit else None


def _given_back(
    rooms: Mapping[str, Room],
    counts: Counts,
    damage: Mapping[str, float],
    cost: Callable[[Mapping[str, int]], float],
    limit: float,
) -> Counts:
    """Use up what a limit leaves: units come back one by one, to the groups that did the most damage first."""
    order = sorted(counts, key=lambda name: -damage[name])
    changed = True
    while changed:
        changed = False
        for name in order:
            more = rooms[name].up(counts[name] + 1)
            if more > counts[name] and cost({**counts, name: more}) <= limit:
                counts, changed = {**counts, name: more}, True
    return counts
