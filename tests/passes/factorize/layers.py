"""Layers by themselves, with weights of a known make, for the tests of this folder."""

from __future__ import annotations

from typing import Any

import torch

from shave.ir.program import Program
from shave.passes.factorize.layer import Layer, is_candidate, read
from shave.passes.factorize.metric import Metric
from shave.passes.statistics import Moments
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten


def convolution(
    weight: torch.Tensor,
    *,
    size: tuple[int, int] = (9, 11),
    stride: tuple[int, int] = (1, 1),
    padding: Any = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    bias: bool = True,
    batch: int = 2,
) -> Program:
    """One convolution of an image; names are those of a module ``layer``."""
    weights = {"layer.weight": weight.float()}
    if bias:
        weights |= draw({"layer.bias": (weight.shape[0],)})
    x = {"x": torch.zeros(batch, weight.shape[1], *size)}
    settings = [list(stride), list(padding), list(dilation)]

    if bias:
        return program_of(lambda x, w, b: aten.conv2d.default(x, w, b, *settings), x, weights)
    return program_of(lambda x, w: aten.conv2d.default(x, w, None, *settings), x, weights)


def linear(weight: torch.Tensor, *, lead: tuple[int, ...] = (5,), bias: bool = True, **given: Any) -> Program:
    """One linear layer."""
    weights = {"layer.weight": weight.float()}
    if bias:
        weights |= draw({"layer.bias": (weight.shape[0],)})
    function = (lambda x, w, b: aten.linear.default(x, w, b)) if bias else (lambda x, w: aten.linear.default(x, w))
    return program_of(function, {"x": torch.zeros(*lead, weight.shape[1])}, weights, **given)


def only_layer(program: Program) -> Layer:
    """The one layer of a program, which can be split."""
    (node,) = filter(is_candidate, program.calls)
    layer = read(program, node)
    assert isinstance(layer, Layer), layer
    return layer


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal, float64, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def correlated(features: int, rows: int = 4000, seed: int = 1) -> torch.Tensor:
    """Rows [rows, features] whose directions differ in variance by orders of magnitude, and whose mean is not 0."""
    scales = torch.logspace(0, -2, features, dtype=torch.float64)
    mixed = random(rows, features, seed=seed) * scales @ torch.linalg.qr(random(features, features, seed=seed + 1))[0]
    return mixed + random(features, seed=seed + 2)


def metric_of(rows: torch.Tensor) -> Metric:
    """What errors on these rows are."""
    moments = Moments.empty(rows.shape[1])
    moments.add(rows)
    return Metric.of(moments)


def error_on(rows: torch.Tensor, weight: torch.Tensor, product: torch.Tensor) -> float:
    """Energy of the output's error on rows as a share of the output's, means apart: in NumPy's plain words."""
    x = (rows - rows.mean(0)).numpy()
    wanted, made = x @ weight.numpy().T, x @ product.numpy().T
    return float(((wanted - made) ** 2).sum() / (wanted**2).sum())
