from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import fx

from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.simplify.pool_first import PoolFirst
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten

X = torch.zeros(2, 4, 8, 7)


def pooled(pool: Callable[[Any], Any], *, bias: bool = True, x: torch.Tensor = X, **options: Any) -> Program:
    """A 1x1 convolution from 4 to 6 channels and a pooling behind it."""
    rank = x.dim() - 2
    convolution = [aten.conv1d, aten.conv2d, aten.conv3d][rank - 1].default
    weights = draw(
        {"layer.weight": (6, 4, *options.pop("kernel", (1,) * rank)), **({"layer.bias": (6,)} if bias else {})}
    )

    def forward(x, weight, bias=None):
        return pool(convolution(x, weight, bias, *options.values()))

    return program_of(forward, {"x": x}, weights)


MOVED = {
    "halved": pooled(lambda y: aten.avg_pool2d.default(y, [2, 2])),
    "overlapping": pooled(lambda y: aten.avg_pool2d.default(y, [3, 3], [2, 2])),
    "rounded up": pooled(lambda y: aten.avg_pool2d.default(y, [3, 3], [2, 2], [0, 0], True)),
    "true mean at the border": pooled(lambda y: aten.avg_pool2d.default(y, [3, 3], [2, 2], [1, 1], False, False)),
    "zeros at the border": pooled(lambda y: aten.avg_pool2d.default(y, [3, 3], [2, 2], [1, 1]), bias=False),
    "another divisor": pooled(lambda y: aten.avg_pool2d.default(y, [2, 2], [2, 2], [0, 0], False, True, 3), bias=False),
    "adaptive": pooled(lambda y: aten.adaptive_avg_pool2d.default(y, [3, 2])),
    "1-d": pooled(lambda y: aten.avg_pool1d.default(y, [2]), x=torch.zeros(2, 4, 9)),
    "3-d": pooled(lambda y: aten.adaptive_avg_pool3d.default(y, [1, 1, 1]), x=torch.zeros(1, 4, 3, 4, 5)),
}


@pytest.mark.parametrize("program", MOVED.values(), ids=MOVED)
def test_a_mean_goes_ahead_of_a_pointwise_convolution(program: Program) -> None:
    before = [node.target for node in program.calls]
    result, _ = run_pass(PoolFirst(), program)
    assert [node.target for node in result.calls] == before[::-1]


STAY = {
    "it counts zeros": (
        pooled(lambda y: aten.avg_pool2d.default(y, [3, 3], [2, 2], [1, 1])),
        "its windows do not add up to one pixel, which would change the bias of conv2d_default",
    ),
    "it does not divide by the number of pixels": (
        pooled(lambda y: aten.avg_pool2d.default(y, [2, 2], [2, 2], [0, 0], False, True, 3)),
        "its windows do not add up to one pixel, which would change the bias of conv2d_default",
    ),
    "it smooths": (
        pooled(lambda y: aten.avg_pool2d.default(y, [3, 3], [1, 1], [1, 1], False, False)),
        "it does not make the map smaller",
    ),
    "3x3": (
        pooled(lambda y: aten.avg_pool2d.default(y, [2, 2]), kernel=(3, 3)),
        "conv2d_default ahead of it is not pointwise",
    ),
    "strided": (
        pooled(lambda y: aten.avg_pool2d.default(y, [2, 2]), stride=[2, 2]),
        "conv2d_default ahead of it is not pointwise",
    ),
    "two readers": (
        pooled(lambda y: (aten.avg_pool2d.default(y, [2, 2]), aten.relu.default(y))),
        "the output of conv2d_default ahead of it has other readers",
    ),
}


@pytest.mark.parametrize(("program", "reason"), STAY.values(), ids=STAY)
def test_a_pooling_that_must_stay_stays(program: Program, reason: str) -> None:
    _, report = run_pass(PoolFirst(), program)
    assert list(reasons(report).values()) == [f"skipped: {reason}"]


def test_a_maximum_is_no_mean() -> None:
    _, report = run_pass(PoolFirst(), pooled(lambda y: aten.max_pool2d.default(y, [2, 2])))
    assert not report.entries


def transition() -> Program:
    """What lies between two blocks of a DenseNet."""

    def forward(x, weight, bias):
        y = aten.conv2d.default(aten.relu.default(x), weight, bias)
        return aten.neg.default(aten.avg_pool2d.default(y, [2, 2], [2, 2]))

    return program_of(
        forward, {"x": X}, draw({"layer.weight": (6, 4, 1, 1), "layer.bias": (6,)}), dynamic={"x": {0: "batch"}}
    )


class TestContract(PassContract):
    golden = ("transition",)
    onnx = ("transition",)

    def make_pass(self) -> Pass:
        return PoolFirst()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"transition": transition}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return [node for node in program.calls if node.target is aten.avg_pool2d.default]
