from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from torch import fx

from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.compare import difference
from shave.passes.quantize.dynamic import QuantizeDynamic
from tests.passes.contract import PassContract, run_pass
from tests.passes.quantize.nets import CASES, batches, residual, transformer


class TestContract(PassContract):
    onnx = ("residual",)

    def make_pass(self) -> QuantizeDynamic:
        return QuantizeDynamic()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {name: CASES[name] for name in ("residual", "transformer")}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return [node for node in program.calls if op_name(node) in ("aten.conv2d", "aten.linear", "aten.matmul")]


def test_outputs_stay_close_whatever_the_size_of_the_inputs() -> None:
    program = residual()
    result, _ = run_pass("quantize-dynamic", program)
    for size in (1e-3, 1.0, 1e3):
        x = batches(program, 1)[0][0] * size
        assert difference(program(x), result(x)).sqnr_db > 30
    assert result(torch.zeros(1, 3, 11, 9)).isfinite().all()  # type: ignore[union-attr]


def test_tokens_of_unequal_size_need_bounds_of_their_own() -> None:
    program = transformer()
    first = next(node for node in program.calls if op_name(node) == "aten.linear")
    scope = f"layers=[{first.name}]"
    x = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(2))
    ratios = {}
    for bounds in ("tensor", "token"):
        result, _ = run_pass(f"quantize-dynamic{{bounds={bounds} {scope}}}", program)
        ratios[bounds] = difference(program(x), result(x)).sqnr_db
    assert ratios["token"] >= ratios["tensor"]


@pytest.mark.parametrize("bounds", ["tensor", "token"])
def test_the_rounding_is_that_of_the_bounds(bounds: str) -> None:
    program = transformer()
    result, _ = run_pass(f"quantize-dynamic{{bounds={bounds}}}", program)
    node = next(node for node in result.calls if op_name(node) == "aten.linear")
    x = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(5))
    runner = fx.Interpreter(result.module, garbage_collect_values=False)
    with torch.no_grad():
        runner.run(x)
    got = runner.env[node.args[0]]  # type: ignore[index]
    norm = next(each for each in result.calls if op_name(each) == "aten.layer_norm")
    want = runner.env[norm].double()
    dims = [-1] if bounds == "token" else [0, 1, 2]
    low, high = want.amin(dims, True).clamp_max(0), want.amax(dims, True).clamp_min(0)
    assert ((got - want).abs() <= (high - low) / 255 * 0.501).all()
    assert len(torch.unique(got[0, 0])) <= 12
