"""Tucker-2: a 1x1 convolution into few channels, the k x k one among them, and a 1x1 one out of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import product as pairs

import torch

from shave.passes.factorize.chain import Convolve, Step
from shave.passes.factorize.factorization import Factorization, Factors, Ranks, directions, grid, level, tail
from shave.passes.factorize.layer import Layer, Window

MAX_CANDIDATES = 12
"""Ranks along each of the two modes that are weighed against each other, in all pairs."""


class Tucker(Factorization):
    """W [O, C, h, w] into [O, R], [R, Q, h, w] and [Q, C]; ranks are (R, Q), outputs first.

    Y. Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR
    2016. The factor of the outputs is the best for the metric (see :class:`shave.passes.factorize.svd.Svd`), that of
    the inputs the best for the covariance of channels alone; least squares in the whole metric follow. A rank that is
    full stands for no factor: the chain then is one convolution shorter.
    """

    name = "tucker"

    @staticmethod
    def why_not(layer: Layer) -> str:
        """See the base class."""
        if layer.window is None or layer.window.pointwise:
            return "tucker splits kernels of more than one tap: svd is for this layer"
        return ""

    @property
    def limits(self) -> Ranks:
        """See the base class."""
        return self.layer.channels

    def steps(self, ranks: Ranks) -> tuple[Step, ...]:
        """See the base class."""
        layer, (out, middle) = self.layer, ranks
        (outputs, inputs), window = layer.channels, layer.window
        assert window is not None
        narrow = Convolve(layer.rows, inputs, middle, layer.size, Window((1, 1)))
        core = Convolve(layer.rows, middle, out, layer.size, window)
        widen = Convolve(layer.rows, out, outputs, window.outputs(layer.size), Window((1, 1)))
        return (*[narrow] * (middle < inputs), core, *[widen] * (out < outputs))

    def candidates(self, multiple: int) -> Iterator[Ranks]:
        """See the base class; both ranks by themselves."""
        return pairs(*(grid(limit, multiple, MAX_CANDIDATES) for limit in self.limits))

    @cached_property
    def _outputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies of the outputs' directions, the largest first, and the directions [O, O]."""
        return directions(self.metric.outputs(self.layer.weight))

    @cached_property
    def _root(self) -> torch.Tensor | None:
        """Of the covariance of the channels, [C, C]."""
        return self.metric.root(tuple(self.layer.tensor.shape[1:]), (0,))

    def _inputs(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Energies of the inputs' directions and the directions [C, C] of a weight, in the metric of the channels."""
        unfolded = weight.transpose(0, 1).flatten(1)
        scaled = unfolded if self._root is None else self._root.T @ unfolded
        return directions(scaled @ scaled.T)

    @cached_property
    def _input_energies(self) -> torch.Tensor:
        return self._inputs(self.layer.tensor)[0]

    def start(self, ranks: Ranks) -> Factors:
        """See the base class."""
        (out, middle), (outputs, inputs) = ranks, self.layer.channels
        core, last = self.layer.tensor, self._outputs[1][:, :out]
        before, behind = [], []
        if out < outputs:
            core = torch.einsum("or,ochw->rchw", last, core)
            behind.append(last[:, :, None, None])
        if middle < inputs:
            # With L L' the covariance of the channels and V the directions of L' W: W = (L^-T V) (L V)' W.
            into = back = self._inputs(core)[1][:, :middle]
            if self._root is not None:
                into = torch.linalg.solve_triangular(self._root.T, into, upper=True)
                back = self._root @ back
            core = torch.einsum("cq,rchw->rqhw", back, core)
            before.append(into.T[:, :, None, None])
        return (*before, core, *behind)

    def product(self, factors: Factors) -> torch.Tensor:
        """See the base class."""
        left = list(factors)
        core = left.pop(0)
        if core.shape[2:] == (1, 1):
            core = torch.einsum("rqhw,qc->rchw", left.pop(0), core[:, :, 0, 0])
        return left[0][:, :, 0, 0] @ core.flatten(1) if left else core.flatten(1)

    def levelled(self, factors: Factors) -> Factors:
        """See the base class."""
        left = list(factors)
        last = left.pop() if len(left) > 1 and left[-1].shape[2:] == (1, 1) else None
        if len(left) == 2:
            narrow = left[0].flatten(1)
            seen = narrow if self._root is None else narrow @ self._root
            left = [*level(left[0], left[1], (seen**2).sum(1))]
        if last is not None:
            inner = self.product(tuple(left))
            left[-1], last = level(left[-1], last, (self.metric.apply(inner) * inner).sum(1))
        return (*left, *([] if last is None else [last]))

    def estimate(self, ranks: Ranks) -> float:
        """See the base class."""
        out, middle = ranks
        return min(1.0, tail(self._outputs[0], out) + tail(self._input_energies, middle))

    def unfoldings(self) -> tuple[torch.Tensor, ...]:
        """See the base class."""
        return self.layer.weight, self.layer.tensor.transpose(0, 1).flatten(1)
