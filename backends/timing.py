"""Fair timing: competitors take turns, so that a busy machine or a drifting clock frequency slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """What one callable took.

    Attributes:
        samples: Seconds per call, one entry per round, in the order measured.
    """

    samples: tuple[float, ...]

    @property
    def minimum(self) -> float:
        """Seconds of the fastest sample: the cost when nothing else disturbed the machine."""
        return min(self.samples)

    @property
    def median(self) -> float:
        """Seconds of the middle sample: the cost to expect on this machine as it was."""
        return statistics.median(self.samples)


def interleave(
    callables: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    min_seconds: float = 0.002,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time callables in turns: A B C, A B C, and so on.

    Measured one after the other, the last competitor meets a warmer processor than the first; in turns, each
    disturbance is shared. A call too short for the clock is repeated within its sample, as :mod:`timeit` does.

    Args:
        callables: What to time, by name. Results are dropped; a callable that works asynchronously must wait itself.
        rounds: Samples to take of each callable.
        warmup: Calls of each callable before anything is measured.
        min_seconds: Least duration of one sample; the call is repeated until a sample lasts so long. 0 for one call.
        clock: Monotonic clock in seconds.

    Returns:
        One :class:`Timing` per name, in the order of ``callables``.

    Raises:
        ValueError: ``rounds`` is below one, or ``warmup`` or ``min_seconds`` is negative.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    if warmup < 0:
        raise ValueError(f"warmup must not be negative, not {warmup}")
    if not min_seconds >= 0:
        raise ValueError(f"min_seconds must not be negative, not {min_seconds}")

    for call in callables.values():
        for _ in range(warmup):
            call()
    repeats = {name: _repeats(call, min_seconds, clock) for name, call in callables.items()}

    samples: dict[str, list[float]] = {name: [] for name in callables}
    for _ in range(rounds):
        for name, call in callables.items():
            samples[name].append(_elapsed(call, repeats[name], clock) / repeats[name])
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def _repeats(call: Callable[[], object], min_seconds: float, clock: Callable[[], float]) -> int:
    """Number of calls, a power of two, that together last ``min_seconds``."""
    repeats = 1
    while min_seconds > 0 and _elapsed(call, repeats, clock) < min_seconds:
        repeats *= 2
    return repeats


def _elapsed(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        call()
    return clock() - start
