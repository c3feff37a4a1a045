from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import fx, nn

import shave
from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.pipeline import parse
from shave.passes.simplify.fold_constants import FoldConstants
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.handmade import create, draw, program_of

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed

X = torch.zeros(2, 3)


def test_a_chain_becomes_one_weight_of_the_right_values() -> None:
    def forward(x, weight):
        scaled = aten.mul.Tensor(aten.t.default(weight), 2.0)
        return aten.mm.default(x, aten.exp.default(scaled))

    weights = draw({"head.weight": (4, 3)})
    result, report = run_pass(FoldConstants(), program_of(forward, {"x": X}, weights))
    ((name, folded),) = result.weights()
    assert name == "exp_default_folded"
    assert torch.equal(folded, torch.exp(weights["head.weight"].T * 2.0))
    assert folded.is_contiguous()
    assert [node.target for node in result.calls] == [aten.mm.default]
    assert reasons(report) == {"exp_default": "applied: computed ahead: torch.float32 of shape [3, 4]"}


def test_what_has_no_inputs_at_all_is_constant() -> None:
    def forward(x):
        return aten.add.Tensor(x, create(x, aten.arange.default, 3, dtype=torch.float32))

    result, _ = run_pass(FoldConstants(), program_of(forward, {"x": X}))
    assert [node.target for node in result.calls] == [aten.add.Tensor]
    assert torch.equal(result(X), torch.arange(3.0).expand(2, 3))


def test_a_constant_output_becomes_a_weight() -> None:
    weights = draw({"w": (4,)})
    program = program_of(lambda x, w: (x, aten.neg.default(w)), {"x": X}, weights)
    result, _ = run_pass(FoldConstants(), program)
    assert result.calls == []
    assert torch.equal(result(X)[1], -weights["w"])


def test_results_that_are_tuples_fold_piece_by_piece() -> None:
    def forward(x, w):
        pieces = aten.split_with_sizes.default(w, [1, 2, 3])
        first, third = pieces[0], pieces[2]
        return aten.add.Tensor(x, third), aten.add.Tensor(x, first)

    weights = draw({"w": (6,)})
    result, report = run_pass(FoldConstants(), program_of(forward, {"x": X}, weights))
    assert sorted(tuple(tensor.shape) for _, tensor in result.weights()) == [(1,), (3,)]
    assert all(tensor.untyped_storage().nbytes() == 4 * tensor.numel() for _, tensor in result.weights())
    assert {entry.node for entry in report.applied} == {"getitem", "getitem_1"}
    third, first = result(X)
    assert torch.equal(third, weights["w"][3:].expand(2, 3))
    assert torch.equal(first, weights["w"][:1].expand(2, 3))


def test_a_folded_weight_is_no_view_of_the_original() -> None:
    weights = draw({"w": (3,)})
    result, _ = run_pass(
        FoldConstants(), program_of(lambda x, w: aten.add.Tensor(x, aten.reshape.default(w, [1, 3])), {"x": X}, weights)
    )
    before = result(X)
    weights["w"].zero_()
    assert torch.equal(result(X), before)


def quantized_weight(x, weight):
    narrow = quantized.quantize_per_tensor.default(aten.neg.default(weight), 0.1, 0, -128, 127, torch.int8)
    wide = quantized.dequantize_per_tensor.default(narrow, 0.1, 0, -128, 127, torch.int8)
    return aten.mm.default(x, aten.t.default(wide))


def test_quantize_and_dequantize_stay() -> None:
    result, report = run_pass(FoldConstants(), program_of(quantized_weight, {"x": X}, draw({"w": (4, 3)})))
    assert [node.target for node in result.calls] == [
        quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default, aten.t.default, aten.mm.default,
    ]  # fmt: skip
    said = reasons(report)
    assert said["neg_default"].startswith("applied")
    for node in ("quantize_per_tensor_default",):
        assert said[node] == (
            "skipped: quantized_decomposed.quantize_per_tensor is never folded: it says how the weight is stored"
        )


def test_a_stored_integer_weight_is_not_unpacked() -> None:
    def forward(x, weight):
        return aten.mul.Tensor(x, quantized.dequantize_per_tensor.default(weight, 0.1, 0, -128, 127, torch.int8))

    weights = {"w": torch.tensor([3, -7, 11], dtype=torch.int8)}
    result, report = run_pass(FoldConstants(), program_of(forward, {"x": X}, weights))
    assert not report.changed
    assert len(report.skipped) == 1
    assert dict(result.weights())["w"].dtype == torch.int8


def test_random_calls_stay() -> None:
    def forward(x, w):
        return aten.add.Tensor(x, aten.rand_like.default(w)), aten.mul.Tensor(x, aten.bernoulli.p(w, 0.5))

    _result, report = run_pass(FoldConstants(), program_of(forward, {"x": X}, draw({"w": (3,)})))
    assert not report.changed
    assert reasons(report) == {"rand_like_default": "skipped: it is random", "bernoulli_p": "skipped: it is random"}


def test_calls_that_check_their_arguments_stay() -> None:
    def forward(x, w):
        aten._assert_tensor_metadata.default(w, None, None, torch.float32)
        return aten.add.Tensor(x, w)

    _, report = run_pass(FoldConstants(), program_of(forward, {"x": X}, draw({"w": (3,)})))
    assert reasons(report) == {"_assert_tensor_metadata_default": "skipped: it checks its arguments"}


def test_results_that_grow_too_much_stay() -> None:
    def forward(x, w):
        return aten.add.Tensor(x, aten.expand.default(w, [50, 3]))

    program = program_of(forward, {"x": torch.zeros(50, 3)}, draw({"w": (1, 3)}))
    # 600 bytes in place of 12.
    _, report = run_pass(FoldConstants(growth=587), program)
    assert reasons(report) == {"expand_default": "skipped: its result takes 588 bytes more than what it replaces"}
    result, report = run_pass(FoldConstants(growth=588), program)
    assert report.changed
    assert dict(result.weights())["expand_default_folded"].numel() == 150


def test_a_weight_that_others_read_too_is_not_counted_as_saved() -> None:
    def forward(x, w):
        return aten.add.Tensor(x, aten.neg.default(w)), aten.mul.Tensor(x, w)

    program = program_of(forward, {"x": X}, draw({"w": (3,)}))
    assert not run_pass(FoldConstants(growth=11), program)[1].changed
    assert run_pass(FoldConstants(growth=12), program)[1].changed


def test_what_is_behind_something_that_stays_stays_too() -> None:
    def forward(x, w):
        return aten.add.Tensor(x, aten.neg.default(aten.sum.default(aten.expand.default(w, [50, 3]))))

    program = program_of(forward, {"x": X}, draw({"w": (1, 3)}))
    _result, report = run_pass(FoldConstants(growth=0), program)
    assert not report.changed
    assert list(reasons(report)) == ["expand_default"]


def test_sizes_that_vary_are_not_constant() -> None:
    def forward(x):
        return aten.add.Tensor(x, aten.zeros.default([aten.sym_size.int(x, 0), 3]))

    _, report = run_pass(FoldConstants(), program_of(forward, {"x": X}, dynamic={"x": {0: "batch"}}))
    assert not report.changed


def test_sizes_that_depend_on_data_are_known_only_at_run_time() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.tensor([0.0, 2.0, 0.0, 5.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.w.nonzero().sum()

    _, report = run_pass(FoldConstants(), shave.trace(Masked(), (X,)))
    assert reasons(report)["nonzero"] == "skipped: its size is known only when it runs"


@pytest.mark.parametrize("trainable", [True, False])
def test_what_stems_from_a_trainable_weight_is_trainable(trainable: bool) -> None:
    weights = {**draw({"w": (4, 3)}, trainable=True), **draw({"constant": (4, 1)})}
    weights["w"].requires_grad_(trainable)
    program = program_of(
        lambda x, w, constant: aten.mm.default(x, aten.t.default(aten.mul.Tensor(constant, w))), {"x": X}, weights
    )
    result, _ = run_pass(FoldConstants(), program)
    ((_, folded),) = result.weights()
    assert isinstance(folded, nn.Parameter)
    assert folded.requires_grad is trainable


def test_integers_that_stem_from_a_trainable_weight_are_constants() -> None:
    program = program_of(
        lambda x, w: aten.index_select.default(x, 1, aten.argsort.default(w)),
        {"x": X},
        draw({"w": (3,)}, trainable=True),
    )
    result, _ = run_pass(FoldConstants(), program)
    ((_, folded),) = result.weights()
    assert not isinstance(folded, nn.Parameter)


def test_dead_constants_are_left_to_dead_code() -> None:
    def forward(x, w):
        aten.neg.default(w)
        return aten.relu.default(x)

    _, report = run_pass(FoldConstants(), program_of(forward, {"x": X}, draw({"w": (3,)})))
    assert not report.changed


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(PipelineError, match="growth=-1 is negative"):
        parse("fold-constants{growth=-1}")


def branches() -> Program:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.linspace(-1, 1, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = self.w.exp() + 1
            return torch.cond(x.sum() > 0, lambda x: x * scale, lambda x: x - scale, (x,))

    return shave.trace(Branches(), (torch.ones(2, 3),), dynamic_shapes={"x": {0: "batch"}})


def test_branches_are_left_alone_but_what_they_take_folds() -> None:
    program = branches()
    result, report = run_pass(FoldConstants(), program)
    assert report.changed
    assert not any(node.target is aten.exp.default for node in result.calls)
    for x in (torch.ones(4, 3), -torch.ones(4, 3)):
        torch.testing.assert_close(result(x), program(x), rtol=1e-6, atol=0)


def attention_bias() -> Program:
    """Positions computed from constants, a transposed weight, and a mask of dynamic size that must stay."""

    def forward(x, weight, table):
        positions = create(x, aten.arange.default, 6)
        bias = aten.embedding.default(table, aten.sub.Tensor(positions, 0))
        y = aten.add.Tensor(x, aten.unsqueeze.default(bias, 0))
        y = aten.matmul.default(y, aten.transpose.int(weight, 0, 1))
        return aten.add.Tensor(y, aten.zeros.default([aten.sym_size.int(x, 0), 1, 1]))

    weights = draw({"proj.weight": (5, 4), "positions.weight": (8, 4)}, trainable=True)
    return program_of(forward, {"x": torch.zeros(2, 6, 4)}, weights, dynamic={"x": {0: "batch"}})


def stored_quantized() -> Program:
    return program_of(quantized_weight, {"x": X}, draw({"w": (4, 3)}))


class TestContract(PassContract):
    golden = ("attention", "quantized")
    onnx = ("attention",)

    def make_pass(self) -> Pass:
        return FoldConstants(growth=1000)

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"attention": attention_bias, "quantized": stored_quantized}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        """Calls that read nothing but weights, and are not read by such a call."""
        border = [node for node in program.calls if all(used.op == "get_attr" for used in node.all_input_nodes)]
        return [node for node in border if any(not set(user.all_input_nodes) <= {node} for user in node.users)]
