from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import fx, nn

import shave
from shave.ir.errors import PipelineError
from shave.ir.ops import op_name
from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.compare import outputs_of
from shave.passes.factorize.cp import Cp
from shave.passes.factorize.factorize import Factorize
from shave.passes.factorize.layer import is_candidate
from shave.passes.factorize.metric import Metric
from shave.passes.factorize.separable import Separable
from shave.passes.factorize.svd import Svd
from shave.passes.factorize.tensor_train import TensorTrain
from shave.passes.factorize.tucker import Tucker
from shave.passes.manager import PassManager
from shave.passes.pipeline import parse
from shave.passes.problems import Conv2d, Matmul, Problem, WinogradConv2d
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.factorize.layers import convolution, correlated, linear, only_layer, random
from tests.passes.factorize.test_convolutions import WINDOWS, of
from tests.passes.handmade import program_of
from tests.passes.oracle import assert_equivalent, random_inputs

aten = torch.ops.aten


class Net(nn.Module):
    """Convolutions of several kinds, and linear layers of odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.body = nn.Conv2d(12, 20, (3, 5), padding=(1, 2), bias=False)
        self.point = nn.Conv2d(20, 18, 1)
        self.depth = nn.Conv2d(18, 18, 3, padding=1, groups=18)
        self.head = nn.Linear(18, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.body(torch.relu(self.stem(x))))
        return self.head(torch.relu(self.depth(torch.relu(self.point(x)))).mean((2, 3)))


def net() -> Program:
    torch.manual_seed(0)
    return shave.trace(Net().eval(), (torch.randn(2, 3, 17, 15),), dynamic_shapes={"x": {0: "batch"}})


def images(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, 8, 3, 17, 15, generator=generator)
    return list(noise.cumsum(-1).cumsum(-2) / 8)  # neighbours are alike, as in pictures


class _Contract(PassContract):
    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"net": net, "tokens": tokens}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return filter(is_candidate, program.calls)

    idempotent = False  # what was split can often be split again


def tokens() -> Program:
    return linear(random(21, 30), lead=(2, 5), dynamic={"x": {0: "batch", 1: "length"}})


class TestContract(_Contract):
    golden = ("net",)
    onnx = ("net", "tokens")

    def make_pass(self) -> Pass:
        return Factorize(rank=5)


class TestTensorTrain(_Contract):
    """The order of the outputs, and where the bias goes, are those of the layer."""

    golden = ("tokens",)
    onnx = ("tokens",)

    def test_a_layer_of_the_rank_stays_as_it_is(self) -> None:
        shapes = ((7, 3), (6, 5))
        low = TensorTrain(only_layer(linear(random(21, 30))), Metric(), shapes).fit((4,), 0).product
        for bias in (True, False):
            program = linear(low, lead=(2, 5), bias=bias)
            result, report = run_pass(replace(self.make_pass(), rank=4), program)
            assert report.changed
            assert_equivalent(program, result, random_inputs(program, 0), rtol=1e-5)

    def make_pass(self) -> Factorize:
        return Factorize(method="tensor-train", rank=2, gain="params", out_shape=(7, 3), in_shape=(6, 5))

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"tokens": tokens}


class TestBudget(_Contract):
    def make_pass(self) -> Pass:
        return Factorize(macs=0.6)

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"net": net}

    def run_arguments(self, program: Program) -> dict[str, Any]:
        return {"calibration": images()}


# What it leaves


@pytest.mark.parametrize(
    ("method", "rank", "near"),
    [("svd", 2, 1e-5), ("tucker", (3, 2), 1e-5), ("separable", 2, 1e-5), ("cp", 2, 0.05)],
)
@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("window", WINDOWS[1:3])
def test_a_layer_of_the_rank_stays_as_it_is(method: str, rank: Any, near: float, data: bool, window: Any) -> None:
    """Bias, stride, padding and dilation go over to the chain; a lower rank moves the output."""
    kind, ranks = {"svd": Svd, "tucker": Tucker, "separable": Separable, "cp": Cp}[method], rank
    program = convolution(of(kind, ranks if isinstance(ranks, tuple) else (ranks,)), **window)
    (x,) = random_inputs(program, 0)
    calibration = [torch.randn(x.shape, generator=torch.Generator().manual_seed(k)) for k in range(8)] if data else None
    wanted = program(x)
    drifts = []
    for each in (rank, 1):
        instance = Factorize(method=method, rank=each, gain="params")  # type: ignore[arg-type]
        result, report = run_pass(instance, program, calibration=calibration)
        assert report.changed, reasons(report)
        drifts.append(float((result(x) - wanted).norm() / wanted.norm()))
    assert drifts[0] < near < 0.1 < drifts[1]


def test_costs_are_what_the_program_counts() -> None:
    program = net()
    result, report = run_pass(Factorize(rank=5), program)
    before, after = program.cost(), result.cost()
    assert after.macs < before.macs
    assert after.parameters < before.parameters
    said = [entry.text for entry in report.applied]
    saved = sum(float(text.split(" instead of ")[1].split()[0]) - float(_macs(text)) for text in said)
    assert (before.macs - after.macs) / 1e6 == pytest.approx(saved, rel=0.05)


def _macs(text: str) -> str:
    return text.split(": ")[1].split()[0]


@pytest.mark.parametrize("data", [True, False])
def test_a_layer_behind_a_layer_reads_its_chain(data: bool) -> None:
    weights = {"first": random(24, 20).float(), "second": random(16, 24, seed=1).float()}
    program = program_of(
        lambda x, first, second: aten.linear.default(aten.linear.default(x, first), second),
        {"x": torch.zeros(2, 20)},
        weights,
        dynamic={"x": {0: "batch"}},
    )
    calibration = [torch.randn(64, 20, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    result, report = run_pass(Factorize(rank=4, data=data), program, calibration=calibration)
    assert len(report.applied) == 2
    assert [tuple(tensor.shape) for name, tensor in result.weights() if "factor" in name] == [
        (4, 20),
        (24, 4),
        (4, 24),
        (16, 4),
    ]
    assert float((result(calibration[0]) - program(calibration[0])).norm() / program(calibration[0]).norm()) < 1


def test_names_and_bias_stay() -> None:
    result, _ = run_pass(Factorize(rank=3), linear(random(20, 30)))
    names = [name for name, _ in result.weights()]
    assert names == ["layer.bias", "layer.factor1", "layer.factor2"]
    assert [op_name(node) for node in result.calls] == ["aten.linear", "aten.linear"]
    result, _ = run_pass(Factorize(rank=3), linear(random(20, 30), bias=False))
    assert [name for name, _ in result.weights()] == ["layer.factor1", "layer.factor2"]


def test_data_put_the_mean_of_the_error_into_the_bias() -> None:
    rows = correlated(30, 2000).float()
    for bias in (True, False):
        program = linear(random(20, 30), lead=(2000,), bias=bias)
        result, _ = run_pass(Factorize(rank=3), program, calibration=[rows])
        moved = (result(rows) - program(rows)).mean(0).abs().max()
        assert float(moved) < 0.05 * float(program(rows).std())
        plain, _ = run_pass(Factorize(rank=3, data=False), program, calibration=[rows])
        worse = (plain(rows) - program(rows)).square().mean() / (result(rows) - program(rows)).square().mean()
        assert float(worse) > 2


def test_the_result_can_be_trained_on() -> None:
    module = nn.Sequential(nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 1)).requires_grad_(True)
    result, _ = run_pass(Factorize(rank=3, layers=("0",)), shave.trace(module, (torch.randn(2, 8, 9, 9),)))
    (output,) = result.module(torch.randn(2, 8, 9, 9))
    output.square().mean().backward()
    weights = dict(result.module.named_parameters())
    assert {"0.factor1", "0.factor2"} <= set(weights)
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights.values())


def test_what_follows_a_chain_makes_up_for_it() -> None:
    program, fit, fresh = net(), images(12), images(16)[12:]
    drifts = {}
    for repair in ("none", "statistics", "reconstruct", "auto"):
        result, report = run_pass(Factorize(rank=7, repair=repair), program, calibration=fit)  # type: ignore[arg-type]
        drifts[repair] = sum(float((result(x) - program(x)).square().sum()) for x in fresh)
        said = " ".join(reasons(report).values())
        assert ("fitted by least squares" in said) == (repair in ("reconstruct", "auto"))
    assert drifts["reconstruct"] < 0.7 * drifts["none"]
    assert drifts["auto"] == drifts["reconstruct"]
    _, report = run_pass(Factorize(rank=7), program)
    assert "fitted" not in " ".join(reasons(report).values())
    with pytest.raises(PipelineError, match="needs calibration"):
        PassManager(Factorize(rank=7, repair="statistics")).run(program)


# Which ranks


def test_a_share_of_the_full_rank() -> None:
    _, report = run_pass(Factorize(rank=0.25), linear(random(20, 30)))
    assert reasons(report)["linear_default"].startswith("applied: svd of rank 5: ")
    _, report = run_pass(Factorize(rank=0.5, method="tucker"), convolution(random(12, 10, 3, 3)))
    assert "tucker of rank 6 x 5: " in reasons(report)["conv2d_default"]


def test_energy_keeps_that_much() -> None:
    weight = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, *[0.25] * 15], dtype=torch.float64)) @ random(20, 40)
    for energy in (0.8, 0.99):
        _, report = run_pass(Factorize(rank="energy", energy=energy), linear(weight))
        assert report.metrics["largest_error"] ** 2 <= 1 - energy
        rank = int(reasons(report)["linear_default"].split("rank ")[1].split(":")[0])
        values = torch.linalg.svdvals(weight) ** 2
        assert values[: rank - 1].sum() / values.sum() < energy <= values[:rank].sum() / values.sum()


def test_vbmf_finds_planted_ranks_and_falls_back_on_energy() -> None:
    signal = random(60, 4) @ random(4, 80, seed=1)
    _, report = run_pass(Factorize(rank="vbmf"), linear(signal + 0.1 * random(60, 80, seed=2)))
    assert "svd of rank 4: " in reasons(report)["linear_default"]
    _, report = run_pass(Factorize(rank="vbmf", energy=0.5), linear(random(60, 80)))
    assert "applied: svd of rank " in reasons(report)["linear_default"]
    assert report.metrics["largest_error"] ** 2 <= 0.5


def per_row(problem: Problem) -> float:
    """An oracle for which a product takes the time of its columns in whole vectors of 16, plus a call."""
    assert isinstance(problem, Matmul)
    return 1e-6 * (1 + -(-problem.outputs // 16) * problem.inputs / 10)


def test_by_cost_the_fastest_within_the_error() -> None:
    class Wide:
        lanes = 16

    weight = random(128, 24) @ random(24, 160, seed=1) + 0.01 * random(128, 160, seed=2)
    for limit in (0.5, 0.05):
        _, report = run_pass(Factorize(max_error=limit), linear(weight), oracle=per_row, target=Wide())
        said = reasons(report)["linear_default"]
        assert said.startswith(f"applied: svd of rank {16 if limit > 0.1 else 32}: ")
        assert " ms instead of " in said
        assert report.metrics["largest_error"] <= limit


@pytest.mark.parametrize("budget", ["macs", "params"])
def test_a_budget_is_kept_and_spent(budget: str) -> None:
    program = net()
    for keep in (0.8, 0.6):
        result, _ = run_pass(Factorize(**{budget: keep}), program, calibration=images())
        before, after = program.cost(), result.cost()
        kept = after.macs / before.macs if budget == "macs" else after.parameters / before.parameters
        assert keep - 0.15 < kept <= keep  # few ranks of so small layers are weighed


def test_a_budget_of_time_is_of_the_layers_that_can_be_split() -> None:
    program = linear(random(128, 24) @ random(24, 160, seed=1))
    _, report = run_pass(Factorize(time=0.6), program, oracle=per_row)
    said = reasons(report)["linear_default"]
    after, before = (float(part.split()[-2]) for part in said.split(",")[0].replace(": ", " ").split(" instead of "))
    assert after <= 0.6 * before
    with pytest.raises(PipelineError, match="needs a target for time"):
        PassManager(Factorize(time=0.6)).run(program)


def test_a_budget_goes_where_it_costs_least() -> None:
    """Two equal layers, one of low rank: that one is split."""

    def forward(x, low, full):
        return aten.linear.default(aten.linear.default(x, low), full)

    low = (random(40, 3) @ random(3, 40, seed=1)).float()
    program = program_of(forward, {"x": torch.zeros(2, 40)}, {"low": low, "full": random(40, 40, seed=2).float()})
    _, report = run_pass(Factorize(macs=0.6), program)
    said = list(reasons(report).values())
    assert said[0].startswith("applied: svd of rank ")
    assert said[1] == "skipped: other layers save the same at a lower loss"


def test_a_budget_that_cannot_be_reached_is_an_error() -> None:
    program = net()
    with pytest.raises(PipelineError, match=r"macs=0\.01 cannot be reached: what can be split leaves 0\.\d+ at least"):
        PassManager(Factorize(macs=0.01)).run(program)
    with pytest.raises(PipelineError, match=r"params=0\.3 cannot be reached"):
        PassManager(Factorize(params=0.3, max_error=0.05)).run(program)


def test_greed_stops_at_the_quality_that_is_allowed() -> None:
    program, (x, *_) = net(), images()
    wanted = program(x)
    drops = []

    def evaluate(candidate: Program) -> float:
        drops.append(float((candidate(x) - wanted).norm() / wanted.norm()))
        return -drops[-1]

    macs = []
    for drop in (0.02, 0.2):
        result, _ = run_pass(Factorize(rank="greedy", max_drop=drop), program, calibration=[x], evaluate=evaluate)
        assert evaluate(result) >= -drop
        macs.append(result.cost().macs)
    assert program.cost().macs > macs[0] > macs[1]
    with pytest.raises(PipelineError, match="needs evaluate"):
        PassManager(Factorize(rank="greedy")).run(program)


# What it refuses


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rank": 21}, "rank 21 is above the largest, 20"),
        ({"rank": 15}, "rank 15 is too close to full, 20: "),
        ({"rank": (4, 4)}, "rank has 2 numbers, but svd takes 1 for it"),
        ({"rank": 4, "max_error": 0.1}, "its output would err by 0."),
        ({"method": "tucker", "rank": 4}, "svd is for this layer"),
        ({"method": "tensor-train", "rank": 2, "out_shape": (4, 6), "in_shape": (5, 6)}, "out-shape is 4 x 6 = 24"),
        ({"max_error": 1e-6}, "no rank saves enough at an error below 1e-06"),
    ],
)
def test_reasons(options: dict[str, Any], reason: str) -> None:
    program = linear(random(20, 30))
    result, report = run_pass(Factorize(**options), program)
    (said,) = reasons(report).values()
    assert said.startswith("skipped: ")
    assert reason in said
    assert result.structural_hash() == program.structural_hash()


def test_no_gain_in_time_is_a_reason() -> None:
    _, report = run_pass(Factorize(rank=4), linear(random(20, 30)), oracle=lambda problem: 1e-3)
    assert reasons(report) == {"linear_default": "skipped: no gain: 2 ms instead of 1 ms"}
    _, report = run_pass(Factorize(rank=4, gain="params"), linear(random(20, 30)), oracle=lambda problem: 1e-3)
    assert report.changed
    _, report = run_pass(Factorize(), linear(random(20, 30)), oracle=lambda problem: 1e-3)
    assert reasons(report) == {"linear_default": "skipped: no gain at any rank: at best 2 ms instead of 1 ms"}


def test_winograd_counts_as_a_way_to_compute_the_layer_and_the_core() -> None:
    asked: list[Problem] = []

    def oracle(problem: Problem) -> float:
        asked.append(problem)
        return 1e-3 if isinstance(problem, WinogradConv2d) else 1.0

    _, report = run_pass(Factorize(method="tucker", rank=4), convolution(random(32, 24, 3, 3)), oracle=oracle)
    assert "no gain: 2e+03 ms instead of 1 ms" in reasons(report)["conv2d_default"]
    assert any(isinstance(p, Conv2d) and p.in_channels == p.out_channels == 4 for p in asked)


def test_a_layer_that_cannot_be_split_is_named() -> None:
    program = net()
    result, report = run_pass(Factorize(rank=4, layers=("depth",)), program)
    assert list(reasons(report).values()) == ["skipped: it has 18 groups"]
    assert result.structural_hash() == program.structural_hash()
    with pytest.raises(PipelineError, match="matches nothing"):
        PassManager(Factorize(layers=("deepth",))).run(program)


def test_few_samples_are_told_of() -> None:
    program = linear(random(20, 30))
    _, report = run_pass(Factorize(rank=4), program, calibration=[random(5, 30).float()])
    assert "(5 rows of data for 30 features: covariance shrunk by " in reasons(report)["linear_default"]
    _, report = run_pass(Factorize(rank=4), program, calibration=[torch.zeros(5, 30)])
    assert "(what it reads never varies: by weights alone)" in reasons(report)["linear_default"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rank=0", "rank is 0, but is 1 at least"),
        ("rank=-3", "rank is -3"),
        ("rank=1.5", "rank is 1.5, but a share of the full rank lies between 0 and 1"),
        ("rank=nan", "rank is nan"),
        ("rank=[]", "rank=[] has no number"),
        ("rank=[4, 0]", "rank is 0"),
        ("rank=best", "rank"),
        ("macs=0.5 params=0.5", "macs and params are given, but one of them decides"),
        ("macs=1.5", "macs is 1.5, but the share to keep lies between 0 and 1"),
        ("macs=0.5 rank=8", "so that rank=8 has no say: leave one of them out"),
        ("energy=1", "energy is 1"),
        ("max-error=0", "max-error is 0"),
        ("max-drop=-1", "max-drop is -1"),
        ("method=svd out-shape=[2, 2] in-shape=[2, 2]", "are for tensor-train, not for svd"),
        ("method=tensor-train out-shape=[2, 2] in-shape=[2]", "out-shape has 2 factors and in-shape 1"),
        ("method=tensor-train out-shape=[4] in-shape=[4]", "2 at least"),
        ("method=tensor-train out-shape=[4, 0] in-shape=[4, 2]", "is below 1"),
        ("method=pca", "takes"),
    ],
)
def test_options_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse(f"factorize{{{text}}}")
    assert message in str(caught.value)


def test_the_target_compiles_the_chains() -> None:
    program = net()
    split, _ = run_pass(Factorize(rank=5), program)
    (x,) = random_inputs(program, 0)
    artifact = shave.compile(split, target="cpu")
    wanted = outputs_of(split(x))[0].numpy()
    assert artifact(x.numpy()) == pytest.approx(wanted, abs=1e-4 * float(abs(wanted).max()))
