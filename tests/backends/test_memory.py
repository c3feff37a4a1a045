from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shave.backends.memory import Demand, place

DEMANDS = st.lists(
    st.builds(
        lambda size, born, length: Demand(size, born, born + length),
        st.integers(0, 5000),
        st.integers(0, 20),
        st.integers(0, 6),
    ),
    max_size=30,
)


@given(DEMANDS)
def test_what_lives_at_the_same_time_does_not_overlap(demands: list[Demand]) -> None:
    offsets, total = place(demands)
    for a, start in zip(demands, offsets, strict=True):
        assert start % 64 == 0
        assert 0 <= start <= start + a.size <= total
        for b, other in zip(demands, offsets, strict=True):
            if a is not b and a.born <= b.died and b.born <= a.died and a.size and b.size:
                assert start + a.size <= other or other + b.size <= start


@given(DEMANDS)
def test_no_less_than_what_lives_at_once_and_no_more_than_all(demands: list[Demand]) -> None:
    _, total = place(demands)
    rounded = [-(-d.size // 64) * 64 for d in demands]
    peak = max(sum(r for d, r in zip(demands, rounded, strict=True) if d.born <= t <= d.died) for t in range(27))
    assert peak <= total <= sum(rounded)


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    sizes = [640, 128, 1280, 640, 64]
    chain = [Demand(size, k, k + 1) for k, size in enumerate(sizes)]
    assert place(chain)[1] == 1280 + 640


def test_the_smallest_gap_is_taken() -> None:
    always = [Demand(6400, 0, 9)]
    leaving = [Demand(640, 0, 1), Demand(3200, 0, 9), Demand(128, 0, 1), Demand(1600, 0, 9)]
    offsets, _ = place([*always, *leaving, Demand(128, 2, 9)])
    holes = {offsets[k]: d.size for k, d in enumerate([*always, *leaving]) if d.died == 1}
    assert offsets[-1] in holes
