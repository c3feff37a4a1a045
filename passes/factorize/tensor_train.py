"""Tensor train: a linear layer as a chain of small products that never hold the whole matrix."""

from __future__ import annotations

from collections.abc import Iterator
from math import log, prod

import torch

from shave.passes.factorize.chain import Multiply, Reorder, Step
from shave.passes.factorize.factorization import Factorization, Factors, Ranks, directions
from shave.passes.factorize.layer import Layer
from shave.passes.factorize.metric import Metric

Shape = tuple[int, ...]

TYPICAL_FACTOR = 8
"""Factors of the layer's extents are about as large where they are chosen here."""
CANDIDATES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class TensorTrain(Factorization):
    """W [out, in], seen as [m1 .. md, n1 .. nd], into cores G_k [r, m_k, n_k, r'] with ranks r between neighbours.

    A. Novikov et al., "Tensorizing Neural Networks", NIPS 2015; the cores by I. Oseledets, "Tensor-Train
    Decomposition", SIAM J. Sci. Comput. 33(5), 2011, algorithm 1. The chain multiplies with the last core first, for
    which the input lies as it should; core k is a weight [m_k r, r' n_k].
    """

    name = "tensor-train"

    def __init__(self, layer: Layer, metric: Metric, shapes: tuple[Shape, Shape] | None = None) -> None:
        """Split a layer; ``shapes`` are the factors of its outputs and of its inputs, by default chosen."""
        super().__init__(layer, metric)
        self.outputs, self.inputs = shapes or factor_shapes(*layer.channels)

    @staticmethod
    def why_not(layer: Layer) -> str:
        """See the base class."""
        return "" if layer.window is None else "tensor-train splits linear layers alone"

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.outputs, self.inputs, strict=True))

    @property
    def limits(self) -> Ranks:
        """See the base class; one between each two cores."""
        sizes = [m * n for m, n in self._pairs]
        return tuple(min(prod(sizes[:k]), prod(sizes[k:])) for k in range(1, len(sizes)))

    def candidates(self, multiple: int) -> Iterator[Ranks]:
        """See the base class; equal ranks, as far as they go."""
        for rank in CANDIDATES:
            if rank <= max(self.limits):
                yield tuple(min(rank, limit) for limit in self.limits)

    def steps(self, ranks: Ranks) -> tuple[Step, ...]:
        """See the base class."""
        bonds, steps = (1, *ranks, 1), list[Step]()
        done = 1
        for k in range(len(self.outputs) - 1, -1, -1):
            m, n, waiting = self.outputs[k], self.inputs[k], prod(self.inputs[:k])
            inputs, outputs = bonds[k + 1] * n, m * bonds[k]
            rows = self.layer.rows * waiting * done
            if not steps:
                steps.append(Reorder(rows * inputs, (inputs,), (), (inputs,)))
            steps.append(Multiply(rows, inputs, outputs))
            if k:
                # Seen as [.., n, outputs that are done, m, r], it becomes [.., m, outputs that are done, r, n].
                n = self.inputs[k - 1]
                before = (waiting // n, n, done, m, bonds[k])
                steps.append(Reorder(rows * outputs, before, (0, 3, 2, 4, 1), (bonds[k] * n,)))
            else:
                steps.append(Reorder(rows * outputs, (done, m), (1, 0), (m * done,)))
            done *= m
        return tuple(steps)

    def start(self, ranks: Ranks) -> Factors:
        """See the base class."""
        d, cores = len(self.outputs), list[torch.Tensor]()
        order = [axis for k in range(d) for axis in (k, d + k)]
        rest = self.layer.weight.reshape(*self.outputs, *self.inputs).permute(order)
        rank = 1
        for (m, n), bond in zip(self._pairs[:-1], ranks, strict=True):
            matrix = rest.reshape(rank * m * n, -1)
            bond = min(bond, *matrix.shape)
            left = _left_vectors(matrix, bond)
            cores.append(left.reshape(rank, m, n, bond))
            rest, rank = left.T @ matrix, bond
        cores.append(rest.reshape(rank, *self._pairs[-1], 1))
        return tuple(map(_to_weight, cores))[::-1]

    def product(self, factors: Factors) -> torch.Tensor:
        """See the base class."""
        d, whole = len(self.outputs), torch.ones(1, 1, dtype=torch.float64)
        bond = 1
        for weight, (m, n) in zip(reversed(factors), self._pairs, strict=True):
            core = weight.reshape(m, bond, -1, n).permute(1, 0, 3, 2)
            whole = (whole.reshape(-1, bond) @ core.reshape(bond, -1)).reshape(-1, core.shape[-1])
            bond = core.shape[-1]
        pairs = whole.reshape([extent for pair in self._pairs for extent in pair])
        return pairs.permute([*range(0, 2 * d, 2), *range(1, 2 * d, 2)]).reshape(self.layer.weight.shape)

    def estimate(self, ranks: Ranks) -> float:
        """See the base class: nothing is known ahead, but that more is better."""
        return 1 / (1 + sum(ranks))

    def unfoldings(self) -> tuple[torch.Tensor, ...]:
        """See the base class."""
        d = len(self.outputs)
        order = [axis for k in range(d) for axis in (k, d + k)]
        tensor = self.layer.weight.reshape(*self.outputs, *self.inputs).permute(order)
        sizes = [m * n for m, n in self._pairs]
        return tuple(tensor.reshape(prod(sizes[:k]), -1) for k in range(1, d))


def why_not_shapes(layer: Layer, outputs: Shape, inputs: Shape) -> str:
    """Why factor shapes do not fit a layer; empty if they do."""
    for what, shape, extent in zip(("out", "in"), (outputs, inputs), layer.channels, strict=True):
        if prod(shape) != extent:
            return f"{what}-shape is {' x '.join(map(str, shape))} = {prod(shape)}, but the layer has {extent}"
    return ""


def factor_shapes(outputs: int, inputs: int) -> tuple[Shape, Shape]:
    """Factors of two extents, equally many, each product as even as its primes allow."""
    count = max(2, round(log(min(outputs, inputs), TYPICAL_FACTOR)))
    return _even(outputs, count), _even(inputs, count)


def _even(extent: int, count: int) -> Shape:
    factors = [1] * count
    for prime in sorted(_primes(extent), reverse=True):
        factors[factors.index(min(factors))] *= prime
    return tuple(sorted(factors))


def _primes(n: int) -> list[int]:
    found, prime = [], 2
    while prime * prime <= n:
        while n % prime == 0:
            found.append(prime)
            n //= prime
        prime += 1
    return [*found, n] if n > 1 else found


def _to_weight(core: torch.Tensor) -> torch.Tensor:
    """Core [r, m, n, r'] as the weight [m r, r' n] of a step."""
    return core.permute(1, 0, 3, 2).reshape(core.shape[1] * core.shape[0], -1).contiguous()


def _left_vectors(matrix: torch.Tensor, count: int) -> torch.Tensor:
    """The first left singular vectors [rows, count], by the smaller of both Gram matrices."""
    if matrix.shape[0] <= matrix.shape[1]:
        return directions(matrix @ matrix.T)[1][:, :count]
    vectors: torch.Tensor = matrix @ directions(matrix.T @ matrix)[1][:, :count]
    norms: torch.Tensor = vectors.norm(dim=0)
    return vectors / norms.clamp(min=1e-300)
