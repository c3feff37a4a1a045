"""Singular values: a layer of rank K is one into K channels, with the layer's windows, and one out of them."""

from __future__ import annotations

from functools import cached_property

import torch

from shave.passes.factorize.chain import Convolve, Multiply, Step
from shave.passes.factorize.factorization import Factorization, Factors, Ranks, directions, tail
from shave.passes.factorize.layer import Layer, Window


class Svd(Factorization):
    """W [out, features] into [out, K] times [K, features].

    The best W of rank K in the metric S is U U' W, where the columns of U are the K largest eigenvectors of the
    outputs' covariance W S W': no inverse of S is needed. Without data that is the truncated singular value
    decomposition; with data, what Zhang et al. do ("Accelerating Very Deep Convolutional Networks for Classification
    and Detection", TPAMI 2016, section 3.1). The channels between have equal variances.
    """

    name = "svd"

    @staticmethod
    def why_not(layer: Layer) -> str:
        """See the base class."""
        return ""

    @property
    def limits(self) -> Ranks:
        """See the base class."""
        return (min(self.layer.weight.shape),)

    def steps(self, ranks: Ranks) -> tuple[Step, ...]:
        """See the base class."""
        layer, (rank,) = self.layer, ranks
        outputs, inputs = layer.channels
        if layer.window is None:
            return Multiply(layer.rows, inputs, rank), Multiply(layer.rows, rank, outputs)
        return (
            Convolve(layer.rows, inputs, rank, layer.size, layer.window),
            Convolve(layer.rows, rank, outputs, layer.window.outputs(layer.size), Window((1, 1))),
        )

    @cached_property
    def _decomposed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Eigenvalues of W S W', the largest first, and U."""
        weight = self.layer.weight
        if weight.shape[0] <= weight.shape[1] or self.metric.rows is not None:
            return directions(self.metric.outputs(weight))
        root = self.metric.root((weight.shape[1],), (0,))  # more outputs than features: the other side is smaller
        scaled = weight if root is None else weight @ root
        values, vectors = directions(scaled.T @ scaled)
        return values, scaled @ vectors / values.clamp(min=float(values[0]) * 1e-24).sqrt()

    def start(self, ranks: Ranks) -> Factors:
        """See the base class."""
        values, vectors = self._decomposed
        (rank,) = ranks
        scale = values[:rank].clamp(min=float(values[0]) * 1e-12).sqrt()
        first, last = vectors[:, :rank].T @ self.layer.weight / scale[:, None], vectors[:, :rank] * scale
        if self.layer.window is None:
            return first, last
        return first.reshape(rank, -1, *self.layer.window.kernel), last[:, :, None, None]

    def closed(self, ranks: Ranks) -> bool:
        """See the base class."""
        return True

    def product(self, factors: Factors) -> torch.Tensor:
        """See the base class."""
        first, last = (factor.flatten(1) for factor in factors)
        return last @ first

    def estimate(self, ranks: Ranks) -> float:
        """See the base class; it is exact."""
        return tail(self._decomposed[0], ranks[0])

    def unfoldings(self) -> tuple[torch.Tensor, ...]:
        """See the base class."""
        return (self.layer.weight,)
