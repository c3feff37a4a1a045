from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
from torch import fx

import shave
from shave.backends.targets import resolve
from shave.ir.errors import PipelineError, SignatureError
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.compare import difference
from shave.passes.quantize.quantize import Quantize
from tests.passes.contract import PassContract, run_pass
from tests.passes.quantize.nets import CASES, batches, branches, residual, transformer


class TestContract(PassContract):
    golden: ClassVar[tuple[str, ...]] = ("residual", "transformer")

    def make_pass(self) -> Quantize:
        return Quantize()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return CASES

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return program.calls

    def run_arguments(self, program: Program) -> dict[str, Any]:
        return {"calibration": batches(program)}


def quantized(program: Program, text: str = "quantize", **arguments: Any) -> Program:
    return run_pass(text, program, calibration=arguments.pop("calibration", batches(program)), **arguments)[0]


def values(program: Program, data: Iterable[tuple[torch.Tensor, ...]]) -> torch.Tensor:
    return torch.cat([program(*batch) for batch in data])  # type: ignore[misc]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("text", "decibels"),
    [
        ("quantize", 30),
        ("quantize{calibrate=minmax}", 30),
        ("quantize{calibrate=percentile}", 30),
        ("quantize{activations=int8}", 25),
        ("quantize{per-channel=false}", 28),
        ("quantize{activations=int16}", 38),
    ],
)
def test_outputs_stay_close(case: str, text: str, decibels: float) -> None:
    program = CASES[case]()
    result = quantized(program, text)
    fresh = batches(program)[:2]
    assert difference(values(program, fresh), values(result, fresh)).sqnr_db > decibels


def test_every_weight_of_a_product_is_stored_as_integers() -> None:
    for make in CASES.values():
        result = quantized(make())
        for node in result.calls:
            if op_name(node) in ("aten.conv2d", "aten.linear", "aten.conv_transpose2d"):
                weight = node.args[1]
                assert isinstance(weight, fx.Node)
                assert op_name(weight) == "quantized_decomposed.dequantize_per_channel"
                stored, _, zeros, axis, low, high, dtype = weight.args
                assert result.weight(stored).dtype == dtype == torch.int8
                assert (low, high) == (-127, 127)
                assert zeros is None
                channels = int(result.weight(stored).shape[axis])
                assert channels == node.meta["val"].shape[-1 if "linear" in op_name(node) else 1]
                assert result.weight(stored).movedim(axis, 0).flatten(1).abs().amax(1).eq(127).all()


def _largest(program: Program) -> dict[str, int]:
    """The largest integer of each stored weight."""
    return {name: int(t.abs().max()) for name, t in program.weights() if t.dtype == torch.int8}


@pytest.mark.parametrize("first", ["", "quantize-weights{layer-bits={first=4 conv2d=6 head=3}}, "])
def test_scopes_have_bits_of_their_own(first: str) -> None:
    program = residual()
    text = f"{first}quantize" if first else "quantize{bits=8 layer-bits={re:(first|second)=4 head=3 second=5}}"
    result = shave.PassManager(text).run(program, calibration=batches(program))
    stem, middle, last = (31, 31, 31) if first else (127, 7, 15)  # of several that match, the last counts
    assert _largest(result) == {
        "stem.weight": stem,
        "first.weight": middle,
        "second.weight": last,
        "head.weight": 3,
    }
    texts = {entry.node: entry.text for entry in result.report[0 if first else -1].applied}
    assert ("weights of 3 bits" if first else "weights from -3 to 3") in texts["linear"]


def test_a_weight_that_layers_of_different_bits_share_is_stored_for_each() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = torch.nn.Linear(6, 6)
            self.other = torch.nn.Linear(6, 6)
            self.other.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(self.one(x).relu())  # type: ignore[no-any-return]

    program = shave.trace(Twice(), (torch.randn(4, 6),))
    for text in ("quantize{layer-bits={linear_1=4}}", "quantize-weights{layer-bits={linear_1=4}}"):
        result = shave.PassManager(text).run(program, calibration=[torch.randn(4, 6)])
        assert sorted(_largest(result).values()) == [7, 127]


def test_integers_are_followed_by_something_integer() -> None:
    """Each dequantized activation is read by a product, or by what hands it on to a quantize of its own."""
    for make in CASES.values():
        result = quantized(make())
        outputs = set(result.outputs)
        for node in result.calls:
            if op_name(node) == "quantized_decomposed.dequantize_per_tensor":
                assert node.users, node.name
                assert node not in outputs
        assert any(op_name(node) == "quantized_decomposed.quantize_per_tensor" for node in result.calls)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimise", [False, True])
def test_onnx_runtime_gives_equal_outputs(case: str, optimise: bool, tmp_path: Path) -> None:
    program = CASES[case]()
    result = quantized(program)
    result.to_onnx(tmp_path / "q.onnx")
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "q.onnx", options, providers=["CPUExecutionProvider"])
    for batch in batches(program, 2, 5):
        (got,) = session.run(None, {session.get_inputs()[0].name: batch[0].numpy()})
        want = result(*batch)
        assert isinstance(want, torch.Tensor)
        # A product summed in another order can round to the next integer, here and there.
        assert difference(want, got).sqnr_db > (50 if not optimise else 40)


def test_openvino_gives_equal_outputs(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    program = residual()
    result = quantized(program)
    result.to_onnx(tmp_path / "q.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "q.onnx", "CPU")
    (batch,) = batches(program, 1, 5)
    want = result(*batch)
    assert isinstance(want, torch.Tensor)
    assert difference(want, compiled([batch[0].numpy()])[0]).sqnr_db > 35


def test_a_target_without_dot_products_is_told_of() -> None:
    program = residual()
    _, report = run_pass("quantize", program, calibration=batches(program), target=resolve("x86-64-v3"))
    assert {entry.node: entry.text for entry in report.skipped}["target"].startswith("x86-64-v3 has no dot product")


def test_the_exported_file_keeps_integer_weights(tmp_path: Path) -> None:
    import onnx

    program = residual()
    quantized(program).to_onnx(tmp_path / "q.onnx")
    model = onnx.load(tmp_path / "q.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("QuantizeLinear") == 6
    assert kinds.count("DequantizeLinear") == 6 + 4
    stored = {each.name: each for each in model.graph.initializer}
    weights = [
        stored[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
    ]
    assert [onnx.numpy_helper.to_array(each).dtype for each in weights] == [np.int8] * 4


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    program = residual()
    result = quantized(program)
    result.to_onnx(tmp_path / "q.onnx")
    again = shave.read(tmp_path / "q.onnx")
    (batch,) = batches(program, 1)
    assert difference(result(*batch), again(*batch)).sqnr_db > 50
    kinds = [op_name(node) for node in again.calls]
    assert kinds.count("quantized_decomposed.quantize_per_tensor") == sum(
        op_name(node) == "quantized_decomposed.quantize_per_tensor" for node in result.calls
    )
    settled, report = run_pass("quantize", again, calibration=[batch])
    assert not report.changed, report.applied
    assert settled.structural_hash() == again.structural_hash()


def test_folding_leaves_the_integers_alone() -> None:
    result = quantized(residual())
    again = shave.PassManager("exact").run(result)
    kinds = [op_name(node) for node in again.calls]
    assert kinds.count("quantized_decomposed.dequantize_per_channel") == 4
    assert kinds.count("quantized_decomposed.quantize_per_tensor") == 6


def test_weights_that_are_integers_already_stay_as_they_are() -> None:
    once = quantized(residual(), "quantize{layers=[first]}")
    twice, report = run_pass("quantize", once, calibration=batches(once))
    kept = {name: tensor for name, tensor in once.weights() if tensor.dtype == torch.int8}
    for name, tensor in twice.weights():
        if name in kept:
            assert tensor is kept[name]
    assert {entry.node: entry.text for entry in report.entries}["conv2d_1"] == "what it reads is quantized already"


def test_samples_limit_what_is_seen() -> None:
    program = residual()
    data = batches(program, 3)
    loud = [*data, (data[0][0] * 1000,)]
    few = quantized(program, "quantize{samples=20 calibrate=minmax}", calibration=loud)
    same = quantized(program, "quantize{calibrate=minmax}", calibration=[*data[:2], (data[2][0][:4],)])
    assert few.structural_hash() == same.structural_hash()


def test_a_model_of_zeros_and_a_constant_input() -> None:
    program = residual()
    with torch.no_grad():
        for _, tensor in program.weights():
            tensor.zero_()
    result = quantized(program, calibration=[(torch.zeros(4, 3, 11, 9),)])
    assert not result(torch.randn(2, 3, 11, 9)).any()  # type: ignore[union-attr]
    program = residual()
    result = quantized(program, calibration=[(torch.full((4, 3, 11, 9), 0.7),)])
    x = torch.full((1, 3, 11, 9), 0.7)
    assert difference(program(x), result(x)).sqnr_db > 30


def test_ranges_that_underflow_leave_finite_numbers() -> None:
    program = residual()
    result = quantized(program, calibration=[(torch.full((4, 3, 11, 9), 1e-44),)])
    assert result(torch.randn(2, 3, 11, 9)).isfinite().all()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantize{samples=0}", "samples is 0, but is 1 at least"),
        ("quantize{bits=9}", "bits is 9, but lies from 2 to 8"),
        ("quantize{layer-bits={head=1}}", "head is 1, but lies from 2 to 8"),
        ("quantize{layer-bits={hesd=4}}", "'hesd' matches nothing.*head"),
        ("quantize{layer-bits={mean=4}}", "matches aten.mean mean, but no node that the pass could work on"),
        ("quantize{skip=[hesd]}", "'hesd' matches nothing.*head"),
        ("quantize{calibrate=kl}", "option calibrate takes"),
    ],
)
def test_options_that_make_no_sense(text: str, message: str) -> None:
    program = residual()
    with pytest.raises(PipelineError, match=message):
        shave.PassManager(text, reproduce=False).run(program, calibration=batches(program))


def test_calibration_data_that_does_not_fit() -> None:
    program = residual()
    good = torch.randn(2, 3, 11, 9)
    spoiled = good.clone()
    spoiled[1, 2, 3, 4] = float("nan")
    manager = shave.PassManager("quantize", reproduce=False)
    for data, kind, message in [
        (None, PipelineError, "needs calibration"),
        ([], PipelineError, "holds no batch"),
        ([torch.randn(2, 4, 11, 9)], SignatureError, "dimension 1 is 4"),
        ([good.double()], SignatureError, "float64"),
        ([(good, good)], SignatureError, "2"),
        ([good, spoiled], PipelineError, "batch 1 of the calibration data holds NaN or infinity in input 'x'"),
    ]:
        with pytest.raises(kind, match=message):
            manager.run(program, calibration=data)  # type: ignore[arg-type]


def test_the_range_of_a_concatenation_serves_all_its_parts() -> None:
    result = quantized(branches())
    (cat,) = (node for node in result.calls if op_name(node) == "aten.cat")
    parts = [part.args[1:3] for part in cat.args[0]]  # type: ignore[union-attr]
    (behind,) = {user.args[1:3] for user in cat.users if op_name(user) == "quantized_decomposed.quantize_per_tensor"}
    assert set(parts) == {behind}


def test_norms_scores_and_sums_before_norms_stay_in_float() -> None:
    program = transformer()
    _, report = run_pass("quantize", program, calibration=batches(program))
    texts = {entry.node: entry.text for entry in report.skipped}
    assert "integer statistics are unstable" in texts["layer_norm"]
    assert "integer statistics are unstable" in texts["softmax"]
    sums = [texts[name] for name in texts if name.startswith("add")]
    assert any("it feeds a normalisation" in text for text in sums)
    assert "before that is rounded" in texts["gelu"]


def test_batch_norms_are_folded_first() -> None:
    class Normed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 3)
            self.norm = torch.nn.BatchNorm2d(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x)).relu()

    program = shave.trace(Normed(), (torch.randn(2, 3, 7, 7),))
    result, report = run_pass("quantize", program, calibration=[torch.randn(2, 3, 7, 7)])
    assert not any("batch_norm" in op_name(node) for node in result.calls)
    assert report.applied[-1].text.startswith("made ready by fold-batchnorm")


def _closeness(program: Program) -> Callable[[Program], float]:
    data = batches(program)
    want = values(program, data)
    return lambda other: min(100.0, difference(want, values(other, data)).sqnr_db)


@pytest.mark.parametrize("drop", [0.0, 40.0, 55.0, 90.0])
def test_layers_go_back_to_float_until_quality_holds(drop: float) -> None:
    program = residual()
    result, report = run_pass(
        f"quantize{{bits=6 max-drop={drop}}}", program, calibration=batches(program), evaluate=_closeness(program)
    )
    quality = _closeness(program)(result)
    assert quality >= 100 - drop
    assert report.metrics["quality_after"] == pytest.approx(quality)
    back = [entry for entry in report.skipped if "back in float" in entry.text]
    assert len(back) == report.metrics["products_in_float"] == 4 - report.metrics["integer_products"]


def test_quality_needs_something_to_judge_it() -> None:
    program = residual()
    with pytest.raises(PipelineError, match="needs evaluate"):
        shave.PassManager("quantize{max-drop=1.0}").run(program, calibration=batches(program))


def test_reduced_range_keeps_pairs_of_products_in_16_bits() -> None:
    result = quantized(residual(), "quantize{reduce-range=true}")
    stored = [tensor for _, tensor in result.weights() if tensor.dtype == torch.int8]
    assert stored
    assert max(int(tensor.abs().max()) for tensor in stored) == 63
    assert 2 * 255 * 63 < 2**15
