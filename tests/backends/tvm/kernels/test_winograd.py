import dataclasses
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.targets import resolve
from shave.backends.tvm.adapter import tvm, tvm_target
from shave.backends.tvm.kernels import conv, winograd
from shave.backends.tvm.kernels.base import unblock_channels
from shave.backends.tvm.kernels.epilogue import Activation, Bias, Epilogue, Factor, Residual, Scale, Slope
from shave.backends.tvm.kernels.winograd_shape import WinogradSchedule, WinogradShape
from shave.ir.winograd import transform_weight, transforms
from tests.backends.tvm.kernels.execution import (
    blocked_operands,
    blocked_with_poison,
    compiled,
    each_target,
    random,
    targets,
    unwritten,
)

FULL = Epilogue((Bias(), Residual(), Activation("relu")))
TOLERANCE = {2: 1e-5, 4: 3e-5, 6: 1e-4}
"""Largest error where input and output have a standard deviation near 1."""
SHAPES = {
    "whole tiles": WinogradShape(1, 32, 32, (14, 26), (0, 0), 4),
    "borders": WinogradShape(1, 32, 48, (13, 17), (1, 1), 4),
    "channel tails": WinogradShape(2, 20, 35, (9, 11), (1, 1), 4),
    "few channels": WinogradShape(1, 1, 1, (8, 8), (1, 1), 4),
    "one pixel": WinogradShape(1, 17, 3, (1, 1), (1, 1), 6),
    "smaller than a tile": WinogradShape(3, 18, 16, (3, 2), (2, 1), 6),
    "wide padding": WinogradShape(1, 16, 16, (12, 20), (2, 2), 6),
    "padding of one axis": WinogradShape(1, 16, 33, (8, 30), (0, 2), 2),
    "several slices": WinogradShape(1, 70, 20, (9, 9), (1, 1), 2),
    "tile 6": WinogradShape(1, 64, 64, (20, 26), (1, 1), 6),
}


def check(shape, target, epilogue=FULL, schedule=None, batch=None):
    """Build, call and compare a kernel with the convolution of the untransformed weights in float64."""
    schedule = schedule or winograd.default(shape, target)
    n = batch or shape.batch or 1
    x = random(n, shape.in_channels, *shape.spatial)
    weight = random(*shape.direct.weight_shape) / np.float32(np.sqrt(9 * shape.in_channels))
    transformed = transform_weight(torch.from_numpy(weight), shape.tile).float().numpy()
    plain, packed = blocked_operands(epilogue, (n, shape.out_channels, *shape.out_spatial), target.lanes)
    y = unwritten(n, -(-shape.out_channels // target.lanes), *shape.stored_spatial, target.lanes)
    kernel = compiled(winograd.build(shape, schedule, target, epilogue), target)
    kernel(blocked_with_poison(x, target.lanes), winograd.pack(transformed, shape, target), *packed, y)
    expected = conv.reference(x, weight, shape.direct, epilogue, plain)
    if shape.pooled:
        expected = F.max_pool2d(torch.from_numpy(expected), 2).numpy()
    found = unblock_channels(y, shape.out_channels)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[shape.tile], atol=TOLERANCE[shape.tile])


@each_target
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_the_direct_convolution(shape, target):
    check(shape, target)


@each_target
@pytest.mark.parametrize("batch", [1, 3])
def test_batch_known_only_at_run_time(batch, target):
    shape = dataclasses.replace(SHAPES["channel tails"], batch=None)
    check(shape, target, Epilogue((Bias(), Activation("gelu"), Residual())), batch=batch)


@each_target
def test_operands_of_every_kind(target):
    steps = (Slope(), Factor(), Scale(per_image=True), Bias(per_image=True), Residual())
    check(SHAPES["channel tails"], target, Epilogue(steps))


@pytest.mark.parametrize("target", targets()[:1])
def test_every_candidate_computes_the_same(target):
    for shape in (SHAPES["channel tails"], SHAPES["several slices"]):
        for schedule in winograd.candidates(shape, target)[::4]:
            check(shape, target, schedule=schedule)


@pytest.mark.parametrize("order", ["elements", "channels"])
@pytest.mark.parametrize("target", targets()[:1])
def test_blocks_and_slices_add_up(order, target):
    shape = dataclasses.replace(SHAPES["several slices"], batch=2)
    check(shape, target, schedule=WinogradSchedule(3, 1, 2, order, 2))


@each_target
@pytest.mark.parametrize("name", ["borders", "channel tails", "wide padding", "padding of one axis", "tile 6"])
def test_pooling_ends_the_epilogue(name, target):
    check(dataclasses.replace(SHAPES[name], pooled=True), target)


@pytest.mark.parametrize("order", ["elements", "channels"])
def test_pooling_in_both_orders(order):
    shape = dataclasses.replace(SHAPES["several slices"], batch=None, pooled=True)
    check(shape, resolve("x86-64-v3"), schedule=WinogradSchedule(3, 1, 2, order, 2), batch=2)


def test_reference_agrees_with_torch():
    shape = SHAPES["channel tails"]
    x, weight = random(2, 20, 9, 11), random(35, 20, 3, 3)
    found = winograd.reference(x, transform_weight(torch.from_numpy(weight), 4).numpy(), shape, Epilogue(), ())
    x64, w64 = torch.from_numpy(x).double(), torch.from_numpy(weight).double()
    expected = torch.nn.functional.conv2d(x64, w64, None, 1, shape.padding)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-12)
    transformed = transform_weight(torch.from_numpy(weight), 4).numpy()
    found = winograd.reference(x, transformed, dataclasses.replace(shape, pooled=True), Epilogue(), ())
    np.testing.assert_allclose(found, F.max_pool2d(expected, 2).numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile", [2, 4, 6])
def test_packed_weights_are_the_untransformed_ones(tile):
    target = resolve("x86-64-v4")
    shape = WinogradShape(1, 5, 18, (8, 8), (1, 1), tile)
    weight = random(18, 5, 3, 3)
    packed = winograd.pack(transform_weight(torch.from_numpy(weight), tile).float().numpy(), shape, target)
    assert packed.shape == (2, 5, 9, 16)
    found = packed.transpose(0, 3, 1, 2).reshape(32, 5, 3, 3)
    np.testing.assert_allclose(found[:18], weight, rtol=1e-6, atol=1e-6)
    assert not found[18:].any()


def test_weights_that_are_no_transform_are_refused():
    shape = WinogradShape(1, 4, 4, (8, 8), (1, 1), 4)
    with pytest.raises(ValueError, match="no transform of a 3x3 weight"):
        winograd.pack(random(transforms(4).size ** 2, 4, 4), shape, resolve("x86-64-v4"))


@st.composite
def shapes(draw):
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    spatial = tuple(draw(st.integers(max(1, 3 - 2 * p), 20)) for p in padding)
    channels = st.integers(1, 70)
    return WinogradShape(
        draw(st.sampled_from([None, 1, 3])), draw(channels), draw(channels), spatial, padding,
        draw(st.sampled_from([2, 4, 6])), draw(st.booleans()) and min(spatial) > 3,
    )  # fmt: skip


@pytest.mark.sweep
@given(shapes(), st.sampled_from(["x86-64-v3", "x86-64-v4"]), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_random_shapes_agree_with_the_direct_convolution(shape, name, batch):
    check(shape, resolve(name), batch=shape.batch or batch)


@given(shapes())
@settings(max_examples=6, deadline=None, derandomize=True)
def test_some_random_shapes_agree_with_the_direct_convolution(shape):
    check(shape, resolve("x86-64-v3"))


@pytest.mark.parametrize("target", targets())
def test_products_keep_their_accumulators_in_registers(target):
    shape = WinogradShape(1, 64, 64, (28, 28), (1, 1), 4)
    schedule = WinogradSchedule(6, 2, 2, "elements", 64 // target.lanes)
    function = winograd.build(shape, schedule, target, Epilogue((Bias(), Activation("relu"))))
    assembly = tvm.compile(function, tvm_target(target)).mod.inspect_source("s")
    assert not any(sign in assembly for sign in ("gather", "vinsertps", "vpextrd"))
    spilled = []
    for block in re.split(r"^\.?L\w+:", assembly, flags=re.MULTILINE):
        fused, broadcasts = block.count("vfmadd"), block.count("vbroadcastss") + block.count("{1to16}")
        if fused >= schedule.rows * schedule.vectors and broadcasts >= schedule.rows:
            spilled.append(block.count("(%rsp)") / fused)
    assert min(spilled) < 0.1


def test_estimate_prefers_large_tiles_on_large_maps_only():
    target = resolve("x86-64-v4")

    def best(channels, size, tile):
        shape = WinogradShape(1, channels, channels, (size, size), (1, 1), tile)
        return winograd.seconds(shape, winograd.default(shape, target), target)

    assert best(256, 56, 4) < best(256, 56, 2)
    assert best(512, 4, 4) < best(512, 4, 6)


@pytest.mark.parametrize(
    ("in_channels", "schedule"),
    [(16, WinogradSchedule(14, 2, 14, "channels", 1)), (64, WinogradSchedule(14, 2, 1, "elements", 4))],
    ids=["products of a large block", "beside weights that stream through"],
)
def test_estimate_counts_products_that_a_small_cache_does_not_hold(in_channels, schedule):
    """Factors alone fit both caches, and transformed weights neither."""
    shape = WinogradShape(1, in_channels, 256, (56, 56), (1, 1), 4)
    small, large = (dataclasses.replace(resolve("x86-64-v4"), cores=1, l2_bytes=n << 19) for n in (2, 3))
    assert winograd.seconds(shape, schedule, small) > winograd.seconds(shape, schedule, large)
