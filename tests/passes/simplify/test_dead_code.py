from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import fx

from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.simplify.dead_code import DeadCode
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten


def dead_chain() -> Program:
    def forward(x, unused, weight, bias):
        live = aten.relu.default(x)
        dead = aten.linear.default(live, weight, bias)
        aten.sigmoid.default(dead)
        return live

    weights = draw({"head.weight": (4, 3), "head.bias": (4,)})
    return program_of(forward, {"x": torch.zeros(2, 3), "unused": torch.zeros(2)}, weights, dynamic={"x": {0: "batch"}})


def dead_items() -> Program:
    """Of a split two pieces, and of the calls behind it one, are in vain; a weight is read by dead and live calls."""

    def forward(x, weight, lonely):
        first, second = (aten.split.Tensor(x, 2, 1)[i] for i in range(2))
        aten.mul.Tensor(second, weight)
        return aten.add.Tensor(first, weight), first

    return program_of(forward, {"x": torch.zeros(3, 4)}, draw({"weight": (2,), "lonely": (7,)}))


class TestContract(PassContract):
    golden = ("chain", "items")
    onnx = ("chain",)

    def make_pass(self) -> Pass:
        return DeadCode()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"chain": dead_chain, "items": dead_items}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return [node for node in program.graph.nodes if not node.users and node.op in ("call_function", "get_attr")]


def test_chains_go_with_their_weights_and_inputs_stay() -> None:
    result, report = run_pass(DeadCode(), dead_chain())
    assert [node.name for node in result.calls] == ["relu_default"]
    assert list(result.weights()) == []
    assert [spec.name for spec in result.signature.inputs] == ["x", "unused"]
    assert {entry.node for entry in report.applied} == {
        "sigmoid_default", "linear_default", "head_weight", "head_bias",
    }  # fmt: skip
    assert not hasattr(result.module, "head")


def test_what_others_still_read_stays() -> None:
    result, report = run_pass(DeadCode(), dead_items())
    assert [name for name, _ in result.weights()] == ["weight"]
    assert {entry.node for entry in report.applied} == {"mul_tensor", "getitem_1", "split_tensor_1", "lonely"}


def test_calls_that_check_their_arguments_stay_and_are_reported() -> None:
    def forward(x):
        aten._assert_tensor_metadata.default(x, None, None, torch.float32)
        return aten.relu.default(x)

    result, report = run_pass(DeadCode(), program_of(forward, {"x": torch.zeros(2, 3)}))
    assert len(result.calls) == 2
    assert reasons(report) == {
        "_assert_tensor_metadata_default": "skipped: nothing reads it, but it checks its arguments"
    }
    assert not report.changed


def test_random_calls_that_nothing_reads_go() -> None:
    def forward(x):
        aten.rand_like.default(x)
        return aten.relu.default(x)

    result, _ = run_pass(DeadCode(), program_of(forward, {"x": torch.zeros(2, 3)}))
    assert [node.name for node in result.calls] == ["relu_default"]
