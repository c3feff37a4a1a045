"""The search for the range that loses least."""

from __future__ import annotations

from collections.abc import Callable

SHARES = tuple(1 - step / 64 for step in range(56))
"""What may be left of an end of the range: from all of it down to an eighth."""


def least(loss: Callable[[float, float], float], whole: tuple[float, float]) -> tuple[float, float]:
    """The range of the smallest loss: first both ends are drawn in together, then each by itself.

    Args:
        loss: Of a range (low, high).
        whole: The widest range, which holds zero.
    """
    low, high = whole
    best = min(SHARES, key=lambda share: (loss(low * share, high * share), -share))
    chosen = (low * best, high * best)
    if low < 0 < high:
        for _ in range(2):
            end = min(SHARES, key=lambda share: (loss(low * share, chosen[1]), -share))
            chosen = (low * end, chosen[1])
            end = min(SHARES, key=lambda share: (loss(chosen[0], high * share), -share))
            chosen = (chosen[0], high * end)
    return chosen
