"""The rank of a noisy matrix by variational Bayes, in closed form.

S. Nakajima, M. Sugiyama, S. D. Babacan, R. Tomioka, "Global Analytic Solution of Fully-Observed Variational Bayesian
Matrix Factorization", JMLR 14, 2013: the global solution of the empirical Bayesian model, which keeps the singular
values above a threshold that the noise's variance and the shape give, and the free energy whose least value gives that
variance.
"""

from __future__ import annotations

from math import ceil, log1p, log10, sqrt

import torch

GRID = 400
"""Noise variances, evenly spaced in their logarithm, among which the best is looked for before it is refined."""


def vbmf_rank(matrix: torch.Tensor) -> int:
    """The number of singular values that stand out of the noise: the rank of empirical variational Bayes.

    Args:
        matrix: Float [any, any], every entry observed.

    Returns:
        0 where all is noise; the smaller extent where nothing is.
    """
    small, large = sorted(matrix.shape)
    gram = matrix @ matrix.T if matrix.shape[0] == small else matrix.T @ matrix
    energies = torch.linalg.eigvalsh(gram.double()).clamp(min=0).flip(0)
    if not energies[0] > 0:
        return 0
    ratio = small / large
    threshold = _threshold(ratio)
    variance = _noise(energies, small, large, ratio, threshold)
    return int((energies > variance * large * threshold).sum())


def _threshold(ratio: float) -> float:
    """Least energy of a value that is kept, in units of the noise's variance and the larger extent (x with a bar)."""
    low, high = 0.0, 10.0 * sqrt(ratio) + 10.0  # of the root of Phi(t) + Phi(t / ratio), near 2.5129 sqrt(ratio)
    for _ in range(100):
        middle = (low + high) / 2
        if _phi(middle) + _phi(middle / ratio) > 0:
            low = middle
        else:
            high = middle
    return (1 + low) * (1 + ratio / low)


def _phi(z: float) -> float:
    return log1p(z) / z - 0.5


def _noise(energies: torch.Tensor, small: int, large: int, ratio: float, threshold: float) -> float:
    """The noise variance of the least free energy, within its bounds."""
    most = min(ceil(small / (1 + ratio)) - 1, small - 1)  # ranks of a solution stay below
    high = float(energies.sum()) / (small * large)
    low = max(float(energies[most]) / (large * threshold), float(energies[most:].mean()) / large)
    low = min(max(low, high * 1e-12), high)
    for _ in range(4):
        variances = torch.logspace(log10(low), log10(high), GRID, dtype=torch.float64)
        best = int(_free_energy(energies, variances, large, ratio, threshold).argmin())
        low, high = float(variances[max(best - 1, 0)]), float(variances[min(best + 1, GRID - 1)])
    return float(variances[best])


def _free_energy(
    energies: torch.Tensor, variances: torch.Tensor, large: int, ratio: float, threshold: float
) -> torch.Tensor:
    """Up to a constant and a factor, [variances]."""
    x = energies / (large * variances[:, None])
    total = (x - x.clamp(min=1e-300).log()).sum(1)
    above = x.clamp(min=threshold)
    root = ((above - (1 + ratio)) ** 2 - 4 * ratio).clamp(min=0).sqrt()
    tau = (above - (1 + ratio) + root) / 2
    gained = (tau + 1).log() + ratio * (tau / ratio + 1).log() - tau
    return total + torch.where(x > threshold, gained, torch.zeros_like(gained)).sum(1)
