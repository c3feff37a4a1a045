"""Rounding that makes up for its own errors: of a weight's outputs, not of its elements."""

from __future__ import annotations

import torch
from torch import fx

from shave.ir.ops import argument, op_name
from shave.ir.program import Program
from shave.passes.quantize.affine import Scheme
from shave.passes.quantize.products import product_of
from shave.passes.repair.layer import Layer, layer_of

MAX_FEATURES = 2048
"""Of one group of a layer: the sums of products of more would take too much memory and time."""
POSITIONS = 64
"""Rows that one sample gives at most: what lies close by is alike."""
_DAMPING = 1e-2
_BLOCK = 64
_SWEEPS = 10


class Gram:
    """Sums of products of what a layer reads: memory does not grow with the samples.

    Args:
        program: That the layer belongs to.
        node: The layer.
        seed: Draws the rows.

    Attributes:
        why_not: Why nothing can be told of the layer; empty if it can.
        sums: [groups, features, features], float64.
    """

    def __init__(self, program: Program, node: fx.Node, seed: int) -> None:
        self._layer = layer_of(program, node)
        product = product_of(program, node)
        self.why_not = ""
        self.groups = 1
        if self._layer is not None:
            self.groups = self._layer.groups
        elif (
            product is None or op_name(node) not in ("aten.matmul", "aten.mm", "aten.addmm") or product.data == "other"
        ):
            self.why_not = f"what {op_name(node)} reads is not in rows"
            return
        weight = argument(node, product.weight if product is not None else "weight").meta["val"]
        features = int(weight[0].numel() if self._layer is not None else weight.shape[0])
        if features > MAX_FEATURES:
            self.why_not = f"it has more than {MAX_FEATURES} features"
            return
        self.rows = 0
        self.sums = torch.zeros(self.groups, features, features, dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(seed)

    def observe(self, values: torch.Tensor) -> None:
        """Take in what the layer reads."""
        rows = self._rows(values).double()
        self.rows += rows.shape[1]
        self.sums.baddbmm_(rows.mT, rows)

    def _rows(self, values: torch.Tensor) -> torch.Tensor:
        """[groups, rows, features]."""
        layer = self._layer
        if layer is None or not layer.spatial:
            flat = values.reshape(-1, values.shape[-1])
            return flat[self._draw(len(flat), len(values))][None]
        return layer.features(values, self._draw(_positions(layer, values), len(values)))[..., :-1]

    def _draw(self, total: int, samples: int) -> torch.Tensor:
        return torch.randperm(total, generator=self._generator)[: samples * POSITIONS]


def to_least_error(
    rows: torch.Tensor, scales: torch.Tensor, scheme: Scheme, gram: torch.Tensor
) -> tuple[torch.Tensor, float, float]:
    """Round weights one by one, and let those that follow make up for the error of each.

    E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ", ICLR 2023, algorithm 1: exact second-order rounding in a
    fixed order, with the same aim as AdaRound's (M. Nagel et al., ICML 2020). Then weights are rounded anew one after
    the other, given all others, until none moves.

    Args:
        rows: Weights [outputs, features].
        scales: Of each weight, [outputs, features].
        scheme: The integers.
        gram: Sums of products of the features [features, features].

    Returns:
        The integers as float64, and the mean squared error of the outputs if each weight is rounded to the nearest
        integer, and as returned; both relative to the mean square of the outputs.
    """
    damped = gram + _DAMPING * gram.diagonal().mean().clamp_min(1e-30) * torch.eye(len(gram), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)
    left = rows.double().clone()
    steps = scales.double()
    integers = torch.zeros_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        end = min(start + _BLOCK, left.shape[1])
        errors = torch.zeros(len(left), end - start, dtype=torch.float64)
        for column in range(start, end):
            step = steps[:, column]
            integers[:, column] = torch.round(left[:, column] / step).clamp(scheme.low, scheme.high)
            error = (left[:, column] - integers[:, column] * step) / upper[column, column]
            left[:, column + 1 : end] -= torch.outer(error, upper[column, column + 1 : end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ upper[start:end, end:]
    integers = _settled(integers, rows.double(), steps, scheme, damped)
    nearest = torch.round(rows.double() / steps).clamp(scheme.low, scheme.high)
    power = max(_quadratic(rows.double(), gram), 1e-300)
    before, after = (_quadratic(rows.double() - found * steps, gram) / power for found in (nearest, integers))
    return (integers, before, after) if after < before else (nearest, before, before)


def _settled(
    integers: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor, scheme: Scheme, gram: torch.Tensor
) -> torch.Tensor:
    """Descend along one weight at a time; each takes the integer that is best for the others as they are."""
    slopes = (rows - integers * steps) @ gram
    for _ in range(_SWEEPS):
        before = integers.clone()
        for column in range(rows.shape[1]):
            step, old = steps[:, column], integers[:, column]
            best = torch.round(old + slopes[:, column] / (gram[column, column] * step)).clamp(scheme.low, scheme.high)
            slopes -= torch.outer((best - old) * step, gram[column])
            integers[:, column] = best
        if torch.equal(integers, before):
            break
    return integers


def _quadratic(rows: torch.Tensor, gram: torch.Tensor) -> float:
    return float(((rows @ gram) * rows).sum())


def _positions(layer: Layer, values: torch.Tensor) -> int:
    """Rows of the output: samples times places, as the operator itself has it."""
    node = layer.node
    given = {parameter.name: argument(node, parameter.name) for parameter in node.target._schema.arguments}  # type: ignore[union-attr]
    weight = torch.empty(layer.weight.meta["val"].shape, device="meta")
    assert callable(node.target)
    output = node.target(**given | {"input": values.to("meta"), "weight": weight, "bias": None})
    return int(output.numel() // output.shape[1])
