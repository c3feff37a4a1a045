"""Which nodes a kernel swallows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from shave.backends.tvm.kernels.epilogue import Activation, Bias, Factor, Residual, Scale, Slope
from shave.backends.tvm.regions import Region, find_regions
from shave.ir.from_torch import trace
from shave.ir.ops import op_name
from shave.ir.winograd import transform_weight, winograd_conv2d


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


@pytest.mark.parametrize(
    ("then", "channels_first", "steps"),
    [
        (lambda y, x, g: y.permute(0, 3, 1, 2) * g[:, None, None] + x, True, (Scale(), Residual())),
        (lambda y, x, g: (y * g).permute(0, 3, 1, 2) + x, True, (Scale(), Residual())),
        (lambda y, x, g: (y + x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), False, (Residual(),)),
        (lambda y, x, g: y.permute(0, 3, 2, 1), False, ()),
        (lambda y, x, g: y.permute(0, 3, 1, 2) * g, True, ()),
    ],
)
def test_products_swallow_the_permute_ahead_of_convolutions(
    then: Callable[..., torch.Tensor], channels_first: bool, steps: tuple[object, ...]
) -> None:
    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.conv = torch.nn.Linear(3, 3), torch.nn.Conv2d(3, 5, 1)
            self.gamma = torch.nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(then(self.layer(x.permute(0, 2, 3, 1)), x, self.gamma))

    program = trace(Mixed(), (torch.randn(2, 3, 4, 3),))
    (region,) = find_regions(program.graph, lambda node: op_name(node) == "aten.linear").values()
    assert region.channels_first == channels_first
    assert region.steps == steps


@pytest.mark.parametrize(
    ("pool", "size", "pooled"),
    [
        ({"kernel_size": 2}, 9, True),
        ({"kernel_size": 2, "ceil_mode": True}, 8, True),
        ({"kernel_size": 2, "ceil_mode": True}, 9, False),
        ({"kernel_size": 2, "stride": 1}, 8, False),
        ({"kernel_size": 3, "stride": 2}, 8, False),
        ({"kernel_size": 2, "padding": 1}, 8, False),
        ({"kernel_size": 2, "dilation": 2}, 8, False),
    ],
)
@pytest.mark.parametrize("kind", ["winograd", "direct"])
def test_winograd_swallows_the_pooling_of_whole_windows(
    kind: str, pool: dict[str, Any], size: int, pooled: bool
) -> None:
    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight = torch.randn(5, 3, 3, 3)
            self.weight = torch.nn.Parameter(weight if kind == "direct" else transform_weight(weight, 4).float())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.conv2d(x, self.weight) if kind == "direct" else winograd_conv2d(x, self.weight, None, (1, 1), 4)
            return F.max_pool2d(F.relu(y), **pool)

    program = trace(Pooled(), (torch.randn(2, 3, size, size),))
    anchors = ("aten.conv2d", "shave.winograd_conv2d")
    (region,) = find_regions(program.graph, lambda node: op_name(node) in anchors).values()
    assert region.pooled == (pooled and kind == "winograd")
    assert len(region.nodes) == 2 + region.pooled


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
