import numpy as np
import pytest
import torch

from shave.backends.targets import resolve
from shave.backends.tvm.kernels import conv, depthwise
from shave.backends.tvm.kernels.batch_matmul import BatchMatmulShape
from shave.backends.tvm.kernels.epilogue import (
    FUNCTIONS,
    Activation,
    Bias,
    Epilogue,
    Factor,
    Residual,
    Scale,
    Slope,
)
from shave.backends.tvm.kernels.geometry import ConvShape
from shave.backends.tvm.kernels.matmul import MatmulShape
from shave.backends.tvm.kernels.vector_math import splat
from tests.backends.tvm.kernels.execution import check_batch_matmul, check_conv, check_matmul, each_target, elementwise

PARAMETERS = {"clip": (-0.5, 1.25), "leaky_relu": (0.1,), "hardsigmoid": (0.2, 0.5), "elu": (1.5,)}
ACTIVATIONS = [Activation(kind, PARAMETERS.get(kind, ())) for kind in FUNCTIONS]


@each_target
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.kind)
def test_activation_agrees_with_float64(activation, target):
    x = np.concatenate([np.linspace(-12, 12, 4093), [-80, 80, 0]]).astype(np.float32)
    epilogue = Epilogue((activation,))
    y = elementwise(lambda value: epilogue.apply(value, lambda _: value), x, target.lanes, target)
    # Where the function is close to 0 by cancellation (gelu of -5), what counts is the error against x.
    np.testing.assert_allclose(y, epilogue.reference(x.astype(np.float64), ()), rtol=2e-6, atol=2e-6)


@each_target
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.kind)
def test_nan_stays_nan(activation, target):
    x = np.full(target.lanes, np.nan, np.float32)
    y = elementwise(lambda value: Epilogue((activation,)).apply(value, lambda _: value), x, target.lanes, target)
    assert np.isnan(y).all()


ORDERS = [
    (Bias(),),
    (Residual(),),
    (Bias(), Activation("relu"), Residual()),
    (Bias(), Residual(), Activation("relu")),
    (Activation("silu"), Bias(), Activation("gelu"), Residual(), Residual()),
    (Bias(), Slope()),
    (Scale(), Residual(), Slope(), Bias()),
    (Factor(), Activation("gelu"), Slope(), Scale()),
]


@each_target
@pytest.mark.parametrize("steps", ORDERS, ids=str)
def test_steps_apply_in_their_order(steps, target):
    check_conv(conv, ConvShape(2, 5, 19, (3, 5), (1, 1)), target, Epilogue(steps))
    check_conv(depthwise, ConvShape(2, 19, 19, (3, 5), (3, 3), groups=19), target, Epilogue(steps))
    check_matmul(MatmulShape(5, 7, 21), target, Epilogue(steps))
    check_batch_matmul(BatchMatmulShape(2, 5, 7, 21), target, Epilogue(steps))


@each_target
@pytest.mark.parametrize("batch", [None, 3])
def test_values_of_each_image(batch, target):
    epilogue = Epilogue((Bias(per_image=True), Activation("silu"), Scale(per_image=True), Slope(per_image=True)))
    check_conv(conv, ConvShape(batch, 5, 35, (3, 5), (1, 1)), target, epilogue, batch=3)
    check_conv(depthwise, ConvShape(batch, 35, 35, (5, 5), (3, 3), groups=35), target, epilogue, batch=3)


@pytest.mark.parametrize("slope", [0.25, -0.5, 0.0])
def test_slopes_at_zero_infinity_and_nan(slope):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -2.0, 3.0, -1e-30], np.float32)
    y = elementwise(
        lambda value: Epilogue((Slope(),)).apply(value, lambda _: splat(slope, value)), x, 8, resolve("x86-64-v3")
    )
    expected = torch.nn.functional.prelu(torch.from_numpy(x), torch.tensor([slope])).numpy()
    np.testing.assert_array_equal(y, expected)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(y[known]), np.signbit(expected[known]))


def test_steps_that_do_not_commute_differ():
    x, residual = np.array([-1.0]), np.array([2.0])
    before = Epilogue((Residual(), Activation("relu"))).reference(x, [residual])
    after = Epilogue((Activation("relu"), Residual())).reference(x, [residual])
    assert before != after


def test_unknown_activation_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown activation 'swosh': choose one of relu,"):
        Activation("swosh")


def test_wrong_number_of_parameters_is_refused():
    with pytest.raises(ValueError, match=r"'clip' takes \(low, high\), got 1 parameters"):
        Activation("clip", (0.0,))


def test_operands_follow_the_order_of_the_steps():
    epilogue = Epilogue((Residual(), Activation("relu"), Bias()))
    assert epilogue.operands == (Residual(), Bias())
