"""What the nodes of a program give while it runs on data, above all means and covariances of what layers read.

Memory does not grow with the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from shave.ir.program import Program

Rows = Callable[[torch.Tensor], torch.Tensor]
"""Turns the value that a node reads into rows [samples, features]."""
Watcher = Callable[[torch.Tensor], None]
"""Is shown the value of a node, once for each batch."""

MAX_FEATURES = 8192
"""Of more no covariance is summed: half a gigabyte it would be."""
SAMPLE_ROWS = 2048
"""Rows that stand for a covariance of more features."""


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
        """The covariance moved towards a multiple of the identity, and by which share."""
        covariance = self.covariance
        features, trace = covariance.shape[0], float(covariance.trace())
        share = shrinkage(trace, float((covariance**2).sum()), features, self.count)
        covariance.mul_(1 - share).diagonal().add_(share * trace / features)
        return covariance, share


class Sample:
    """Some of many rows, each as likely as any other: for so many features that their covariance would fill memory.

    J. Vitter, "Random Sampling with a Reservoir", ACM TOMS 11(1), 1985, algorithm R.

    Attributes:
        count: Rows seen.
        total: Their sum [features].
    """

    def __init__(self, features: int, generator: torch.Generator) -> None:
        self.count = 0
        self.total = torch.zeros(features, dtype=torch.float64)
        self._generator = generator
        self._rows = torch.zeros(0, features)

    def add(self, rows: torch.Tensor) -> None:
        """Count in rows [samples, features]."""
        self.total += rows.double().sum(0)
        fill = SAMPLE_ROWS - len(self._rows)
        self._rows = torch.cat([self._rows, rows[:fill].float()])
        seen = self.count + min(fill, len(rows))
        self.count += len(rows)
        for number, row in enumerate(rows[fill:], seen + 1):
            place = int(torch.randint(number, (), generator=self._generator))
            if place < SAMPLE_ROWS:
                self._rows[place] = row

    @property
    def mean(self) -> torch.Tensor:
        """[features]."""
        return self.total / max(1, self.count)

    def shrunk(self) -> tuple[torch.Tensor, float, float]:
        """The covariance as R' R + ridge I, shrunk as :meth:`Moments.shrunk` does.

        Returns:
            R [rows, features], float64; the ridge; the share.
        """
        count, features = self._rows.shape
        rows = (self._rows.double() - self.mean) / max(1, count) ** 0.5
        gram = rows @ rows.T
        trace = float(gram.trace())
        share = shrinkage(trace, float((gram**2).sum()), features, count)
        return rows.mul_((1 - share) ** 0.5), share * trace / features, share


def shrinkage(trace: float, squares: float, features: int, count: int) -> float:
    """How far to move a covariance towards a multiple of the identity: the fewer rows, the larger.

    Oracle approximating shrinkage (Y. Chen, A. Wiesel, Y. Eldar, A. Hero, "Shrinkage Algorithms for MMSE Covariance
    Estimation", IEEE TSP 58(10), 2010, equation 23). It is never below 1e-6, so that the result can be inverted unless
    all rows are equal.

    Args:
        trace: Of the covariance.
        squares: Sum of the squares of its elements.
        features: Its extent.
        count: Rows that it was taken from.
    """
    product = trace**2
    above = (1 - 2 / features) * squares + product
    below = (count + 1 - 2 / features) * (squares - product / features)
    return min(max(above / below, 1e-6), 1.0) if count > 1 and below > 0 else 1.0


def input_moments(
    program: Program, readers: Mapping[fx.Node, tuple[fx.Node, int, Rows]], batches: Iterable[Sequence[torch.Tensor]]
) -> dict[fx.Node, Moments | Sample]:
    """Run a program on data and take the moments of what some of its nodes read.

    Args:
        program: What runs, in torch, without gradients.
        readers: For each node, the node whose value it reads, the number of features, and what turns that value into
            rows of as many.
        batches: Input tuples that fit the program.

    Returns:
        By node, in the order of ``readers``; of more than :data:`MAX_FEATURES` a sample.
    """
    found: dict[fx.Node, Moments | Sample] = {}
    watched: dict[fx.Node, list[Watcher]] = {}
    for node, (source, features, rows) in readers.items():
        many = features > MAX_FEATURES
        sums = Sample(features, torch.Generator().manual_seed(0)) if many else Moments.empty(features)
        found[node] = sums
        watched.setdefault(source, []).append(partial(_add_rows, sums, rows))
    watch(program, watched, batches)
    return found


def _add_rows(sums: Moments | Sample, rows: Rows, value: torch.Tensor) -> None:
    sums.add(rows(value))


def watch(
    program: Program, watched: Mapping[fx.Node, Sequence[Watcher]], batches: Iterable[Sequence[torch.Tensor]]
) -> None:
    """Run a program on data, in torch and without gradients, and show the values of some nodes as they come."""
    with torch.no_grad():
        for batch in batches:
            _Interpreter(program.module, watched).run(*batch)


class _Interpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, watched: Mapping[fx.Node, Sequence[Watcher]]) -> None:
        super().__init__(module)
        self._watched = watched

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        for watcher in self._watched.get(n, ()):
            watcher(value)
        return value
