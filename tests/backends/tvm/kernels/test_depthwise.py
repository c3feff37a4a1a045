import dataclasses

import numpy as np
import pytest

from shave.backends.targets import resolve
from shave.backends.tvm.kernels import depthwise
from shave.backends.tvm.kernels.epilogue import Activation, Bias, Epilogue, Residual
from shave.backends.tvm.kernels.geometry import ConvShape
from tests.backends.tvm.kernels.execution import check_conv, each_target


def shape(channels, spatial, kernel, stride, padding, dilation=(), batch=1):
    return ConvShape(batch, channels, channels, spatial, kernel, stride, padding, dilation, channels)


SHAPES = {
    "3x3": shape(32, (14, 14), (3, 3), (1, 1), ((1, 1), (1, 1))),
    "3x3, stride 2, tails": shape(20, (9, 17), (3, 3), (2, 2), ((0, 1), (1, 0)), batch=2),
    "5x5": shape(8, (7, 40), (5, 5), (1, 1), ((2, 2), (2, 2))),
    "7x7, dilation": shape(16, (20, 21), (7, 7), (1, 2), ((3, 3), (3, 3)), (2, 1)),
    "one pixel": shape(5, (1, 1), (3, 3), (1, 1), ((1, 1), (1, 1))),
    "1-d, long kernel": shape(24, (60,), (31,), (1,), ((15, 15),)),
    "3-d": shape(16, (3, 4, 9), (3, 3, 3), (1, 2, 1), ((1, 1), (1, 1), (1, 1))),
}


@each_target
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_the_reference(shape, target):
    assert depthwise.applies(shape)
    check_conv(depthwise, shape, target, Epilogue((Bias(), Activation("clip", (0.0, 6.0)), Residual())))


@each_target
@pytest.mark.parametrize("rows", [12, 20])
def test_bands_of_rows_agree_with_the_reference(rows, target):
    banded = shape(20, (rows, 17), (3, 3), (1, 1), ((1, 1), (1, 1)), batch=2)
    check_conv(depthwise, banded, dataclasses.replace(target, cores=3), Epilogue((Bias(), Residual())))


@each_target
@pytest.mark.parametrize("batch", [1, 3])
def test_batch_known_only_at_run_time(batch, target):
    known = SHAPES["3x3, stride 2, tails"]
    check_conv(depthwise, dataclasses.replace(known, batch=None), target, Epilogue((Activation("silu"),)), batch=batch)


@each_target
def test_every_candidate_computes_the_same(target):
    for schedule in depthwise.candidates(SHAPES["5x5"], target):
        check_conv(depthwise, SHAPES["5x5"], target, schedule=schedule)


@pytest.mark.parametrize(
    ("channels", "size", "kernel", "stride", "measured"),
    [
        (384, 14, 3, 1, 15e-6),
        (144, 56, 3, 1, 145e-6),
        (96, 112, 3, 2, 227e-6),
        (240, 28, 5, 1, 70e-6),
        (96, 56, 7, 1, 196e-6),
    ],
)
def test_estimates_are_close_to_what_was_measured(channels, size, kernel, stride, measured):
    half = kernel // 2
    known = shape(channels, (size, size), (kernel, kernel), (stride, stride), ((half, half), (half, half)))
    target = dataclasses.replace(resolve("x86-64-v4"), cores=1, l2_bytes=2 << 20)
    assert measured / 1.6 < depthwise.seconds(known, depthwise.default(known, target), target) < measured * 1.6


@pytest.mark.parametrize(
    "other", [{"groups": 4}, {"transposed": True}, {"plain_input": True}, {"out_channels": 64, "groups": 32}]
)
def test_applies_to_one_filter_per_channel_only(other):
    assert not depthwise.applies(dataclasses.replace(SHAPES["3x3"], **other))


def test_weights_lie_with_channels_innermost():
    known = SHAPES["3x3, stride 2, tails"]
    weight = np.arange(20 * 9, dtype=np.float32).reshape(20, 1, 3, 3)
    packed = depthwise.pack(weight, known, resolve("x86-64-v4"))
    assert packed.shape == (2, 3, 3, 16)
    np.testing.assert_array_equal(packed[0, 1, 2], weight[:16, 0, 1, 2])
    np.testing.assert_array_equal(packed[1, 0, 0, 4:], 0)
