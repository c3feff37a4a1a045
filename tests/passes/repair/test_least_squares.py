"""Against NumPy's least squares."""

from __future__ import annotations

import numpy as np
import torch

from shave.passes.repair.least_squares import NormalEquations, fit


def problem(rows: int, noise: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features [groups, rows, features + 1], targets and the true weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, rows, 5, generator=generator)
    x[..., -1] = 1
    truth = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    y = (x.double() @ truth).float()
    return x, y + noise * torch.randn(y.shape, generator=generator), truth


def equations(x: torch.Tensor, y: torch.Tensor) -> NormalEquations:
    made = NormalEquations(2, 4, 3)
    for start in range(0, x.shape[1], 7):  # uneven batches
        made.add(x[:, start : start + 7], y[:, start : start + 7])
    return made


def test_without_a_ridge_it_is_least_squares() -> None:
    x, y, _ = problem(50, 0.3)
    found = equations(x, y).solve(0.0, torch.zeros(2, 5, 3, dtype=torch.float64))
    assert found is not None
    for group in range(2):
        want = np.linalg.lstsq(x[group].double().numpy(), y[group].double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[group].numpy(), want, rtol=1e-4, atol=1e-6)


def test_a_ridge_pulls_towards_the_start_but_for_the_constant() -> None:
    x, y, _ = problem(50)
    start = torch.ones(2, 5, 3, dtype=torch.float64)
    found = equations(x, y).solve(1e9, start)
    assert found is not None
    torch.testing.assert_close(found[:, :-1], start[:, :-1], rtol=0, atol=1e-3)
    residual = y.double() - x[..., :-1].double() @ start[:, :-1]
    torch.testing.assert_close(found[:, -1], residual.mean(1), rtol=0, atol=1e-2)


def test_the_error_of_a_weight() -> None:
    x, y, _ = problem(40, 0.5)
    weight = torch.randn(2, 5, 3, dtype=torch.float64)
    want = float((x.double() @ weight - y.double()).square().sum())
    np.testing.assert_allclose(equations(x, y).error(weight), want, rtol=1e-5)


def test_a_fit_finds_the_truth_and_says_how_good_it_is() -> None:
    x, y, truth = problem(200, 0.01)
    held_x, held_y, _ = problem(60, 0.01, seed=1)
    start = truth + 0.3
    found = fit(equations(x, y), equations(held_x, held_y), start)
    assert found is not None
    torch.testing.assert_close(found.weight, truth, rtol=0, atol=0.02)
    power = float(held_y.double().square().sum())
    want = float((held_x.double() @ start - held_y.double()).square().sum()) / power
    np.testing.assert_allclose(found.before, want, rtol=1e-4)
    assert found.after < 0.01 * found.before


def test_too_few_rows_do_no_harm() -> None:
    """Three rows say nothing of five features; where the start is right, it stays."""
    x, y, truth = problem(3, 0.5)
    held_x, held_y, _ = problem(60, 0.0, seed=1)
    assert fit(equations(x, y), equations(held_x, held_y), truth) is None


def test_features_that_never_vary() -> None:
    x, y, truth = problem(100)
    x[..., 0] = 0
    y = (x.double() @ truth).float()
    start = truth.clone()
    start[:, 1] += 1
    found = fit(equations(x[:, :80], y[:, :80]), equations(x[:, 80:], y[:, 80:]), start)
    assert found is not None
    torch.testing.assert_close(found.weight, truth, rtol=0, atol=1e-3)


def test_what_is_not_finite_is_not_fitted() -> None:
    x, y, truth = problem(50)
    y[0, 0, 0] = torch.nan
    assert fit(equations(x, y), equations(x, y), truth) is None
