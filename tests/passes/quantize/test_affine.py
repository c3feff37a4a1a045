from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shave.passes.quantize.affine import ACTIVATIONS, INT8, SMALLEST_SCALE, UINT8, weight_scheme

ends = st.floats(-1e30, 1e30)


@given(ends, ends, st.sampled_from(sorted(ACTIVATIONS)))
def test_zero_is_exact_and_the_range_is_covered(a: float, b: float, name: str) -> None:
    scheme = ACTIVATIONS[name]
    affine = scheme.fit(min(a, b), max(a, b))
    assert scheme.low <= affine.zero_point <= scheme.high
    assert float(affine.round(torch.tensor(0.0))) == 0.0
    low, high = affine.range
    slack = affine.scale * 0.5001 + 1e-6 * max(abs(low), abs(high))
    assert low <= min(a, b, 0) + slack
    assert high >= max(a, b, 0) - slack


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rounding_is_to_the_nearest_and_clips_to_the_nearest_bound(name: str) -> None:
    scheme = ACTIVATIONS[name]
    affine = scheme.fit(-1.0, 3.0)
    values = torch.linspace(-4, 6, 1001, dtype=torch.float64)
    grid = (np.arange(scheme.low, scheme.high + 1) - affine.zero_point) * affine.scale
    place = np.clip(np.searchsorted(grid, values.numpy()), 1, len(grid) - 1)
    distance = np.minimum(abs(grid[place] - values.numpy()), abs(grid[place - 1] - values.numpy()))
    np.testing.assert_allclose(abs(affine.round(values).numpy() - values.numpy()), distance, atol=1e-9)


def test_ranges_that_are_hardly_there() -> None:
    assert (UINT8.fit(0.0, 0.0).scale, UINT8.fit(0.0, 0.0).zero_point) == (1.0, 0)
    assert UINT8.fit(0.0, 1e-40).scale == SMALLEST_SCALE
    assert INT8.fit(-1e-40, 0.0).scale == SMALLEST_SCALE
    for low, high in [(float("nan"), 1.0), (0.0, float("inf")), (2.0, 1.0)]:
        with pytest.raises(ValueError, match="is no range"):
            UINT8.fit(low, high)


@pytest.mark.parametrize(("bits", "high"), [(8, 127), (7, 63), (4, 7), (2, 1)])
def test_weights_are_symmetric(bits: int, high: int) -> None:
    scheme = weight_scheme(bits)
    assert (scheme.low, scheme.high, scheme.symmetric) == (-high, high, True)
