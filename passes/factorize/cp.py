"""CP: a 1x1 convolution, a k x 1 and a 1 x k one on each channel by itself, and a 1x1 one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cached_property
from math import prod

import tensorly
import torch
from tensorly.decomposition import parafac

from shave.passes.factorize.chain import Convolve, Step
from shave.passes.factorize.factorization import Factorization, Factors, Ranks, grid, tail
from shave.passes.factorize.layer import Layer, Window

ITERATIONS = 60
CANDIDATES = 6
"""Ranks to choose from: each costs a decomposition of its own, as none is part of a larger one."""


class Cp(Factorization):
    """W [O, C, h, w] into a sum of R products of vectors: [R, C, 1, 1], [R, 1, h, 1], [R, 1, 1, w] and [O, R, 1, 1].

    V. Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", ICLR 2015.
    Alternating least squares of tensorly, in the metric of the channels; those in the whole metric follow.
    """

    name = "cp"

    @staticmethod
    def why_not(layer: Layer) -> str:
        """See the base class."""
        if layer.window is None or layer.window.pointwise:
            return "cp splits kernels of more than one tap: svd is for this layer"
        return ""

    @property
    def limits(self) -> Ranks:
        """See the base class; no tensor needs more."""
        shape = self.layer.tensor.shape
        return (prod(shape) // max(shape),)

    def candidates(self, multiple: int) -> Iterator[Ranks]:
        """See the base class; up to the rank at which the chain has as many weights as the layer."""
        shape = self.layer.tensor.shape
        ranks = grid(max(1, prod(shape) // sum(shape)), multiple)
        return iter([(rank,) for rank in ranks[:: -(-len(ranks) // CANDIDATES)]])

    def steps(self, ranks: Ranks) -> tuple[Step, ...]:
        """See the base class."""
        layer, (rank,) = self.layer, ranks
        (outputs, inputs), window = layer.channels, layer.window
        assert window is not None
        down, across, point = window.along(0), window.along(1), Window((1, 1))
        middle, end = down.outputs(layer.size), window.outputs(layer.size)
        return (
            Convolve(layer.rows, inputs, rank, layer.size, point),
            Convolve(layer.rows, rank, rank, layer.size, down, groups=rank),
            Convolve(layer.rows, rank, rank, middle, across, groups=rank),
            Convolve(layer.rows, rank, outputs, end, point),
        )

    @cached_property
    def _root(self) -> torch.Tensor | None:
        return self.metric.root(tuple(self.layer.tensor.shape[1:]), (0,))

    def start(self, ranks: Ranks) -> Factors:
        """See the base class."""
        tensor = self.layer.tensor
        if self._root is not None:
            tensor = torch.einsum("cd,ochw->odhw", self._root, tensor)
        with tensorly.backend_context("numpy", local_threadsafe=True), warnings.catch_warnings():
            # It warns that there are fewer singular vectors than the rank; it draws the rest.
            warnings.simplefilter("ignore", UserWarning)
            _, found = parafac(tensor.numpy(), ranks[0], n_iter_max=ITERATIONS, init="svd", random_state=0, tol=1e-7)
        out, into, down, across = _balanced([torch.from_numpy(factor) for factor in found])
        if self._root is not None:
            into = torch.linalg.solve_triangular(self._root.T, into, upper=True)
        return (
            into.T[:, :, None, None].contiguous(),
            down.T[:, None, :, None].contiguous(),
            across.T[:, None, None, :].contiguous(),
            out[:, :, None, None].contiguous(),
        )

    def product(self, factors: Factors) -> torch.Tensor:
        """See the base class."""
        into, down, across, out = factors
        taps = down[:, 0] * across[:, 0]
        return torch.einsum("or,rcw->ocw", out[:, :, 0, 0], into[:, :, :, 0] * taps.flatten(1)[:, None]).flatten(1)

    def estimate(self, ranks: Ranks) -> float:
        """See the base class: what the matrices of inputs and outputs lose at the same rank, and so less than it is."""
        return max(tail(torch.linalg.eigvalsh(m @ m.T), ranks[0]) for m in self.unfoldings())

    def unfoldings(self) -> tuple[torch.Tensor, ...]:
        """See the base class; its rank is the larger one of two."""
        return self.layer.weight, self.layer.tensor.transpose(0, 1).flatten(1)


def _balanced(factors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Factors [extent, R] with equal norms for each of the R products."""
    norms = torch.stack([factor.norm(dim=0).clamp(min=1e-30) for factor in factors])
    mean = norms.log().mean(0).exp()
    return [factor * (mean / norm) for factor, norm in zip(factors, norms, strict=True)]
