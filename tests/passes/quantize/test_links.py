"""Smooth and equalise: both move factors along links, and change no output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import fx, nn

import shave
from shave.ir.from_torch import trace
from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.compare import difference
from shave.passes.quantize.equalise import Equalise
from shave.passes.quantize.links import find
from shave.passes.quantize.products import product_of
from shave.passes.quantize.smooth import Smooth
from tests.passes.contract import PassContract, run_pass
from tests.passes.quantize.nets import batches, residual, transformer


class Uneven(nn.Module):
    """Grouped, depthwise and plain convolutions between rectifiers; channels of very unequal size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12, bias=False), nn.LeakyReLU(),
            nn.Conv2d(12, 8, 1, groups=4), nn.MaxPool2d(2), nn.Conv2d(8, 5, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def uneven() -> Program:
    torch.manual_seed(3)
    module = Uneven()
    with torch.no_grad():
        module.layers[0].weight.mul_(torch.logspace(-1.5, 1.5, 12)[:, None, None, None])  # type: ignore[operator]
        module.layers[0].bias.mul_(torch.logspace(-1.5, 1.5, 12))  # type: ignore[operator]
        module.layers[2].weight.mul_(torch.logspace(1.5, -1.5, 12)[:, None, None, None])  # type: ignore[operator]
    return trace(module.eval(), (torch.randn(2, 3, 11, 9),), dynamic_shapes={"x": {0: "N"}})


class _Contract(PassContract):
    idempotent = False  # what is level to a hundredth is levelled on

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"uneven": uneven, "transformer": transformer}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return {product.node.args[0] for node in program.calls if (product := product_of(program, node))}  # type: ignore[misc]

    def run_arguments(self, program: Program) -> dict[str, Any]:
        return {"calibration": batches(program)}


class TestEqualise(_Contract):
    def make_pass(self) -> Pass:
        return Equalise()


class TestSmooth(_Contract):
    def make_pass(self) -> Pass:
        return Smooth()


def test_equalised_sides_are_as_large() -> None:
    program = uneven()
    result, _ = run_pass("equalise", program)
    for link in find(result, lambda *_: None):
        torch.testing.assert_close(link.made(result), link.magnitudes(result), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("text", ["equalise", "smooth"])
def test_uneven_channels_survive_one_scale_for_all(text: str) -> None:
    program = uneven()
    data = batches(program)
    coarse = "quantize{per-channel=false calibrate=minmax correct-bias=false}"
    plain, levelled = (
        difference(program(*data[0]), shave.PassManager(each).run(program, calibration=data)(*data[0])).sqnr_db
        for each in (coarse, f"{text}, {coarse}")
    )
    assert levelled > plain + 6


def test_what_others_read_is_left_and_reported() -> None:
    program = residual()
    refused: dict[str, str] = {}
    links = find(program, lambda node, reason: refused.setdefault(node.name, reason))
    assert [link.value.name for link in links] == ["relu_1"]
    assert refused["max_pool2d"].endswith("reads it, too, which has no weights to take a factor")
    assert "an input" in refused["x"]
