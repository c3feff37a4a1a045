"""The check of exact passes, and that it rejects what it must: a check that passes everything proves nothing."""

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import pytest
import torch
from torch import nn

from shave.ir.errors import PassError
from shave.ir.from_torch import trace
from shave.ir.program import Program
from shave.passes.check import MIN_SQNR_DB, OutputCheck, check_exact
from shave.passes.compare import difference
from shave.passes.manager import PassManager
from shave.passes.probe import probe_inputs
from tests.passes.examples import Idle, Quantize8, ReluToSilu, ScaleWeight, net_program


class AddsWeight(nn.Module):
    """Its output is its input plus a weight, so that a test can put any output it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(4, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.offset


@cache
def traced() -> Program:
    return trace(AddsWeight(), (torch.zeros(4, 5),))


def program_with(offset: torch.Tensor) -> Program:
    program = traced().clone()
    (add,) = program.calls
    with program.rewrite(by="test") as rewriter:
        rewriter.set_weight(add, program.graph.find_nodes(op="get_attr")[0], offset)
    return program


WANT = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "got",
    [
        2 * WANT,
        -WANT,
        WANT[:, torch.tensor([1, 0, 2, 3, 4])],
        torch.where(torch.arange(5) == 2, math.nan, WANT),
        torch.where(torch.arange(5) == 2, math.inf, WANT),
        WANT + 1e-4,
        WANT * (1 + 1e-4),
        torch.zeros(4, 5),
    ],
    ids=["double", "sign", "permutation", "nan", "infinity", "offset", "scale", "zeros"],
)
def test_wrong_outputs_are_rejected(got: torch.Tensor) -> None:
    check = OutputCheck(program_with(WANT), (torch.zeros(4, 5),))
    with pytest.raises(PassError, match="idle is an exact pass, but output 'output' moved"):
        check.after(Idle(), program_with(got))


def test_rounding_is_let_through_and_measured() -> None:
    check = OutputCheck(program_with(WANT), (torch.zeros(4, 5),))
    drift = check.after(Idle(), program_with(WANT * (1 + 2e-7)))
    assert 0 < drift["output"].max_rel < 1e-6


def test_roundings_may_not_add_up_beyond_the_tolerance() -> None:
    check = OutputCheck(program_with(WANT), (torch.zeros(4, 5),))
    check.after(Idle(), program_with(WANT * (1 + 8e-6)))
    with pytest.raises(PassError):
        check.after(Idle(), program_with(WANT * (1 + 16e-6)))


def test_lossy_passes_start_a_new_reference() -> None:
    check = OutputCheck(program_with(WANT), (torch.zeros(4, 5),))
    assert check.after(ReluToSilu(), program_with(2 * WANT))["output"].max_rel == pytest.approx(1)
    assert check.after(Idle(), program_with(2 * WANT))["output"].max_rel == 0


def test_shapes_and_counts_are_kept_by_exact_passes_alone() -> None:
    class Wide(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x])

    wide = trace(Wide(), (torch.zeros(4, 5),))
    with pytest.raises(PassError, match=r"output 'output': shapes differ: \[4, 5\] and \[8, 5\]"):
        OutputCheck(program_with(WANT), (torch.zeros(4, 5),)).after(Idle(), wide)
    assert OutputCheck(program_with(WANT), (torch.zeros(4, 5),)).after(ReluToSilu(), wide) == {}


@pytest.mark.parametrize(("dtype", "error", "fits"), [
    (torch.float16, 1e-3, True),
    (torch.float16, 0.2, False),
    (torch.bfloat16, 1e-2, True),
    (torch.float64, 1e-7, False),
    (torch.float64, 1e-15, True),
])  # fmt: skip
def test_the_tolerance_goes_with_the_precision(dtype: torch.dtype, error: float, fits: bool) -> None:
    program = trace(nn.Identity(), (torch.zeros(3, dtype=dtype),))
    want = torch.ones(3, dtype=torch.float64)
    found = {"output": difference(want, want * (1 + error))}
    if fits:
        check_exact(Idle(), program, found)
    else:
        with pytest.raises(PassError, match="the relative difference is above"):
            check_exact(Idle(), program, found)


def test_integers_may_flip_only_rarely() -> None:
    program = trace(nn.Identity(), (torch.zeros(10_000, dtype=torch.int64),))
    want = torch.arange(10_000)
    once, often = want.clone(), want.clone()
    once[7] += 1
    often[:11] += 1
    check_exact(Idle(), program, {"output": difference(want, once)})
    with pytest.raises(PassError, match=r"0.11 % of the elements differ"):
        check_exact(Idle(), program, {"output": difference(want, often)})


def test_quantized_programs_are_judged_as_a_whole() -> None:
    program = PassManager(Quantize8()).run(net_program())
    want = torch.ones(1000, dtype=torch.float64)
    step = want.clone()
    step[3] += 0.05
    check_exact(Idle(), program, {"output": difference(want, step)})
    with pytest.raises(PassError, match=f"SQNR is below {MIN_SQNR_DB} dB"):
        check_exact(Idle(), program, {"output": difference(want, want * 1.02)})


def test_random_operators_draw_the_same_numbers_each_time() -> None:
    class Noise(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    program = trace(Noise(), (torch.zeros(4),))
    state = torch.get_rng_state()
    check = OutputCheck(program, probe_inputs(program))
    assert check.after(Idle(), program)["output"].max_abs == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pass_may_set_its_own_tolerance() -> None:
    @dataclass(frozen=True)
    class Loose(ScaleWeight):
        name: ClassVar[str] = "loose"
        tolerance: ClassVar[float] = 1e-2

    program = net_program()
    assert PassManager(Loose(1.001)).run(program).report[0].changed
    with pytest.raises(PassError):
        PassManager(ScaleWeight(1.001), reproduce=False).run(program)


class Magnifies(nn.Module):
    """A map at the edge of chaos: each round doubles what its input is off by."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            x = 1 - 2 * (x - 0.5).abs()
        return x


def test_a_program_that_magnifies_roundings_is_held_to_what_it_does_to_its_own() -> None:
    program = trace(Magnifies(), (torch.rand(64),))
    x = torch.rand(64, generator=torch.Generator().manual_seed(0))
    check = OutputCheck(program, (x,))

    def nudged(by: float) -> Program:
        copy = program.clone()
        with copy.rewrite(by="test") as rewriter:
            (first, *_) = copy.calls
            shifted = rewriter.call(torch.ops.aten.add.Tensor, (copy.inputs[0], by), before=first, sources=[first])
            first.replace_input_with(copy.inputs[0], shifted)
        return copy

    check.after(Idle(), nudged(1e-7))
    with pytest.raises(PassError, match="moved"):
        check.after(Idle(), nudged(1e-5))
