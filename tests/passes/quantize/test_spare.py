"""Small products whose integers do most of the harm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shave
from shave.ir.errors import PipelineError
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.compare import difference
from tests.passes.contract import run_pass

RANGES = torch.tensor([1000.0, 1.0, 1.0, 1.0, 1.0, 1.0])


class Spectrum(nn.Module):
    """A small layer that reads channels of very different range, and large ones behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 512), nn.Linear(512, 512)
        self.first.weight.data /= RANGES

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


def spectra(ranges: torch.Tensor, seed: int) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 6, generator=generator) * ranges,) for _ in range(4)]


def net() -> Program:
    torch.manual_seed(0)
    return shave.trace(Spectrum(), (torch.randn(16, 6),), dynamic_shapes={"x": {0: "N"}})


def quantized(text: str, ranges: torch.Tensor = RANGES) -> tuple[Program, str]:
    """The program, and what the report says of its first layer."""
    result, report = run_pass(text, net(), calibration=spectra(ranges, 0))
    first = next(node for node in net().calls if op_name(node) == "aten.linear")
    return result, next(entry.text for entry in report.entries if entry.node == first.name)


def noise_db(program: Program) -> float:
    (batch,) = spectra(RANGES, 1)[0]
    return difference(net()(batch), program(batch)).sqnr_db  # type: ignore[arg-type]


def integer_products(program: Program) -> int:
    return sum(
        op_name(node) == "aten.linear" and "dequantize" in str(node.args[0].target)  # type: ignore[union-attr]
        for node in program.calls
    )


def test_the_layer_that_does_the_harm_stays_in_float() -> None:
    result, text = quantized("quantize")
    assert text.startswith("in float: 0.018 % of the multiply-adds, but ")
    assert integer_products(result) == 2
    whole, _ = quantized("quantize{spare=0}")
    assert integer_products(whole) == 3
    assert noise_db(result) > noise_db(whole) + 10


def test_a_layer_like_the_others_stays_in_integers() -> None:
    result, text = quantized("quantize", torch.ones(6))
    assert "in float" not in text
    assert integer_products(result) == 3


def test_no_more_than_the_share_is_spared() -> None:
    result, _ = quantized("quantize{spare=0.0001}")
    assert integer_products(result) == 3


def test_layers_that_quality_sends_back_come_on_top() -> None:
    worst = {}

    def evaluate(program: Program) -> float:
        worst[integer_products(program)] = program
        return 1.0 if integer_products(program) <= 1 else 0.0

    result, _ = run_pass("quantize{max-drop=0.5}", net(), calibration=spectra(RANGES, 0), evaluate=evaluate)
    assert integer_products(result) == 1
    assert 3 not in worst


@pytest.mark.parametrize("share", ["-0.1", "1.5"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(PipelineError, match="spare is"):
        run_pass(f"quantize{{spare={share}}}", net(), calibration=spectra(RANGES, 0))
