from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import fx

from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.compare import difference
from shave.passes.quantize.cast import Cast
from tests.passes.contract import PassContract, run_pass
from tests.passes.quantize.nets import CASES, batches, residual


class TestContract(PassContract):
    def make_pass(self) -> Cast:
        return Cast()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {name: CASES[name] for name in ("residual", "transformer")}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return [node for node in program.calls if op_name(node) in ("aten.conv2d", "aten.linear", "aten.matmul")]

    def run_arguments(self, program: Program) -> dict[str, Any]:
        return {"calibration": batches(program)}


@pytest.mark.parametrize(("dtype", "decibels"), [("float16", 55), ("bfloat16", 38)])
def test_weights_are_halved_and_outputs_stay_close(dtype: str, decibels: float) -> None:
    program = residual()
    result, _ = run_pass(f"cast{{dtype={dtype}}}", program, calibration=batches(program))
    assert {str(tensor.dtype) for _, tensor in result.weights()} == {f"torch.{dtype}"}
    (batch,) = batches(program, 1)
    assert result(*batch).dtype == torch.float32  # type: ignore[union-attr]
    assert difference(program(*batch), result(*batch)).sqnr_db > decibels


def test_values_out_of_range_stay_in_float32() -> None:
    program = residual()
    loud = [(batch[0] * 1e5,) for batch in batches(program)]
    result, report = run_pass("cast", program, calibration=loud)
    texts = {entry.node: entry.text for entry in report.skipped}
    assert "and float16 ends at 6.55e+04" in texts["conv2d"]
    assert result(*loud[0]).isfinite().all()  # type: ignore[union-attr]
    _, wide = run_pass("cast{dtype=bfloat16}", program, calibration=loud)
    assert not wide.skipped
