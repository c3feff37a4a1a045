"""Spatially separable: a k x 1 convolution into few channels, then a 1 x k one out of them."""

from __future__ import annotations

from functools import cached_property

import torch

from shave.passes.factorize.chain import Convolve, Step
from shave.passes.factorize.factorization import Factorization, Factors, Ranks, directions, level, tail
from shave.passes.factorize.layer import Layer


class Separable(Factorization):
    """W [O, C, h, w] into [R, C, h, 1] and [O, R, 1, w].

    The second scheme of M. Jaderberg, A. Vedaldi and A. Zisserman, "Speeding up Convolutional Neural Networks with Low
    Rank Expansions", BMVC 2014: singular values of W as a matrix of (C, h) by (O, w), here in the metric of columns of
    pixels; least squares in the whole metric follow.
    """

    name = "separable"

    @staticmethod
    def why_not(layer: Layer) -> str:
        """See the base class."""
        if layer.window is None or 1 in layer.window.kernel:
            return "separable splits kernels of more than one tap in height and width"
        return ""

    @property
    def limits(self) -> Ranks:
        """See the base class."""
        (outputs, inputs), (height, width) = self.layer.channels, self.layer.tensor.shape[2:]
        return (min(inputs * height, outputs * width),)

    def steps(self, ranks: Ranks) -> tuple[Step, ...]:
        """See the base class."""
        layer, (rank,) = self.layer, ranks
        (outputs, inputs), window = layer.channels, layer.window
        assert window is not None
        down, across = window.along(0), window.along(1)
        return (
            Convolve(layer.rows, inputs, rank, layer.size, down),
            Convolve(layer.rows, rank, outputs, down.outputs(layer.size), across),
        )

    @cached_property
    def _root(self) -> torch.Tensor | None:
        return self.metric.root(tuple(self.layer.tensor.shape[1:]), (0, 1))

    @cached_property
    def _decomposed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies of the directions of (C, h), the largest first, and the directions."""
        (matrix,) = self.unfoldings()
        scaled = matrix if self._root is None else self._root.T @ matrix
        return directions(scaled @ scaled.T)

    def start(self, ranks: Ranks) -> Factors:
        """See the base class."""
        (matrix,), (rank,) = self.unfoldings(), ranks
        (outputs, inputs), (height, width) = self.layer.channels, self.layer.tensor.shape[2:]
        into = back = self._decomposed[1][:, :rank]
        if self._root is not None:  # as in Tucker's
            into = torch.linalg.solve_triangular(self._root.T, into, upper=True)
            back = self._root @ back
        across = (back.T @ matrix).reshape(rank, outputs, 1, width).transpose(0, 1)
        return into.T.reshape(rank, inputs, height, 1), across.contiguous()

    def product(self, factors: Factors) -> torch.Tensor:
        """See the base class."""
        down, across = factors
        return torch.einsum("orw,rch->ochw", across[:, :, 0], down[..., 0]).flatten(1)

    def levelled(self, factors: Factors) -> Factors:
        """See the base class."""
        down, across = factors
        seen = down.flatten(1) if self._root is None else down.flatten(1) @ self._root
        return level(down, across, (seen**2).sum(1))

    def closed(self, ranks: Ranks) -> bool:
        """See the base class."""
        return not self.metric.by_data

    def estimate(self, ranks: Ranks) -> float:
        """See the base class."""
        return tail(self._decomposed[0], ranks[0])

    def unfoldings(self) -> tuple[torch.Tensor, ...]:
        """See the base class."""
        inputs, height = self.layer.tensor.shape[1:3]
        return (self.layer.tensor.permute(1, 2, 0, 3).reshape(inputs * height, -1),)
