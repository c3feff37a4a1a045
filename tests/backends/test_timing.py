from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from shave.backends.timing import Timing, interleave


@dataclass
class FakeClock:
    """A clock that moves only when one of its callables runs, and remembers who ran."""

    now: float = 0.0
    calls: list[str] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    def callable(self, name: str, *durations: float) -> Callable[[], None]:
        """A callable that takes each of ``durations`` in turn, then the last one for ever."""
        left = list(durations)

        def call() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_samples_are_taken_in_turns_after_the_warmup() -> None:
    clock = FakeClock()
    callables = {name: clock.callable(name, 1.0) for name in "abc"}
    interleave(callables, rounds=2, warmup=1, min_seconds=0, clock=clock)
    assert clock.calls == list("abc") + list("abcabc")


def test_minimum_and_median_are_of_the_measured_samples_only() -> None:
    clock = FakeClock()
    slow_start = clock.callable("a", 100.0, 0.5, 4.0, 8.0, 2.0, 16.0)
    timings = interleave({"a": slow_start}, rounds=4, warmup=2, min_seconds=0, clock=clock)
    assert timings == {"a": Timing((4.0, 8.0, 2.0, 16.0))}
    assert timings["a"].minimum == 2.0
    assert timings["a"].median == 6.0


def test_each_callable_keeps_its_own_time() -> None:
    clock = FakeClock()
    callables = {"slow": clock.callable("slow", 3.0), "fast": clock.callable("fast", 0.25)}
    timings = interleave(callables, rounds=5, warmup=0, min_seconds=0, clock=clock)
    assert list(timings) == ["slow", "fast"]
    assert timings["slow"].samples == (3.0,) * 5
    assert timings["fast"].samples == (0.25,) * 5


def test_short_calls_are_repeated_until_a_sample_lasts_long_enough() -> None:
    clock = FakeClock()
    callables = {"short": clock.callable("short", 0.125), "long": clock.callable("long", 2.0)}
    timings = interleave(callables, rounds=1, warmup=0, min_seconds=1.0, clock=clock)
    assert timings["short"].samples == (0.125,)  # per call, not per sample
    assert timings["long"].samples == (2.0,)
    # Calibration tries 1, 2, 4 and 8 calls of the short one and one of the long one; then one round.
    assert clock.calls == ["short"] * 15 + ["long"] + ["short"] * 8 + ["long"]


def test_nothing_to_time_gives_nothing() -> None:
    assert interleave({}, rounds=1) == {}


@pytest.mark.parametrize(
    ("rounds", "warmup", "min_seconds", "message"),
    [(0, 0, 0.0, "rounds"), (1, -1, 0.0, "warmup"), (1, 0, -1.0, "min_seconds"), (1, 0, float("nan"), "min_seconds")],
)
def test_impossible_settings_are_refused_before_anything_runs(
    rounds: int, warmup: int, min_seconds: float, message: str
) -> None:
    clock = FakeClock()
    with pytest.raises(ValueError, match=message):
        interleave({"a": clock.callable("a", 1.0)}, rounds=rounds, warmup=warmup, min_seconds=min_seconds, clock=clock)
    assert clock.calls == []


def test_an_error_of_a_callable_reaches_the_caller() -> None:
    def broken() -> None:
        raise RuntimeError("wrong shape")

    with pytest.raises(RuntimeError, match="wrong shape"):
        interleave({"broken": broken}, rounds=1)


def test_the_real_clock_is_the_default() -> None:
    (timing,) = interleave({"sum": lambda: sum(range(1000))}, rounds=3, warmup=1, min_seconds=1e-4).values()
    assert len(timing.samples) == 3
    assert 0 < timing.minimum <= timing.median < 1


def test_timing_needs_neither_torch_nor_tvm() -> None:
    probe = "import sys, shave.backends.timing; assert not {'torch', 'tvm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", probe], check=True, timeout=60)
