from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import shave
from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.bisect import bisect, outputs_within
from shave.passes.compare import compare
from shave.passes.explain import explain
from shave.passes.intermediate import compare_nodes
from shave.passes.manager import PassManager
from shave.passes.pipeline import parse
from shave.passes.problems import Conv2d, Measured, Problem
from shave.passes.stages import Stage, stage_of
from shave.passes.winograd.accuracy import bound
from shave.passes.winograd.winograd import Winograd
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.examples import Idle
from tests.passes.handmade import draw, program_of
from tests.passes.oracle import random_inputs

aten = torch.ops.aten
winograd = torch.ops.shave.winograd_conv2d.default

X = torch.zeros(2, 32, 12, 13)


def tiles_of(program: Program) -> list[int]:
    """Of all transformed convolutions, in order."""
    return [node.args[4] for node in program.graph.find_nodes(op="call_function", target=winograd)]


def one_layer(channels: tuple[int, int] = (32, 32), padding: tuple[int, int] = (1, 1), **given: Any) -> Program:
    out, inputs = channels
    weights = draw({"layer.weight": (out, inputs, 3, 3), "layer.bias": (out,)})
    return program_of(
        lambda x, w, b: aten.conv2d.default(x, w, b, [1, 1], list(padding)),
        {"x": torch.zeros(2, inputs, 12, 13)},
        weights,
        **given,
    )


def costs(**seconds: float | None) -> Callable[[Problem], float | None]:
    """An oracle: ``direct=3.0, tile_4=1.0``; tiles that are not named take a minute."""
    return lambda problem: seconds.get("direct" if isinstance(problem, Conv2d) else f"tile_{problem.tile}", 60.0)


# Which layers, and which tiles


def test_an_oracle_decides_on_the_tile() -> None:
    for tile in (2, 4, 6):
        oracle = costs(direct=3e-3, **{f"tile_{tile}": 1e-3})
        result, report = run_pass(Winograd(max_error=1e-4), one_layer(), oracle=oracle)
        assert tiles_of(result) == [tile]
        assert reasons(report)["conv2d_default"].startswith(f"applied: tile {tile}: 1 ms instead of 3 ms; error ")


def test_an_oracle_is_asked_about_the_problem_and_no_more() -> None:
    asked = []

    def oracle(problem: Problem) -> float:
        asked.append(problem)
        return 1.0

    program = one_layer((16, 32), (0, 2), dynamic={"x": {0: "batch"}})
    _, report = run_pass(Winograd(tile=4), program, oracle=oracle)
    direct = Conv2d(None, 32, 16, 12, 13, (3, 3), padding=(0, 2))
    assert asked[0] == direct
    assert [(type(problem).__name__, getattr(problem, "tile", 0)) for problem in asked] == [
        ("Conv2d", 0),
        ("WinogradConv2d", 4),
    ]
    assert reasons(report) == {"conv2d_default": "skipped: no faster: tile 4: 1e+03 ms instead of 1e+03 ms"}


def test_what_is_hardly_faster_is_not_worth_it() -> None:
    assert not run_pass(Winograd(), one_layer(), oracle=costs(direct=1.04, tile_4=1.0))[1].changed
    assert run_pass(Winograd(), one_layer(), oracle=costs(direct=1.06, tile_4=1.0))[1].changed


def test_measured_times_need_a_smaller_gain_and_are_named() -> None:
    found = {}
    for direct in (1.01, 1.03):
        measured = costs(direct=Measured(direct), tile_4=Measured(1.0))
        _, report = run_pass(Winograd(tile=4), one_layer(), oracle=measured)
        found[direct] = reasons(report)["conv2d_default"].split(";")[0]
    assert found == {
        1.01: "skipped: no faster: tile 4: measured 1e+03 ms instead of 1.01e+03 ms",
        1.03: "applied: tile 4: measured 1e+03 ms instead of 1.03e+03 ms",
    }


def test_a_target_without_kernels_keeps_its_convolutions() -> None:
    for oracle in (lambda problem: None, costs(direct=None), lambda p: 1.0 if isinstance(p, Conv2d) else None):
        _, report = run_pass(Winograd(), one_layer(), oracle=oracle)
        assert reasons(report) == {"conv2d_default": "skipped: the target has no kernel for it"}


def test_without_an_oracle_multiply_adds_decide() -> None:
    _, report = run_pass(Winograd(), one_layer((3, 3)))
    said = reasons(report)["conv2d_default"]
    assert said.startswith("skipped: no faster: tile ")
    assert said.endswith(" M multiply-adds instead of 0.0126 M multiply-adds")
    assert run_pass(Winograd(), one_layer((64, 64)))[1].changed


def test_the_largest_error_is_a_limit() -> None:
    fast = costs(direct=9.0, tile_6=1.0, tile_4=2.0, tile_2=3.0)
    found = {}
    for limit in (1e-4, 5e-6, 7e-7, 1e-9):
        result, report = run_pass(Winograd(max_error=limit), one_layer(), oracle=fast)
        found[limit] = tiles_of(result)
        assert report.metrics["largest_error"] <= limit
    assert found == {1e-4: [6], 5e-6: [4], 7e-7: [2], 1e-9: []}
    said = reasons(report)["conv2d_default"]
    assert said.startswith("skipped: tile 6 errs by ")
    assert "; tile 2 errs by " in said
    assert said.endswith("; the limit is 1e-09")


def test_what_was_rejected_is_told() -> None:
    _, report = run_pass(Winograd(max_error=5e-6), one_layer(), oracle=costs(direct=9.0, tile_6=1.0, tile_4=2.0))
    assert "; tile 6 errs by " in reasons(report)["conv2d_default"]


def test_a_tile_that_is_asked_for_is_the_only_one() -> None:
    fast = costs(direct=9.0, tile_6=1.0, tile_4=2.0, tile_2=3.0)
    assert tiles_of(run_pass(Winograd(tile=2), one_layer(), oracle=fast)[0]) == [2]
    assert tiles_of(run_pass(Winograd(tile=6, max_error=1e-6), one_layer(), oracle=fast)[0]) == []


def test_errors_are_measured_on_the_data() -> None:
    """Inputs of one sign and of little variation cancel in the transforms, which then lose more."""

    def error(calibration: Any) -> float:
        _, report = run_pass(Winograd(tile=6, max_error=1e-2), one_layer(), calibration=calibration)
        return report.metrics["largest_error"]

    torch.manual_seed(0)
    spread = error([torch.randn(2, 32, 12, 13)])
    assert spread == pytest.approx(error(None), rel=0.5)
    spiky = torch.zeros(2, 32, 12, 13)
    spiky[:, :, 6, 6] = 1
    assert error([spiky]) < 0.7 * spread


def test_layers_of_zeros_stay() -> None:
    program = one_layer()
    program.weight(next(iter(program.graph.find_nodes(op="get_attr")))).zero_()
    _, report = run_pass(Winograd(), program)
    assert "its output is zero or not finite" in reasons(report)["conv2d_default"]


# What it leaves


def test_names_bias_and_padding_stay() -> None:
    result, _ = run_pass(Winograd(tile=4), one_layer((16, 32), (2, 0)))
    (node,) = result.calls
    assert (node.args[1].target, node.args[2].target, node.args[3:]) == ("layer.weight", "layer.bias", ([2, 0], 4))
    assert result.weight(node.args[1]).shape == (36, 16, 32)
    assert not isinstance(result.weight(node.args[1]), nn.Parameter)
    assert stage_of(result) is Stage.LOWERED


def test_a_layer_without_bias_gets_none() -> None:
    program = program_of(lambda x, w: aten.conv2d.default(x, w), {"x": X}, draw({"w": (32, 32, 3, 3)}))
    result, _ = run_pass(Winograd(), program)
    assert result.calls[0].args[2] is None


def test_a_shared_weight_is_transformed_once() -> None:
    def forward(x, w):
        y = aten.relu.default(aten.conv2d.default(x, w, None, [1, 1], [1, 1]))
        return aten.conv2d.default(y, w, None, [1, 1], [0, 0])

    result, report = run_pass(Winograd(tile=4), program_of(forward, {"x": X}, draw({"shared": (32, 32, 3, 3)})))
    assert [(name, tuple(tensor.shape)) for name, tensor in result.weights()] == [("shared", (36, 32, 32))]
    assert len(report.applied) == 2


def test_a_weight_that_others_read_is_kept_beside() -> None:
    def forward(x, w):
        return aten.conv2d.default(x, w), aten.conv2d.default(x, w, None, [2, 2])

    result, _ = run_pass(Winograd(tile=2), program_of(forward, {"x": X}, draw({"shared": (32, 32, 3, 3)})))
    assert sorted(tuple(tensor.shape) for _, tensor in result.weights()) == [(16, 32, 32), (32, 32, 3, 3)]


def test_the_result_can_be_trained_on() -> None:
    module = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 4, 1)).requires_grad_(True)
    result, _ = run_pass(Winograd(), shave.trace(module, (X,)))
    weights = dict(result.module.named_parameters())
    (output,) = result.module(torch.randn(X.shape))
    output.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights.values())
    assert weights["0.weight"].shape[0] in (16, 36, 64)


# Beside the rest of the passes


def test_stages_keep_it_behind_what_takes_ordinary_operators() -> None:
    @dataclass(frozen=True)
    class FloatOnly(Idle):
        requires = Stage.FLOAT

    with pytest.raises(PipelineError, match="takes a float program, but after winograd it is lowered"):
        PassManager([Winograd(), FloatOnly()]).run(one_layer())


def test_its_rounding_is_not_held_against_later_passes() -> None:
    result = PassManager(
        [Winograd(tile=6, max_error=1e-2), "dead-code, dedupe, drop-identities"], verify="full", reproduce=False
    ).run(one_layer())
    assert tiles_of(result) == [6]


def test_explain_tells_of_each_layer() -> None:
    result, _ = run_pass(Winograd(tile=4), one_layer())
    (found,) = explain(result.report, "layer.weight")
    assert str(found).startswith("winograd{tile=4}: applied conv2d_default (aten.conv2d): tile 4: ")
    assert all(word in str(found) for word in ("instead of", "error", "direct", "bound"))


def test_values_inside_can_be_compared_and_bisected() -> None:
    program = one_layer()
    result, _ = run_pass(Winograd(tile=6, max_error=1e-2), program)
    (x,) = random_inputs(program, 0)
    (node,) = compare_nodes(program, result, [x])
    assert (node.reference, node.op) == ("conv2d_default", "shave.winograd_conv2d")
    assert 1e-7 < node.difference.max_rel < 1e-4
    found = bisect(
        program,
        ["dead-code", Winograd(tile=6, max_error=1e-2)],
        outputs_within(program, [(x,)], max_rel=1e-7),
        node_tolerance=1e-7,
    )
    assert found is not None
    assert found.node is not None
    assert found.node.op == "shave.winograd_conv2d"


def test_the_reference_backend_runs_it() -> None:
    from shave.backends.reference import Reference

    program = one_layer()
    result, _ = run_pass(Winograd(tile=4), program)
    (x,) = random_inputs(program, 0)
    found = compare(Reference(program), Reference(result), [(x.numpy(),)])
    assert 0 < found["output_0"].max_rel < 1e-5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("winograd{tile=3}", r"option tile takes auto\|2\|4\|6"),
        ("winograd{max-error=0}", "max-error is 0.0, but lies between 0 and 1"),
        ("winograd{max-error=nan}", "max-error is nan, but lies between 0 and 1"),
        ("winograd{max-error=1}", "max-error is 1.0, but lies between 0 and 1"),
        ("winograd{max-error=small}", "option max-error takes float"),
        ("winograd{tiles=4}", "has no option 'tiles'; did you mean 'tile'"),
        ("winograd{max_error=0.1}", "has no option 'max_error'; did you mean 'max-error'"),
    ],
)
def test_bad_options(text: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        parse(text)


def test_options_read_back() -> None:
    assert str(Winograd(tile=4, max_error=2e-6)) == "winograd{tile=4 max-error=2e-06}"
    assert parse("winograd{max-error=1e-3}") == (Winograd(max_error=1e-3),)


def test_the_limit_sets_the_tolerance() -> None:
    assert Winograd().tolerance == pytest.approx(1e-4)
    assert Winograd(max_error=1e-3).tolerance == pytest.approx(1e-2)
    assert Winograd(max_error=1e-9).tolerance == 1e-5


@settings(max_examples=40, deadline=None)
@given(
    tile=st.sampled_from([2, 4, 6]),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size=st.tuples(st.integers(1, 2), st.integers(3, 20), st.integers(3, 20)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    bias=st.booleans(),
    scale=st.sampled_from([1e-12, 1.0, 1e12]),
    seed=st.integers(0, 99),
)
def test_any_convolution(tile, channels, size, padding, bias, scale, seed) -> None:
    """Against float64, within the bound that the pass reports."""
    generator = torch.Generator().manual_seed(seed)
    out, inputs = channels
    weight = torch.randn(out, inputs, 3, 3, generator=generator) * scale
    offset = torch.zeros(out) if bias else None
    x = torch.randn(size[0], inputs, *size[1:], generator=generator)
    weights = {"w": weight} | ({"b": offset} if bias else {})

    def forward(x, w, b=None):
        return aten.conv2d.default(x, w, b, [1, 1], list(padding))

    program = program_of(forward, {"x": x}, weights)
    result, _ = run_pass(Winograd(tile=tile, max_error=0.1), program, oracle=lambda p: 1.0 + 8 * isinstance(p, Conv2d))
    assert tiles_of(result) == [tile]
    exact = torch.conv2d(x.double(), weight.double(), padding=padding)
    largest = float(x.abs().max()) * float(weight.double().abs().sum((1, 2, 3)).max())
    assert float((result(x) - exact).abs().max()) <= bound(weight, tile) * largest


# The contract


def residual() -> Program:
    """Two convolutions around which an identity leads, one of stride 2, one of few channels."""

    def forward(x, a, b, c, d, e):
        y = aten.relu.default(aten.conv2d.default(x, a, b, [1, 1], [1, 1]))
        y = aten.add.Tensor(x, aten.conv2d.padding(y, c, None, [1, 1], "same"))
        return aten.conv2d.default(y, c, None, [2, 2]), aten.conv2d.default(y, d, e)

    shapes = {
        "a.weight": (32, 32, 3, 3), "a.bias": (32,), "c.weight": (32, 32, 3, 3), "d.weight": (2, 32, 3, 3),
        "d.bias": (2,),
    }  # fmt: skip
    weights = {name: tensor / 17 for name, tensor in draw(shapes).items()}
    return program_of(forward, {"x": X}, weights, dynamic={"x": {0: "batch"}})


def traced() -> Program:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.SiLU(), nn.Conv2d(32, 48, 3, padding=(0, 2)), nn.Flatten())
    return shave.trace(module.eval(), (torch.zeros(2, 3, 21, 17),), dynamic_shapes={"input": {0: "batch"}})


class TestContract(PassContract):
    golden = ("residual", "traced")
    onnx = ("residual", "traced")

    def make_pass(self) -> Pass:
        return Winograd(tile=4, max_error=3e-6)

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"residual": residual, "traced": traced}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return [node for node in program.calls if node.target in (aten.conv2d.default, aten.conv2d.padding)]
