"""How far a layer's output moves when its weights do: measured on data where there is some."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import cast

import torch

from shave.passes.statistics import Moments, Sample


@dataclass(frozen=True)
class Metric:
    """Weighs differences of weights D, [out, features], by what they do to the output: tr(D S D').

    S is the covariance of the layer's input, for a convolution that of its windows. Its mean has no part in the error,
    as the bias takes up what a difference makes of it: b + D mean. Without data S is the identity.

    Attributes:
        covariance: S, positive definite, float64 [features, features]; None for the identity, and where there are rows.
        rows: R of S = R' R + ridge I, float64 [rows, features], for so many features that S is never written out.
        ridge: See ``rows``.
        mean: Of the input, float64 [features]; None without data.
        note: What the user should know of the data; empty if nothing.
    """

    covariance: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    ridge: float = 0.0
    mean: torch.Tensor | None = None
    note: str = ""

    @staticmethod
    def of(moments: Moments | Sample) -> Metric:
        """From what a layer read; the covariance is shrunk by as much as its rows are few."""
        features = moments.total.shape[0]
        if moments.count < 2:
            return Metric(note=f"{moments.count} rows of data are too few: by weights alone")
        metric, share = _shrunk(moments)
        energy = metric.trace
        if not isfinite(energy):
            return Metric(note="what it reads is not finite: by weights alone")
        if not energy > 1e-12 * float((moments.mean**2).sum()):
            return Metric(note="what it reads never varies: by weights alone")
        few = moments.count < 2 * features
        note = f"{moments.count} rows of data for {features} features: covariance shrunk by {share:.2g}" if few else ""
        return replace(metric, mean=moments.mean, note=note)

    @property
    def by_data(self) -> bool:
        """Whether S is another than the identity."""
        return self.covariance is not None or self.rows is not None

    @property
    def trace(self) -> float:
        """tr(S), where there is data."""
        if self.rows is not None:
            return float(self.rows.square().sum()) + self.ridge * self.rows.shape[1]
        assert self.covariance is not None
        return float(self.covariance.trace())

    def apply(self, matrix: torch.Tensor) -> torch.Tensor:
        """D S."""
        if self.rows is not None:
            return (matrix @ self.rows.T) @ self.rows + self.ridge * matrix
        return matrix if self.covariance is None else matrix @ self.covariance

    def energy(self, matrix: torch.Tensor) -> float:
        """tr(D S D')."""
        return float(torch.dot(self.apply(matrix).flatten(), matrix.flatten()))  # without a third matrix

    def outputs(self, matrix: torch.Tensor) -> torch.Tensor:
        """D S D': the covariance of the outputs, [out, out]."""
        return self.apply(matrix) @ matrix.T

    def root(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> torch.Tensor | None:
        """L of the covariance L L' of some axes of the features alone; None for the identity.

        Args:
            shape: The features as a tensor.
            axes: Which of its axes; the covariances at equal places along the others are summed.

        Returns:
            Lower triangular [product of the axes' extents] squared.
        """
        if not self.by_data:
            return None
        rank, others = len(shape), [axis for axis in range(len(shape)) if axis not in axes]
        kept, summed = prod(shape[axis] for axis in axes), prod(shape[axis] for axis in others)
        if self.rows is not None:
            flat = self.rows.reshape(-1, *shape).permute(0, *(1 + a for a in others), *(1 + a for a in axes))
            flat = flat.reshape(-1, kept)
            gram = flat.T @ flat
            gram.diagonal().add_(self.ridge * summed)
            return cast(torch.Tensor, torch.linalg.cholesky(gram))
        assert self.covariance is not None
        view = self.covariance.reshape(*shape, *shape)
        order = [*axes, *(rank + axis for axis in axes), *others, *(rank + axis for axis in others)]
        blocks = view.permute(order).reshape(kept, kept, summed, summed)
        root: torch.Tensor = torch.linalg.cholesky(blocks.diagonal(dim1=2, dim2=3).sum(-1))
        return root


def _shrunk(moments: Moments | Sample) -> tuple[Metric, float]:
    if isinstance(moments, Moments):
        covariance, share = moments.shrunk()
        return Metric(covariance), share
    rows, ridge, share = moments.shrunk()
    return Metric(rows=rows, ridge=ridge), share
