from __future__ import annotations

import numpy as np
import pytest

from shave.passes.prune.schedule import Schedule, kept_after


@pytest.mark.parametrize("schedule", ["linear", "cubic", "exponential"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 1.0])
def test_they_fall_to_the_end(schedule: Schedule, kept: float) -> None:
    shares = [kept_after(step, 5, kept, schedule) for step in range(1, 6)]
    assert shares[-1] == kept
    assert all(before >= after for before, after in zip([1.0, *shares], shares, strict=False))


def test_their_forms() -> None:
    linear, cubic, exponential = (
        np.diff([1.0, *(kept_after(step, 4, 0.2, schedule) for step in range(1, 5))])
        for schedule in ("linear", "cubic", "exponential")
    )
    np.testing.assert_allclose(linear, -0.2)
    assert (np.diff(cubic) > 0).all()  # ever less goes
    np.testing.assert_allclose(kept_after(1, 2, 0.2, "cubic"), 1 - 0.8 * (1 - 0.5**3))
    np.testing.assert_allclose([kept_after(step, 4, 0.2, "exponential") for step in (1, 2)], [0.2**0.25, 0.2**0.5])
    assert exponential[0] < exponential[-1]
