"""Means and covariances of what layers read while a program runs, in memory that more samples do not add to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from shave.ir.program import Program

Rows = Callable[[torch.Tensor], torch.Tensor]
"""Turns the value that a node reads into rows [samples, features]."""


@dataclass
class Moments:
    """First and second moments of rows, summed in float64.

    Attributes:
        count: Rows seen.
        total: Their sum [features].
        products: Sum of their outer products [features, features].
    """

    count: int
    total: torch.Tensor
    products: torch.Tensor

    @staticmethod
    def empty(features: int) -> Moments:
        """Moments of no rows."""
        return Moments(
            0, torch.zeros(features, dtype=torch.float64), torch.zeros(features, features, dtype=torch.float64)
        )

    def add(self, rows: torch.Tensor) -> None:
        """Count in rows [samples, features]."""
        rows = rows.double()
        self.count += rows.shape[0]
        self.total += rows.sum(0)
        self.products.addmm_(rows.T, rows)

    @property
    def mean(self) -> torch.Tensor:
        """[features]."""
        return self.total / max(1, self.count)

    @property
    def covariance(self) -> torch.Tensor:
        """[features, features], of the distance from the mean."""
        mean = self.mean
        return self.products / max(1, self.count) - torch.outer(mean, mean)

    def shrunk(self) -> tuple[torch.Tensor, float]:
        """The covariance moved towards a multiple of the identity, and by which share.

        The share is that of the oracle approximating shrinkage: the fewer rows, the larger (Y. Chen, A. Wiesel, Y.
        Eldar, A. Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE TSP 58(10), 2010, equation 23). It
        is never below 1e-6, so that the result can be inverted unless all rows are equal.
        """
        covariance = self.covariance
        features = covariance.shape[0]
        trace = covariance.trace()
        squares, product = (covariance**2).sum(), trace**2
        above = (1 - 2 / features) * squares + product
        below = (self.count + 1 - 2 / features) * (squares - product / features)
        share = float((above / below).clamp(1e-6, 1)) if self.count > 1 and below > 0 else 1.0
        covariance.mul_(1 - share).diagonal().add_(share * trace / features)
        return covariance, share


def input_moments(
    program: Program, readers: Mapping[fx.Node, tuple[fx.Node, int, Rows]], batches: Iterable[Sequence[torch.Tensor]]
) -> dict[fx.Node, Moments]:
    """Run a program on data and take the moments of what some of its nodes read.

    Args:
        program: What runs, in torch, without gradients.
        readers: For each node, the node whose value it reads, the number of features, and what turns that value into
            rows of as many.
        batches: Input tuples that fit the program.

    Returns:
        By node, in the order of ``readers``.
    """
    found = {node: Moments.empty(features) for node, (_, features, _) in readers.items()}
    collector = _Collector(program.module, readers, found)
    with torch.no_grad():
        for batch in batches:
            collector.run(*batch)
    return found


class _Collector(fx.Interpreter):
    def __init__(
        self,
        module: fx.GraphModule,
        readers: Mapping[fx.Node, tuple[fx.Node, int, Rows]],
        found: Mapping[fx.Node, Moments],
    ) -> None:
        super().__init__(module)
        self._readers = readers
        self._found = found

    def run_node(self, n: fx.Node) -> Any:
        if n in self._readers:
            source, _, rows = self._readers[n]
            self._found[n].add(rows(self.env[source]))
        return super().run_node(n)
