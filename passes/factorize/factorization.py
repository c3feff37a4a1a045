"""What the ways to split a layer have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from shave.passes.factorize.chain import Step
from shave.passes.factorize.fit import alternate
from shave.passes.factorize.layer import Layer
from shave.passes.factorize.metric import Metric

Ranks = tuple[int, ...]
Factors = tuple[torch.Tensor, ...]

LARGE = 2048
"""Rows of a matrix whose eigenvectors take minutes in float64; in float32 a third of that."""
MAX_CANDIDATES = 64
"""Ranks of a method of one rank that are weighed against each other."""


@dataclass(frozen=True)
class Fitted:
    """Weights of a chain.

    Attributes:
        factors: One for each step that has a weight, of its shape; float64.
        product: The weight that they amount to, [out, features].
        error: Energy of its difference from the layer's weight as a share of the weight's own.
    """

    factors: Factors
    product: torch.Tensor
    error: float


class Factorization(ABC):
    """One way to split one layer.

    Attributes:
        name: Of the method, as users write it.
        layer: What is split.
        metric: What an error of its weights amounts to.
    """

    name: ClassVar[str]

    def __init__(self, layer: Layer, metric: Metric) -> None:
        self.layer = layer
        self.metric = metric

    @staticmethod
    @abstractmethod
    def why_not(layer: Layer) -> str:
        """Why the method is not for a layer; empty if it is."""

    @property
    @abstractmethod
    def limits(self) -> Ranks:
        """The largest ranks."""

    @abstractmethod
    def steps(self, ranks: Ranks) -> tuple[Step, ...]:
        """The chain for some ranks."""

    @abstractmethod
    def start(self, ranks: Ranks) -> Factors:
        """Weights of the steps that have any, by a decomposition in closed form: the best ones, or near to it."""

    @abstractmethod
    def product(self, factors: Factors) -> torch.Tensor:
        """The weight [out, features] that a chain with these weights computes with; linear in each of them."""

    @abstractmethod
    def estimate(self, ranks: Ranks) -> float:
        """Roughly what the error will be, without computing the factors."""

    @abstractmethod
    def unfoldings(self) -> tuple[torch.Tensor, ...]:
        """For each rank, the matrix whose rank it is."""

    def candidates(self, multiple: int) -> Iterator[Ranks]:
        """Ranks to choose from.

        Args:
            multiple: What ranks should be multiples of, where the layer is large enough.
        """
        for rank in grid(max(self.limits), multiple):
            yield tuple(min(rank, limit) for limit in self.limits)

    def fit(self, ranks: Ranks, sweeps: int) -> Fitted:
        """Compute the weights for some ranks.

        Args:
            ranks: One for each of :attr:`limits`.
            sweeps: Rounds of least squares over all factors behind the start.
        """
        factors = self.start(ranks)
        if len(factors) > 1 and sweeps and not self.closed(ranks):
            factors = alternate(factors, self.product, self.layer.weight, self.metric, sweeps)
        factors = self.levelled(factors)
        product = self.product(factors)
        weight = self.layer.weight
        return Fitted(factors, product, self.metric.energy(weight - product) / self.metric.energy(weight))

    def levelled(self, factors: Factors) -> Factors:
        """The same product, with equal energies of all channels between two steps: one scale then quantizes them."""
        return factors

    def closed(self, ranks: Ranks) -> bool:
        """Whether :meth:`start` gives the best weights that there are."""
        return False


def level(before: torch.Tensor, behind: torch.Tensor, energies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale the channels between two weights [channels, ..] and [out, channels, ..] to an energy of 1 each."""
    scale = energies.clamp(min=float(energies.max()) * 1e-12).sqrt()
    if not scale.min() > 0:
        return before, behind
    shape = (-1, *[1] * (before.dim() - 1))
    return before / scale.reshape(shape), behind * scale.reshape(1, *shape[:-1])


def grid(limit: int, multiple: int, most: int = MAX_CANDIDATES) -> list[int]:
    """Up to ``most`` ranks, evenly spaced, multiples of ``multiple`` if at least four of them fit."""
    step = multiple if limit >= 4 * multiple else 1
    step *= -(-limit // (step * most))
    return [*range(step, limit, step), limit]


def directions(gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues of a symmetric matrix and its eigenvectors (columns), float64, the largest first.

    The largest component of each vector is positive, so that equal matrices give equal signs everywhere. Beyond
    :data:`LARGE` rows float32 serves: what it confuses has less than a millionth of the largest energy.
    """
    if gram.shape[0] > LARGE:
        scale = gram.diagonal().mean().clamp(min=1e-300)
        values, vectors = (found.double() for found in torch.linalg.eigh((gram / scale).float()))
        values = values * scale
    else:
        values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * torch.where(largest < 0, -1.0, 1.0)


def tail(spectrum: torch.Tensor, rank: int) -> float:
    """Share of the energies (in any order) that the ``rank`` largest leave."""
    values = spectrum.clamp(min=0).sort(descending=True).values
    total = float(values.sum())
    return float(values[rank:].sum()) / total if total else 0.0
