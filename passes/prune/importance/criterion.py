"""What a criterion of importance is: it gives each unit of a group a score, and the lowest go first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from shave.ir.program import Program
from shave.passes.prune.groups import Group, Slice
from shave.passes.prune.roles import Role

Reduction = Literal["mean", "max", "sum", "first"]
Batches = Callable[[], Iterator[tuple[torch.Tensor, ...]]]
"""Goes through the calibration data from its start, as inputs of the program."""


@dataclass(frozen=True)
class Evidence:
    """What criteria may draw on.

    Attributes:
        program: The program whose groups are to be scored; it stays as it is.
        batches: Calibration data; None if there is none.
        generator: The source of all randomness.
    """

    program: Program
    batches: Batches | None
    generator: torch.Generator


@dataclass(frozen=True)
class Score:
    """What the units of a group are worth.

    Attributes:
        values: [units], float64; the lowest are cut first. Comparable within the group only.
        note: What the user should know of how it came about; empty if nothing.
    """

    values: torch.Tensor
    note: str = ""


class Criterion(ABC):
    """Scores the units of groups. The docstring of a subclass names the paper.

    Attributes:
        needs_data: Whether it needs calibration data besides the weights.
    """

    needs_data: ClassVar[bool] = False

    def __init__(self, reduction: Reduction = "mean") -> None:
        self.reduction: Reduction = reduction

    @abstractmethod
    def score(self, evidence: Evidence, groups: Sequence[Group]) -> dict[str, Score]:
        """Score every unit of the groups, by name of the group.

        Raises:
            PipelineError: The calibration data is empty.
        """

    def reduce(self, scores: Sequence[torch.Tensor]) -> torch.Tensor:
        """Turn the scores from several weights or activations of a group, each [units], into one."""
        stacked = torch.stack([score.double() for score in scores])
        if self.reduction == "first":
            return stacked[0]
        if self.reduction == "max":
            return stacked.amax(0)
        return stacked.sum(0) if self.reduction == "sum" else stacked.mean(0)


class WeightCriterion(Criterion):
    """Scores units by the weights that make them."""

    def score(self, evidence: Evidence, groups: Sequence[Group]) -> dict[str, Score]:
        """See the class."""
        return {group.name: self._score(evidence.program, group) for group in groups}

    def _score(self, program: Program, group: Group) -> Score:
        scores = [self.of_rows(matrix(program, each)) for each in filters(group)]
        return Score(self.reduce(scores)) if scores else Score(torch.zeros(group.units, dtype=torch.float64), NO_WEIGHT)

    @abstractmethod
    def of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """Score the units from one weight.

        Args:
            rows: [units, features], float64: the part of the weight that belongs to each unit.

        Returns:
            [units].
        """


NO_WEIGHT = "no weight makes these channels, so that all count alike"


def filters(group: Group) -> list[Slice]:
    """The weights that make the units of a group (biases aside), each once; those that consume them if there are none.

    Of what only scales or shifts the channels, the weights with more than one axis count as a last resort: a depthwise
    filter says something of its channel, too.
    """
    for role in (Role.PRODUCES, Role.CONSUMES, Role.CARRIES):
        found: dict[tuple[str, int, bytes], Slice] = {}
        for each in group.slices:
            if each.role is role and each.weight.meta["val"].dim() > 1:
                found.setdefault((str(each.weight.target), each.axis, each.index.tobytes()), each)
        if found:
            return list(found.values())
    return []


def matrix(program: Program, part: Slice) -> torch.Tensor:
    """The part of a weight that belongs to each unit, as [units, features] in float64."""
    weight = program.weight(part.weight).detach().double().movedim(part.axis, 0)
    index = torch.from_numpy(part.index)
    return weight[index.reshape(-1)].reshape(len(index), -1)
