"""Which nodes a kernel swallows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from shave.backends.tvm.kernels.epilogue import Activation, Bias, Factor, Residual, Scale, Slope
from shave.backends.tvm.regions import Region, find_regions
from shave.ir.from_torch import trace
from shave.ir.ops import op_name


class _After(torch.nn.Module):
    """A linear layer and what comes behind it."""

    def __init__(self, then: Callable[..., object]) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.then = then

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> object:
        return self.then(self.layer(x), y)


def _region(then: Callable[..., object], shape: tuple[int, ...] = (3, 4)) -> Region:
    program = trace(_After(then), (torch.randn(3, 4), torch.randn(shape)))
    regions = find_regions(program.graph, lambda node: op_name(node) == "aten.linear")
    (region,) = regions.values()
    return region


def _names(region: Region) -> list[str]:
    return [op_name(node).removeprefix("aten.") for node in region.nodes]


@pytest.mark.parametrize(
    ("function", "step"),
    [
        (F.relu, Activation("relu")),
        (lambda x: F.relu6(x), Activation("clip", (0.0, 6.0))),
        (lambda x: x.clamp(min=0), Activation("relu")),
        (lambda x: x.clamp(-1, 2), Activation("clip", (-1.0, 2.0))),
        (lambda x: F.leaky_relu(x, 0.1), Activation("leaky_relu", (0.1,))),
        (F.silu, Activation("silu")),
        (F.gelu, Activation("gelu")),
        (lambda x: F.gelu(x, approximate="tanh"), Activation("gelu_tanh")),
        (F.hardswish, Activation("hardswish")),
        (F.elu, Activation("elu", (1.0,))),
        (lambda x: x * torch.sigmoid(x), Activation("silu")),
        (lambda x: F.hardsigmoid(x) * x, Activation("hardswish")),
    ],
)
def test_activations_are_swallowed(function: Callable[[torch.Tensor], torch.Tensor], step: Activation) -> None:
    assert _region(lambda x, y: function(x) / y).steps == (step,)


def test_addition_then_activation() -> None:
    region = _region(lambda x, y: F.relu(y + x))
    assert _names(region) == ["linear", "add", "relu"]
    assert region.steps == (Residual(), Activation("relu"))
    assert [node.name for node in region.operands] == ["y"]


@pytest.mark.parametrize(
    ("then", "shape", "steps"),
    [
        (lambda x, y: x + y, (4,), (Bias(),)),
        (lambda x, y: y * x, (1, 4), (Scale(),)),
        (lambda x, y: F.gelu(x * y), (3, 4), (Factor(), Activation("gelu"))),
        (lambda x, y: F.prelu(x, y), (4,), (Slope(),)),
        (lambda x, y: torch.relu(x * y[0] + y[1]), (2, 4), (Scale(), Bias(), Activation("relu"))),
    ],
)
def test_sums_and_products_are_swallowed(
    then: Callable[..., object], shape: tuple[int, ...], steps: tuple[object, ...]
) -> None:
    assert _region(then, shape).steps == steps


@pytest.mark.parametrize(
    ("shape", "step"),
    [
        ((1, 5, 1, 1), Scale()),
        ((5, 1, 1), Scale()),
        ((2, 5, 1, 1), Scale(per_image=True)),
        ((2, 5, 4, 7), Factor()),
        ((7,), None),
        ((2, 1, 1, 1), None),
        ((2, 5, 1, 7), None),
    ],
)
def test_channels_of_a_convolution_are_axis_1(shape: tuple[int, ...], step: object) -> None:
    class Scaled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 1)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.conv(x) * y

    program = trace(Scaled(), (torch.randn(2, 3, 4, 7), torch.randn(shape)))
    (region,) = find_regions(program.graph, lambda node: op_name(node) == "aten.conv2d").values()
    assert region.steps == (() if step is None else (step,))


@pytest.mark.parametrize(
    ("then", "shape"),
    [
        pytest.param(lambda x, y: (F.relu(x), x), (3, 4), id="two readers"),
        pytest.param(lambda x, y: x + y, (3, 1), id="a value per row"),
        pytest.param(lambda x, y: x * y, (1,), id="one value"),
        pytest.param(lambda x, y: F.prelu(x, y), (1,), id="one slope that is computed"),
        pytest.param(lambda x, y: torch.add(x, y, alpha=2), (3, 4), id="scaled"),
        pytest.param(lambda x, y: x + x, (3, 4), id="itself"),
        pytest.param(lambda x, y: x.clamp(max=2.0), (3, 4), id="half a clamp"),
        pytest.param(lambda x, y: F.softplus(x, beta=2), (3, 4), id="other softplus"),
        pytest.param(lambda x, y: y.relu() / x, (3, 4), id="not an epilogue"),
    ],
)
def test_what_is_no_chain_stays_outside(then: Callable[..., object], shape: tuple[int, ...]) -> None:
    assert _names(_region(then, shape)) == ["linear"]


def test_of_two_anchors_that_meet_one_swallows_the_sum() -> None:
    class Meet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    program = trace(Meet(), (torch.randn(3, 4),))
    regions = find_regions(program.graph, lambda node: op_name(node) == "aten.linear")
    nodes: list[fx.Node] = [node for region in regions.values() for node in region.nodes]
    assert len(nodes) == len(set(nodes)) == 3
