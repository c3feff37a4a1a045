"""Criteria that look at weights alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.passes.prune.groups import Group, Slice
from shave.passes.prune.importance.criterion import Criterion, Evidence, Score, WeightCriterion, filters, matrix
from shave.passes.prune.importance.redundancy import redundancy
from shave.passes.prune.roles import Role


class L1(WeightCriterion):
    """Sum of magnitudes of a filter (Li et al. 2017, "Pruning Filters for Efficient ConvNets")."""

    def of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return rows.abs().sum(1)


class L2(WeightCriterion):
    """Euclidean norm of a filter (He et al. 2018, "Soft Filter Pruning")."""

    def of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return rows.square().sum(1).sqrt()


class GeometricMedian(WeightCriterion):
    """Sum of distances to all other filters: those near the geometric median can be told by the rest.

    He et al. 2019, "Filter Pruning via Geometric Median for Deep Neural Networks Acceleration".
    """

    def of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return torch.cdist(rows, rows).sum(1)


class LayerAdaptive(WeightCriterion):
    """LAMP: squared norm over the squared norms of all filters that are no smaller.

    Scores of different layers compare, so it suits global ranking (Lee et al. 2021, "Layer-Adaptive Sparsity for the
    Magnitude-based Pruning").
    """

    def of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """See the class."""
        squares = rows.square().sum(1)
        order = squares.argsort(stable=True)
        remaining = squares[order].flip(0).cumsum(0).flip(0).clamp_min(torch.finfo(torch.float64).tiny)
        return torch.zeros_like(squares).scatter(0, order, squares[order] / remaining)


class WeightCorrelation(WeightCriterion):
    """One minus the cosine to the most similar filter that stays: of two that are alike, the smaller one goes.

    After Ayinde & Zurada 2018, "Building Efficient ConvNets using Redundant Feature Pruning".
    """

    def of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """See the class."""
        norms = rows.norm(dim=1)
        unit = rows / norms.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
        return redundancy(unit @ unit.T, norms)


class NormScale(Criterion):
    """Magnitude of the scale of the normalisation behind a channel (Liu et al. 2017, "Network Slimming").

    Where a batch norm was folded its scale is part of the filter, and the Euclidean norm of the filter stands for it.
    """

    def score(self, evidence: Evidence, groups: Sequence[Group]) -> dict[str, Score]:
        """See the class."""
        return {group.name: self._score(evidence.program, group) for group in groups}

    def _score(self, program: Program, group: Group) -> Score:
        scales = [matrix(program, each).abs().mean(1) for each in group.slices if _is_scale(each)]
        if scales:
            return Score(self.reduce(scales))
        norms = [matrix(program, each).norm(dim=1) for each in filters(group)]
        note = "it has no norm with a scale (any more), so the norms of its filters decide"
        return Score(self.reduce(norms) if norms else torch.zeros(group.units, dtype=torch.float64), note)


class Random(Criterion):
    """Chance, as the baseline that every other criterion has to beat."""

    def score(self, evidence: Evidence, groups: Sequence[Group]) -> dict[str, Score]:
        """See the class."""
        return {
            group.name: Score(torch.rand(group.units, generator=evidence.generator, dtype=torch.float64))
            for group in groups
        }


def _is_scale(part: Slice) -> bool:
    return (
        part.role is Role.CARRIES
        and op_name(part.reader).endswith("_norm")
        and argument(part.reader, "weight") is part.weight
    )
