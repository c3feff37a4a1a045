from fractions import Fraction
from itertools import combinations, islice

import numpy as np
import pytest

from shave.ir.cook_toom import POINTS, cook_toom, transforms

SETS = [
    *POINTS.values(),
    tuple(Fraction(point) for point in (1, 2, 3)),
    tuple(Fraction(point) for point in ("-7/3", "5", "1/11", "0", "-2")),
]


@pytest.mark.parametrize("taps", [2, 3])
@pytest.mark.parametrize("points", SETS, ids=len)
def test_the_identity_holds_in_rationals(points, taps):
    """Bilinear in data and taps, so it holds for all of them once it does for each pair of unit vectors."""
    at, g, bt = cook_toom(points, taps)
    size = len(points) + 1
    assert (len(at), len(g), len(bt)) == (size - taps + 1, size, size)
    for sample in range(size):
        for tap in range(taps):
            outputs = [sum(at[row][k] * g[k][tap] * bt[k][sample] for k in range(size)) for row in range(len(at))]
            assert outputs == [Fraction(row + tap == sample) for row in range(len(at))]


@pytest.mark.parametrize("tile", POINTS)
def test_agreement_with_direct_correlation(tile):
    matrices = transforms(tile)
    generator = np.random.default_rng(tile)
    data, taps = generator.standard_normal((matrices.size, matrices.size)), generator.standard_normal((3, 3))
    windows = np.lib.stride_tricks.sliding_window_view(data, (3, 3))
    products = (matrices.G @ taps @ matrices.G.T) * (matrices.BT @ data @ matrices.BT.T)
    np.testing.assert_allclose(
        matrices.AT @ products @ matrices.AT.T, np.einsum("ijkl,kl->ij", windows, taps), rtol=0, atol=2e-13
    )


@pytest.mark.parametrize("tile", POINTS)
def test_what_meets_activations_is_exact_in_float32(tile):
    matrices = transforms(tile)
    for matrix in (matrices.AT, matrices.BT):
        np.testing.assert_array_equal(matrix, matrix.astype(np.float32))


@pytest.mark.parametrize("tile", POINTS)
def test_matrices_are_shared_and_cannot_be_written(tile):
    assert transforms(tile) is transforms(tile)
    with pytest.raises(ValueError, match="read-only"):
        transforms(tile).G[0, 0] = 1


def test_the_usual_matrices_of_the_smallest_tile():
    """Those of Lavin and Gray, but for the signs of rows, which cancel."""
    matrices = transforms(2)
    assert np.abs(matrices.BT).tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]]
    assert np.abs(matrices.G).tolist() == [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]]
    assert np.abs(matrices.AT).tolist() == [[1, 1, 1, 0], [0, 1, 1, 1]]


def float32_error(points):
    """Root mean square error of float32 tiles of 32 channels, relative to the outputs."""
    at, g, bt = (np.array(matrix, dtype=np.float64) for matrix in cook_toom(points, 3))
    size, tile = len(bt), len(at)
    generator = np.random.default_rng(0)
    data = generator.standard_normal((100, 32, size, size)).astype(np.float32)
    taps = generator.standard_normal((32, 3, 3)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(data.astype(np.float64), (3, 3), axis=(2, 3))
    wanted = np.einsum("ncijkl,ckl->nij", windows, taps.astype(np.float64))
    at32, bt32 = at.astype(np.float32), bt.astype(np.float32)
    factors = (g @ taps @ g.T).astype(np.float32)
    given = at32 @ (factors * (bt32 @ data @ bt32.T)).sum(1, dtype=np.float32) @ at32.T
    assert given.shape == (100, tile, tile)
    return np.sqrt(((given - wanted) ** 2).mean() / (wanted**2).mean())


def test_no_pairs_of_points_are_much_better():
    """The points are the best of a grid; a coarser grid is searched here."""
    grid = [Fraction(point) for point in ("3/8", "1/2", "5/8", "3/4", "1", "5/4", "3/2", "2", "5/2")]
    for tile, pairs in ((2, 1), (4, 2), (6, 3)):
        ours = float32_error(POINTS[tile])
        for chosen in islice(combinations(grid, pairs), 0, None, 1 if pairs < 3 else 5):
            others = (Fraction(0), *(sign * point for point in chosen for sign in (1, -1)))
            assert ours < 1.15 * float32_error(others), (tile, chosen)


@pytest.mark.parametrize("tile", [0, 1, 3, 8, -4])
def test_other_tiles_are_refused(tile):
    with pytest.raises(ValueError, match=rf"no Winograd convolution with tile {tile}; tiles are 2, 4, 6"):
        transforms(tile)


def test_bad_points_are_refused():
    with pytest.raises(ValueError, match="the points 0, 1, 1 are not distinct"):
        cook_toom((Fraction(0), Fraction(1), Fraction(1)), 3)
    with pytest.raises(ValueError, match="3 taps need at least 3 points besides infinity, not 2"):
        cook_toom((Fraction(0), Fraction(1)), 3)
