"""Prunes a program in steps, towards amounts of the whole that it started from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shave.ir.program import Program
from shave.passes.base import Context, Pass
from shave.passes.probe import probe_inputs
from shave.passes.prune.allocation import Counts, Damage, filled_in, thrifty, within
from shave.passes.prune.amounts import Budget, Multiple, Room, room
from shave.passes.prune.certificate import Certificate
from shave.passes.prune.groups import Group, find_groups
from shave.passes.prune.importance.criterion import Reduction, Score
from shave.passes.prune.importance.normalise import Normaliser, normalise
from shave.passes.prune.plan import Limit, Overrun, costs, family, meet, unreachable
from shave.passes.prune.schedule import Schedule, kept_after
from shave.passes.prune.selection import makers, ratios
from shave.passes.prune.sensitivity import sensitivity
from shave.passes.prune.statistics import gather
from shave.passes.prune.step import Keep, choose, cut_proven, score, stand_in
from shave.passes.prune.surgery import cut
from shave.passes.repair.repair import Mended, Method, consumers, kept_positions, repair
from shave.passes.report import Report

SCAN_RATIOS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of each group that a sensitivity scan tries; the last stands for all but what has to stay."""
SCAN_MACS = 2e12
"""What a scan may compute (a minute of one core), but for the samples that are always run."""
SCAN_SAMPLES = range(8, 65)
"""Samples on which a scan may run."""


@dataclass(frozen=True)
class Plan:
    """What is to be done, all options decided; see :class:`shave.passes.prune.channels.PruneChannels`."""

    ratio: float | Mapping[str, float] | None
    budgets: tuple[Budget, ...]
    ranking: str
    criterion: str
    reduction: Reduction
    normalise: Normaliser
    multiple: Multiple
    floor: float
    max_error: float
    steps: int
    schedule: Schedule
    repair: Method | None


class Pruning:
    """One run of the pass.

    Args:
        by: The pass.
        plan: What is to be done.
        program: Is pruned in place; its weights are unpacked.
        context: Of the pass.
        groups: Of the program.
        refused: Why each group is not to be cut, by name; empty for those that are.
    """

    def __init__(
        self,
        by: Pass,
        plan: Plan,
        program: Program,
        context: Context,
        groups: Sequence[Group],
        refused: Mapping[str, str],
    ) -> None:
        self._by, self._plan, self._program, self._context = by, plan, program, context
        self._whole = program.clone()
        self._groups, self._refused = groups, refused
        self._costs = costs(program)
        self._units = {group.name: group.units for group in groups}
        self._staying = {group.name: list(range(group.units)) for group in groups}
        scopes = plan.ratio if isinstance(plan.ratio, Mapping) else None
        self._ratios = ratios(program, groups, scopes) if scopes is not None else None
        self._generator = context.generator()
        self._scores: dict[str, Score] = {}
        self._mended: dict[str, Mended] = {}
        self._proofs: list[Certificate] = []

    def step(self, number: int) -> None:
        """Do one step.

        Args:
            number: From 1.
        """
        program = self._program
        if number > 1:  # the nodes have changed since
            self._groups = find_groups(program)
        groups = [group for group in self._groups if not self._refused.get(group.name, "it came up on the way")]
        if not groups:
            return
        batches = None if self._context.calibration is None else self._batches
        self._scores = score(program, groups, self._plan.criterion, self._plan.reduction, batches, self._generator)
        scores = {name: found.values.numpy() for name, found in self._scores.items()}
        counts = self._allot(number, groups, scores)
        keep = choose(groups, counts, scores)
        if not keep:
            return
        before = program.clone()
        stand_in(program, groups, keep, self._plan.criterion, batches, self._by.name)
        inputs = probe_inputs(program, self._context.calibration, self._context.seed)
        proof = cut_proven(program, keep, inputs, self._by.name)
        self._proofs.append(proof)
        for name, units in keep.items():
            self._staying[name] = [self._staying[name][unit] for unit in units]
        if self._plan.repair is not None:
            self._mend(before, keep)
        if self._context.trainer is not None:
            trained = program.clone(copy_weights=True)
            self._context.trainer(trained)
            program.module = trained.module

    def report(self, report: Report) -> None:
        """Tell what became of every group and of every node that was mended."""
        for group in find_groups(self._whole):
            node = makers(group)[0]
            left = len(self._staying[group.name])
            if reason := self._refused[group.name]:
                report.skipped(node, f"{group.name}: {reason}")
            elif left == group.units:
                report.skipped(node, f"{group.name}: {self._unmoved(group)}")
            else:
                found = self._scores[group.name]
                note = f"; {found.note}" if found.note else ""
                report.applied(
                    node, f"{group.name}: {group.units} -> {left} {group.kind} by {self._plan.criterion}{note}"
                )
        for done in self._mended.values():
            (report.applied if done.changed else report.skipped)(done.node, str(done))
        for name, now in costs(self._program).items():
            report.metrics[f"{name}_before"] = self._costs[name]
            report.metrics[f"{name}_after"] = now
        if self._proofs:
            report.metrics["certificate_error"] = max(max(proof.errors.values()) for proof in self._proofs)
            report.metrics["certificate_exact"] = float(all(proof.exact for proof in self._proofs))

    # How much

    def _allot(self, number: int, groups: Sequence[Group], scores: Mapping[str, np.ndarray]) -> Counts:
        rooms = {
            group.name: room(group, self._plan.multiple, self._plan.floor, self._original(group)) for group in groups
        }
        if self._plan.ratio is not None and self._plan.ranking == "uniform":
            return {
                group.name: rooms[group.name].nearest(group.units * self._left(number, self._ratio(group)))
                for group in groups
            }
        comparable = {
            name: normalise(torch.from_numpy(values), self._plan.normalise).numpy() for name, values in scores.items()
        }
        if self._plan.ratio is not None:
            assert not isinstance(self._plan.ratio, Mapping)
            allocation = family(self._plan.ranking, groups, rooms, comparable)
            return allocation.counts(1 - self._left(number, self._plan.ratio))
        limits = self._limits(number)
        if self._plan.ranking == "auto":
            return self._by_sensitivity(groups, rooms, scores, limits)
        overrun = Overrun(self._program, self._groups, limits)
        allocation = family(self._plan.ranking, groups, rooms, comparable)
        found = meet(lambda aim: within(allocation, overrun, aim, list(rooms)), self._measure(groups, scores, limits))
        return found if found is not None else self._fail(groups, rooms, scores, limits)

    def _by_sensitivity(
        self,
        groups: Sequence[Group],
        rooms: Mapping[str, Room],
        scores: Mapping[str, np.ndarray],
        limits: Sequence[Limit],
    ) -> Counts:
        """Cut where the outputs suffer least for what is saved."""
        inputs = self._scan_inputs(len(groups) * len(SCAN_RATIOS))
        known = self._context.calibration is not None
        scan = sensitivity(
            self._program,
            groups,
            rooms,
            scores,
            inputs,
            statistics=gather(self._program, groups, inputs) if known else None,
            ratios=SCAN_RATIOS,
            track=lambda items: self._context.track(items, f"{self._by.name}: sensitivity"),
        )
        curves = {
            each.group: filled_in(rooms[each.group], [Damage(point.units, point.error) for point in each.points])
            for each in scan
        }
        overrun = Overrun(self._program, self._groups, limits)
        if not limits:
            found = thrifty(rooms, curves, overrun.macs, None, self._plan.max_error)
            assert found is not None
            return found
        found = meet(
            lambda aim: thrifty(rooms, curves, overrun, aim, self._plan.max_error),
            self._measure(groups, scores, limits),
        )
        return found if found is not None else self._fail(groups, rooms, scores, limits)

    def _limits(self, number: int) -> list[Limit]:
        """The budgets at the end of a step."""
        found = []
        for each in self._plan.budgets:
            whole = self._costs[each.cost]
            share = min(1.0, each.limit(whole) / whole)
            found.append(Limit(each, whole * kept_after(number, self._plan.steps, share, self._plan.schedule), whole))
        return found

    def _measure(
        self, groups: Sequence[Group], scores: Mapping[str, np.ndarray], limits: Sequence[Limit]
    ) -> Callable[[Counts], float]:
        def overrun(counts: Counts) -> float:
            now = self._costs_of(groups, scores, counts)
            return max(now[limit.budget.cost] / limit.value for limit in limits)

        return overrun

    def _costs_of(self, groups: Sequence[Group], scores: Mapping[str, np.ndarray], counts: Counts) -> dict[str, float]:
        """What is left after a real cut."""
        trial = self._program.clone()
        cut(trial, choose(groups, counts, dict(scores)), self._by.name)
        return costs(trial)

    def _fail(
        self,
        groups: Sequence[Group],
        rooms: Mapping[str, Room],
        scores: Mapping[str, np.ndarray],
        limits: Sequence[Limit],
    ) -> Counts:
        least = {name: each.numbers()[-1] for name, each in rooms.items()}
        raise unreachable(limits, self._costs_of(groups, scores, least))

    def _left(self, number: int, ratio: float) -> float:
        """Share of what was left after the last step that is left after this one."""
        now, before = (
            kept_after(step, self._plan.steps, 1 - ratio, self._plan.schedule) if step else 1.0
            for step in (number, number - 1)
        )
        return now / before

    def _ratio(self, group: Group) -> float:
        if self._ratios is not None:
            return self._ratios.get(group.name, 0.0)
        assert not isinstance(self._plan.ratio, Mapping)
        return self._plan.ratio or 0.0

    def _original(self, group: Group) -> int:
        """Units before the first step."""
        return self._units.get(group.name, group.units)

    def _unmoved(self, group: Group) -> str:
        """Why a group that could be cut was not."""
        if self._ratios is not None and not self._ratios[group.name]:
            return "no ratio is given for it"
        only = room(group, self._plan.multiple, self._plan.floor, self._original(group))
        if len(only.numbers()) == 1:
            return f"its {group.units} {group.kind} come in multiples of {only.quantum}, at least {only.least}"
        return "none of its units is among those to go"

    # With what

    def _batches(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return self._context.batches(self._program, self._by)

    def _scan_inputs(self, runs: int) -> list[tuple[torch.Tensor, ...]]:
        """As many batches as hold the samples of a scan; random ones without calibration data."""
        affordable = int(SCAN_MACS / max(1.0, costs(self._program)["macs"] * runs))
        wanted = min(max(affordable, SCAN_SAMPLES[0]), SCAN_SAMPLES[-1])
        if self._context.calibration is None:
            return [probe_inputs(self._program, None, self._context.seed)]
        found: list[tuple[torch.Tensor, ...]] = []
        for batch in self._batches():
            found.append(batch)
            if sum(len(each[0]) for each in found if each and each[0].dim()) >= wanted:
                break
        return found

    def _mend(self, before: Program, keep: Keep) -> None:
        """Mend the program: after the whole one, or after the one from before this step where that was trained."""
        assert self._plan.repair is not None
        trained = self._context.trainer is not None
        reference = before if trained else self._whole
        cutting = find_groups(reference)
        staying = (
            keep
            if trained
            else {each.name: self._staying[each.name] for each in cutting if len(self._staying[each.name]) < each.units}
        )
        with self._program.rewrite(by=self._by.name) as rewriter:
            done = repair(
                reference,
                self._program,
                kept_positions(cutting, staying),
                consumers(cutting, staying),
                self._batches(),
                self._plan.repair,
                rewriter=rewriter,
                generator=self._generator,
                track=lambda items: self._context.track(items, f"{self._by.name}: mend"),
            )
        self._mended.update({each.node.name: each for each in done})
