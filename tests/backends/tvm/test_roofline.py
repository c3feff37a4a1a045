"""The machine's limits: the arithmetic, and that the measurement is of this world."""

import pytest

from shave.backends.tvm.roofline import Roofline, measure

ROOFLINE = Roofline(
    threads=1, integer_macs_per_second=4e9, macs_per_second=1e9, bandwidths=((1000, 8e9), (10_000, 4e9), (100_000, 1e9))
)


@pytest.mark.parametrize(
    ("size", "rate"), [(0, 8e9), (1000, 8e9), (1001, 4e9), (10_000, 4e9), (10_001, 1e9), (1e9, 1e9)]
)
def test_bandwidth_is_that_of_the_level_that_holds_the_bytes(size, rate):
    assert ROOFLINE.bytes_per_second(size) == rate


@pytest.mark.parametrize(
    ("macs", "size", "seconds"), [(1e6, 1000, 1e-3), (0, 4000, 1e-6), (1000, 1e9, 1.0), (0, 0, 0.0)]
)
def test_the_longer_of_arithmetic_and_memory_counts(macs, size, seconds):
    assert ROOFLINE.seconds(macs, size) == pytest.approx(seconds)


def test_integers_have_a_limit_of_their_own():
    assert ROOFLINE.seconds(1e6, 0, integers=True) == pytest.approx(1e-3 / 4)


def test_measures_this_machine():
    found = measure(1, rounds=1)
    assert found.threads == 1
    assert 1e8 < found.macs_per_second < 1e12
    assert found.macs_per_second / 2 < found.integer_macs_per_second < 8 * found.macs_per_second
    sizes = [size for size, _ in found.bandwidths]
    assert sizes == sorted(set(sizes))
    assert len(sizes) >= 4
    assert all(1e7 < rate < 1e13 for _, rate in found.bandwidths)
    assert found.bytes_per_second(sizes[0]) > found.bytes_per_second(sizes[-1])
