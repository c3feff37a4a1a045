"""The table of kernels in the manifest."""

import json

import pytest

from shave.backends.kernel_cost import KernelCost

COST = KernelCost("conv_1", "conv", 2, ("conv2d", "relu"), 1000, 64, integers=True)


def test_comes_back_from_json():
    assert KernelCost.from_json(json.loads(json.dumps(COST.to_json()))) == COST


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 1),
        ("family", None),
        ("calls", 0),
        ("calls", True),
        ("macs", -1),
        ("macs", 1.5),
        ("bytes", 1 << 62),
        ("nodes", [1]),
        ("nodes", None),
        ("integers", 1),
    ],
)
def test_refuses_what_is_no_cost(field, value):
    with pytest.raises((TypeError, ValueError)):
        KernelCost.from_json({**COST.to_json(), field: value})


def test_refuses_a_missing_field():
    data = COST.to_json()
    del data["macs"]
    with pytest.raises(KeyError):
        KernelCost.from_json(data)


def test_older_artifacts_have_kernels_of_floats():
    data = COST.to_json()
    del data["integers"]
    assert not KernelCost.from_json(data).integers
