import pytest
from hypothesis import given
from hypothesis import strategies as st

from shave.backends.targets import resolve
from shave.backends.tvm.kernels.prefetch import FLOATS, Prefetch, overlapped


@given(st.integers(1, 10**6), st.integers(1, 500), st.integers(2, 300))
def test_tiles_ask_for_each_line_of_the_panel_once(elements, chunks, tiles):
    plan = Prefetch.of(elements, chunks, tiles)
    assert plan is not None
    assert plan.tiles <= tiles
    each = plan.chunks * plan.lines * FLOATS
    assert (plan.tiles - 1) * each < elements <= plan.tiles * each
    assert [plan.first(7, tile) for tile in (-1, plan.tiles)] == [-1, -1]
    assert plan.first(7, 0) == 7
    assert plan.first(7, plan.tiles - 1) == 7 + (plan.tiles - 1) * each


@pytest.mark.parametrize("tiles", [0, 1])
def test_one_tile_asks_for_nothing(tiles):
    assert Prefetch.of(1000, 10, tiles) is None


def test_reading_hides_behind_arithmetic_but_for_panels_that_crowd_the_cache():
    target = resolve("x86-64-v4")
    small, large = (overlapped(3.0, 1.0, panel, target) for panel in (1000, target.l2_bytes))
    assert 3.0 < small < 3.5
    assert large == 4.0
    assert overlapped(1.0, 3.0, 1000, target) == small
