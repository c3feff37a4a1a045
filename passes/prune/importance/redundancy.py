"""Which of several similar units may go."""

from __future__ import annotations

import torch


def redundancy(similarity: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Score units by how little the ones that stay can stand in for them.

    Pairs are gone through from the most similar on; of each whose two units are both left, the smaller one goes. So of
    a cluster of duplicates all but one get low scores, the largest stays with a high one.

    Args:
        similarity: [units, units], at most 1 in magnitude.
        size: [units]; of two alike the smaller goes.

    Returns:
        [units]: one minus the similarity at which a unit went; more than 2 for the one that is left at the end.
    """
    units = len(size)
    upper = torch.triu_indices(units, units, 1)
    closeness = similarity[upper[0], upper[1]]
    scores = torch.full((units,), 3.0, dtype=torch.float64)
    left = [True] * units
    remaining = units
    for position in closeness.argsort(descending=True, stable=True).tolist():
        one, other = int(upper[0, position]), int(upper[1, position])
        if left[one] and left[other]:
            goes = one if size[one] < size[other] else other
            scores[goes] = 1 - closeness[position]
            left[goes] = False
            remaining -= 1
            if remaining == 1:
                break
    return scores
