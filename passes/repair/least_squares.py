"""Least squares from streamed rows, with a ridge towards the weights that are there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Ridges to choose from, as multiples of the mean square of the features."""


@dataclass(frozen=True)
class Fit:
    """A solution.

    Attributes:
        weight: [groups, features + 1, outputs], float64; the last feature is the constant 1.
        before: Mean squared error on the held-out rows with the weights that were there, relative to the mean square of
            the targets.
        after: The same with the solution's, fitted on the other rows.
    """

    weight: torch.Tensor
    before: float
    after: float


class NormalEquations:
    """Sums over rows: memory is that of one matrix of features by features, whatever the number of rows.

    Args:
        groups: Independent problems of equal size that are solved side by side.
        features: Of each row.
        outputs: Targets of each row.
    """

    def __init__(self, groups: int, features: int, outputs: int) -> None:
        self.rows = 0
        self.gram = torch.zeros(groups, features + 1, features + 1, dtype=torch.float64)
        self.cross = torch.zeros(groups, features + 1, outputs, dtype=torch.float64)
        self.square = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add rows.

        Args:
            x: [groups, rows, features + 1], the last feature being 1.
            y: [groups, rows, outputs].
        """
        self.rows += x.shape[1]
        self.gram += (x.mT @ x).double()
        self.cross += (x.mT @ y).double()
        self.square += float(y.double().square().sum())

    def merge(self, other: NormalEquations) -> None:
        """Add the rows of another."""
        self.rows += other.rows
        self.gram += other.gram
        self.cross += other.cross
        self.square += other.square

    def error(self, weight: torch.Tensor) -> float:
        """Sum of squared errors of a weight [groups, features + 1, outputs]."""
        explained = (weight * (self.gram @ weight - 2 * self.cross)).sum()
        return max(0.0, self.square + float(explained))

    def solve(self, ridge: float, start: torch.Tensor) -> torch.Tensor | None:
        """Minimise the squared errors plus ``ridge`` times the squared distance from ``start``; None if it is singular.

        The constant is not held back.
        """
        scale = self.gram.diagonal(dim1=1, dim2=2)[:, :-1].mean(1).clamp_min(1e-30)
        penalty = ridge * scale[:, None].expand(-1, self.gram.shape[1]).clone()
        penalty[:, -1] = 0
        system = self.gram + torch.diag_embed(penalty)
        factor, failed = torch.linalg.cholesky_ex(system)
        if failed.any():
            return None
        return start + torch.cholesky_solve(self.cross - self.gram @ start, factor)


def fit(training: NormalEquations, held_out: NormalEquations, start: torch.Tensor) -> Fit | None:
    """Choose the ridge that is best on held-out rows, then solve with all rows.

    Args:
        training: Rows to fit; ``held_out`` is added to it.
        held_out: Rows to choose by.
        start: The weights that are there, [groups, features + 1, outputs].

    Returns:
        None if no ridge makes the held-out error smaller.
    """
    before = held_out.error(start)
    best, after = None, before
    for ridge in RIDGES:
        weight = training.solve(ridge, start)
        if weight is not None and (error := held_out.error(weight)) < after:
            best, after = ridge, error
    if best is None:
        return None
    training.merge(held_out)
    weight = training.solve(best, start)
    if weight is None or not weight.isfinite().all():
        return None
    total = max(held_out.square, 1e-30)
    return Fit(weight, before / total, after / total)
