"""Kernels on codes of 8 bits and integer weights, exact up to ties of the last rounding."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shave.backends.targets import resolve
from shave.backends.tvm.adapter import tvm, tvm_target
from shave.backends.tvm.kernels import conv, depthwise, depthwise_dot
from shave.backends.tvm.kernels.arithmetic import arithmetic_of
from shave.backends.tvm.kernels.base import pad_channels, unblock_channels
from shave.backends.tvm.kernels.epilogue import Activation, Bias, CodeRange, Epilogue, Quantize, Residual, Scale
from shave.backends.tvm.kernels.geometry import ConvShape, TapClasses, phases
from shave.backends.tvm.kernels.matmul import MatmulShape
from shave.backends.tvm.kernels.zero_point import corrections
from tests.backends.tvm.kernels import test_conv, test_depthwise
from tests.backends.tvm.kernels.execution import (
    CODES,
    REQUANTIZE,
    blocked_codes,
    check_integer_conv,
    check_integer_matmul,
    check_measured_matmul,
    codes,
    compiled,
    each_integer_target,
    targets,
)

BLOCK = Epilogue((Scale(), Bias(), Residual("uint8"), Scale(), Activation("relu"), Quantize()))
FLOATS = Epilogue((Scale(), Bias(), Activation("silu"), Residual()))


def of_codes(shapes):
    """The same shapes for codes, but for those that have no integer kernel."""
    found = {name: s for name, s in shapes.items() if not s.transposed}
    return {name: dataclasses.replace(s, dtype="uint8") for name, s in found.items()}


CONVOLUTIONS = of_codes(test_conv.SHAPES)
DEPTHWISE = of_codes(test_depthwise.SHAPES)


@each_integer_target
@pytest.mark.parametrize("shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions_are_exact(shape, target):
    check_integer_conv(conv, shape, target)


@each_integer_target
@pytest.mark.parametrize("shape", DEPTHWISE.values(), ids=DEPTHWISE)
def test_depthwise_convolutions_are_exact(shape, target):
    check_integer_conv(depthwise, shape, target)


PLANES = {
    "3x3": ((14, 14), (3, 3), (1, 1), ((1, 1), (1, 1))),
    "3x3, stride 2": ((9, 17), (3, 3), (2, 2), ((0, 1), (1, 0))),
    "5x5": ((7, 40), (5, 5), (1, 1), ((2, 2), (2, 2))),
    "rows of four": ((6, 4), (3, 3), (1, 1), ((1, 1), (1, 1))),
    "beyond the image": ((3, 5), (2, 7), (1, 1), ((2, 1), (9, 6))),
    "stride 3, 9 taps": ((20, 31), (3, 9), (2, 3), ((1, 1), (4, 4))),
    "no padding": ((6, 11), (3, 4), (1, 1), ((0, 0), (0, 0))),
}


@pytest.mark.parametrize("target", targets(("x86-64-v4-vnni",)))
@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
def test_depthwise_dot_products_are_exact(plane, target):
    shape = ConvShape(2, 35, 35, *plane, groups=35, dtype="uint8")
    assert depthwise_dot.applies(shape, target)
    for schedule in depthwise_dot.candidates(shape, target)[::3]:
        check_integer_conv(depthwise_dot, shape, target, BLOCK, schedule)


def test_depthwise_dot_products_take_what_they_can():
    planes = [ConvShape(1, 35, 35, *plane, groups=35, dtype="uint8") for plane in PLANES.values()]
    assert not any(depthwise_dot.applies(shape, resolve("x86-64-v4")) for shape in planes)
    target = resolve("x86-64-v4-vnni")
    assert all(depthwise_dot.applies(shape, target) for shape in planes)
    for change in ({"dtype": "float32"}, {"groups": 5}, {"dilation": (1, 2)}, {"spatial": (9, 3)}):
        assert not depthwise_dot.applies(dataclasses.replace(planes[0], **change), target)


@each_integer_target
@pytest.mark.parametrize("epilogue", [BLOCK, FLOATS], ids=["codes are added", "floats come out"])
def test_epilogues_of_sums(epilogue, target):
    for family, shape in ((conv, CONVOLUTIONS["channel tails"]), (depthwise, DEPTHWISE["3x3, stride 2, tails"])):
        check_integer_conv(family, shape, target, epilogue)
    check_integer_matmul(MatmulShape(9, 37, 21, dtype="uint8"), target, epilogue)


@each_integer_target
@pytest.mark.parametrize("zero_point", [0, 1, 255])
@pytest.mark.parametrize(
    "result", [CodeRange(0), CodeRange(7), CodeRange(128, 128, 255), CodeRange(255, 3, 200), CodeRange(0, 5)]
)
def test_zero_points_and_bounds(zero_point, result, target):
    steps = Epilogue((Scale(), Bias(), result.step))
    for shape in (CONVOLUTIONS["padding beyond the image"], ConvShape(1, 5, 19, (3, 27), (1, 1), dtype="uint8")):
        check_integer_conv(conv, shape, target, steps, zero_point=zero_point, result=result)


@each_integer_target
@pytest.mark.parametrize("width", [3, 8])
def test_results_beyond_32_bits_saturate(width, target):
    shape = ConvShape(1, 4, 4, (width,), (1,), dtype="uint8")
    weight = np.ones(shape.weight_shape, np.int8)
    bias = np.array([1e30, -1e30, np.inf, -np.inf], np.float32)
    y = np.zeros(conv.output_shape(shape, target), np.uint8)
    vectors = [pad_channels(v, target.lanes) for v in (np.ones(4, np.float32), bias)]
    kernel = compiled(conv.build(shape, conv.default(shape, target), target, REQUANTIZE), target)
    x = blocked_codes(codes(1, 4, width), target.lanes)
    kernel(x, conv.pack(weight, shape, target), corrections(weight, 0, shape, target), *vectors, CODES.numbers, y)
    assert unblock_channels(y, 4).tolist() == [[[255] * width, [0] * width, [255] * width, [0] * width]]


@each_integer_target
def test_batch_known_only_at_run_time(target):
    shape = dataclasses.replace(CONVOLUTIONS["channel tails"], batch=None)
    check_integer_conv(conv, shape, target, batch=3)


@pytest.mark.parametrize("target", targets(("x86-64-v4-vnni",)))
def test_every_candidate_computes_the_same(target):
    for shape in (CONVOLUTIONS["channel tails"], CONVOLUTIONS["pointwise"]):
        for schedule in conv.candidates(shape, target)[::6]:
            check_integer_conv(conv, shape, target, schedule=schedule)


@each_integer_target
@pytest.mark.parametrize("cores", [2, 3])
def test_bands_of_rows(cores, target):
    shape = dataclasses.replace(test_conv.BANDED["3x3, stride 2"], dtype="uint8")
    target = dataclasses.replace(target, cores=cores)
    schedule = dataclasses.replace(conv.default(shape, target), outer="bands", merge=1)
    check_integer_conv(conv, shape, target, schedule=schedule)


@each_integer_target
@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(7, 64, 48), (13, 70, 35), (1, 203, 100), (50, 3, 17), (1, 1, 1), (4, 129, 16)]
)
def test_products_are_exact(rows, inner, columns, target):
    check_integer_matmul(MatmulShape(rows, inner, columns, dtype="uint8"), target)


@each_integer_target
def test_rows_known_only_at_run_time(target):
    check_integer_matmul(MatmulShape(None, 67, 40, dtype="uint8"), target, rows=[1, 5, 37])


@st.composite
def shapes(draw):
    shape = draw(test_conv.shapes().filter(lambda s: not s.transposed))
    quads = shape.plain_input and shape.in_channels <= 4 and shape.groups == 1
    return dataclasses.replace(shape, dtype="uint8", plain_input=quads)


@given(shapes(), st.integers(0, 255))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_some_random_shapes_are_exact(shape, zero_point):
    check_integer_conv(conv, shape, resolve("x86-64-v3"), zero_point=zero_point)


@pytest.mark.sweep
@given(shapes(), st.integers(0, 255), st.sampled_from(["x86-64-v3", "x86-64-v4", "x86-64-v4-vnni"]))
@settings(max_examples=150, deadline=None)
def test_random_shapes_are_exact(shape, zero_point, name):
    check_integer_conv(conv, shape, resolve(name), zero_point=zero_point)


@pytest.mark.parametrize(
    ("extent", "kernel", "stride", "padding", "dilation"),
    [(56, 3, 1, (1, 1), 1), (56, 7, 2, (3, 3), 1), (5, 5, 1, (4, 0), 2), (3, 1, 1, (0, 0), 1), (2, 3, 1, (6, 5), 2)],
)
def test_outputs_of_a_class_meet_the_same_taps(extent, kernel, stride, padding, dilation):
    shape = ConvShape(1, 4, 4, (extent,), (kernel,), (stride,), (padding,), (dilation,))
    ((axis,),) = phases(shape)
    classes = TapClasses.of(axis)
    assert len(classes.members) == classes.count
    for q in range(axis.extent):
        member = classes.members[classes.number(q)]
        assert [axis.meets(q, t) for t in range(axis.taps)] == [axis.meets(member, t) for t in range(axis.taps)]
    assert extent < 50 or classes.count <= sum(padding) + 1


@pytest.mark.parametrize("target", targets(("x86-64-v4-vnni", "x86-64-v4")))  # 16 registers are too few for LLVM
def test_sums_stay_in_registers(target):
    instruction = "vpdpbusd" if arithmetic_of("uint8", target).instructions == 1 else "vpmaddwd"
    shape = ConvShape(1, 64, 64, (28, 28), (3, 3), (1, 1), test_conv.SAME, dtype="uint8")
    function = conv.build(shape, conv.default(shape, target), target, REQUANTIZE)
    assembly = tvm.compile(function, tvm_target(target)).mod.inspect_source("s").splitlines()
    register = "zmm" if target.lanes == 16 else "ymm"
    products = [line for line in assembly if instruction in line and register in line]
    assert len(products) >= 12
    assert not [line for line in assembly if "gather" in line or "vpextrd" in line or "vpmaddubsw" in line]
    spilled = [line for line in assembly if f"%{register}" in line and "(%rsp)" in line and "vmov" in line]
    assert len(spilled) < len(products) / 10


def test_products_use_the_instruction_of_the_target():
    assert arithmetic_of("uint8", resolve("x86-64-v4-vnni")).instructions == 1
    assert arithmetic_of("uint8", resolve("x86-64-v4")).weights == "int16"
    assert arithmetic_of("uint8", resolve("sapphirerapids")).instructions == 1
    alder_lake = arithmetic_of("uint8", resolve("alderlake"))
    assert (alder_lake.instructions, alder_lake.weights) == (1, "int8")


def test_quads_have_at_most_four_channels():
    with pytest.raises(ValueError, match="5 channels in 1 groups"):
        ConvShape(1, 5, 8, (9,), (3,), plain_input=True, dtype="uint8")


def test_weights_of_missing_channels_are_zero():
    target = resolve("x86-64-v4-vnni")
    shape = ConvShape(1, 5, 3, (4,), (1,), dtype="uint8")
    packed = conv.pack(np.ones(shape.weight_shape, np.int8), shape, target)
    assert packed.shape == (1, 1, 1, 4, 16, 4)
    assert packed.sum() == 15


MEASURED = [Epilogue((Scale(),)), FLOATS, REQUANTIZE]


@each_integer_target
@pytest.mark.parametrize("measured", ["tensor", "row"])
@pytest.mark.parametrize("epilogue", MEASURED, ids=["scale", "floats", "codes"])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 5, 3), (9, 37, 45), (23, 64, 32)])
def test_products_whose_zero_points_come_with_the_call(measured, epilogue, rows, inner, columns, target):
    check_measured_matmul(MatmulShape(rows, inner, columns, dtype="uint8", measured=measured), target, epilogue)


@each_integer_target
@pytest.mark.parametrize("measured", ["tensor", "row"])
def test_the_same_for_rows_known_only_at_run_time(measured, target):
    shape = MatmulShape(None, 67, 40, dtype="uint8", measured=measured)
    check_measured_matmul(shape, target, FLOATS, rows=[1, 5, 37])
