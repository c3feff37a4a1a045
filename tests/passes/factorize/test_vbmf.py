from __future__ import annotations

import pytest
import torch

from shave.passes.factorize.vbmf import _threshold, vbmf_rank
from tests.passes.factorize.layers import random


@pytest.mark.parametrize("shape", [(60, 200), (200, 60), (100, 100)])
@pytest.mark.parametrize("rank", [1, 5, 20])
def test_what_was_planted_in_noise_is_found(shape: tuple[int, int], rank: int) -> None:
    signal = random(shape[0], rank) @ random(rank, shape[1], seed=1)
    assert vbmf_rank(signal + 0.3 * random(*shape, seed=2)) == rank
    assert vbmf_rank(1e-4 * (signal + 0.3 * random(*shape, seed=2))) == rank


@pytest.mark.parametrize("shape", [(30, 500), (80, 80), (300, 40)])
def test_noise_has_no_rank(shape: tuple[int, int]) -> None:
    assert vbmf_rank(random(*shape, seed=3)) == 0
    assert vbmf_rank(torch.zeros(shape, dtype=torch.float64)) == 0


def test_a_signal_below_the_noise_is_none() -> None:
    """A singular value half as large as the threshold is noise, one twice as large is not."""
    rows, columns = 100, 400
    direction = torch.outer(random(rows, seed=1), random(columns, seed=2))
    direction /= direction.norm()
    edge = (columns * _threshold(rows / columns)) ** 0.5
    noise = random(rows, columns, seed=3)
    assert vbmf_rank(noise + 0.5 * edge * direction) == 0
    assert vbmf_rank(noise + 2 * edge * direction) == 1


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_the_threshold_is_near_the_papers_approximation(ratio: float) -> None:
    tau = 2.5129 * ratio**0.5
    assert _threshold(ratio) == pytest.approx((1 + tau) * (1 + ratio / tau), rel=0.02)


def test_a_clean_matrix_keeps_its_rank() -> None:
    assert vbmf_rank(random(40, 6) @ random(6, 90, seed=1)) == 6
