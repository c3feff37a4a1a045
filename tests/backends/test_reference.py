from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from shave.backends.reference import Reference
from shave.ir.errors import SignatureError
from shave.ir.from_torch import trace


class Affine(torch.nn.Module):
    """Gives its input back beside the result."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.arange(1, 5, dtype=dtype))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x * self.scale, x, self.scale


def _reference(dtype: torch.dtype = torch.float32) -> Reference:
    return Reference(trace(Affine(dtype), (torch.ones(3, 4, dtype=dtype),)))


def test_arrays_in_and_out() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    reference = _reference()
    name = reference.signature.inputs[0].name
    for outputs in (reference(x), reference(**{name: x}), reference(torch.from_numpy(x))):
        np.testing.assert_array_equal(outputs[0], x * np.arange(1, 5))
        assert all(isinstance(output, np.ndarray) for output in outputs)


def test_one_output_is_not_a_tuple() -> None:
    reference = Reference(trace(torch.nn.ReLU(), (torch.ones(2),)))
    np.testing.assert_array_equal(reference(np.array([-1, 2], np.float32)), [0, 2])


@pytest.mark.parametrize("form", [lambda x: x.T.copy().T, lambda x: x.astype(">f4"), lambda x: x[:, ::-1][:, ::-1]])
def test_odd_arrays(form) -> None:  # type: ignore[no-untyped-def]
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    x.flags.writeable = False
    np.testing.assert_array_equal(_reference()(form(x))[1], x)


def test_narrow_floats() -> None:
    x = np.arange(12).reshape(3, 4).astype(ml_dtypes.bfloat16)
    scaled, same, _ = _reference(torch.bfloat16)(x)
    assert scaled.dtype == x.dtype
    np.testing.assert_array_equal(same, x)
    np.testing.assert_array_equal(scaled.astype(np.float32), x.astype(np.float32) * np.arange(1, 5))


def test_results_share_nothing_with_inputs_and_weights() -> None:
    x = np.ones((3, 4), np.float32)
    reference = _reference()
    for output in reference(x):
        output[...] = 9
    np.testing.assert_array_equal(x, 1)
    np.testing.assert_array_equal(reference(x)[2], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((3, 5), np.float32), "dimension 1 is 5"),
        (np.ones((3, 4)), "has dtype float64"),
        ([1.0], "is a list, not an array"),
        (np.ones((3, 4), object), "object"),
    ],
)
def test_wrong_inputs(value: object, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        _reference()(value)
