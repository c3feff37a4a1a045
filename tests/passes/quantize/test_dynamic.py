from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import fx, nn

from shave.ir.from_torch import trace
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.compare import difference
from shave.passes.problems import Conversion, Matmul, Problem
from shave.passes.quantize.dynamic import QuantizeDynamic
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.quantize.nets import CASES, batches, residual, transformer

BOUNDS = ("tensor", "token")


class TestContract(PassContract):
    golden = ("transformer",)
    onnx = ("residual", "transformer")

    def make_pass(self) -> QuantizeDynamic:
        return QuantizeDynamic()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {name: CASES[name] for name in ("residual", "transformer")}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return [node for node in program.calls if op_name(node) in ("aten.conv2d", "aten.linear", "aten.matmul")]


@pytest.mark.parametrize("bounds", BOUNDS)
def test_outputs_stay_close_whatever_the_size_of_the_inputs(bounds: str) -> None:
    program = residual()
    result, _ = run_pass(f"quantize-dynamic{{bounds={bounds}}}", program)
    for size in (1e-3, 1.0, 1e3, 1e30):
        x = batches(program, 1)[0][0] * size
        assert difference(program(x), result(x)).sqnr_db > 30
    for x in (torch.zeros(1, 3, 11, 9), torch.full((1, 3, 11, 9), -0.7)):
        assert difference(program(x), result(x)).sqnr_db > 30


def test_tokens_of_unequal_size_need_bounds_of_their_own() -> None:
    program = transformer()
    first = next(node for node in program.calls if op_name(node) == "aten.linear")
    scope = f"layers=[{first.name}]"
    x = torch.randn(2, 7, 12, generator=torch.Generator().manual_seed(2))
    ratios = {}
    for bounds in BOUNDS:
        result, _ = run_pass(f"quantize-dynamic{{bounds={bounds} {scope}}}", program)
        ratios[bounds] = difference(program(x), result(x)).sqnr_db
    assert ratios["token"] >= ratios["tensor"]


@pytest.mark.parametrize("bounds", BOUNDS)
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


def test_convolutions_have_bounds_for_the_tensor() -> None:
    result, report = run_pass("quantize-dynamic{bounds=token}", residual())
    found = {op_name(node): set[str]() for node in result.calls}
    for node in result.calls:
        if op_name(node) in ("aten.conv2d", "aten.linear"):
            found[op_name(node)].add(op_name(node.args[0]).rpartition("_")[2])  # type: ignore[arg-type]
    assert (found["aten.conv2d"], found["aten.linear"]) == ({"tensor"}, {"token"})
    assert any("bounds for each token" in entry.text for entry in report.applied)


def test_layers_that_read_one_value_share_its_bounds() -> None:
    result, _ = run_pass("quantize-dynamic", transformer())
    chosen = [node for node in result.calls if op_name(node) == "quantized_decomposed.choose_qparams"]
    assert len(chosen) == 4  # q, k and v; the layer behind attention; up; down


class Layers(nn.Module):
    """Two layers that read one value, and one that reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = nn.Linear(6, 40), nn.Linear(6, 3), nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.last(self.wide(x).relu()), self.narrow(x)


def _oracle(integers: Mapping[int, float | None], conversion: float) -> Callable[[Problem], float | None]:
    """Floats take 10 us; integers by the number of outputs."""

    def seconds(problem: Problem) -> float | None:
        if isinstance(problem, Conversion):
            assert problem.measured
            return conversion
        assert isinstance(problem, Matmul)
        return 1e-5 if problem.precision == "float32" else integers[problem.outputs]

    return seconds


@pytest.mark.parametrize(
    ("integers", "conversion", "faster"),
    [
        ({40: 2e-6, 3: 2e-6, 5: 2e-6}, 1e-6, {"linear", "linear_1", "linear_2"}),
        ({40: 2e-6, 3: 2e-5, 5: 2e-6}, 1e-6, {"linear", "linear_1"}),
        ({40: 6e-6, 3: 6e-6, 5: 6e-6}, 6e-6, {"linear", "linear_2"}),  # together they pay for the conversion
        ({40: None, 3: None, 5: None}, 0.0, set()),
    ],
)
def test_products_that_gain_nothing_stay_in_float(
    integers: Mapping[int, float | None], conversion: float, faster: set[str]
) -> None:
    program = trace(Layers().eval(), (torch.randn(4, 6),))
    _, report = run_pass("quantize-dynamic", program, oracle=_oracle(integers, conversion))
    said = reasons(report)
    assert {name for name, text in said.items() if text.startswith("applied")} == faster
    slower = [text for text in said.values() if text.startswith("skipped")]
    reason = "no integer kernel" if None in integers.values() else "ms in float"
    assert all(reason in text for text in slower)
    _, report = run_pass("quantize-dynamic{by-cost=false}", program, oracle=_oracle(integers, conversion))
    assert len(report.applied) == 3


@pytest.mark.parametrize("bounds", BOUNDS)
def test_onnx_runtime_gives_the_same(bounds: str, tmp_path: Path) -> None:
    result, _ = run_pass(f"quantize-dynamic{{bounds={bounds}}}", transformer())
    result.to_onnx(tmp_path / "model.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert kinds.count("DynamicQuantizeLinear") == (4 if bounds == "tensor" else 0)
    assert "QuantizeLinear" not in kinds
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for x in (torch.randn(3, 7, 12), torch.zeros(1, 7, 12), torch.full((2, 7, 12), 1e20)):
        (got,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(got, result(x).numpy(), rtol=1e-3, atol=1e-3 * float(result(x).abs().max()))
