"""Ranks that follow from a rule of the user's or from the weights, for one layer and one method."""

from __future__ import annotations

from shave.passes.factorize.factorization import Factorization, Ranks
from shave.passes.factorize.vbmf import vbmf_rank


def fixed(method: Factorization, wanted: int | tuple[int, ...]) -> Ranks | str:
    """The ranks that were asked for, or why they are none of this layer's.

    One number stands for all ranks; where it is above one of several limits but not above all, that rank is full.
    """
    limits = method.limits
    if isinstance(wanted, int):
        if wanted > max(limits):
            return f"rank {wanted} is above the largest, {max(limits)}"
        return tuple(min(wanted, limit) for limit in limits)
    if len(wanted) != len(limits):
        return f"rank has {len(wanted)} numbers, but {method.name} takes {len(limits)} for it"
    for rank, limit in zip(wanted, limits, strict=True):
        if rank > limit:
            return f"rank {text(wanted)} is above the largest, {text(limits)}"
    return wanted


def share(method: Factorization, ratio: float) -> Ranks:
    """A share of the full ranks, at least 1."""
    return tuple(max(1, round(ratio * limit)) for limit in method.limits)


def vbmf(method: Factorization) -> Ranks | None:
    """The ranks that stand out of the noise; None where nothing or everything does, as then nothing was found.

    A method of one rank and several matrices takes the largest.
    """
    matrices = method.unfoldings()
    found = [vbmf_rank(matrix) for matrix in matrices]
    if any(rank == 0 for rank in found):
        return None
    if all(rank >= min(matrix.shape) for rank, matrix in zip(found, matrices, strict=True)):
        return None
    limits = method.limits
    if len(limits) == 1:
        found = [max(found)]
    return tuple(min(rank, limit) for rank, limit in zip(found, limits, strict=True))


def text(ranks: Ranks) -> str:
    """``16`` or ``16 x 8``."""
    return " x ".join(map(str, ranks))
