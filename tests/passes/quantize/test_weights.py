from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import fx

import shave
from shave.ir.errors import PipelineError
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.compare import difference
from shave.passes.quantize.affine import weight_scheme
from shave.passes.quantize.rounding import to_least_error
from shave.passes.quantize.weights import QuantizeWeights
from tests.passes.contract import PassContract, run_pass
from tests.passes.quantize.nets import CASES, batches, residual, transformer


class TestContract(PassContract):
    def make_pass(self) -> QuantizeWeights:
        return QuantizeWeights(bits=4, rounding="second-order")

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return CASES

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return [node for node in program.calls if op_name(node) in ("aten.conv2d", "aten.linear", "aten.matmul")]

    def run_arguments(self, program: Program) -> dict[str, Any]:
        return {"calibration": batches(program)}


def test_second_order_rounding_is_near_the_best_of_all_roundings() -> None:
    """Four weights can be rounded in 3**4 ways about the nearest: try them all."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(50, 4, generator=generator, dtype=torch.float64) @ torch.randn(4, 4, generator=generator).double()
    gram, rows = x.T @ x, torch.randn(30, 4, generator=generator) * 2
    scales = torch.ones(30, 4)
    integers, before, after = to_least_error(rows, scales, weight_scheme(4), gram)
    offsets = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4).double()
    total = best = nearest = 0.0
    for row, found in zip(rows.double(), integers, strict=True):
        errors = (x @ (row - (row.round() + offsets)).T).square().sum(0)
        best += float(errors.min())
        nearest += float((x @ (row - row.round())).square().sum())
        total += float((x @ (row - found)).square().sum())
    power = float((x @ rows.double().T).square().sum())
    assert (before, after) == pytest.approx((nearest / power, total / power))
    assert total < best + 0.5 * (nearest - best)


def test_no_weight_can_be_rounded_otherwise_with_less_error() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(200, 9, generator=generator, dtype=torch.float64) @ torch.randn(9, 9, generator=generator).double()
    rows, scheme = torch.randn(13, 9, generator=generator), weight_scheme(3)
    scales = (rows.abs().amax(1, keepdim=True) / 3).expand(rows.shape)
    integers, _, _ = to_least_error(rows, scales, scheme, x.T @ x)
    aim = torch.linalg.cholesky(x.T @ x + 1e-2 * (x.T @ x).diagonal().mean() * torch.eye(9))

    def error(found: torch.Tensor) -> torch.Tensor:
        return ((rows - found * scales).double() @ aim).square().sum(1)

    for column in range(9):
        for move in (-1, 1):
            other = integers.clone()
            other[:, column] = (other[:, column] + move).clamp(scheme.low, scheme.high)
            assert (error(other) >= error(integers) * (1 - 1e-9)).all()


@pytest.mark.parametrize("make", [residual, transformer])
def test_second_order_rounding_loses_less_on_fresh_data(make: Callable[[], Program]) -> None:
    program = make()
    data = batches(program, 8)
    fresh = (torch.randn(64, *data[0][0].shape[1:], generator=torch.Generator().manual_seed(77)),)
    nearest, second = (
        difference(
            program(*fresh),
            shave.PassManager(f"quantize-weights{{bits=4 rounding={how}}}").run(program, calibration=data)(*fresh),
        ).sqnr_db
        for how in ("nearest", "second-order")
    )
    assert second > nearest + 1


def test_groups_have_scales_of_their_own() -> None:
    program = transformer()
    data = batches(program)
    whole, grouped = (
        run_pass(f"quantize-weights{{bits=4{group}}}", program, calibration=data) for group in ("", " group=6")
    )
    closeness = [difference(program(*data[0]), result(*data[0])).sqnr_db for result, _ in (whole, grouped)]
    assert closeness[1] > closeness[0] + 1
    shapes = {name: list(tensor.shape) for name, tensor in grouped[0].weights()}
    assert shapes["up.weight"] == [30 * 2, 6]
    assert shapes["up.weight_scale"] == [30 * 2]
    assert max(int(t.abs().max()) for _, t in grouped[0].weights() if t.dtype == torch.int8) == 7
    _, report = run_pass("quantize-weights{group=7}", program)
    assert all("no multiple of 7" in entry.text for entry in report.skipped if entry.op == "aten.linear")


def test_activations_follow_later_and_leave_the_weights_alone() -> None:
    program = residual()
    data = batches(program)
    stored = shave.PassManager("quantize-weights{rounding=second-order}").run(program, calibration=data)
    kept = {name: tensor for name, tensor in stored.weights() if tensor.dtype == torch.int8}
    result = shave.PassManager("quantize").run(stored, calibration=data)
    assert len(kept) == 4
    assert all(tensor is kept[name] for name, tensor in result.weights() if tensor.dtype == torch.int8)
    assert difference(program(*data[0]), result(*data[0])).sqnr_db > 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantize-weights{bits=1}", "bits is 1, but lies from 2 to 8"),
        ("quantize-weights{group=0}", "group is 0"),
        ("quantize-weights{rounding=second-order}", "needs calibration"),
        ("quantize-weights{skip=[nowhere]}", "matches nothing"),
    ],
)
def test_bad_input(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        shave.PassManager(text, reproduce=False).run(residual())
