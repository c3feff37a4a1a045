"""Criteria that look at what the units give on calibration data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch

from shave.passes.prune.groups import Group
from shave.passes.prune.importance.criterion import Criterion, Evidence, Score, matrix
from shave.passes.prune.importance.redundancy import redundancy
from shave.passes.prune.statistics import Statistics, gather

_UNSEEN = "nothing that reads these channels is known, so that all count alike"


class ActivationCriterion(Criterion):
    """Scores units by statistics of the activations that their consumers read."""

    needs_data = True
    covariance = False

    def score(self, evidence: Evidence, groups: Sequence[Group]) -> dict[str, Score]:
        """See the class."""
        assert evidence.batches is not None
        found = gather(evidence.program, groups, evidence.batches(), covariance=self.covariance)
        return {group.name: self._score(evidence, group, found[group.name]) for group in groups}

    def _score(self, evidence: Evidence, group: Group, found: Sequence[Statistics]) -> Score:
        if not found:
            return Score(torch.zeros(group.units, dtype=torch.float64), _UNSEEN)
        return Score(self.reduce([self.of(each) for each in found]))

    @abstractmethod
    def of(self, statistics: Statistics) -> torch.Tensor:
        """Score the units from one activation, [units]."""


class Variance(ActivationCriterion):
    """Variance of a unit's output: one that hardly changes is a constant, which goes into the bias behind it.

    After Polyak & Wolf 2015, "Channel-Level Acceleration of Deep Face Representations" (inbound pruning).
    """

    def of(self, statistics: Statistics) -> torch.Tensor:
        """See the class."""
        return statistics.variance.mean(1)


class Magnitude(ActivationCriterion):
    """Mean magnitude of a unit's output (Molchanov et al. 2017, "Pruning Convolutional Neural Networks", 2.2)."""

    def of(self, statistics: Statistics) -> torch.Tensor:
        """See the class."""
        return statistics.magnitude.mean(1)


class PercentageOfZeros(ActivationCriterion):
    """APoZ: how often a unit gives anything but zero (Hu et al. 2016, "Network Trimming"). It is for ReLU networks."""

    def of(self, statistics: Statistics) -> torch.Tensor:
        """See the class."""
        return statistics.active.mean(1)


class ActivationCorrelation(ActivationCriterion):
    """One minus the correlation with the most similar unit that stays, into which the unit is then merged.

    After Suau et al. 2020, "Filter Distillation for Network Compression".
    """

    covariance = True

    def of(self, statistics: Statistics) -> torch.Tensor:
        """See the class."""
        covariance = statistics.covariance
        deviation = covariance.diagonal().clamp_min(0).sqrt()
        least = torch.finfo(torch.float64).tiny
        scaled = covariance / (deviation[:, None] * deviation[None]).clamp_min(least)
        return redundancy(scaled.abs(), deviation)


class Fluctuation(ActivationCriterion):
    """Variance of a unit's output times the squared norm of the weights that read it.

    What is lost behind the consumers once the unit's mean has gone into their bias (An et al. 2024, "Fluctuation-based
    Adaptive Structured Pruning for Large Language Models").
    """

    def _score(self, evidence: Evidence, group: Group, found: Sequence[Statistics]) -> Score:
        scores = []
        for each in found:
            readers = [part for part in group.slices if part.reader in each.readers and part.role.value == "consumes"]
            weights = torch.stack([matrix(evidence.program, part).square().sum(1) for part in readers]).sum(0)
            scores.append(self.of(each) * weights)
        if not scores:
            return Score(torch.zeros(group.units, dtype=torch.float64), _UNSEEN)
        return Score(torch.stack(scores).sum(0))  # losses behind different consumers add up

    def of(self, statistics: Statistics) -> torch.Tensor:
        """See the class."""
        return statistics.variance.mean(1)
