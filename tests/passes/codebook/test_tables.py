from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shave.passes.codebook.tables import Tables, make

MATRIX = np.random.default_rng(0).normal(size=(5, 40)) * np.array([[1], [2], [0.5], [1], [3]])


def draw(count: int, below: int) -> Any:
    return np.random.default_rng(1).permutation(below)[:count]


def made(
    scheme: Any, *, bits: int = 2, matrix: Any = MATRIX, per_channel: bool = False, importance: Any = None
) -> Tables:
    return make(matrix, importance, scheme, bits, "density", draw, per_channel=per_channel)


def decoded(tables: Tables, matrix: Any = MATRIX) -> Any:
    return tables.decode(tables.codes(matrix))


@pytest.mark.parametrize("scheme", ["kmeans", "quantile"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_each_value_takes_the_nearest_entry(scheme: str, per_channel: bool, bits: int) -> None:
    tables = made(scheme, bits=bits, per_channel=per_channel)
    assert tables.values.shape == (5 if per_channel else 1, 2**bits)
    assert tables.bits == bits
    for row, values in zip(MATRIX, decoded(tables), strict=True):
        table = tables.values[0] if not per_channel else tables.values[MATRIX.tolist().index(row.tolist())]
        np.testing.assert_array_equal(values, table[np.abs(row[:, None] - table).argmin(1)])


def test_binary_is_the_sign_times_the_mean_magnitude() -> None:
    tables = made("binary", per_channel=True)
    np.testing.assert_allclose(decoded(tables), np.sign(MATRIX) * np.abs(MATRIX).mean(1, keepdims=True))
    assert tables.bits == 1


def test_ternary_is_as_in_the_paper() -> None:
    tables = made("ternary", per_channel=True)
    for row, values in zip(MATRIX, decoded(tables), strict=True):
        large = np.abs(row) > 0.7 * np.abs(row).mean()
        np.testing.assert_allclose(values, np.where(large, np.sign(row) * np.abs(row[large]).mean(), 0))
    assert tables.bits == 2


@pytest.mark.parametrize("scheme", ["kmeans", "quantile"])
def test_as_many_entries_as_values_make_no_error(scheme: str) -> None:
    matrix = np.tile([[1.0, -3.0, 7.0]], (4, 5))
    tables = made(scheme, bits=4, matrix=matrix)
    np.testing.assert_array_equal(tables.values, [[-3, 1, 7]])
    np.testing.assert_array_equal(decoded(tables, matrix), matrix)
    assert tables.bits == 2


@pytest.mark.parametrize("scheme", ["kmeans", "quantile", "binary", "ternary"])
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_constant_weights(scheme: str, value: float) -> None:
    matrix = np.full((3, 8), value)
    np.testing.assert_allclose(decoded(made(scheme, matrix=matrix), matrix), matrix)


def test_channels_of_fewer_values_share_the_width() -> None:
    matrix = np.array([[0.0, 1, 2, 3, 4, 5], [7.0, 7, 7, 7, 7, 7]])
    tables = made("kmeans", bits=2, matrix=matrix, per_channel=True)
    np.testing.assert_array_equal(decoded(tables, matrix)[1], matrix[1])
    assert tables.codes(matrix)[1].max() == 0


def test_columns_that_matter_err_less() -> None:
    importance = np.array([100.0] * 4 + [0.0] * 36)
    weighted, plain = made("kmeans", importance=importance), made("kmeans")

    def error(tables: Tables) -> float:
        return float(((decoded(tables) - MATRIX)[:, :4] ** 2).sum())

    assert error(weighted) < error(plain)
