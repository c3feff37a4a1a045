from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch

from shave.passes.factorize.chain import Multiply, costs
from shave.passes.factorize.metric import Metric
from shave.passes.factorize.tensor_train import TensorTrain, factor_shapes, why_not_shapes
from tests.passes.factorize.layers import convolution, correlated, error_on, linear, metric_of, only_layer, random

SHAPES = [((2, 3, 4), (5, 2, 3)), ((6, 4), (3, 10)), ((1, 24), (30, 1)), ((2, 2, 3, 2), (5, 3, 1, 2))]


def train(outputs: tuple[int, ...], inputs: tuple[int, ...], rank: int) -> torch.Tensor:
    """A matrix that is a tensor train of the rank, by NumPy alone."""
    d = len(outputs)
    whole = np.ones((1,))
    bonds = (1, *[rank] * (d - 1), 1)
    for k in range(d):
        core = random(bonds[k], outputs[k], inputs[k], bonds[k + 1], seed=k).numpy()
        whole = np.tensordot(whole, core, 1)
    whole = whole[..., 0].transpose(*range(0, 2 * d, 2), *range(1, 2 * d, 2))
    return torch.from_numpy(whole.reshape(prod(outputs), prod(inputs)).copy())


@pytest.mark.parametrize("shapes", SHAPES)
def test_a_train_is_found_again(shapes) -> None:
    layer = only_layer(linear(train(*shapes, 2)))
    method = TensorTrain(layer, Metric(), shapes)
    ranks = tuple(min(2, limit) for limit in method.limits)
    assert method.fit(ranks, 0).error < 1e-9


@pytest.mark.parametrize("shapes", SHAPES)
def test_full_rank_is_the_layer(shapes) -> None:
    layer = only_layer(linear(random(24, 30)))
    method = TensorTrain(layer, Metric(), (shapes[0], shapes[1]))
    assert method.fit(method.limits, 0).error < 1e-18
    factors = method.start(method.limits)
    assert method.product(factors).numpy() == pytest.approx(layer.weight.numpy(), abs=1e-9)


def test_its_error_is_below_that_of_all_unfoldings_together() -> None:
    layer = only_layer(linear(random(24, 30)))
    method = TensorTrain(layer, Metric(), SHAPES[0])
    lost = 0.0
    for rank, matrix in zip((3, 5), method.unfoldings(), strict=True):
        values = np.linalg.svd(matrix.numpy(), compute_uv=False)
        lost += (values[rank:] ** 2).sum() / (values**2).sum()
    assert 0.3 * lost < method.fit((3, 5), 0).error <= lost * (1 + 1e-9)


def test_data_lower_the_error_on_them() -> None:
    layer, rows = only_layer(linear(random(24, 30))), correlated(30)
    plain, fitted = (TensorTrain(layer, m, SHAPES[0]).fit((4, 4), 6) for m in (Metric(), metric_of(rows)))
    assert error_on(rows, layer.weight, fitted.product) < 0.8 * error_on(rows, layer.weight, plain.product)


def test_what_it_computes_and_holds_is_counted() -> None:
    layer = only_layer(linear(random(24, 30), lead=(7,)))
    steps = TensorTrain(layer, Metric(), SHAPES[0]).steps((3, 5))
    products = [step for step in steps if isinstance(step, Multiply)]
    # cores 4 x 3 of bond 5, 3 x 2 of bonds 3 and 5, 2 x 5 of bond 3; the last comes first
    assert [step.weight_shape for step in products] == [(4 * 5, 3), (3 * 3, 5 * 2), (2, 3 * 5)]
    assert [step.rows for step in products] == [7 * 5 * 2, 7 * 5 * 4, 7 * 4 * 3]
    assert costs(steps, None).macs == sum(s.rows * s.inputs * s.outputs for s in products)


@pytest.mark.parametrize("extents", [(4096, 25088), (64, 192), (12, 40), (13, 7), (1, 8), (97, 1000)])
def test_shapes_that_it_chooses_fit_and_are_even(extents) -> None:
    shapes = factor_shapes(*extents)
    assert tuple(map(prod, shapes)) == extents
    assert len(shapes[0]) == len(shapes[1]) >= 2
    if extents == (4096, 25088):
        assert shapes == ((8, 8, 8, 8), (8, 14, 14, 16))


def test_shapes_that_do_not_fit_are_refused() -> None:
    layer = only_layer(linear(random(24, 30)))
    assert why_not_shapes(layer, (4, 6), (5, 6)) == ""
    assert why_not_shapes(layer, (4, 5), (5, 6)) == "out-shape is 4 x 5 = 20, but the layer has 24"
    assert why_not_shapes(layer, (4, 6), (5, 5)) == "in-shape is 5 x 5 = 25, but the layer has 30"
    assert TensorTrain.why_not(only_layer(convolution(random(8, 6, 1, 1), padding=(0, 0))))
