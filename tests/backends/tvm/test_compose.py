"""Operators that exporters write out become whole again."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from shave.backends.tvm.compose import compose
from shave.ir.from_torch import trace
from shave.ir.ops import op_name
from shave.ir.program import Program

Tensor = torch.Tensor


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.matrix, self.scale, self.shift = (torch.nn.Parameter(torch.randn(*s)) for s in ((6, 4), (6,), (4,)))
        self.register_buffer("epsilon", torch.tensor(1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _composed(function: Callable[..., Tensor]) -> list[str]:
    """Names of the operators behind composition; what they compute is checked on the way."""
    module, x = _Module(function), torch.randn(2, 5, 6)
    program: Program = trace(module, (x,)).clone()
    with program.rewrite("compose") as rewriter:
        compose(program, rewriter)
    torch.testing.assert_close(program(x), module(x), rtol=1e-5, atol=1e-5)
    return [op_name(node).removeprefix("aten.") for node in program.calls]


def test_product_and_bias_are_linear() -> None:
    assert _composed(lambda m, x: x @ m.matrix + m.shift) == ["linear"]
    assert _composed(lambda m, x: m.shift + x @ m.matrix) == ["linear"]


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda m, x: torch.add(x @ m.matrix, m.shift, alpha=2), id="scaled"),
        pytest.param(lambda m, x: x @ m.matrix + m.shift[:1], id="one number"),
        pytest.param(lambda m, x: (y := x @ m.matrix) + m.shift + y, id="read twice"),
    ],
)
def test_other_sums_stay(function: Callable[..., Tensor]) -> None:
    assert "linear" not in _composed(function)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda m, x: 0.5 * x * (1 + torch.tanh(0.7978845834732056 * (x + 0.044714998453855515 * x**3))), "gelu"),
        (lambda m, x: x * (torch.tanh((x * (x * x) * 0.044715 + x) * 0.79788456) + 1) * 0.5, "gelu"),
        (lambda m, x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))), "gelu"),
        (lambda m, x: x * torch.sigmoid(x), "silu"),
        (lambda m, x: x / (x.neg().exp() + 1.0) + 0 * torch.sigmoid(x), "silu"),
        (lambda m, x: x * torch.tanh(F.softplus(x)), "mish"),
    ],
)
def test_activations_are_known_by_their_values(function: Callable[..., Tensor], name: str) -> None:
    assert _composed(lambda m, x: function(m, x * 2.0)) == ["mul", name]


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda m, x: x * torch.sigmoid(1.702 * x), id="another gelu"),
        pytest.param(lambda m, x: x * 0.5 * (1.0 + torch.erf(x / 1.4)), id="another scale"),
        pytest.param(lambda m, x: (e := torch.erf(x / math.sqrt(2.0))) + x * 0.5 * (1.0 + e), id="read inside"),
        pytest.param(lambda m, x: x * m.scale * torch.sigmoid(x), id="a vector inside"),
    ],
)
def test_other_functions_stay(function: Callable[..., Tensor]) -> None:
    assert not {"gelu", "silu", "mish"} & set(_composed(function))


def _normalised(m: _Module, x: Tensor) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return d / torch.sqrt(d.pow(2).mean(-1, keepdim=True) + m.epsilon)


def test_layer_norm_written_out() -> None:
    assert _composed(lambda m, x: _normalised(m, x) * m.scale + m.scale) == ["layer_norm"]
    assert _composed(lambda m, x: m.scale * _normalised(m, x)) == ["layer_norm"]
    assert _composed(_normalised) == ["layer_norm"]


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda m, x: x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5), id="not centred"),
        pytest.param(
            lambda m, x: (d := x - x.mean(-1, keepdim=True)) / torch.sqrt(d.pow(2).mean(1, keepdim=True) + 1e-5),
            id="another axis",
        ),
        pytest.param(
            lambda m, x: (d := x - x.mean(-1, keepdim=True)) / torch.sqrt(d.pow(4).mean(-1, keepdim=True) + 1e-5),
            id="another power",
        ),
    ],
)
def test_other_quotients_stay(function: Callable[..., Tensor]) -> None:
    assert "layer_norm" not in _composed(function)
