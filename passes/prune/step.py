"""One step of pruning: score, allot, cut, prove, mend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from shave.ir.errors import PassError, PipelineError
from shave.ir.program import Program
from shave.passes.prune.ablation import compensate, duplicates, means, twins
from shave.passes.prune.amounts import best
from shave.passes.prune.certificate import Certificate, certify
from shave.passes.prune.groups import Group
from shave.passes.prune.importance import CRITERIA
from shave.passes.prune.importance.criterion import Batches, Evidence, Reduction, Score
from shave.passes.prune.statistics import consumed, gather
from shave.passes.prune.surgery import cut

Keep = dict[str, list[int]]
"""For each group to cut, by name, the units that stay."""


def score(
    program: Program,
    groups: Sequence[Group],
    criterion: str,
    reduction: Reduction,
    batches: Batches | None,
    generator: torch.Generator,
) -> dict[str, Score]:
    """Score the units of groups.

    Raises:
        PipelineError: A weight holds what is not a number.
    """
    found = CRITERIA[criterion](reduction).score(Evidence(program, batches, generator), groups)
    for group in groups:
        if not found[group.name].values.isfinite().all():
            raise PipelineError(f"{group.name} cannot be ranked by {criterion}: {_culprit(program, group)}")
    return found


def choose(groups: Sequence[Group], counts: dict[str, int], scores: dict[str, np.ndarray]) -> Keep:
    """The best units of each group that loses some."""
    return {
        group.name: best(scores[group.name], counts[group.name])
        for group in groups
        if counts.get(group.name, group.units) < group.units
    }


def stand_in(
    program: Program, groups: Sequence[Group], keep: Keep, criterion: str, batches: Batches | None, by: str
) -> None:
    """Let what stays stand in for what goes, where the criterion says that it can: ahead of the cut, in place.

    Units that hardly change become constants, units that go with another are merged into it.
    """
    cutting = [group for group in groups if group.name in keep]
    if criterion in ("variance", "fluctuation", "correlation") and batches is not None:
        correlated = criterion == "correlation"
        found = gather(program, cutting, batches(), covariance=correlated)
        with program.rewrite(by=by) as rewriter:
            for group in cutting:
                for each in found[group.name]:
                    made = (twins if correlated else means)(each, keep[group.name])
                    compensate(program, rewriter, each.channels, each.readers, made)
    elif criterion == "weight-correlation":
        with program.rewrite(by=by) as rewriter:
            for group in cutting:
                for channels, readers in consumed(group):
                    made = duplicates(program, group, keep[group.name], channels)
                    compensate(program, rewriter, channels, readers, made)


def cut_proven(program: Program, keep: Keep, inputs: tuple[torch.Tensor, ...], by: str) -> Certificate:
    """Cut in place, and prove it.

    Raises:
        PassError: The proof fails.
    """
    before = program.clone()
    cut(program, keep, by)
    proof = certify(before, program, keep, inputs)
    if not proof.holds:
        raise PassError(str(proof))
    return proof


def _culprit(program: Program, group: Group) -> str:
    for each in group.slices:
        if not program.weight(each.weight).isfinite().all():
            return f"weight {each.weight.target} holds NaN or infinite numbers"
    return "its activations are not finite on the calibration data"
