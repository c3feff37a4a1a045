"""Activations by pieces against float64, and in kernels that round what they give."""

import numpy as np
import pytest

from shave.backends.targets import resolve
from shave.backends.tvm.kernels import conv, depthwise_dot
from shave.backends.tvm.kernels.epilogue import Activation, Bias, Epilogue, Quantize, Scale
from shave.backends.tvm.kernels.geometry import ConvShape
from shave.backends.tvm.kernels.matmul import MatmulShape
from shave.backends.tvm.kernels.pieces import ERROR, Pieces, by_pieces
from tests.backends.tvm.kernels.execution import check_integer_conv, check_integer_matmul, elementwise, targets

KINDS = ["silu", "gelu", "gelu_tanh", "softplus", "sigmoid", "tanh"]
each_wide_target = pytest.mark.parametrize("target", targets(("x86-64-v4-vnni", "x86-64-v4")))


def values(kind, x, lanes, target):
    epilogue = Epilogue((Pieces(kind),))
    return elementwise(lambda value: epilogue.apply(value, lambda _: value), x, lanes, target)


@pytest.mark.parametrize("target", targets(("x86-64-v4",)))
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_small_everywhere(kind, target):
    x = np.concatenate([np.linspace(-20, 20, 40000), np.linspace(-0.1, 0.1, 4000), [-1e30, 1e30, -1e-40, 0.0] * 4])
    x = x.astype(np.float32)
    with np.errstate(over="ignore"):
        expected = Epilogue((Activation(kind),)).reference(x.astype(np.float64), ())
        difference = np.abs(values(kind, x, 16, target) - expected) / np.maximum(1, np.abs(expected))
    assert difference.max() < ERROR


@pytest.mark.parametrize("target", targets(("x86-64-v4",)))
@pytest.mark.parametrize("kind", ["silu", "sigmoid"])
def test_parts_of_a_vector_and_what_is_no_number(kind, target):
    x = np.concatenate([np.linspace(-9, 9, 48), [np.nan] * 16]).astype(np.float32)
    whole = values(kind, x, 16, target)
    assert np.isnan(whole[48:]).all()
    for lanes in (1, 2, 4, 8):
        np.testing.assert_array_equal(values(kind, x, lanes, target), whole)


def test_only_where_it_is_faster():
    wide, narrow = resolve("x86-64-v4"), resolve("x86-64-v3")
    assert isinstance(by_pieces(Activation("silu"), wide), Pieces)
    assert not isinstance(by_pieces(Activation("silu"), narrow), Pieces)
    assert by_pieces(Activation("clip", (0.0, 6.0)), wide) == Activation("clip", (0.0, 6.0))


@each_wide_target
@pytest.mark.parametrize("pixels", [16, 27])
def test_kernels_round_what_pieces_give(pixels, target):
    epilogue = Epilogue((Scale(), Bias(), Pieces("silu"), Scale(), Quantize()))
    check_integer_conv(conv, ConvShape(1, 5, 19, (3, pixels), (1, 1), dtype="uint8"), target, epilogue)
    check_integer_matmul(MatmulShape(9, 37, 21, dtype="uint8"), target, epilogue)


@pytest.mark.parametrize("target", targets(("x86-64-v4-vnni",)))
def test_depthwise_kernels_round_what_pieces_give(target):
    shape = ConvShape(1, 35, 35, (14, 14), (3, 3), (1, 1), ((1, 1), (1, 1)), groups=35, dtype="uint8")
    epilogue = Epilogue((Scale(), Bias(), Pieces("gelu"), Scale(), Quantize()))
    check_integer_conv(depthwise_dot, shape, target, epilogue)
