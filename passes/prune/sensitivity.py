"""How much each group can spare: what happens to the outputs, or to the accuracy, when it alone is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shave.ir.program import Program
from shave.passes.compare import outputs_of
from shave.passes.prune.ablation import ablate
from shave.passes.prune.amounts import Room, best
from shave.passes.prune.groups import Group
from shave.passes.prune.statistics import Statistics

RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
"""Shares of a group that are tried."""


@dataclass(frozen=True)
class Point:
    """One cut of one group.

    Attributes:
        units: Units that stay.
        ratio: Share of the units that go.
        error: Squared error of the outputs relative to their mean square; that of the worst output.
        quality: What ``evaluate`` says of the program; None if it was not asked.
    """

    units: int
    ratio: float
    error: float
    quality: float | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What a group can spare.

    Attributes:
        group: Its name.
        units: How many it has.
        points: Ever smaller cuts of it, from few units gone to many.
    """

    group: str
    units: int
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """Give plain data."""
        return {"group": self.group, "units": self.units, "points": [vars(point) for point in self.points]}


def sensitivity(
    program: Program,
    groups: Sequence[Group],
    rooms: Mapping[str, Room],
    scores: Mapping[str, np.ndarray],
    inputs: Sequence[tuple[torch.Tensor, ...]],
    *,
    statistics: Mapping[str, Sequence[Statistics]] | None = None,
    evaluate: Callable[[Program], float] | None = None,
    ratios: Sequence[float] = RATIOS,
    track: Callable[[Sequence[Group]], Iterable[Group]] = iter,
) -> list[Sensitivity]:
    """Cut each group by itself, ever more, and see what becomes of the outputs.

    No surgery is done: what reads the removed units takes their mean, or zero where there are no statistics.

    Args:
        program: Stays as it is.
        groups: Those to scan.
        rooms: The numbers of units that each allows.
        scores: [units] of each; the lowest go first.
        inputs: Batches to run.
        statistics: Of each group, from calibration data.
        evaluate: Quality of a program, larger is better.
        ratios: Shares to try, ascending.
        track: Shows progress over the groups.
    """
    wants = [outputs_of(program(*batch)) for batch in inputs]
    found = []
    for group in track(groups):
        points: list[Point] = []
        for ratio in ratios:
            number = rooms[group.name].nearest(group.units * (1 - ratio))
            if number >= (points[-1].units if points else group.units):
                continue
            kept = best(scores[group.name], group.classes, number)
            lesser = ablate(program, group, kept, (statistics or {}).get(group.name, ()))
            error = _error(wants, [outputs_of(lesser(*batch)) for batch in inputs])
            quality = evaluate(lesser) if evaluate is not None else None
            points.append(Point(number, 1 - number / group.units, error, quality))
        found.append(Sensitivity(group.name, group.units, tuple(points)))
    return found


def _error(wants: Sequence[Sequence[torch.Tensor]], gots: Sequence[Sequence[torch.Tensor]]) -> float:
    """Squared error over the squared deviation from the mean of each output; of the outputs the worst."""
    worst = 0.0
    for want_batches, got_batches in zip(zip(*wants, strict=True), zip(*gots, strict=True), strict=True):
        if not want_batches[0].is_floating_point():
            continue
        want, got = (torch.cat([each.double().reshape(-1) for each in side]) for side in (want_batches, got_batches))
        power = float((want - want.mean()).square().sum())
        error = float((got - want).square().sum())
        worst = max(worst, error / max(power, 1e-30) if np.isfinite(error) else float("inf"))
    return worst
