import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.targets import resolve
from shave.backends.tvm.adapter import tvm, tvm_target
from shave.backends.tvm.kernels import conv
from shave.backends.tvm.kernels.epilogue import Activation, Bias, Epilogue, Residual
from shave.backends.tvm.kernels.geometry import ConvShape
from tests.backends.tvm.kernels.execution import check_conv, each_target, random, targets

SAME = ((1, 1), (1, 1))
FULL = Epilogue((Bias(), Residual(), Activation("relu")))
SHAPES = {
    "3x3": ConvShape(1, 32, 32, (9, 15), (3, 3), (1, 1), SAME),
    "channel tails": ConvShape(2, 20, 35, (9, 17), (3, 3), (2, 2), ((1, 2), (0, 1))),
    "one pixel": ConvShape(1, 17, 3, (1, 1), (3, 3), (1, 1), SAME),
    "pointwise": ConvShape(2, 30, 24, (7, 9), (1, 1)),
    "pointwise, stride 2": ConvShape(1, 16, 16, (8, 9), (1, 1), (2, 2)),
    "first layer": ConvShape(1, 3, 24, (32, 33), (7, 7), (2, 2), ((3, 3), (3, 3)), plain_input=True),
    "dilation": ConvShape(1, 16, 16, (9, 17), (3, 3), (1, 2), ((2, 2), (3, 0)), (2, 3)),
    "padding beyond the image": ConvShape(1, 8, 8, (2, 3), (3, 3), (1, 1), ((6, 5), (5, 6)), (2, 1)),
    "whole groups": ConvShape(1, 64, 32, (5, 6), (3, 3), (1, 1), SAME, groups=2),
    "merged groups": ConvShape(1, 24, 48, (5, 6), (3, 3), (1, 1), SAME, groups=6),
    "odd groups": ConvShape(1, 15, 9, (5, 6), (3, 3), (1, 1), SAME, groups=3),
    "1-d": ConvShape(2, 30, 24, (50,), (5,), (2,), ((3, 1),)),
    "3-d": ConvShape(1, 18, 16, (4, 5, 9), (3, 2, 3), (2, 1, 1), ((2, 1), (1, 0), (1, 1))),
    "transposed": ConvShape(2, 18, 24, (5, 9), (4, 4), (2, 2), SAME, transposed=True),
    "transposed, fewer taps than stride": ConvShape(1, 8, 8, (4, 5), (1, 2), (2, 3), transposed=True),
    "transposed, all at once": ConvShape(
        1, 32, 16, (4, 5), (3, 3), (3, 2), ((1, 2), (0, 1)), (2, 3), groups=2, transposed=True, output_padding=(1, 1)
    ),
    "transposed 1-d": ConvShape(1, 8, 20, (9,), (4,), (4,), transposed=True),
}


@each_target
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_the_reference(shape, target):
    check_conv(conv, shape, target, FULL)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_reference_agrees_with_torch(shape):
    x, weight = random(2, shape.in_channels, *shape.spatial), random(*shape.weight_shape)
    rank = len(shape.spatial)
    name = f"conv_transpose{rank}d" if shape.transposed else f"conv{rank}d"
    x64, w64 = torch.from_numpy(x).double(), torch.from_numpy(weight).double()
    pads = shape.padding
    if shape.transposed:
        extra = [o + after for o, (_, after) in zip(shape.output_padding, pads, strict=True)]
        if any(e >= max(s, d) for e, s, d in zip(extra, shape.stride, shape.dilation, strict=True)):
            pytest.skip("torch has symmetric padding only, and output padding below the stride")
        full = getattr(torch.nn.functional, name)(
            x64, w64, None, shape.stride, 0, shape.output_padding, shape.groups, shape.dilation
        )
        crop = tuple(slice(low, low + o) for (low, _), o in zip(pads, shape.out_spatial, strict=True))
        expected = full[(slice(None), slice(None), *crop)]
    else:
        padded = torch.nn.functional.pad(x64, [p for pair in reversed(pads) for p in pair])
        expected = getattr(torch.nn.functional, name)(padded, w64, None, shape.stride, 0, shape.dilation, shape.groups)
    found = conv.reference(x, weight, shape, Epilogue(), ())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-12)


@each_target
@pytest.mark.parametrize("batch", [1, 3])
def test_batch_known_only_at_run_time(batch, target):
    shape = dataclasses.replace(SHAPES["channel tails"], batch=None)
    check_conv(conv, shape, target, Epilogue((Bias(), Activation("gelu"), Residual())), batch=batch)


@pytest.mark.parametrize("target", targets()[:1])
def test_every_candidate_computes_the_same(target):
    for shape in (SHAPES["channel tails"], SHAPES["pointwise"]):
        for schedule in conv.candidates(shape, target)[::6]:
            check_conv(conv, shape, target, schedule=schedule)


DEEP = {
    "uneven passes": (ConvShape(2, 80, 35, (5, 9), (3, 3), (1, 1), SAME), 2),
    "pointwise": (ConvShape(1, 48, 24, (4, 7), (1, 1)), 1),
    "stride and dilation, 1-d": (ConvShape(1, 64, 40, (21,), (3,), (2,), ((2, 1),), (2,)), 3),
    "groups": (ConvShape(1, 96, 48, (5, 6), (3, 3), (1, 1), SAME, groups=2), 2),
    "transposed": (ConvShape(2, 48, 24, (5, 9), (4, 3), (2, 1), SAME, transposed=True), 2),
    "batch known only at run time": (ConvShape(None, 48, 33, (6, 5), (2, 2)), 2),
}


@each_target
@pytest.mark.parametrize(("shape", "depth"), DEEP.values(), ids=DEEP)
def test_sums_of_passes_add_up(shape, depth, target):
    tile = dataclasses.replace(conv.default(shape, target), outer="channels", depth=depth)
    check_conv(conv, shape, target, FULL, tile, batch=None if shape.batch else 3)


BANDED = {
    "3x3, stride 2": ConvShape(2, 20, 35, (27, 9), (3, 3), (2, 2), SAME),
    "pointwise": ConvShape(1, 33, 20, (18, 5), (1, 1)),
    "grouped": ConvShape(1, 32, 64, (13, 11), (3, 3), (1, 1), SAME, groups=2),
    "first layer": ConvShape(1, 3, 20, (29, 30), (7, 7), (2, 2), ((3, 3), (3, 3)), plain_input=True),
    "transposed": ConvShape(1, 20, 20, (14, 7), (3, 3), (2, 2), transposed=True),
}


@each_target
@pytest.mark.parametrize("cores", [2, 3])
@pytest.mark.parametrize("shape", BANDED.values(), ids=BANDED)
def test_bands_of_rows_agree_with_the_reference(shape, cores, target):
    # 14, 13, 18 and 15 rows: some numbers of cores leave an uneven last band.
    target = dataclasses.replace(target, cores=cores)
    schedule = dataclasses.replace(conv.default(shape, target), outer="bands", merge=1, depth=None)
    check_conv(conv, shape, target, FULL, schedule)


def test_large_images_are_shared_by_rows_and_large_weights_by_channels():
    target = dataclasses.replace(resolve("x86-64-v4"), cores=2)
    image = ConvShape(1, 96, 24, (56, 56), (1, 1))
    weights = ConvShape(1, 960, 160, (7, 7), (1, 1))
    assert conv.default(image, target).outer == "bands"
    assert conv.default(weights, target).outer == "channels"
    assert conv.default(image, dataclasses.replace(target, cores=1)).outer != "bands"
    assert image.spatial[0] // conv.default(image, target).merge % 2 == 0


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_weights_of_a_pass_fit_the_level_1_cache(threads):
    target = dataclasses.replace(resolve("x86-64-v4"), cores=threads, l1_bytes=48 << 10, l2_bytes=2 << 20)
    for kernel, pads in (((3, 3), SAME), ((1, 1), ((0, 0), (0, 0)))):
        shape = ConvShape(1, 512, 512, (7, 7), kernel, (1, 1), pads)
        # More threads than panels share the rows of a panel, in one pass.
        assert (conv.default(shape, target).depth is None) == (threads == 64)
        found = [s for s in conv.candidates(shape, target) if s.depth]
        for s in found:
            assert s.outer == "channels"
            assert s.depth == 1 or 4 * 16 * s.vectors * s.depth * 16 * kernel[0] ** 2 <= target.l1_bytes // 2


@each_target
def test_tiles_of_a_plain_input_leave_registers_for_its_pixels(target):
    shape = ConvShape(1, 3, 64, (224, 224), (3, 3), (2, 2), SAME, plain_input=True)
    most = max((s.pixels + 1) * s.vectors for s in conv.candidates(shape, target))
    assert target.vector_registers // 2 < most <= target.vector_registers * 13 // 16


def test_weights_of_passes_are_asked_for_ahead():
    target = resolve("x86-64-v4")
    shape = ConvShape(1, 64, 64, (7, 7), (3, 3), (1, 1), SAME)
    for prefetch in (True, False):
        schedule = conv.ConvSchedule(7, 3, prefetch=prefetch, depth=1)
        function = conv.build(shape, schedule, target, Epilogue())
        assembly = tvm.compile(function, tvm_target(target)).mod.inspect_source("s")
        assert ("prefetcht1" in assembly) == prefetch


@st.composite
def shapes(draw):
    rank = draw(st.integers(1, 2))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    per_axis = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel, dilation = per_axis(1, 4), per_axis(1, 2)
    # The input is at least as large as the window, so that there is an output.
    spatial = tuple(d * (k - 1) + draw(st.integers(1, 12)) for k, d in zip(kernel, dilation, strict=True))
    padding = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(rank))
    transposed = draw(st.booleans())
    return ConvShape(
        draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 20)),
        groups * draw(st.integers(1, 40)),
        spatial,
        kernel,
        per_axis(1, 3),
        ((0, 0),) * rank if transposed else padding,
        dilation,
        groups,
        transposed,
        plain_input=draw(st.booleans()),
    )


@pytest.mark.sweep
@given(shapes(), st.sampled_from(["x86-64-v3", "x86-64-v4"]))
@settings(max_examples=150, deadline=None)
def test_random_shapes_agree_with_the_reference(shape, name):
    check_conv(conv, shape, resolve(name), FULL)


@given(shapes())
@settings(max_examples=8, deadline=None, derandomize=True)
def test_some_random_shapes_agree_with_the_reference(shape):
    check_conv(conv, shape, resolve("x86-64-v3"), FULL)


@pytest.mark.parametrize("target", targets())
def test_inner_loop_keeps_its_accumulators_in_registers(target):
    shape = ConvShape(1, 64, 64, (28, 28), (3, 3), (1, 1), SAME)
    function = conv.build(shape, conv.default(shape, target), target, Epilogue((Bias(), Activation("relu"))))
    assembly = tvm.compile(function, tvm_target(target)).mod.inspect_source("s").splitlines()
    register = "zmm" if target.lanes == 16 else "ymm"
    fused = [line for line in assembly if "vfmadd" in line and register in line]
    assert len(fused) >= 12
    assert not [line for line in assembly if "gather" in line or "vinsertps" in line or "vpextrd" in line]
    spilled = [line for line in assembly if f"%{register}" in line and "(%rsp)" in line and "vmov" in line]
    assert len(spilled) < len(fused) / 10


@each_target
def test_weights_of_the_next_tile_are_asked_for_ahead(target):
    blocked = ConvShape(1, 64, 64, (7, 7), (3, 3), (1, 1), SAME)
    for shape, schedule, expected in [
        (blocked, conv.default(blocked, target), True),
        (blocked, dataclasses.replace(conv.default(blocked, target), prefetch=False), False),
        (SHAPES["first layer"], conv.default(SHAPES["first layer"], target), False),
    ]:
        function = conv.build(shape, schedule, target, Epilogue())
        assembly = tvm.compile(function, tvm_target(target)).mod.inspect_source("s")
        assert ("prefetcht1" in assembly) == expected


def test_weights_of_missing_channels_and_other_groups_are_zero():
    target = resolve("x86-64-v4")
    shape = ConvShape(1, 8, 8, (5,), (1,), groups=2)
    packed = conv.pack(np.ones(shape.weight_shape, np.float32), shape, target)
    assert packed.shape == (1, 1, 1, 16, 16)
    assert packed.sum() == 2 * 4 * 4
    assert packed[0, 0, 0, :4, :4].all()
    assert not packed[0, 0, 0, :4, 4:].any()


def test_seconds_are_arithmetic_at_the_peak_or_weights_from_memory():
    target = dataclasses.replace(resolve("x86-64-v4"), cores=1, l2_bytes=2 << 20)
    busy = ConvShape(1, 128, 128, (28, 28), (3, 3), (1, 1), SAME)
    peak = 2 * busy.macs / (target.peak_gflops * 1e9)
    assert peak < conv.seconds(busy, conv.default(busy, target), target) < 1.2 * peak  # loads take their share
    read = ConvShape(1, 1024, 1024, (1, 1), (1, 1))
    memory = 4 * read.macs / (target.memory_gbytes * 1e9)
    assert conv.seconds(read, conv.default(read, target), target) == pytest.approx(memory, rel=0.05)


def test_seconds_count_taps_inside_the_image_only():
    target = dataclasses.replace(resolve("x86-64-v4"), cores=1, memory_gbytes=1e6)
    shape = ConvShape(1, 64, 64, (1, 56), (3, 3), (1, 1), SAME)
    flat = dataclasses.replace(shape, kernel=(1, 3), padding=((0, 0), (1, 1)))
    schedule = dataclasses.replace(conv.default(flat, target), depth=None)
    assert conv.seconds(shape, schedule, target) == pytest.approx(conv.seconds(flat, schedule, target), rel=0.01)
