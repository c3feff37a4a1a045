import math

import numpy as np
import pytest

from shave.backends.tvm.kernels import vector_math
from tests.backends.tvm.kernels.execution import each_target, elementwise

REFERENCE = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "erf": np.vectorize(math.erf),
    "sigmoid": lambda x: np.exp(-np.logaddexp(0.0, -x)),
}
# As the table of the module states them.
LARGEST_ULP = {"exp": 1, "expm1": 2, "log": 1, "log1p": 2, "tanh": 6, "erf": 7, "sigmoid": 2}
DOMAIN = {"exp": (-86.98, np.inf), "expm1": (-np.inf, 88), "log1p": (0, np.inf), "sigmoid": (-87, np.inf)}


def arguments(name):
    """Dense where functions bend, logarithmic over all of float32 with subnormals, and the special values."""
    wide = np.logspace(-44.5, 38.5, 6000)
    dense = np.concatenate([np.linspace(-110, 95, 6000), np.linspace(-5, 5, 6000), np.linspace(0.5, 2, 3000)])
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38, 1.0, -1.0, 88.8, -104.1])
    x = np.concatenate([dense, wide, -wide, special]).astype(np.float32)
    low, high = DOMAIN.get(name, (-np.inf, np.inf))
    x = x[((x >= low) & (x <= high)) | np.isnan(x)]
    return np.pad(x, (0, -x.size % 16), constant_values=1)


@each_target
@pytest.mark.parametrize("name", vector_math.FUNCTIONS)
def test_error_stays_below_the_stated_ulp(name, target):
    x = arguments(name)
    y = elementwise(vector_math.FUNCTIONS[name], x, target.lanes, target)
    with np.errstate(all="ignore"):
        exact = REFERENCE[name](x.astype(np.float64))
        rounded = exact.astype(np.float32)
        finite = np.isfinite(rounded)
        error = np.abs(y[finite] - exact[finite]) / np.spacing(np.abs(rounded[finite]))
    np.testing.assert_array_equal(y[~finite], rounded[~finite])
    assert error.max() <= LARGEST_ULP[name], f"{error.max()} ULP at {x[finite][error.argmax()]}"


@each_target
@pytest.mark.parametrize(
    ("name", "low", "high"), [("exp", 0, np.inf), ("tanh", -1, 1), ("erf", -1, 1), ("sigmoid", 0, 1)]
)
def test_limits_are_exact(name, low, high, target):
    x = np.resize(np.array([-np.inf, -3e38, -100, 100, 3e38, np.inf], np.float32), 96)
    y = elementwise(vector_math.FUNCTIONS[name], x, target.lanes, target)
    np.testing.assert_array_equal(y, np.where(x < 0, low, high))


@each_target
@pytest.mark.parametrize("name", ["exp", "log", "tanh"])
def test_one_lane_gives_the_same_as_many(name, target):
    x = arguments(name)
    function = vector_math.FUNCTIONS[name]
    np.testing.assert_array_equal(elementwise(function, x, 1, target), elementwise(function, x, target.lanes, target))
