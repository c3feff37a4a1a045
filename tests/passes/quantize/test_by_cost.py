from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx, nn

from shave.ir.cost import one_sample
from shave.ir.from_torch import trace
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.compare import difference
from shave.passes.problems import BatchMatmul, Conv2d, Conversion, Matmul, Measured, Problem
from shave.passes.quantize.by_cost import weigh
from shave.passes.quantize.placement import place, selectable
from shave.passes.quantize.times import Times, times_of
from tests.passes.contract import run_pass
from tests.passes.quantize.nets import CASES, batches, residual, transformer


def oracle(integers: float | dict[Any, float], floats: float = 10e-6, conversion: float = 0.0) -> Callable[..., Any]:
    """Integers take so long, all or by their number of outputs; floats and conversions the same everywhere."""

    def seconds(problem: Problem) -> float | None:
        if isinstance(problem, Conversion):
            return conversion
        if getattr(problem, "precision", "float32") == "float32":
            return floats if isinstance(problem, (Conv2d, Matmul, BatchMatmul)) else None
        outputs = problem.out_channels if isinstance(problem, Conv2d) else problem.outputs  # type: ignore[union-attr]
        return integers.get(outputs) if isinstance(integers, dict) else integers

    return seconds


class Kinds(nn.Module):
    """Products of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(6, 8, 3, stride=2, padding=1, dilation=2)
        self.plane = nn.Conv2d(4, 6, (3, 1), stride=(1, 2), padding=(1, 0), groups=2)
        self.same = nn.Conv2d(6, 5, 3, padding="same", dilation=2)
        self.up = nn.ConvTranspose2d(5, 4, 2)
        self.linear = nn.Linear(9, 7)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z = self.same(self.plane(x))
        return self.line(y), self.up(z), self.linear(x), x @ x.transpose(-1, -2)


def test_what_is_asked_are_the_sizes_of_one_sample() -> None:
    shapes = {"x": {0: "N"}, "y": {0: "N"}}
    program = trace(Kinds().eval(), (torch.randn(2, 4, 8, 9), torch.randn(2, 6, 21)), dynamic_shapes=shapes)
    asked: list[Problem] = []

    def listen(problem: Problem) -> float:
        asked.append(problem)
        return 1.0

    weigh(program, selectable(program.calls), listen)
    floats = [
        Conv2d(1, 6, 8, 1, 21, (1, 3), (1, 2), (0, 1), (1, 2)),
        Conv2d(1, 4, 6, 8, 9, (3, 1), (1, 2), (1, 0), groups=2),
        Conv2d(1, 6, 5, 8, 5, (3, 3), padding=(2, 2), dilation=(2, 2)),
        Matmul(32, 9, 7),
        BatchMatmul(4, 8, 9, 8),
    ]
    wanted = {problem for each in floats for problem in (each, replace(each, precision="int8"))}
    assert {problem for problem in asked if not isinstance(problem, Conversion)} == wanted
    assert {problem.elements for problem in asked if isinstance(problem, Conversion)} >= {4 * 8 * 9, 6 * 21}


def test_estimates_are_not_set_against_measurements() -> None:
    program = residual()
    node = next(node for node in program.calls if op_name(node) == "aten.linear")

    def half_measured(problem: Problem) -> float | None:
        return 3.0 if getattr(problem, "precision", "") == "int8" else Measured(1.0, 5.0)

    assert times_of(node, True, half_measured, {}) == Times(5.0, 3.0)
    assert times_of(node, True, lambda problem: Measured(2.0, 9.0), {}) == Times(2.0, 2.0)
    assert times_of(node, True, lambda problem: None, {}) is None


def test_a_method_that_transforms_weights_is_told_apart() -> None:
    program = residual()
    node = next(node for node in program.calls if node.name == "conv2d_1")
    times = times_of(node, True, lambda problem: 2.0 if isinstance(problem, Conv2d) else 1.0, {})
    assert times == Times(1.0, 2.0, direct=False)


def _verdict(program: Program, **given: Any) -> Any:
    return weigh(program, selectable(program.calls), oracle(**given))


def test_conversions_count() -> None:
    program = residual()
    assert not _verdict(program, integers=9e-6).slower
    paid = _verdict(program, integers=9e-6, conversion=2e-6)
    # The map of the input is converted for the first layer alone; all that follows is rounded on the way.
    assert list(paid.slower) == ["conv2d"]
    assert paid.slower["conv2d"] == (
        "in float: no faster: 0.009 ms in integers and 0.002 ms of conversions, 0.01 ms in float"
    )
    assert set(paid.faster) == {"conv2d_1", "conv2d_2", "linear"}


class Heads(nn.Module):
    """Two layers that read one norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.left, self.right = nn.LayerNorm(6), nn.Linear(6, 3), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.norm(x)
        return self.left(x), self.right(x)


def test_products_that_share_a_conversion_go_together() -> None:
    program = trace(Heads().eval(), (torch.randn(2, 5, 6),))
    for conversion, slower in ((1.9e-6, []), (2.1e-6, ["linear", "linear_1"])):
        assert sorted(_verdict(program, integers=9e-6, conversion=conversion).slower) == slower


def test_without_an_integer_kernel_nothing_is_weighed() -> None:
    program = transformer()
    verdict = _verdict(program, integers={12: 1e-6, 30: 1e-6})
    found = {node.name for node in program.calls if op_name(node) == "aten.matmul" and node.meta["val"].shape[-1] == 7}
    assert verdict.slower.keys() == found
    assert set(verdict.slower.values()) == {"in float: the target has no integer kernel for it"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(6))
def test_the_whole_is_never_slower_than_all_or_nothing(case: str, seed: int) -> None:
    program = CASES[case]()
    draw = random.Random(seed)
    known: dict[Problem, float] = {}

    def seconds(problem: Problem) -> float | None:
        return known.setdefault(problem, draw.uniform(1, 10) * (0.3 if isinstance(problem, Conversion) else 1))

    calls = selectable(program.calls)
    verdict = weigh(program, calls, seconds)
    constant = {node.name for node in place(program, set(calls)).weights}

    def total(left: set[str]) -> float:
        placement = place(program, {node for node in calls if node.name not in left})
        found = 0.0
        for node in place(program, set(calls)).products:
            times = times_of(node, node.name in constant, seconds, one_sample(program))
            if times is not None and times.integers is not None:
                found += times.integers if node in placement.products else times.floats
        return found + sum(known[Conversion(value.meta["val"][:1].numel())] for value in placement.borders)

    assert total(set(verdict.slower)) <= min(total(set()), total({node.name for node in calls})) + 1e-9


def _quantized(program: Program, text: str = "quantize", **given: Any) -> tuple[Program, Any]:
    return run_pass(text, program, calibration=batches(program), **given)


def test_a_product_in_float_reads_floats_and_keeps_small_weights() -> None:
    program = residual()
    slow = oracle(integers={13: 20e-6, 5: 1e-6})
    result, report = _quantized(program, "quantize{spare=0}", oracle=slow)
    for node in result.calls:
        if op_name(node) == "aten.conv2d":
            data, weight = node.args[:2]
            assert isinstance(data, fx.Node)
            assert isinstance(weight, fx.Node)
            assert not op_name(data).startswith("quantized_decomposed")
            assert op_name(weight) == "quantized_decomposed.dequantize_per_channel"
    texts = {entry.node: entry.text for entry in report.applied}
    assert texts["conv2d"].startswith("in float: no faster: 0.02 ms in integers, 0.01 ms in float; weights from -127")
    assert "0.001 ms in integers" in texts["linear"]
    assert report.metrics["integer_products"] == 1
    data = batches(program)[0]
    assert difference(program(*data), result(*data)).sqnr_db > 30
    _, second = _quantized(result, "quantize{spare=0}", oracle=slow)
    assert not second.changed, second.applied


def test_the_table_alone_decides_where_nobody_knows_times() -> None:
    program = residual()
    plain, _ = _quantized(program)
    for text, given in [
        ("quantize{by-cost=false}", {"oracle": oracle(integers=20e-6)}),
        ("quantize", {"oracle": lambda problem: None}),
    ]:
        assert _quantized(program, text, **given)[0].structural_hash() == plain.structural_hash()


def test_a_target_without_integer_kernels_gets_small_weights() -> None:
    import shave

    program = residual()
    result = shave.PassManager("quantize").run(program, calibration=batches(program), target="neoverse-n1")
    kinds = [op_name(node) for node in result.calls]
    assert "quantized_decomposed.quantize_per_tensor" not in kinds
    assert kinds.count("quantized_decomposed.dequantize_per_channel") == 4
