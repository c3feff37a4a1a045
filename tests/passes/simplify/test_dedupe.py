from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import fx, nn

from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.simplify.dedupe import Dedupe
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.handmade import create, draw, program_of

aten = torch.ops.aten
quantized = torch.ops.quantized_decomposed

X = torch.zeros(2, 3)


def targets(program: Program) -> list[Any]:
    return [node.target for node in program.calls]


def test_equal_calls_become_one_and_whole_trees_with_them() -> None:
    def forward(x):
        def branch():
            return aten.sigmoid.default(aten.mul.Tensor(aten.relu.default(x), 2.0))

        return aten.sub.Tensor(branch(), aten.neg.default(branch()))

    result, report = run_pass(Dedupe(), program_of(forward, {"x": X}))
    assert targets(result) == [
        aten.relu.default,
        aten.mul.Tensor,
        aten.sigmoid.default,
        aten.neg.default,
        aten.sub.Tensor,
    ]
    assert reasons(report) == {
        "relu_default_1": "applied: computes the same as relu_default",
        "mul_tensor_1": "applied: computes the same as mul_tensor",
        "sigmoid_default_1": "applied: computes the same as sigmoid_default",
    }


DIFFERENT: dict[str, Callable[[Any], Any]] = {
    "arguments": lambda x: (aten.mul.Tensor(x, 2.0), aten.mul.Tensor(x, 3.0)),
    "signs of zero": lambda x: (aten.add.Tensor(x, 0.0), aten.add.Tensor(x, -0.0)),
    "integer and float": lambda x: (aten.mul.Tensor(x, 2), aten.mul.Tensor(x, 2.0)),
    "order of arguments": lambda x: (aten.sub.Tensor(x, aten.neg.default(x)), aten.sub.Tensor(aten.neg.default(x), x)),
    "keywords": lambda x: (aten.add.Tensor(x, x, alpha=1), aten.add.Tensor(x, x, alpha=2)),
    "overloads": lambda x: (aten.max.default(x), aten.amax.default(x)),
    "dtypes": lambda x: (aten.to.dtype(x, torch.float16), aten.to.dtype(x, torch.bfloat16)),
    "items": lambda x: (aten.max.dim(x, 1)[0], aten.max.dim(x, 1)[1]),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_calls_that_differ_stay(name: str) -> None:
    program = program_of(DIFFERENT[name], {"x": X})
    result, _ = run_pass(Dedupe(), program)
    first, second = result.outputs
    assert first is not second


def test_items_of_equal_tuples_become_one() -> None:
    result, _ = run_pass(
        Dedupe(), program_of(lambda x: (aten.max.dim(x, 1)[0], aten.max.dim(x, 1)[0], aten.max.dim(x, 1)[1]), {"x": X})
    )
    assert len(result.calls) == 3
    assert result.outputs[0] is result.outputs[1]


def test_random_calls_stay() -> None:
    def forward(x):
        return aten.sub.Tensor(aten.rand_like.default(x), aten.rand_like.default(x))

    result, report = run_pass(Dedupe(), program_of(forward, {"x": X}))
    assert reasons(report) == {"rand_like_default_1": "skipped: equal calls of a random operator differ"}
    assert result(X).abs().max() > 0


def test_dropout_in_training_is_random() -> None:
    def forward(x):
        return aten.sub.Tensor(aten.dropout.default(x, 0.5, True), aten.dropout.default(x, 0.5, True))

    _, report = run_pass(Dedupe(), program_of(forward, {"x": X}))
    assert not report.changed


def test_quantize_and_dequantize_stay() -> None:
    def forward(x):
        def border():
            narrow = quantized.quantize_per_tensor.default(x, 0.1, 0, -128, 127, torch.int8)
            return quantized.dequantize_per_tensor.default(narrow, 0.1, 0, -128, 127, torch.int8)

        return aten.relu.default(border()), aten.relu.default(border())

    result, report = run_pass(Dedupe(), program_of(forward, {"x": X}))
    assert not report.changed
    assert len(result.calls) == 6
    assert reasons(report) == {
        "quantize_per_tensor_default_1": "skipped: quantize, dequantize and lookup stay where they are"
    }


def test_calls_that_check_stay() -> None:
    def forward(x):
        for _ in range(2):
            aten._assert_tensor_metadata.default(x, None, None, torch.float32)
        return aten.relu.default(x)

    result, report = run_pass(Dedupe(), program_of(forward, {"x": X}))
    assert len(result.calls) == 3
    assert not report.changed


def test_constants_without_inputs_become_one() -> None:
    def forward(x):
        return tuple(aten.add.Tensor(x, create(x, aten.arange.default, 3)) for _ in range(2))

    result, _ = run_pass(Dedupe(), program_of(forward, {"x": X}))
    assert len(result.calls) == 2


W = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))


def two_weights(first: torch.Tensor, second: torch.Tensor) -> Program:
    def forward(x, a, b):
        return aten.linear.default(x, a), aten.neg.default(aten.linear.default(x, b))

    return program_of(forward, {"x": X}, {"first.weight": first, "second.weight": second})


@pytest.mark.parametrize("kind", [nn.Parameter, torch.clone])
def test_equal_weights_become_one_and_so_do_their_layers(kind: Callable[[torch.Tensor], torch.Tensor]) -> None:
    result, report = run_pass(Dedupe(), two_weights(kind(W), kind(W.clone())))
    assert [name for name, _ in result.weights()] == ["first.weight"]
    assert targets(result) == [aten.linear.default, aten.neg.default]
    assert reasons(report) == {
        "second_weight": "applied: equal to weight first.weight",
        "linear_default_1": "applied: computes the same as linear_default",
    }
    assert not hasattr(result.module, "second")


NAN = torch.where(torch.eye(3) > 0, torch.nan, W)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (W, nn.Parameter(W.clone())),
        (nn.Parameter(W.clone()), nn.Parameter(W.clone(), requires_grad=False)),
        (W, nn.Parameter(W.clone(), requires_grad=False)),
        (W, W.T.contiguous()),
        (torch.zeros(3, 3), -torch.zeros(3, 3)),
        (W, torch.nextafter(W, torch.tensor(9.0))),
    ],
    ids=["parameter", "frozen", "frozen-and-constant", "transposed", "sign-of-zero", "one-ulp"],
)
def test_weights_that_differ_stay(first: torch.Tensor, second: torch.Tensor) -> None:
    result, report = run_pass(Dedupe(), two_weights(first, second))
    assert not report.changed
    assert len(list(result.weights())) == 2


def test_weights_of_equal_bytes_but_other_shape_or_dtype_stay() -> None:
    weights = {"a": torch.zeros(6), "b": torch.zeros(2, 3), "c": torch.zeros(6, dtype=torch.int32)}
    _, report = run_pass(Dedupe(), program_of(lambda x, *weights: weights, {"x": X}, weights))
    assert not report.changed


def test_weights_with_equal_nan_become_one() -> None:
    assert run_pass(Dedupe(), two_weights(NAN, NAN.clone()), calibration=[(X,)])[1].changed


def test_a_view_is_equal_to_a_copy_of_it() -> None:
    result, _ = run_pass(Dedupe(), two_weights(W.T, W.T.contiguous()))
    assert len(list(result.weights())) == 1


def twins() -> Program:
    """Two heads of equal weights, the second with an unequal bias, and a repeated subexpression."""

    def forward(x, a, b, bias):
        y = aten.tanh.default(x)
        heads = aten.linear.default(y, a), aten.linear.default(aten.tanh.default(x), b, bias)
        return (*heads, aten.add.Tensor(heads[0], aten.linear.default(aten.tanh.default(x), b)))

    weight = draw({"w": (4, 3)})["w"]
    weights = {"a.weight": nn.Parameter(weight), "b.weight": nn.Parameter(weight.clone()), **draw({"b.bias": (4,)})}
    return program_of(forward, {"x": X}, weights, dynamic={"x": {0: "batch"}})


def equal_outputs() -> Program:
    return program_of(
        lambda x: (aten.relu.default(x), aten.neg.default(x), aten.relu.default(x)), {"x": X}, dynamic={"x": {0: "n"}}
    )


class TestContract(PassContract):
    golden = ("twins", "outputs")
    onnx = ("outputs",)

    def make_pass(self) -> Pass:
        return Dedupe()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"twins": twins, "outputs": equal_outputs}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        """Later calls of the same operator on the same arguments, as far as that shows ahead of the pass."""
        seen = set()
        for node in program.calls:
            key = (node.target, node.args, tuple(node.kwargs))
            if key in seen:
                yield node
            seen.add(key)
