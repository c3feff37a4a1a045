"""Factorization beside the rest of the passes, ahead of them and behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shave
from shave.ir.errors import PipelineError
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.compare import difference
from shave.passes.manager import PassManager
from tests.passes.oracle import assert_equivalent, random_inputs


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(24, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))


def normed() -> Program:
    torch.manual_seed(0)
    return shave.trace(Normed().eval(), (torch.randn(2, 24, 14, 15),))


SPLIT = "factorize{method=tucker rank=16}"


@pytest.mark.parametrize("behind", ["winograd", "fold-batchnorm", "simplify", "exact"])
def test_later_passes_take_the_chain(behind: str) -> None:
    """Passes that change nothing beyond rounding, behind it: more of them join here as they are written."""
    program = normed()
    split = PassManager(SPLIT, verify="full", reproduce=False).run(program)
    result = PassManager(behind, verify="full", reproduce=False).run(split)
    assert_equivalent(split, result, random_inputs(program, 3), rtol=1e-4)
    names = [op_name(node) for node in result.calls]
    if behind in ("winograd", "exact"):
        assert names.count("shave.winograd_conv2d") == 2
        assert names.count("aten.conv2d") == 4
    if behind in ("fold-batchnorm", "simplify", "exact"):
        assert not any("batch_norm" in name for name in names)


@pytest.mark.parametrize("ahead", ["fold-batchnorm", "simplify"])
def test_it_takes_what_earlier_passes_leave(ahead: str) -> None:
    program = normed()
    both = PassManager([ahead, SPLIT], verify="full", reproduce=False).run(program)
    assert len(both.report[-1].applied) == 2
    other = PassManager([SPLIT, ahead], verify="full", reproduce=False).run(program)
    x = random_inputs(program, 3)
    wanted, left, right = program(*x), both(*x), other(*x)
    for got in (left, right):
        assert 0 < float((got - wanted).norm() / wanted.norm()) < 1
    assert both.cost().macs == other.cost().macs


LOSSY = ["prune-channels{ratio=0.25 multiple=1}"]
"""What changes the outputs too, and stands on either side of it: more of them join here as they are written."""


@pytest.mark.parametrize("other", LOSSY)
@pytest.mark.parametrize("first", [True, False])
def test_beside_other_lossy_passes_both_have_their_share(other: str, first: bool) -> None:
    program = shave.PassManager("simplify").run(normed())
    calibration = [torch.randn(2, 24, 14, 15, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    pipeline = [SPLIT, other] if first else [other, SPLIT]
    alone = [PassManager(each, reproduce=False).run(program, calibration=calibration) for each in pipeline]
    both = PassManager(pipeline, verify="full", reproduce=False).run(program, calibration=calibration)
    assert all(report.changed and report.applied for report in both.report[-2:])
    assert both.cost().macs < min(each.cost().macs for each in alone)
    (x,) = random_inputs(program, 3)
    wanted, made = program(x), both(x)
    assert 0 < float((made - wanted).norm() / wanted.norm()) < 1


def test_stages_keep_it_ahead_of_winograd() -> None:
    with pytest.raises(PipelineError, match="takes a float or quantized program, but after winograd it is lowered"):
        PassManager(f"winograd, {SPLIT}").run(normed())


def test_chains_are_quantized_like_other_layers() -> None:
    program = shave.PassManager("simplify").run(normed())
    calibration = [torch.randn(2, 24, 14, 15, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    split = PassManager(SPLIT, reproduce=False).run(program, calibration=calibration)
    result = PassManager("quantize", verify="full", reproduce=False).run(split, calibration=calibration)
    layers = [node for node in split.calls if op_name(node) == "aten.conv2d"]
    assert len(layers) == 6
    assert result.report[-1].metrics["integer_products"] == 6
    (x,) = random_inputs(program, 3)
    assert difference(split(x), result(x)).sqnr_db > 30  # type: ignore[arg-type]
