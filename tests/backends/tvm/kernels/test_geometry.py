import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.tvm.kernels.base import even_runs
from shave.backends.tvm.kernels.geometry import ConvShape, merged_groups, phases, pixel_runs


@given(st.integers(1, 200), st.integers(1, 30))
def test_even_runs_cover_with_the_fewest_tiles_of_almost_equal_size(total, largest):
    runs = even_runs(total, largest)
    sizes = [run.size for run in runs for _ in range(run.count)]
    assert sum(sizes) == total
    assert len(sizes) == -(-total // largest)
    assert max(sizes) - min(sizes) <= 1


axes = st.fixed_dictionaries(
    {
        "size": st.integers(1, 30),
        "kernel": st.integers(1, 5),
        "stride": st.integers(1, 3),
        "before": st.integers(0, 4),
        "after": st.integers(0, 4),
        "dilation": st.integers(1, 3),
    }
)


def one_axis(axis, transposed):
    return ConvShape(
        1,
        1,
        1,
        (axis["size"],),
        (axis["kernel"],),
        (axis["stride"],),
        ((axis["before"], axis["after"]),),
        (axis["dilation"],),
        transposed=transposed,
    )


@given(axes, st.booleans(), st.integers(1, 14))
@settings(max_examples=200)
def test_tiles_meet_each_product_of_the_definition_once(axis, transposed, tile):
    shape = one_axis(axis, transposed)
    if shape.out_spatial[0] < 1:
        return
    met = []
    for (phase,) in phases(shape):
        for run in pixel_runs(phase, tile):
            for t in range(run.tiles.count):
                for taps in run.taps:
                    for tap in range(taps.first, taps.first + taps.count):
                        for row in taps.rows:
                            q = run.first + t * run.tiles.size + row
                            y = phase.first_output + q * phase.output_step
                            x = q * phase.stride + phase.offset + tap * phase.tap_input
                            met.append((y, x, phase.first_tap + tap * phase.tap_step))
    stride, before, dilation = axis["stride"], axis["before"], axis["dilation"]
    if transposed:
        pairs = [(x * stride + k * dilation - before, x, k) for x in range(axis["size"]) for k in range(axis["kernel"])]
        expected = {p for p in pairs if 0 <= p[0] < shape.out_spatial[0]}
    else:
        pairs = [
            (y, y * stride + k * dilation - before, k)
            for y in range(shape.out_spatial[0])
            for k in range(axis["kernel"])
        ]
        expected = {p for p in pairs if 0 <= p[1] < axis["size"]}
    assert len(met) == len(set(met))
    assert set(met) == expected


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "merged"),
    [(1, 5, 7, 1), (32, 4, 4, 4), (2, 16, 32, 1), (3, 8, 16, 3), (8, 24, 8, 2)],
)
def test_groups_are_merged_until_blocks_are_whole(groups, inputs, outputs, merged):
    shape = ConvShape(1, groups * inputs, groups * outputs, (5,), (1,), groups=groups)
    assert merged_groups(shape, 16) == merged


def test_channels_must_divide_into_groups():
    with pytest.raises(ValueError, match="in_channels = 10 is no multiple of groups = 4"):
        ConvShape(1, 10, 8, (5, 5), (3, 3), groups=4)


def test_all_axes_need_all_attributes():
    with pytest.raises(ValueError, match="kernel has 1 entries for 2 spatial axes"):
        ConvShape(1, 10, 8, (5, 5), (3,))
