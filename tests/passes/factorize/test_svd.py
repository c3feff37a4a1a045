from __future__ import annotations

import numpy as np
import pytest
import torch

from shave.passes.factorize.metric import Metric
from shave.passes.factorize.svd import Svd
from tests.passes.factorize.layers import convolution, correlated, error_on, linear, metric_of, only_layer, random


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (9, 9)])
def test_without_data_it_is_the_truncated_decomposition(shape: tuple[int, int]) -> None:
    layer = only_layer(linear(random(*shape)))
    values = np.linalg.svd(layer.weight.numpy(), compute_uv=False)
    for rank in (1, 3, 7):
        fitted = Svd(layer, Metric()).fit((rank,), 0)
        wanted = (values[rank:] ** 2).sum() / (values**2).sum()
        assert fitted.error == pytest.approx(wanted, abs=1e-9)
        assert Svd(layer, Metric()).estimate((rank,)) == pytest.approx(wanted, abs=1e-9)
        assert np.linalg.matrix_rank(fitted.product.numpy(), tol=1e-6) == rank


@pytest.mark.parametrize("shape", [(7, 12), (20, 12)])
def test_with_data_no_other_matrix_of_the_rank_errs_less_on_them(shape: tuple[int, int]) -> None:
    """The reference is reduced-rank regression: singular values of the outputs themselves."""
    layer, rows = only_layer(linear(random(*shape))), correlated(12)
    outputs = (rows - rows.mean(0)).numpy() @ layer.weight.numpy().T
    values = np.linalg.svd(outputs, compute_uv=False)
    plain = Svd(layer, Metric()).fit((4,), 0)
    fitted = Svd(layer, metric_of(rows)).fit((4,), 0)
    best = (values[4:] ** 2).sum() / (values**2).sum()
    assert error_on(rows, layer.weight, fitted.product) == pytest.approx(best, rel=1e-3)
    assert fitted.error == pytest.approx(best, rel=0.05)  # its covariance is shrunk
    assert best < 0.5 * error_on(rows, layer.weight, plain.product)


def test_the_channels_between_have_equal_variances() -> None:
    layer, rows = only_layer(linear(random(9, 12))), correlated(12)
    first, _ = Svd(layer, metric_of(rows)).start((5,))
    assert (rows @ first.T).var(0).numpy() == pytest.approx(np.ones(5), rel=0.05)


def test_a_convolution_keeps_its_window_in_the_first_step() -> None:
    layer = only_layer(convolution(random(8, 5, 3, 2), stride=(2, 1), dilation=(1, 2)))
    first, last = Svd(layer, Metric()).steps((3,))
    assert (first.weight_shape, last.weight_shape) == ((3, 5, 3, 2), (8, 3, 1, 1))
    assert (first.window, last.size) == (layer.window, layer.window.outputs(layer.size))


def test_a_weight_of_lower_rank_is_found_again() -> None:
    layer = only_layer(linear(random(9, 2) @ random(2, 12, seed=1)))
    assert Svd(layer, Metric()).fit((2,), 0).error < 1e-10
    assert Svd(layer, Metric()).fit((4,), 0).product.isfinite().all()


def test_data_in_few_directions_leave_the_rest_to_the_weights() -> None:
    layer, rows = only_layer(linear(random(9, 12))), correlated(12)
    rows = rows[:, :3] @ torch.eye(3, 12, dtype=torch.float64)
    fitted = Svd(layer, metric_of(rows)).fit((5,), 0)
    assert error_on(rows, layer.weight, fitted.product) < 1e-6
    assert (layer.weight - fitted.product).norm() < layer.weight.norm()
