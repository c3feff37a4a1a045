"""From seconds of steps to seconds of kernels. Neither luck nor a slow moment makes the second of two look faster."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from shave.backends.tvm.tune.meter import Samples

_SHORTEST = 1e-9  # what a clock can tell apart


def per_call(samples: Samples, steps: Sequence[int]) -> list[float]:
    """Seconds of one call of a kernel in each round, as the mean over the steps that call it."""
    return [max(sum(taken[step] for step in steps) / len(steps), _SHORTEST) for taken in samples]


def relative(before: Sequence[float], after: Sequence[float]) -> float:
    """Duration of one thing relative to another's, round by round: the median."""
    return statistics.median(b / a for a, b in zip(before, after, strict=True))


def seconds_of_both(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """Seconds of two things: the fastest of each, but the second is no faster than the median over the rounds says."""
    first = min(before)
    return first, max(min(after), first * relative(before, after))
