"""Tucker, CP and separable convolutions: what holds for all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from shave.passes.factorize.chain import Convolve, costs
from shave.passes.factorize.cp import Cp
from shave.passes.factorize.factorization import Factorization, Ranks
from shave.passes.factorize.metric import Metric
from shave.passes.factorize.separable import Separable
from shave.passes.factorize.svd import Svd
from shave.passes.factorize.tucker import Tucker
from tests.passes.factorize.layers import convolution, correlated, error_on, linear, metric_of, only_layer, random

METHODS: list[tuple[type[Factorization], Ranks]] = [
    (Svd, (5,)),
    (Tucker, (4, 3)),
    (Tucker, (8, 3)),
    (Tucker, (4, 6)),
    (Separable, (6,)),
    (Cp, (7,)),
]
WINDOWS = [
    {},
    {"stride": (2, 1), "padding": (0, 2)},
    {"dilation": (2, 1), "padding": (2, 1)},
    {"stride": (2, 2), "padding": (1, 0), "size": (10, 7)},
]


def of(kind: type[Factorization], rank: Ranks, kernel: tuple[int, int] = (3, 3)) -> torch.Tensor:
    """A weight [8, 6, *kernel] that is exactly of the rank."""
    h, w = kernel
    if kind is Svd:
        return (random(8, *rank) @ random(*rank, 6 * h * w, seed=1)).reshape(8, 6, h, w)
    if kind is Tucker:
        return torch.einsum(
            "or,rqhw,qc->ochw", random(8, rank[0]), random(*rank, h, w, seed=1), random(rank[1], 6, seed=2)
        )
    if kind is Separable:
        return torch.einsum("orw,rch->ochw", random(8, *rank, w), random(*rank, 6, h, seed=1))
    factors = (random(extent, *rank, seed=seed) for seed, extent in enumerate((8, 6, h, w)))
    return torch.einsum("or,cr,hr,wr->ochw", *factors)


def run(steps: tuple[Convolve, ...], factors: tuple[torch.Tensor, ...], x: torch.Tensor) -> torch.Tensor:
    for step, factor in zip(steps, factors, strict=True):
        assert step.size == tuple(x.shape[2:])
        assert step.weight_shape == tuple(factor.shape)
        w = step.window
        x = functional.conv2d(x, factor, None, w.stride, w.padding, w.dilation, step.groups)
    return x


@pytest.mark.parametrize(("kind", "rank"), METHODS)
@pytest.mark.parametrize("window", WINDOWS)
def test_the_chain_computes_what_its_product_does(kind, rank, window) -> None:
    layer = only_layer(convolution(random(8, 6, 3, 2), **window))
    method = kind(layer, Metric())
    factors = method.start(rank)
    x = random(2, 6, *layer.size)
    w = layer.window
    wanted = functional.conv2d(
        x, method.product(factors).reshape(layer.tensor.shape), None, w.stride, w.padding, w.dilation
    )
    made = run(method.steps(rank), factors, x)
    assert made.numpy() == pytest.approx(wanted.numpy(), abs=1e-9 * float(wanted.abs().max()))
    assert costs(method.steps(rank), None).params == sum(factor.numel() for factor in factors)


@pytest.mark.parametrize(("kind", "rank"), METHODS)
def test_a_weight_of_the_rank_is_found_again(kind, rank) -> None:
    layer = only_layer(convolution(of(kind, rank)))
    limit = 1e-3 if kind is Cp else 1e-9  # alternating least squares come near it but slowly
    assert kind(layer, Metric()).fit(rank, 8).error < limit


@pytest.mark.parametrize(("kind", "rank"), METHODS)
def test_data_lower_the_error_on_them(kind, rank) -> None:
    layer, rows = only_layer(convolution(random(8, 6, 3, 3))), correlated(54)
    plain, fitted = (kind(layer, metric).fit(rank, 6) for metric in (Metric(), metric_of(rows)))
    found = error_on(rows, layer.weight, fitted.product)
    assert found == pytest.approx(fitted.error, rel=0.2)  # a shrunk covariance makes more of rare directions
    assert found < 0.8 * error_on(rows, layer.weight, plain.product)


@pytest.mark.parametrize(("kind", "rank"), METHODS)
def test_sweeps_never_raise_the_error(kind, rank) -> None:
    layer, rows = only_layer(convolution(random(8, 6, 3, 3))), correlated(54)
    method = kind(layer, metric_of(rows))
    errors = [method.fit(rank, sweeps).error for sweeps in (0, 1, 3)]
    assert errors[0] * (1 + 1e-9) >= errors[1] >= errors[2] * (1 - 1e-9)


@pytest.mark.parametrize("kind", [Tucker, Separable, Cp])
def test_larger_ranks_err_less(kind) -> None:
    layer = only_layer(convolution(random(8, 6, 3, 3)))
    method = kind(layer, Metric())
    ranks = list(method.candidates(1))
    chosen = [ranks[0], ranks[len(ranks) // 2], ranks[-1]]
    errors = [method.fit(rank, 2).error for rank in chosen]
    assert errors == sorted(errors, reverse=True)
    assert all(rank <= limit for ranks in chosen for rank, limit in zip(ranks, method.limits, strict=True))


@pytest.mark.parametrize("kind", [Tucker, Separable])
def test_full_rank_is_the_layer(kind) -> None:
    layer, rows = only_layer(convolution(random(8, 6, 3, 3))), correlated(54)
    for metric in (Metric(), metric_of(rows)):
        method = kind(layer, metric)
        assert method.fit(method.limits, 0).error < 1e-9
        assert method.estimate(method.limits) == pytest.approx(0, abs=1e-9)


def test_tucker_leaves_out_the_step_of_a_full_rank() -> None:
    layer = only_layer(convolution(random(8, 6, 3, 3)))
    shapes = {rank: [step.weight_shape for step in Tucker(layer, Metric()).steps(rank)] for rank in ((4, 6), (8, 3))}
    assert shapes[4, 6] == [(4, 6, 3, 3), (8, 4, 1, 1)]
    assert shapes[8, 3] == [(3, 6, 1, 1), (8, 3, 3, 3)]


def test_without_data_tucker_starts_from_singular_vectors_of_both_modes() -> None:
    layer = only_layer(convolution(random(8, 6, 3, 3)))
    method = Tucker(layer, Metric())
    into, _, out = method.start((4, 3))
    left = np.linalg.svd(layer.weight.numpy())[0][:, :4]
    assert np.abs(left.T @ out[:, :, 0, 0].numpy()) == pytest.approx(np.eye(4), abs=1e-6)
    assert (into[:, :, 0, 0] @ into[:, :, 0, 0].T).numpy() == pytest.approx(np.eye(3), abs=1e-9)


@pytest.mark.parametrize(("kind", "rank"), [case for case in METHODS if case[0] is not Cp])
@pytest.mark.parametrize("data", [True, False])
def test_the_channels_between_steps_have_equal_energies(kind, rank, data) -> None:
    """So that one scale quantizes all of them."""
    layer, rows = only_layer(convolution(random(8, 6, 3, 3))), correlated(54, 20000)
    fitted = kind(layer, metric_of(rows) if data else Metric()).fit(rank, 3)
    assert kind(layer, Metric()).product(fitted.factors).numpy() == pytest.approx(fitted.product.numpy(), abs=1e-9)
    windows = (rows - rows.mean(0) if data else torch.linalg.qr(random(54, 54))[0]).reshape(-1, 6, 3, 3)
    value = windows
    for step, factor in list(zip(kind(layer, Metric()).steps(rank), fitted.factors, strict=True))[:-1]:
        value = functional.conv2d(value, factor)  # the window's own place, without padding
        energies = value.square().mean((0, *range(2, value.dim()))).numpy()
        assert step.weight_shape[0] == len(energies)
        assert energies.max() / energies.min() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", [Tucker, Cp, Separable])
def test_they_are_for_kernels_of_several_taps(kind) -> None:
    assert "svd is for this layer" in kind.why_not(only_layer(linear(random(5, 4)))) or kind is Separable
    assert kind.why_not(only_layer(linear(random(5, 4))))
    assert kind.why_not(only_layer(convolution(random(5, 4, 1, 1), padding=(0, 0))))
    assert kind.why_not(only_layer(convolution(random(5, 4, 3, 2)))) == ""


def test_one_row_of_taps_is_not_separable() -> None:
    assert "more than one tap in height and width" in Separable.why_not(only_layer(convolution(random(5, 4, 1, 3))))
