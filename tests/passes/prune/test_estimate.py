"""Estimates against real cuts."""

from __future__ import annotations

import numpy as np
import pytest

from shave.passes.prune.estimate import Estimator
from shave.passes.prune.groups import find_groups
from shave.passes.prune.surgery import cut
from tests.passes.prune.nets import NETS


@pytest.mark.parametrize("name", NETS)
def test_what_is_left_of_weights_is_exact(name: str) -> None:
    program = NETS[name]()
    groups = find_groups(program)
    estimator = Estimator(program, groups)
    whole = estimator({})
    cost = program.cost()
    assert (whole.macs, whole.params, whole.size) == (cost.macs, cost.parameters, cost.weight_bytes)
    rng = np.random.default_rng(0)
    for _ in range(6):
        keep = {
            group.name: list(range(int(rng.integers(1, group.units + 1))))
            for group in groups
            if not group.reason and rng.random() < 0.6
        }
        smaller = program.clone()
        cut(smaller, keep, "test")
        found, cost = estimator({name: len(units) for name, units in keep.items()}), smaller.cost()
        assert found.params == pytest.approx(cost.parameters)
        assert found.size == pytest.approx(cost.weight_bytes)
        assert found.macs == pytest.approx(cost.macs, rel=0.05 if name == "transformer" else 1e-9)
