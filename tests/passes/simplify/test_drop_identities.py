from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import fx, nn

import shave
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.simplify.drop_identities import DropIdentities
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.handmade import program_of

aten = torch.ops.aten

X = torch.zeros(2, 6, 4, 5)


def around(operator: Callable[[Any], Any], x: torch.Tensor = X) -> Program:
    """The operator between two others, so that it touches neither input nor output."""
    return program_of(lambda x: aten.neg.default(operator(aten.neg.default(x))), {"x": x})


IDENTITIES: dict[str, Callable[[Any], Any]] = {
    "dropout in inference": lambda x: aten.dropout.default(x, 0.5, False),
    "feature dropout in inference": lambda x: aten.feature_dropout.default(x, 0.5, False),
    "positive": aten.positive.default,
    "lift_fresh_copy": aten.lift_fresh_copy.default,
    "cast to the same dtype": lambda x: aten.to.dtype(x, torch.float32),
    "copy of the same dtype": lambda x: aten._to_copy.default(x, dtype=torch.float32),
    "reshape to the same shape": lambda x: aten.reshape.default(x, [2, -1, 4, 5]),
    "expand to the same shape": lambda x: aten.expand.default(x, [-1, 6, 4, 5]),
    "slice of everything": lambda x: aten.slice.Tensor(x, 1, 0, 9223372036854775807),
    "narrow to everything": lambda x: aten.narrow.default(x, 2, 0, 4),
    "squeeze of nothing": lambda x: aten.squeeze.dim(x, 1),
    "flatten of one axis": lambda x: aten.flatten.using_ints(x, 3, 3),
    "unflatten into one axis": lambda x: aten.unflatten.int(x, 1, [6]),
    "permute in order": lambda x: aten.permute.default(x, [0, 1, -2, 3]),
    "transpose of an axis with itself": lambda x: aten.transpose.int(x, 1, -3),
    "pad by nothing": lambda x: aten.constant_pad_nd.default(x, [0, 0, 0, 0], 1.0),
    "pad by nothing, in any mode": lambda x: aten.pad.default(x, [0, 0, 0, 0], "replicate"),
    "cat of one": lambda x: aten.cat.default([x], 1),
    "split into one": lambda x: aten.split.Tensor(x, 6, 1)[0],
    "split into one of a size": lambda x: aten.split_with_sizes.default(x, [6], 1)[0],
    "times one": lambda x: aten.mul.Tensor(x, 1),
    "times one, scalar": lambda x: aten.mul.Scalar(x, 1.0),
    "divided by one": lambda x: aten.div.Tensor(x, 1.0),
    "minus zero": lambda x: aten.sub.Tensor(x, 0),
    "minus zero, scalar": lambda x: aten.sub.Scalar(x, 0.0, 2),
    "plus negative zero": lambda x: aten.add.Tensor(x, -0.0),
    "max pooling of single elements": lambda x: aten.max_pool2d.default(x, [1, 1], [1, 1]),
    "average pooling of single elements": lambda x: aten.avg_pool2d.default(x, [1, 1]),
    "adaptive pooling to the same size": lambda x: aten.adaptive_avg_pool2d.default(x, [4, 5]),
    "upsampling to the same size": lambda x: aten.upsample_nearest2d.vec(x, [4, 5], None),
    "upsampling by one": lambda x: aten.upsample_nearest2d.vec(x, None, [1.0, 1.0]),
    "permutations that cancel": lambda x: aten.permute.default(aten.permute.default(x, [1, 2, 0, 3]), [2, 0, 1, 3]),
    "double transpose": lambda x: aten.transpose.int(aten.transpose.int(x, 1, 2), 2, 1),
    "transpose and permute that cancel": lambda x: aten.permute.default(aten.transpose.int(x, 0, 3), [3, 1, 2, 0]),
    "reshape there and back": lambda x: aten.reshape.default(aten.reshape.default(x, [12, -1]), [2, 6, 4, 5]),
    "three reshapes": lambda x: aten.reshape.default(
        aten.reshape.default(aten.reshape.default(x, [12, -1]), [-1]), [2, 6, 4, 5]
    ),
    "a row of identities": lambda x: aten.mul.Tensor(aten.cat.default([aten.dropout.default(x, 0.1, False)]), 1),
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities_go(name: str) -> None:
    result, report = run_pass(DropIdentities(), around(IDENTITIES[name]))
    assert [node.target for node in result.calls] == [aten.neg.default] * 2
    assert report.applied
    _again, second = run_pass(DropIdentities(), result)
    assert not second.entries


KEPT: dict[str, tuple[Callable[[Any], Any], str]] = {
    "dropout in training": (lambda x: aten.dropout.default(x, 0.5, True), "it is in training mode"),
    "cast": (lambda x: aten.to.dtype(x, torch.float64), "it changes the dtype"),
    "copy to another dtype": (lambda x: aten._to_copy.default(x, dtype=torch.float16), "it changes the dtype"),
    "reshape": (lambda x: aten.reshape.default(x, [2, 6, 20]), "it changes the shape"),
    "reshape that swaps sizes": (lambda x: aten.reshape.default(x, [2, 6, 5, 4]), "it changes the shape"),
    "expand": (lambda x: aten.expand.default(x, [3, 2, 6, 4, 5]), "it changes the shape"),
    "slice": (lambda x: aten.slice.Tensor(x, 1, 1, 6), "it changes the shape"),
    "permute": (lambda x: aten.permute.default(x, [0, 1, 3, 2]), "it reorders axes"),
    "permute of equal sizes": (lambda x: aten.permute.default(aten.slice.Tensor(x, 3, 0, 4), [0, 1, 3, 2]), "it reor"),
    "pad": (lambda x: aten.constant_pad_nd.default(x, [0, 1], 0.0), "it pads"),
    "pad that crops and pads": (lambda x: aten.constant_pad_nd.default(x, [1, -1], 0.0), "it pads"),
    "cat of two": (lambda x: aten.cat.default([x, x]), "it joins 2 pieces"),
    "split into two": (lambda x: aten.split.Tensor(x, 4, 1)[0], "one of 2 pieces"),
    "sub of zero with a negative factor": (lambda x: aten.sub.Tensor(x, 0, alpha=-1), "adding zero turns -0.0 into"),
    "plus zero": (lambda x: aten.add.Tensor(x, 0.0), "adding zero turns -0.0 into 0.0"),
    "minus negative zero": (lambda x: aten.sub.Tensor(x, -0.0), "adding zero turns -0.0 into 0.0"),
    "max pooling": (lambda x: aten.max_pool2d.default(x, [2, 2], [1, 1]), "its windows hold several elements"),
    "sampling": (lambda x: aten.max_pool2d.default(x, [1, 1], [2, 2]), "its windows hold several elements"),
    "pooling with another divisor": (
        lambda x: aten.avg_pool2d.default(x, [1, 1], [1, 1], [0, 0], False, True, 2),
        "it divides by 2",
    ),
    "adaptive pooling": (lambda x: aten.adaptive_avg_pool2d.default(x, [2, 5]), "it changes the shape"),
    "upsampling": (lambda x: aten.upsample_nearest2d.vec(x, [8, 10], None), "it changes the size"),
    "upsampling that repeats and loses": (
        lambda x: aten.upsample_nearest2d.vec(x, None, [1.2, 1.1]),
        "it changes the size",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_is_no_identity_stays_with_its_reason(name: str) -> None:
    operator, reason = KEPT[name]
    _result, report = run_pass(DropIdentities(), around(operator))
    assert not report.changed
    assert any(entry.text.startswith(reason) for entry in report.skipped), report.entries


SILENT: dict[str, Callable[[Any], Any]] = {
    "times two": lambda x: aten.mul.Tensor(x, 2),
    "times true": lambda x: aten.mul.Tensor(x, True),
    "plus one": lambda x: aten.add.Tensor(x, 1),
    "floor division by one": lambda x: aten.div.Tensor_mode(x, 1, rounding_mode="floor"),
    "truncating division by one": lambda x: aten.div.Tensor_mode(x, 1, rounding_mode="trunc"),
    "relu of abs": lambda x: aten.relu.default(aten.abs.default(x)),
    "sub of a sum": lambda x: aten.sub.Tensor(aten.add.Tensor(x, x), x),
    "rounding to fewer decimals": lambda x: aten.round.decimals(aten.round.decimals(x, decimals=3), decimals=1),
    "item of a maximum": lambda x: aten.max.dim(x, 1)[0],
}


@pytest.mark.parametrize("name", SILENT)
def test_arithmetic_that_is_far_from_an_identity_is_no_candidate(name: str) -> None:
    _, report = run_pass(DropIdentities(), around(SILENT[name]))
    assert not report.changed
    assert not report.entries


@pytest.mark.parametrize("operator", [aten.relu, aten.abs, aten.ceil, aten.floor, aten.round, aten.trunc, aten.sign])
def test_the_second_of_two_equal_roundings_goes(operator: Any) -> None:
    result, _ = run_pass(DropIdentities(), around(lambda x: operator.default(operator.default(x))))
    assert [node.target for node in result.calls].count(operator.default) == 1


@pytest.mark.parametrize(
    ("operator", "dtype", "count"),
    [
        (lambda x: aten.add.Tensor(x, 0), torch.int64, 0),
        (lambda x: aten.mul.Tensor(x, 1), torch.int64, 0),
        (lambda x: aten.mul.Tensor(x, 1), torch.complex64, 0),
        (lambda x: aten.add.Tensor(x, 0), torch.complex64, 1),
        (lambda x: aten.div.Tensor(x, 1), torch.int64, 1),
        (lambda x: aten.mul.Tensor(x, 1.0), torch.int64, 1),
        (lambda x: aten.mul.Tensor(x, 1), torch.bool, 1),
    ],
)
def test_arithmetic_that_changes_the_dtype_stays(
    operator: Callable[[Any], Any], dtype: torch.dtype, count: int
) -> None:
    program = program_of(lambda x: aten.isnan.default(operator(x)), {"x": torch.zeros(2, 3, dtype=dtype)})
    result, _ = run_pass(DropIdentities(), program)
    assert len(result.calls) == 1 + count


def test_negative_zero_survives() -> None:
    zeros = torch.tensor([-0.0, 0.0])
    program = program_of(
        lambda x: tuple(aten.reciprocal.default(op(x, 0.0)) for op in (aten.add.Tensor, aten.sub.Tensor)), {"x": zeros}
    )
    result, report = run_pass(DropIdentities(), program)
    assert len(report.applied) == 1
    for want, got in zip(program(zeros), result(zeros), strict=True):
        assert want.tolist() == got.tolist()


def test_pairs_become_one() -> None:
    result, report = run_pass(
        DropIdentities(),
        around(lambda x: aten.permute.default(aten.transpose.int(x, 1, 3), [0, 3, 1, 2])),
    )
    (permute,) = [node for node in result.calls if node.target is aten.permute.default]
    assert permute.args[1] == [0, 1, 3, 2]
    assert reasons(report)["permute_default"] == "applied: joined with transpose_int"

    result, _ = run_pass(
        DropIdentities(), around(lambda x: aten.reshape.default(aten.reshape.default(x, [2, -1]), [12, 20]))
    )
    assert [node.target for node in result.calls] == [aten.neg.default, aten.reshape.default, aten.neg.default]


def test_the_first_of_a_pair_stays_for_its_other_readers() -> None:
    def forward(x):
        inner = aten.permute.default(x, [1, 0, 2, 3])
        return aten.permute.default(inner, [1, 2, 0, 3]), aten.neg.default(inner)

    result, _ = run_pass(DropIdentities(), program_of(forward, {"x": X}))
    assert [node.target for node in result.calls] == [aten.permute.default, aten.permute.default, aten.neg.default] or [
        node.target for node in result.calls
    ] == [aten.permute.default, aten.neg.default, aten.permute.default]
    assert all(node.args[0].op == "placeholder" for node in result.calls if node.target is aten.permute.default)


def test_a_reshape_and_a_permutation_are_no_pair() -> None:
    _, report = run_pass(
        DropIdentities(), around(lambda x: aten.reshape.default(aten.permute.default(x, [1, 0, 2, 3]), [-1]))
    )
    assert not report.changed


def test_dead_identities_are_left_to_dead_code() -> None:
    def forward(x):
        aten.positive.default(x)
        return aten.neg.default(x)

    _result, report = run_pass(DropIdentities(), program_of(forward, {"x": X}))
    assert not report.changed
    assert reasons(report) == {"positive_default": "skipped: nothing reads it"}


def test_an_identity_alone_leaves_an_output_that_is_the_input() -> None:
    result, _ = run_pass(DropIdentities(), program_of(aten.positive.default, {"x": X}))
    assert result.calls == []
    assert torch.equal(result(X + 1), X + 1)


def dynamic(operator: Callable[..., Any], axis: int = 0) -> Program:
    return program_of(operator, {"x": X}, dynamic={"x": {axis: "size"}})


def test_shapes_are_compared_for_every_value_of_a_dynamic_dimension() -> None:
    # The size traced is 2: what fits 2 alone is no identity.
    _result, report = run_pass(
        DropIdentities(),
        dynamic(lambda x: aten.neg.default(aten.reshape.default(x, [aten.sym_size.int(x, 0), 6, 4, 5]))),
    )
    assert [entry.node for entry in report.applied] == ["reshape_default"]
    _, report = run_pass(DropIdentities(), dynamic(lambda x: aten.neg.default(aten.slice.Tensor(x, 0, 0, 2))))
    assert not report.changed
    _, report = run_pass(DropIdentities(), dynamic(lambda x: aten.slice.Tensor(x, 0, 0, 9223372036854775807)))
    assert report.changed


def test_the_input_of_a_split_is_not_mistaken_for_its_first_piece() -> None:
    result, _ = run_pass(DropIdentities(), around(lambda x: aten.split.Tensor(x, 3, 1)[1]))
    x = torch.randn(2, 6, 4, 5)
    assert torch.equal(result(x), x[:, 3:])


class Traced(nn.Module):
    """What torch.export itself leaves of modules that people write."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu(nn.functional.relu(nn.functional.pad(x, (0, 0))))
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        x = torch.cat([nn.functional.dropout(x, 0.5, self.training)], dim=1) * 1.0
        return x.flatten(1).unflatten(1, (2, 3)).reshape(x.shape[0], -1) - 0.0


def traced() -> Program:
    return shave.trace(Traced().eval(), (torch.zeros(2, 6, 1, 1),), dynamic_shapes={"x": {0: "batch"}})


def mixed() -> Program:
    def forward(x):
        y = aten.dropout.default(aten.sigmoid.default(x), 0.5, False)
        y = aten.permute.default(aten.permute.default(y, [0, 2, 3, 1]), [0, 3, 2, 1])
        y = aten.cat.default([aten.split.Tensor(aten.mul.Tensor(y, 1), 6, 1)[0]], 1)
        rows = aten.reshape.default(aten.reshape.default(y, [aten.sym_size.int(x, 0), 6, 20]), [-1, 20])
        return rows, aten.add.Tensor(y, 0.0)

    return program_of(forward, {"x": X}, dynamic={"x": {0: "batch"}})


class TestContract(PassContract):
    golden = ("mixed", "traced")
    onnx = ("mixed",)

    def make_pass(self) -> Pass:
        return DropIdentities()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"mixed": mixed, "traced": traced}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        kinds = ["reshape", "permute", "transpose", "expand", "dropout", "to", "cat", "pad", "slice", "max_pool2d"]
        return [node for node in program.calls if op_name(node).removeprefix("aten.") in kinds]
