"""Every pass of the exact preset, and the preset itself, on random programs."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from shave.ir.program import Program
from shave.passes.presets import PRESETS
from tests.passes.contract import run_pass
from tests.passes.oracle import assert_equivalent, random_inputs
from tests.passes.strategies import programs

PASSES = PRESETS["simplify"].split(", ")

checked = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def check(program: Program) -> Counter[str]:
    """Hold all passes to their promises on one program; count what each did."""
    done: Counter[str] = Counter()
    inputs = random_inputs(program, seed=1)
    for name in PASSES:
        result, report = run_pass(name, program)
        done[name] += len(report.applied)
        assert_equivalent(program, result, inputs, rtol=1e-5)
        assert not run_pass(name, result)[1].changed
    smaller, _ = run_pass("exact", program)
    assert_equivalent(program, smaller, inputs, rtol=1e-5)
    assert len(smaller.calls) <= len(program.calls)
    assert smaller.cost().macs <= program.cost().macs
    return done


def test_results_stay_the_same() -> None:
    done: Counter[str] = Counter()

    @settings(checked, max_examples=30)
    @given(programs())
    def property_holds(program: Program) -> None:
        done.update(check(program))

    property_holds()
    # The programs drawn give every pass something to do, or this test would prove nothing.
    assert all(done[name] >= 5 for name in PASSES), done


@pytest.mark.sweep
@settings(checked, max_examples=500)
@given(programs())
def test_results_stay_the_same_on_many_more(program: Program) -> None:
    check(program)
