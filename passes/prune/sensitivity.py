"""How much each group can spare: what happens to the outputs, or to the accuracy, when it alone is cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.passes.compare import outputs_of
from shave.passes.probe import as_inputs, probe_inputs
from shave.passes.prune.ablation import ablate
from shave.passes.prune.amounts import Multiple, Room, best, room
from shave.passes.prune.groups import Group, find_groups
from shave.passes.prune.importance import CRITERIA
from shave.passes.prune.plain_weights import unpack
from shave.passes.prune.selection import refusals
from shave.passes.prune.statistics import Statistics, gather
from shave.passes.prune.step import score
from shave.passes.suggest import nearest

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
            kept = best(scores[group.name], number)
            lesser = ablate(program, group, kept, (statistics or {}).get(group.name, ()))
            error = _error(wants, [outputs_of(lesser(*batch)) for batch in inputs])
            quality = evaluate(lesser) if evaluate is not None else None
            points.append(Point(number, 1 - number / group.units, error, quality))
        found.append(Sensitivity(group.name, group.units, tuple(points)))
    return found


def scan(
    program: Program,
    *,
    criterion: str = "l2",
    calibration: Iterable[Any] | None = None,
    evaluate: Callable[[Program], float] | None = None,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
    track: Callable[[Sequence[Group]], Iterable[Group]] = iter,
) -> list[Sensitivity]:
    """Scan every group of a program that can be cut.

    Args:
        program: Stays as it is.
        criterion: What tells which units go first; see :data:`shave.passes.prune.importance.CRITERIA`.
        calibration: Input tuples; without them the scan runs on random inputs, and removed units count as zero.
        evaluate: Quality of a program, larger is better.
        only: Scopes to scan; by default everything.
        skip: Scopes to leave out.
        ratios: Shares of a group that are tried, ascending.
        seed: Where all randomness comes from.
        track: Shows progress over the groups.

    Raises:
        PipelineError: There is no such criterion, it needs calibration data, or a scope matches nothing.
    """
    if criterion not in CRITERIA:
        raise PipelineError(f"there is no criterion {criterion!r}{nearest(criterion, CRITERIA)}")
    if CRITERIA[criterion].needs_data and calibration is None:
        raise PipelineError(f"criterion {criterion} needs calibration data")
    if wrong := [ratio for ratio in ratios if not 0 < ratio < 1]:
        raise PipelineError(f"ratio {wrong[0]:g} is not between 0 and 1")
    program = program.clone()
    unpack(program, "sensitivity")
    every = find_groups(program)
    refused = refusals(program, every, only, skip)
    groups = [group for group in every if not refused[group.name]]
    inputs = [probe_inputs(program, None, seed)]
    if calibration is not None:
        inputs = [as_inputs(program, batch) for batch in calibration]
    batches = None if calibration is None else lambda: iter(inputs)
    generator = torch.Generator().manual_seed(seed)
    scores = score(program, groups, criterion, "mean", batches, generator)
    return sensitivity(
        program,
        groups,
        {group.name: room(group, Multiple(1, None), 1, group.units) for group in groups},
        {name: found.values.numpy() for name, found in scores.items()},
        inputs,
        statistics=None if calibration is None else gather(program, groups, inputs),
        evaluate=evaluate,
        ratios=sorted(ratios),
        track=track,
    )


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
