"""The cost oracle against the kernels that it speaks for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shave.backends.targets import resolve
from shave.backends.tvm.kernels import batch_dot, batch_matmul, conv, depthwise, matmul, winograd
from shave.backends.tvm.kernels.batch_dot import BatchDotShape
from shave.backends.tvm.kernels.batch_matmul import BatchMatmulShape
from shave.backends.tvm.kernels.geometry import ConvShape
from shave.backends.tvm.kernels.matmul import MatmulShape
from shave.backends.tvm.kernels.winograd_shape import WinogradShape
from shave.backends.tvm.oracle import cost_oracle
from shave.passes.problems import BatchMatmul, Conv2d, Conversion, Matmul, Transpose, WinogradConv2d

TARGET = resolve("x86-64-v4")


def seconds(family, shape, target=TARGET):
    return family.seconds(shape, family.default(shape, target), target)


@pytest.mark.parametrize(
    ("problem", "family", "shape"),
    [
        (
            Conv2d(1, 32, 48, 17, 19, (3, 3), (2, 1), (1, 0), (1, 2)),
            conv,
            ConvShape(1, 32, 48, (17, 19), (3, 3), (2, 1), ((1, 1), (0, 0)), (1, 2)),
        ),
        (
            Conv2d(None, 3, 32, 24, 24, (3, 3)),
            conv,
            ConvShape(None, 3, 32, (24, 24), (3, 3), plain_input=True),
        ),
        (
            WinogradConv2d(None, 32, 48, 17, 19, (2, 1), 4),
            winograd,
            WinogradShape(None, 32, 48, (17, 19), (2, 1), 4),
        ),
        (
            Conv2d(1, 48, 48, 17, 19, (3, 1), (1, 1), (1, 0), groups=48),
            depthwise,
            ConvShape(1, 48, 48, (17, 19), (3, 1), (1, 1), ((1, 1), (0, 0)), groups=48),
        ),
        (Matmul(50, 300, 100), matmul, MatmulShape(50, 300, 100)),
        (BatchMatmul(3, 50, 64, 70), batch_matmul, BatchMatmulShape(3, 50, 64, 70)),
        (BatchMatmul(3, 50, 64, 70, "int8"), batch_dot, BatchDotShape(3, 50, 64, 70)),
        (Matmul(50, 300, 100, "int8"), matmul, MatmulShape(50, 300, 100, dtype="uint8")),
        (
            Conv2d(1, 3, 48, 24, 24, (3, 3), precision="int8"),
            conv,
            ConvShape(1, 3, 48, (24, 24), (3, 3), plain_input=True, dtype="uint8"),
        ),
    ],
    ids=[
        "strided",
        "first",
        "winograd",
        "depthwise",
        "product",
        "batched product",
        "batched product of integers",
        "product of integers",
        "first, integers",
    ],
)
def test_it_asks_the_family_about_its_default(problem, family, shape):
    oracle = cost_oracle(TARGET)
    assert oracle(problem) == seconds(family, shape)
    assert 1e-7 < oracle(problem) < 1e-2


def test_threads_share_the_work():
    problem = Conv2d(1, 64, 64, 56, 56, (3, 3), padding=(1, 1))
    one, four, by_default = (cost_oracle(TARGET, threads)(problem) for threads in (1, 4, None))
    assert 2.5 < one / four < 4.5
    assert by_default == cost_oracle(replace(TARGET, cores=4), None)(problem)


def test_winograd_pays_on_wide_layers_and_not_on_narrow_ones():
    oracle = cost_oracle(TARGET, 1)
    for channels, pays in ((64, True), (4, False)):
        sizes = (1, channels, channels, 56, 56)
        direct = oracle(Conv2d(*sizes, (3, 3), padding=(1, 1)))
        assert (oracle(WinogradConv2d(*sizes, (1, 1), 4)) < direct) is pays


def test_a_transpose_takes_the_time_of_its_bytes():
    oracle = cost_oracle(TARGET, 1)
    assert oracle(Transpose(10**6)) == pytest.approx(8e6 / (TARGET.memory_gbytes * 1e9))
    assert oracle(Transpose(2 * 10**6)) == pytest.approx(2 * oracle(Transpose(10**6)))


def test_what_it_does_not_know():
    assert cost_oracle(resolve("sm_90")) is None


def test_integers_are_faster_where_the_target_has_their_dot_product():
    sizes = (1, 256, 256, 14, 14, (3, 3))
    floats, integers = (Conv2d(*sizes, padding=(1, 1), precision=p) for p in ("float32", "int8"))
    with_dot = cost_oracle(resolve("x86-64-v4-vnni"), 1)
    assert with_dot(floats) / with_dot(integers) > 3
    without = cost_oracle(TARGET, 1)
    assert without(floats) / without(integers) < 1.5
    for measured in (False, True):
        assert with_dot(Conversion(2_000_000, measured)) == 2 * with_dot(Conversion(1_000_000, measured))


def test_integers_have_no_time_where_no_kernel_multiplies_them():
    oracle = cost_oracle(resolve("neoverse-n1"), 1)
    assert oracle(Matmul(8, 64, 64, "int8")) is None
    assert oracle(Matmul(8, 64, 64)) is not None


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_products_of_two_activations_share_cores(precision) -> None:
    oracle = cost_oracle(resolve("x86-64-v4-vnni"), 1)
    six, three = (oracle(BatchMatmul(batch, 50, 64, 50, precision)) for batch in (6, 3))
    assert six == pytest.approx(2 * three)
    for batch in (1, 8):
        problem = BatchMatmul(batch, 128, 64, 128, precision)
        assert 1.5 < oracle(problem) / cost_oracle(resolve("x86-64-v4-vnni"), 2)(problem) <= 2


def test_products_of_two_activations_gain_by_dot_products() -> None:
    for name, gain in (("x86-64-v4-vnni", 1.5), ("x86-64-v4", 0.5)):
        oracle = cost_oracle(resolve(name), 1)
        floats, integers = (oracle(BatchMatmul(3, 197, 64, 197, p)) for p in ("float32", "int8"))
        assert floats / integers > gain
    assert cost_oracle(resolve("neoverse-n1"), 1)(BatchMatmul(3, 197, 64, 197, "int8")) is None
