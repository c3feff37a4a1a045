from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import fx

import shave
from shave.ir.errors import PipelineError
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.compare import difference
from shave.passes.quantize.correct_bias import CorrectBias
from tests.passes.contract import PassContract, run_pass
from tests.passes.quantize.nets import batches, residual, transformer


@cache
def _float() -> Program:
    return residual()


def _coarse() -> Program:
    program = _float()
    text = "quantize{bits=4 correct-bias=false}"
    return shave.PassManager(text).run(program, calibration=batches(program))


class TestContract(PassContract):
    def make_pass(self) -> CorrectBias:
        return CorrectBias()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"residual": _coarse}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return [node for node in program.calls if op_name(node) in ("aten.conv2d", "aten.linear")]

    def run_arguments(self, program: Program) -> dict[str, Any]:
        return {"calibration": batches(program), "reference": _float()}


def test_the_mean_of_the_first_layer_is_that_of_the_float_program() -> None:
    """Of the first layer all inputs are the same, so that its mean can be compared from outside."""
    program = residual()
    data = [(batch[0].abs(),) for batch in batches(program, 16, 16)]  # rounded weights shift what has a mean
    coarse = shave.PassManager("quantize{bits=3 correct-bias=false}").run(program, calibration=data)
    mended, report = run_pass("correct-bias", coarse, calibration=data, reference=program)
    assert report.applied

    def mean(which: Program) -> torch.Tensor:
        stem = next(node for node in which.calls if op_name(node) == "aten.conv2d")
        with torch.no_grad():
            runner = fx.Interpreter(which.module, garbage_collect_values=False)
            total = torch.zeros(13)
            for batch in data:
                runner.env = {}
                runner.run(*batch)
                total += runner.env[stem].mean((0, 2, 3))
        return total / len(data)

    want = mean(program)
    assert (mean(mended) - want).norm() < 0.5 * (mean(coarse) - want).norm()


@pytest.mark.parametrize("make", [residual, transformer])
def test_coarse_weights_lose_less_on_fresh_data(make: Callable[[], Program]) -> None:
    program = make()
    data = batches(program)
    fresh = (torch.randn(64, *data[0][0].shape[1:], generator=torch.Generator().manual_seed(77)),)
    ratios = []
    for text in ("quantize{bits=4 correct-bias=false}", "quantize{bits=4}"):
        result = shave.PassManager(text).run(program, calibration=data)
        ratios.append(difference(program(*fresh), result(*fresh)).sqnr_db)
    assert ratios[1] > ratios[0] + 3


def test_it_needs_the_float_program() -> None:
    with pytest.raises(PipelineError, match="needs the float program: run it in one pipeline with quantize"):
        shave.PassManager("correct-bias").run(_coarse(), calibration=batches(_float()))
    with pytest.raises(PipelineError, match="takes a quantized program"):
        shave.PassManager("correct-bias").run(_float(), calibration=batches(_float()))
