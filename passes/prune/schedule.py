"""How a cut is spread over several steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Schedule = Literal["linear", "cubic", "exponential"]

_PROGRESS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda t, kept: 1 - t * (1 - kept),
    "cubic": lambda t, kept: 1 - (1 - (1 - t) ** 3) * (1 - kept),
    "exponential": lambda t, kept: kept**t,
}


def kept_after(step: int, steps: int, kept: float, schedule: Schedule) -> float:
    """The share that is left after a step.

    Args:
        step: From 1 to ``steps``.
        steps: How many there are.
        kept: The share that is left at the end, in (0, 1].
        schedule: ``linear`` takes the same number each time; ``cubic`` most at first, while there is redundancy, and
            little at the end (Zhu & Gupta 2017, "To Prune, or Not to Prune"); ``exponential`` the same share of what is
            left.
    """
    return kept if step == steps else _PROGRESS[schedule](step / steps, kept)
