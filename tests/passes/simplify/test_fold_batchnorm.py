from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

import shave
from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.simplify.fold_batchnorm import FoldBatchNorm
from tests.modules import ConvNet
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten


def norm(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float = 1e-3) -> Any:
    return aten.batch_norm.default(x, gamma, beta, mean, variance, False, 0.1, epsilon, False)


def statistics(channels: int, *, centred: bool = False) -> dict[str, torch.Tensor]:
    """Gamma, beta, mean and variance; ``centred`` for a norm that only scales."""
    drawn = draw({f"norm.{name}": (channels,) for name in ("weight", "bias", "mean", "var")})
    drawn["norm.var"] = drawn["norm.var"].square() + 0.1
    if centred:
        drawn["norm.bias"], drawn["norm.mean"] = torch.zeros(channels), torch.zeros(channels)
    return drawn


Layer = tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], int]
"""A call of input, weight and bias; the shapes of input and weight; the output channels. The input has 4 channels."""

PLAIN: dict[str, Layer] = {
    "conv1d": (lambda x, w, b: aten.conv1d.default(x, w, b, [2]), (2, 4, 9), (6, 4, 3), 6),
    "conv2d": (lambda x, w, b: aten.conv2d.default(x, w, b), (2, 4, 7, 5), (6, 4, 3, 3), 6),
    "conv3d": (lambda x, w, b: aten.conv3d.default(x, w, b), (1, 4, 3, 4, 5), (6, 4, 2, 3, 1), 6),
    "valid conv2d": (lambda x, w, b: aten.conv2d.padding(x, w, b, [1, 1], "valid"), (2, 4, 7, 5), (6, 4, 3, 3), 6),
    "grouped": (
        lambda x, w, b: aten.conv2d.default(x, w, b, [1, 1], [0, 0], [1, 2], 2), (2, 4, 7, 5), (6, 2, 3, 2), 6,
    ),
    "depthwise": (
        lambda x, w, b: aten.conv2d.default(x, w, b, [1, 1], [0, 0], [1, 1], 4), (2, 4, 7, 5), (8, 1, 3, 3), 8,
    ),
    "linear": (aten.linear.default, (3, 4), (6, 4), 6),
}  # fmt: skip

PADDED: dict[str, Layer] = {
    "padded": (lambda x, w, b: aten.conv2d.default(x, w, b, [2, 2], [1, 0]), (2, 4, 7, 5), (6, 4, 3, 3), 6),
    "same": (lambda x, w, b: aten.conv2d.padding(x, w, b, [1, 1], "same"), (2, 4, 7, 5), (6, 4, 3, 3), 6),
    "transposed 1d": (lambda x, w, b: aten.conv_transpose1d.default(x, w, b, [2]), (2, 4, 5), (4, 6, 3), 6),
    "transposed 2d": (
        lambda x, w, b: aten.conv_transpose2d.input(x, w, b, [2, 1], [1, 0], [1, 0]), (2, 4, 5, 3), (4, 6, 3, 3), 6,
    ),
    "transposed 3d": (lambda x, w, b: aten.conv_transpose3d.input(x, w, b), (1, 4, 2, 3, 2), (4, 6, 2, 2, 2), 6),
    "transposed grouped": (
        lambda x, w, b: aten.conv_transpose2d.input(x, w, b, [1, 1], [0, 0], [0, 0], 2), (2, 4, 5, 3), (4, 3, 3, 3), 6,
    ),
}  # fmt: skip

LAYERS = {**PLAIN, **PADDED}


def norm_behind(layer: Layer, *, bias: bool, dtype: torch.dtype = torch.float32) -> Program:
    call, shape, weight, out = layer
    weights = {**draw({"layer.weight": weight, **({"layer.bias": (out,)} if bias else {})}), **statistics(out)}

    def forward(x, w, *rest):
        return norm(call(x, w, rest[0] if bias else None), *rest[-4:])

    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    return program_of(forward, {"x": torch.zeros(shape, dtype=dtype)}, weights)


def norm_ahead(layer: Layer, *, bias: bool, centred: bool = False) -> Program:
    call, shape, weight, out = layer
    drawn = draw({"layer.weight": weight, **({"layer.bias": (out,)} if bias else {})})

    def forward(x, w, *rest):
        return call(norm(x, *rest[-4:]), w, rest[0] if bias else None)

    return program_of(forward, {"x": torch.zeros(shape)}, {**drawn, **statistics(4, centred=centred)})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_behind_a_layer(name: str, bias: bool) -> None:
    program = norm_behind(LAYERS[name], bias=bias)
    result, report = run_pass(FoldBatchNorm(), program)
    (layer,) = result.calls
    assert layer.target is program.calls[0].target
    assert layer.args[3 : len(program.calls[0].args)] == program.calls[0].args[3:]
    assert reasons(report) == {"batch_norm_default": f"applied: folded into {program.calls[0].name}"}
    weights = dict(program.weights())
    parameters = (
        weights["layer.weight"], weights.get("layer.bias"), weights["norm.mean"], weights["norm.var"], 1e-3,
        weights["norm.weight"], weights["norm.bias"],
    )  # fmt: skip
    if name == "linear":
        want = fuse_linear_bn_weights(*parameters)
    elif "grouped" in name and "transposed" in name:
        return  # torch's own folding does not know groups of transposed convolutions.
    else:
        want = fuse_conv_bn_weights(*parameters, transpose="transposed" in name)
    for node, tensor in zip(layer.args[1:3], want, strict=True):
        torch.testing.assert_close(result.weight(node), tensor.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_ahead_of_a_layer(name: str, bias: bool) -> None:
    program = norm_ahead(PLAIN[name], bias=bias)
    result, report = run_pass(FoldBatchNorm(), program)
    assert [node.target for node in result.calls] == [program.calls[1].target]
    assert reasons(report) == {"batch_norm_default": f"applied: folded into {program.calls[1].name}"}


@pytest.mark.parametrize("name", PADDED)
def test_ahead_of_a_padding_layer_only_without_a_shift(name: str) -> None:
    program = norm_ahead(PADDED[name], bias=True)
    result, report = run_pass(FoldBatchNorm(), program)
    assert not report.changed
    assert reasons(report)["batch_norm_default"] == (
        "skipped: no layer with constant weights is ahead of it; "
        f"{program.calls[1].name} behind it pads with zeros, which its shift does not reach"
    )
    result, _ = run_pass(FoldBatchNorm(), norm_ahead(PADDED[name], bias=True, centred=True))
    assert len(result.calls) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_precision(dtype: torch.dtype) -> None:
    result, _ = run_pass(FoldBatchNorm(), norm_behind(LAYERS["linear"], bias=True, dtype=dtype))
    assert {tensor.dtype for _, tensor in result.weights()} == {dtype}
    assert len(result.calls) == 1


def test_statistics_without_scale_and_shift() -> None:
    def forward(x, w, mean, variance):
        return norm(aten.linear.default(x, w), None, None, mean, variance)

    kept = {name: tensor for name, tensor in statistics(6).items() if name in ("norm.mean", "norm.var")}
    result, _ = run_pass(
        FoldBatchNorm(), program_of(forward, {"x": torch.zeros(3, 4)}, {**draw({"w": (6, 4)}), **kept})
    )
    assert len(result.calls) == 1


@pytest.mark.parametrize("trainable", [True, False])
def test_what_was_trainable_stays_so(trainable: bool) -> None:
    module = nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6)).eval().requires_grad_(trainable)
    nn.init.ones_(module[1].bias)
    result, _ = run_pass(FoldBatchNorm(), shave.trace(module, (torch.zeros(3, 4),)))
    for name, tensor in result.weights():
        assert isinstance(tensor, nn.Parameter), name
        assert tensor.requires_grad is trainable
    assert sorted(name for name, _ in result.weights()) == ["0.bias", "0.weight"]


X = torch.zeros(2, 4, 7, 5)
C = (6, 1, 1)

AFFINE: dict[str, Callable[[Any, Any], Any]] = {
    "times": aten.mul.Tensor,
    "times, from the left": lambda x, c: aten.mul.Tensor(c, x),
    "divided by": aten.div.Tensor,
    "plus": aten.add.Tensor,
    "plus, from the left": lambda x, c: aten.add.Tensor(c, x),
    "plus a multiple": lambda x, c: aten.add.Tensor(x, c, alpha=2.5),
    "multiple plus": lambda x, c: aten.add.Tensor(c, x, alpha=2.5),
    "minus": aten.sub.Tensor,
    "from": lambda x, c: aten.sub.Tensor(c, x),
    "minus a multiple": lambda x, c: aten.sub.Tensor(x, c, alpha=-2.5),
    "multiple from": lambda x, c: aten.sub.Tensor(c, x, alpha=2.5),
    "reverse minus": aten.rsub.Tensor,
    "reverse minus, from the left": lambda x, c: aten.rsub.Tensor(c, x, alpha=3),
    "reverse minus of a number": lambda x, c: aten.rsub.Scalar(x, 1.5, 2),
    "times a number": lambda x, c: aten.mul.Scalar(x, -0.5),
    "divided by a number": lambda x, c: aten.div.Tensor(x, 3),
    "plus a multiple of a number": lambda x, c: aten.add.Scalar(x, 1.5, 2),
    "minus a multiple of a number": lambda x, c: aten.sub.Scalar(x, 1.5, 2),
}


@pytest.mark.parametrize("name", AFFINE)
def test_arithmetic_by_channel_folds_both_ways(name: str) -> None:
    def behind(x, w, b, c):
        return AFFINE[name](aten.conv2d.default(x, w, b), c)

    def ahead(x, w, b, c):
        return aten.conv2d.default(AFFINE[name](x, c), w, b)

    for forward, channels in ((behind, 6), (ahead, 4)):
        weights = draw({"w": (6, 4, 3, 3), "b": (6,), "c": (channels, 1, 1)})
        result, report = run_pass(FoldBatchNorm(), program_of(forward, {"x": X}, weights))
        assert [node.target for node in result.calls] == [aten.conv2d.default]
        assert len(report.applied) == 1


NO_AFFINE: dict[str, Callable[[Any, Any], Any]] = {
    "divides": lambda x, c: aten.div.Tensor(c, x),
    "rounds": lambda x, c: aten.div.Tensor_mode(x, 2.0, rounding_mode="floor"),
    "truncates": lambda x, c: aten.div.Tensor_mode(x, c, rounding_mode="trunc"),
    "square": lambda x, c: aten.mul.Tensor(x, x),
    "power": lambda x, c: aten.pow.Tensor_Scalar(x, 2),
}


@pytest.mark.parametrize("name", NO_AFFINE)
def test_other_arithmetic_is_no_candidate(name: str) -> None:
    program = program_of(
        lambda x, w, c: NO_AFFINE[name](aten.conv2d.default(x, w), c), {"x": X}, draw({"w": (6, 4, 1, 1), "c": C})
    )
    _, report = run_pass(FoldBatchNorm(), program)
    assert not report.changed
    assert not report.entries


@pytest.mark.parametrize(("layer", "other"), [(torch.float32, torch.float64), (torch.float16, torch.float32)])
def test_constants_that_widen_the_dtype_stay(layer: torch.dtype, other: torch.dtype) -> None:
    weights = {"w": draw({"w": (6, 4, 1, 1)})["w"].to(layer), "c": draw({"c": C})["c"].to(other)}
    program = program_of(lambda x, w, c: aten.mul.Tensor(aten.conv2d.default(x, w), c), {"x": X.to(layer)}, weights)
    assert not run_pass(FoldBatchNorm(), program)[1].changed


def skipped(function: Callable[..., Any], shapes: Mapping[str, tuple[int, ...]], x: torch.Tensor = X) -> dict[str, str]:
    """Run on a program in which nothing can be folded, and give the reasons."""
    _, report = run_pass(FoldBatchNorm(), program_of(function, {"x": x}, draw(shapes)))
    assert not report.changed
    return reasons(report)


CONV = {"w": (6, 4, 1, 1)}


@pytest.mark.parametrize(("shape", "size"), [((6, 7, 1), "height"), ((1, 5), "width"), ((2, 1, 1, 1), "batch")])
def test_factors_along_other_axes_stay(shape: tuple[int, ...], size: str) -> None:
    def forward(x, w, c):
        return aten.mul.Tensor(aten.conv2d.default(x, w), c)

    said = skipped(forward, {**CONV, "c": shape})
    assert not said or "vary along other axes than the channels of conv2d_default" in said["mul_tensor"], size


def test_factors_that_enlarge_stay() -> None:
    def forward(x, w, c):
        return aten.mul.Tensor(aten.conv2d.default(x, w), c)

    assert skipped(forward, {"w": (1, 4, 1, 1), "c": (6, 1, 1)}) == {}
    assert skipped(forward, {**CONV, "c": (3, 1, 1, 1, 1)}) == {}


def test_a_layer_whose_output_others_read_stays() -> None:
    def forward(x, w, c):
        y = aten.conv2d.default(x, w)
        return aten.mul.Tensor(y, c), aten.relu.default(y)

    said = skipped(forward, {**CONV, "c": C})
    assert said["mul_tensor"].startswith("skipped: the output of conv2d_default ahead of it has other readers")


def test_a_layer_that_is_an_output_too_stays() -> None:
    def forward(x, w, c):
        y = aten.conv2d.default(x, w)
        return aten.mul.Tensor(y, c), y

    assert "mul_tensor" in skipped(forward, {**CONV, "c": C})


def test_a_norm_ahead_that_others_read_stays() -> None:
    def forward(x, w, *kept):
        y = norm(x, *kept)
        return aten.conv2d.default(y, w), aten.relu.default(y)

    program = program_of(forward, {"x": X}, {**draw(CONV), **statistics(4)})
    _, report = run_pass(FoldBatchNorm(), program)
    assert not report.changed
    assert reasons(report)["batch_norm_default"].endswith("others than conv2d_default behind it read its output")


def test_layers_with_computed_weights_stay() -> None:
    def forward(x, w, v, *kept):
        return norm(aten.conv2d.default(x, aten.mul.Tensor(w, aten.sum.default(v))), *kept)

    program = program_of(
        lambda x, v, w, *kept: forward(x, w, v, *kept), {"x": X, "v": torch.ones(3)}, {**draw(CONV), **statistics(6)}
    )
    _, report = run_pass(FoldBatchNorm(), program, calibration=[(torch.randn(2, 4, 7, 5), torch.ones(3))])
    assert not report.changed
    assert reasons(report)["batch_norm_default"].startswith("skipped: no layer with constant weights is ahead of it")


def test_a_size_times_a_weight_is_no_source() -> None:
    def forward(x, w):
        return aten.add.Tensor(x, aten.mul.Tensor(w, aten.sym_size.int(x, 0)))

    program = program_of(forward, {"x": X}, draw({"w": (5,)}), dynamic={"x": {0: "batch"}})
    assert not run_pass(FoldBatchNorm(), program)[1].changed


def test_norms_in_training_stay() -> None:
    def forward(x, w, b, mean, variance):
        return aten.batch_norm.default(x, w, b, mean, variance, True, 0.1, 1e-5, False)

    def own(x):
        return aten.batch_norm.default(x, None, None, None, None, True, 0.1, 1e-5, False)

    for function, weights in ((forward, statistics(4)), (own, {})):
        _, report = run_pass(FoldBatchNorm(), program_of(function, {"x": X}, weights))
        assert reasons(report) == {"batch_norm_default": "skipped: its statistics are not constants"}


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        ("norm.var", -1.0, torch.float32),
        ("norm.var", math.nan, torch.float32),
        ("norm.mean", math.inf, torch.float32),
        ("norm.weight", 60000.0, torch.float16),
        ("norm.bias", math.nan, torch.float32),
    ],
    ids=["negative-variance", "nan-variance", "infinite-mean", "float16-overflow", "nan-shift"],
)
def test_weights_that_would_not_be_finite_stay(name: str, value: float, dtype: torch.dtype) -> None:
    weights = {**draw({"w": (6, 4)}), **statistics(6)}
    weights[name][2] = value
    weights = {key: tensor.to(dtype) for key, tensor in weights.items()}
    program = program_of(
        lambda x, w, *kept: norm(aten.linear.default(x, w), *kept), {"x": torch.zeros(3, 4, dtype=dtype)}, weights
    )
    _, report = run_pass(FoldBatchNorm(), program)
    assert not report.changed
    assert f"the folded weights are not finite in {dtype}" in reasons(report)["batch_norm_default"]


def test_division_by_zero_stays() -> None:
    said = skipped(lambda x, w: aten.div.Tensor(aten.conv2d.default(x, w), 0.0), CONV)
    assert "the folded weights are not finite" in said["div_tensor"]


def test_a_shared_weight_is_cloned() -> None:
    def forward(x, w, c):
        y = aten.tanh.default(aten.conv2d.default(x, w))
        return aten.mul.Tensor(aten.conv2d.default(y, w), c)

    weights = draw({"shared": (4, 4, 1, 1), "c": (4, 1, 1)})
    before = weights["shared"].clone()
    result, _ = run_pass(FoldBatchNorm(), program_of(forward, {"x": X}, weights))
    first, _, second = result.calls
    assert first.args[1].target == "shared"
    assert second.args[1].target != "shared"
    assert torch.equal(weights["shared"], before)


def test_an_unchanged_bias_is_not_shared_with_the_original() -> None:
    weights = {key: t.double() for key, t in draw({"w": (6, 4), "b": (6,)}).items()}
    program = program_of(
        lambda x, w, b: aten.linear.default(aten.mul.Tensor(x, 2.0), w, b), {"x": torch.zeros(3, 4).double()}, weights
    )
    result, _ = run_pass(FoldBatchNorm(), program)
    pointers = {tensor.data_ptr() for tensor in weights.values()}
    assert not pointers & {tensor.data_ptr() for _, tensor in result.weights()}


def test_one_shared_norm_serves_two_layers() -> None:
    def forward(x, v, w, *kept):
        first = aten.relu.default(norm(aten.conv2d.default(x, v), *kept))
        return norm(aten.conv2d.default(first, w), *kept)

    weights = {**draw({"v": (4, 4, 3, 3), "w": (4, 4, 1, 1)}), **statistics(4)}
    result, report = run_pass(FoldBatchNorm(), program_of(forward, {"x": X}, weights))
    assert [node.target for node in result.calls] == [aten.conv2d.default, aten.relu.default, aten.conv2d.default]
    assert len(report.applied) == 2


def test_rows_of_operations_fold_all_at_once() -> None:
    """The decomposed form, (x - mean) / deviation * gamma + beta, behind one layer and ahead of another."""

    def row(x, mean, deviation, gamma, beta):
        return aten.add.Tensor(aten.mul.Tensor(aten.div.Tensor(aten.sub.Tensor(x, mean), deviation), gamma), beta)

    def behind(x, w, *kept):
        return row(aten.conv2d.default(x, w), *kept)

    def ahead(x, w, *kept):
        return aten.conv2d.default(row(x, *kept), w)

    for forward, channels in ((behind, 6), (ahead, 4)):
        kept = dict.fromkeys(("mean", "deviation", "gamma", "beta"), (channels, 1, 1))
        result, report = run_pass(FoldBatchNorm(), program_of(forward, {"x": X}, draw({**CONV, **kept})))
        assert len(result.calls) == 1
        assert len(report.applied) == 4


def test_between_two_layers_the_one_ahead_takes_it() -> None:
    def forward(x, v, w, *kept):
        return aten.conv2d.default(norm(aten.conv2d.default(x, v), *kept), w, None, [1, 1], [1, 1])

    weights = {**draw({"v": (6, 4, 1, 1), "w": (3, 6, 3, 3)}), **statistics(6)}
    result, report = run_pass(FoldBatchNorm(), program_of(forward, {"x": X}, weights))
    assert len(result.calls) == 2
    assert reasons(report) == {"batch_norm_default": "applied: folded into conv2d_default"}


def test_a_norm_over_positions_does_not_go_into_a_linear_layer_over_features() -> None:
    def forward(x, w, *kept):
        return norm(aten.linear.default(x, w), *kept)

    program = program_of(forward, {"x": torch.zeros(2, 7, 4)}, {**draw({"w": (6, 4)}), **statistics(7)})
    _, report = run_pass(FoldBatchNorm(), program)
    assert "vary along other axes than the channels of linear_default" in reasons(report)["batch_norm_default"]


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 3, 5, 4)])
def test_linear_layers_of_any_rank(shape: tuple[int, ...]) -> None:
    def forward(x, w, b, s, t, c):
        return aten.mul.Tensor(aten.linear.default(aten.sub.Tensor(aten.mul.Tensor(x, s), t), w, b), c)

    weights = draw({"w": (6, 4), "b": (6,), "s": (4,), "t": (4,), "c": (6,)})
    result, _ = run_pass(FoldBatchNorm(), program_of(forward, {"x": torch.zeros(shape)}, weights))
    assert len(result.calls) == 1


def test_unbatched_convolutions() -> None:
    weights = draw({"w": (6, 4, 3, 3), "c": C, "d": (4, 1, 1)})
    program = program_of(
        lambda x, w, c, d: aten.mul.Tensor(aten.conv2d.default(aten.add.Tensor(x, d), w), c), {"x": X[0]}, weights
    )
    assert len(run_pass(FoldBatchNorm(), program)[0].calls) == 1


def test_dead_norms_are_left_to_dead_code() -> None:
    def forward(x, w, *kept):
        y = aten.conv2d.default(x, w)
        norm(y, *kept)
        return aten.relu.default(x)

    _, report = run_pass(FoldBatchNorm(), program_of(forward, {"x": X}, {**draw(CONV), **statistics(6)}))
    assert not report.changed
    assert reasons(report) == {"batch_norm_default": "skipped: nothing reads it"}


def test_arithmetic_far_from_any_layer_is_not_reported() -> None:
    assert skipped(lambda x: aten.relu.default(aten.add.Tensor(aten.relu.default(x), 1)), {}) == {}


def test_integers_are_no_candidates() -> None:
    assert skipped(lambda x: aten.mul.Tensor(x, 2), {}, torch.zeros(3, dtype=torch.int64)) == {}


# The contract


def convnet() -> Program:
    torch.manual_seed(0)
    return shave.trace(ConvNet().eval(), (torch.zeros(2, 3, 7, 5),), dynamic_shapes={"x": {0: "batch"}})


def both_sides() -> Program:
    """A norm ahead of a layer, one behind it in rows of operations, and one that must stay."""

    def forward(x, w, v, c, d, *kept):
        y = aten.conv2d.default(norm(x, *kept), w)
        y = aten.relu.default(aten.add.Tensor(aten.mul.Tensor(y, c), d))
        y = aten.conv_transpose2d.input(norm(y, *kept), v, None, [2, 2])
        return aten.sub.Tensor(y, 0.5)

    shapes = {"body.weight": (4, 4, 3, 3), "up.weight": (4, 3, 2, 2), "c": (1, 4, 1, 1), "d": (4, 1, 1)}
    return program_of(forward, {"x": X}, {**draw(shapes, trainable=True), **statistics(4)}, dynamic={"x": {0: "batch"}})


class TestContract(PassContract):
    golden = ("convnet", "sides")
    onnx = ("sides",)

    def make_pass(self) -> Pass:
        return FoldBatchNorm()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"convnet": convnet, "sides": both_sides}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return program.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
