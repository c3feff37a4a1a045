"""Fitting to data, against least squares in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shave.passes.codebook.fit import _codes, _feedback, _refit, energy, fit, plain
from shave.passes.codebook.tables import Tables, make

RNG = np.random.default_rng(0)
MATRIX = RNG.normal(size=(6, 70))
INPUTS = RNG.normal(size=(300, 70)) @ RNG.normal(size=(70, 70)) * np.linspace(0.1, 3, 70)
MOMENTS = INPUTS.T @ INPUTS / len(INPUTS)
SCHEMES = ["kmeans", "quantile", "binary", "ternary"]


def start(scheme: Any, *, per_channel: bool) -> Tables:
    return make(MATRIX, MOMENTS.diagonal(), scheme, 2, "density", lambda k, n: np.arange(k), per_channel=per_channel)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_entries_are_those_of_least_squares(scheme: str, per_channel: bool) -> None:
    tables = start(scheme, per_channel=per_channel)
    codes = tables.codes(MATRIX)
    found = tables.__class__(_refit(MATRIX, tables, codes, MOMENTS), tables.edges, tables.shape)
    root = np.linalg.cholesky(MOMENTS)
    groups = [[row] for row in range(6)] if per_channel else [list(range(6))]
    for table, rows in zip(found.values, groups, strict=True):
        # One unknown for each row of the shape: the output is linear in them.
        columns = [np.concatenate([base[codes[row]] @ root for row in rows]) for base in tables.shape]
        wanted = np.concatenate([MATRIX[row] @ root for row in rows])
        factors = np.linalg.lstsq(np.stack(columns, 1), wanted, rcond=None)[0]
        np.testing.assert_allclose(table, factors @ tables.shape, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_outputs_err_much_less(scheme: str, per_channel: bool) -> None:
    tables = start(scheme, per_channel=per_channel)
    before, after = plain(MATRIX, tables, MOMENTS), fit(MATRIX, tables, MOMENTS)
    assert after.error < (0.6 if scheme in ("kmeans", "quantile") else 0.9) * before.error
    difference = (MATRIX - after.tables.decode(after.codes)) @ INPUTS.T
    np.testing.assert_allclose((difference**2).mean(1).sum(), after.error, rtol=1e-9)
    assert len(after.tables.shape) < after.tables.values.shape[1] or (np.diff(after.tables.values) >= 0).all()


def test_the_scale_stays_one_number() -> None:
    values = fit(MATRIX, start("ternary", per_channel=True), MOMENTS).tables.values
    np.testing.assert_allclose(values, values[:, 2:] * [-1, 0, 1], atol=1e-12)


def test_inputs_that_do_not_hang_together_leave_each_value_the_nearest_entry() -> None:
    moments = np.diag(np.linspace(1, 2, 70))
    tables = start("kmeans", per_channel=False)
    order = RNG.permutation(70)
    codes = _codes(MATRIX, tables, order, _feedback(moments[np.ix_(order, order)]))
    np.testing.assert_array_equal(codes, tables.codes(MATRIX))


def test_energy_without_moments_is_the_sum_of_squares() -> None:
    assert energy(MATRIX, None) == pytest.approx(energy(MATRIX, np.eye(70)))
