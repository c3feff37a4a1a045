from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import fx

import shave
from shave.ir.errors import PipelineError
from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.compare import outputs_of
from shave.passes.prune.channels import PruneChannels
from shave.passes.prune.groups import find_groups
from shave.passes.prune.importance import CRITERIA
from shave.passes.prune.selection import makers
from tests.passes.contract import PassContract, reasons, run_pass
from tests.passes.prune import nets
from tests.passes.prune.nets import data, perceptron, residual, transformer


class TestContract(PassContract):
    idempotent = False
    golden = ("perceptron", "residual")
    onnx = ("residual", "separable", "perceptron")

    def make_pass(self) -> Pass:
        return PruneChannels(ratio=0.5, criterion="l1", skip=())

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return nets.NETS

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return [makers(group)[0] for group in find_groups(program)]


class TestMendedContract(TestContract):
    """The same with calibration data, so that what is left is mended."""

    golden = ()
    onnx = ("residual",)

    def make_pass(self) -> Pass:
        return PruneChannels(macs=0.6, criterion="fluctuation", ranking="auto", steps=2)

    def run_arguments(self, program: Program) -> dict[str, Any]:
        return {"calibration": data(program)}


def units(program: Program) -> dict[str, int]:
    return {group.name: group.units for group in find_groups(program)}


def error(whole: Program, other: Program) -> float:
    """Relative squared error of the outputs on data that nothing was fitted to: the later batches of a longer draw."""
    total = power = 0.0
    for batch in data(whole, 24)[16:]:
        for want, got in zip(outputs_of(whole(*batch)), outputs_of(other(*batch)), strict=True):
            total += float((want - got).double().square().sum())
            power += float((want - want.mean(0)).double().square().sum())
    return total / power


@pytest.mark.parametrize("name", nets.NETS)
def test_half_of_every_group_goes(name: str) -> None:
    program = nets.NETS[name]()
    result, report = run_pass(PruneChannels(ratio=0.5), program)
    before, after = units(program), units(result)
    cut = {group.name for group in find_groups(program) if not group.reason} - _nested(program)
    assert cut
    for group in cut:
        assert after[group] == pytest.approx(before[group] / 2, abs=0.5), group
    assert result.cost().macs < program.cost().macs
    assert result.cost().parameters < program.cost().parameters
    assert report.metrics["certificate_error"] < 1e-5
    assert report.metrics["params_after"] == result.cost().parameters
    assert report.metrics["macs_before"] == program.cost().macs


def _nested(program: Program) -> set[str]:
    """Dims of heads, which stay where heads are cut."""
    return {group.name for group in find_groups(program) if group.kind == "head dims"}


def test_outputs_and_inputs_stay() -> None:
    program = residual()
    result, report = run_pass(PruneChannels(ratio=0.5), program)
    assert [str(spec) for spec in result.signature.outputs] == [str(spec) for spec in program.signature.outputs]
    head = next(node for node in program.calls if "linear" in str(node.target))
    assert reasons(report)[head.name] == "skipped: head: the program gives it as an output"


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes(criterion: str) -> None:
    program = residual()
    result, _ = run_pass(PruneChannels(ratio=0.5, criterion=criterion), program, calibration=data(program))  # type: ignore[arg-type]
    assert result.cost().macs < 0.5 * program.cost().macs
    result.verify(full=True)


@pytest.mark.parametrize("criterion", [name for name, kind in CRITERIA.items() if kind.needs_data])
def test_criteria_that_need_data_say_so(criterion: str) -> None:
    with pytest.raises(PipelineError, match="pass prune-channels needs calibration"):
        run_pass(f"prune-channels{{ratio=0.5 criterion={criterion}}}", residual())


@pytest.mark.parametrize("ranking", ["uniform", "global", "isomorphic", "auto"])
@pytest.mark.parametrize(("cost", "attribute"), [("macs", "macs"), ("params", "parameters"), ("size", "weight_bytes")])
def test_budgets_are_met_and_used_up(ranking: str, cost: str, attribute: str) -> None:
    program = nets.wide()
    result, _ = run_pass(f'prune-channels{{{cost}="60%" ranking={ranking}}}', program)
    share = getattr(result.cost(), attribute) / getattr(program.cost(), attribute)
    assert 0.52 < share <= 0.6


def test_budgets_in_absolute_numbers() -> None:
    program = residual()
    result, _ = run_pass(f"prune-channels{{params={program.cost().parameters * 0.7:.0f}.0}}", program)
    assert result.cost().parameters <= 0.7 * program.cost().parameters
    result, report = run_pass("prune-channels{macs=1e12}", program)
    assert not report.changed


def test_several_budgets_hold_at_once() -> None:
    program = residual()
    result, _ = run_pass("prune-channels{macs=0.5 params=0.4}", program)
    assert result.cost().macs <= 0.5 * program.cost().macs
    assert result.cost().parameters <= 0.4 * program.cost().parameters


def test_what_is_reachable_is_said() -> None:
    with pytest.raises(PipelineError, match=r"macs=0.01 cannot be met: the least that can be reached is \d+ \(\d+"):
        run_pass("prune-channels{macs=0.01 floor=0.5}", residual())


def test_auto_needs_no_settings_and_keeps_what_matters() -> None:
    program = perceptron(32)
    calibration = data(program)
    result, report = run_pass("prune-channels", program, calibration=calibration)
    assert report.changed
    assert error(program, result) < 0.05
    harder, _ = run_pass("prune-channels{max-error=0.3}", program, calibration=calibration)
    assert harder.cost().macs < result.cost().macs


def test_ratios_by_scope() -> None:
    program = residual()
    result, report = run_pass('prune-channels{ratio={conv1=0.5 "re:dow.*"=0.2}}', program)
    before, after = units(program), units(result)
    assert after == {**before, "conv1": 3, "down": 8}
    assert any("no ratio is given for it" in entry.text for entry in report.skipped)


def test_only_and_skip() -> None:
    program = residual()
    result, report = run_pass("prune-channels{ratio=0.5 only=[conv1, down] skip=[down]}", program)
    assert units(result) == {**units(program), "conv1": 3}
    texts = " ".join(entry.text for entry in report.skipped)
    assert "down: it is to be skipped" in texts
    assert "stem: it is not among those to cut" in texts


def test_a_layer_that_is_not_there() -> None:
    for text in ("ratio=0.5 skip=[conv9]", "ratio=0.5 only=[conv9]", "ratio={conv9=0.5}"):
        with pytest.raises(PipelineError, match=r"the scope 'conv9' matches nothing.*did you mean .*'conv1'"):
            run_pass(f"prune-channels{{{text}}}", residual())


def test_multiples_come_from_the_target() -> None:
    @dataclass(frozen=True)
    class Machine:
        lanes: int = 4

    program = nets.traced(lambda: nets.Residual((16, 24, 30)), (1, 3, 8, 8), False)
    result, _ = run_pass("prune-channels{ratio=0.4}", program, target=Machine())
    assert units(result) == {**units(program), "stem": 8, "conv1": 16, "down": 20}
    finer, _ = run_pass("prune-channels{ratio=0.4 multiple=1}", program, target=Machine())
    assert units(finer) == {**units(program), "stem": 10, "conv1": 14, "down": 18}
    _, report = run_pass("prune-channels{ratio=0.4 multiple=64}", program)
    assert not report.changed
    assert "stem: its 16 channels come in multiples of 16, at least 2" in " ".join(e.text for e in report.skipped)


def test_the_floor() -> None:
    program = residual()
    result, _ = run_pass("prune-channels{ratio=0.9 floor=4}", program)
    assert min(units(result).values()) == 4
    result, _ = run_pass("prune-channels{ratio=0.9 floor=0.5}", program)
    assert units(result) == {**units(program), "stem": 4, "conv1": 3, "down": 5}


@pytest.mark.parametrize("schedule", ["linear", "cubic", "exponential"])
def test_steps_end_where_one_cut_does(schedule: str) -> None:
    program = nets.wide()
    seen: list[int] = []
    result, _ = run_pass(
        f"prune-channels{{macs=0.4 steps=3 schedule={schedule}}}",
        program,
        trainer=lambda trained: seen.append(trained.cost().macs),
    )
    assert len(seen) == 3
    assert seen == sorted(seen, reverse=True)
    assert seen[0] < program.cost().macs
    assert seen[-1] == result.cost().macs <= 0.4 * program.cost().macs


def test_the_trainer_changes_what_comes_out_and_nothing_else() -> None:
    program = perceptron()
    digest = program.structural_hash()

    def trainer(trained: Program) -> None:
        with torch.no_grad():
            dict(trained.weights())["head.bias"].fill_(3.0)

    result, _ = run_pass("prune-channels{ratio=0.5 steps=2}", program, trainer=trainer)
    assert torch.equal(dict(result.weights())["head.bias"], torch.full((4,), 3.0))
    assert program.structural_hash() == digest


def test_mending_and_training_take_turns() -> None:
    program = residual()
    errors: list[float] = []
    result, report = run_pass(
        "prune-channels{ratio=0.5 steps=2 schedule=linear}",
        program,
        calibration=data(program, 16),
        trainer=lambda trained: errors.append(error(program, trained)),
    )
    assert len(errors) == 2
    assert errors[0] < errors[1] == pytest.approx(error(program, result))
    plain, _ = run_pass("prune-channels{ratio=0.5 repair=none}", program)
    assert units(result) == units(plain)
    assert errors[1] < error(program, plain)
    assert sum("least squares" in entry.text for entry in report.applied) > 3


def test_mending_lowers_the_error_on_data_not_seen() -> None:
    program = residual()
    calibration = data(program, 16)
    errors = {}
    for repair in ("none", "statistics", "reconstruct"):
        result, _ = run_pass(f"prune-channels{{ratio=0.4 repair={repair}}}", program, calibration=calibration)
        errors[repair] = error(program, result)
    assert errors["reconstruct"] < 0.75 * min(errors["statistics"], errors["none"])


def test_an_unpruned_program_is_left_alone_when_mended() -> None:
    program = residual()
    result, report = run_pass("prune-channels{ratio=0.0}", program, calibration=data(program))
    assert not report.changed
    assert result.structural_hash() == program.structural_hash()


def test_heads_or_their_dims() -> None:
    program = transformer()
    kinds = {group.name: group.kind for group in find_groups(program)}
    assert {"heads", "head dims"} <= set(kinds.values())
    for attention, cut, kept in (("heads", "heads", "head dims"), ("dims", "head dims", "heads")):
        result, report = run_pass(f"prune-channels{{ratio=0.5 attention={attention}}}", program)
        before, after = units(program), units(result)
        for name, kind in kinds.items():
            if kind == cut:
                assert after[name] == before[name] // 2
            if kind == kept:
                assert after[name] == before[name]
        assert "multiply with" in " ".join(entry.text for entry in report.skipped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ratio=1.0", "the share that goes is at least 0 and less than 1"),
        ("ratio=-0.1", "the share that goes is at least 0 and less than 1"),
        ("ratio=nan", "the share that goes is at least 0 and less than 1"),
        ("ratio={conv1=1.5}", "ratio=1.5"),
        ("ratio=0.5 macs=0.5", "ratio and macs both say how much goes"),
        ("ratio=0.5 ranking=auto", "ranking=auto finds the ratios itself"),
        ("ratio={conv1=0.5} ranking=global", "leave nothing to rank"),
        ("macs=0.0", "more than 0"),
        ("macs=-3", "more than 0"),
        ('macs="0%"', "more than 0%"),
        ('macs="101%"', "at most 100%"),
        ("macs=half", "neither a share to keep"),
        ("multiple=0", "it is at least 1"),
        ("floor=-1", "share from 0 to 1"),
        ("steps=0", "it is at least 1"),
        ("max-error=0.0", "it is more than 0"),
        ("criterion=l3", "takes l1|l2|fpgm"),
    ],
)
def test_options_that_make_no_sense(options: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        run_pass(f"prune-channels{{{options}}}", residual())
    assert message in str(caught.value)


def test_weights_that_are_no_numbers_are_named() -> None:
    program = residual()
    dict(program.weights())["conv1.weight"].data[0] = torch.nan
    with pytest.raises(PipelineError, match=r"cannot be ranked by l2: weight conv1.weight holds NaN"):
        shave.PassManager("prune-channels{ratio=0.5}", check=False).run(program)


def test_an_empty_source_of_data() -> None:
    with pytest.raises(PipelineError, match="holds no batch"):
        run_pass("prune-channels{ratio=0.5 criterion=variance}", residual(), calibration=[])


def test_strict_refuses_operators_that_are_not_known() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(6, 8)
            self.second = torch.nn.Linear(8, 8)
            self.head = torch.nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.linalg.matrix_exp(self.first(x))
            return self.head(torch.relu(self.second(x)))

    program = shave.trace(Odd(), (torch.randn(8, 6) * 0.1,))
    result, report = run_pass("prune-channels{ratio=0.5}", program)
    assert units(result)["second"] == 4
    assert "aten.linalg_matrix_exp" in next(e.text for e in report.skipped if e.text.startswith("first"))
    with pytest.raises(PipelineError, match=r"first cannot be cut: aten.linalg_matrix_exp .* has no axis map"):
        run_pass("prune-channels{ratio=0.5 strict=true}", program)


def test_options_are_as_frozen_as_the_pass() -> None:
    instance = PruneChannels(ratio=0.5)
    assert replace(instance, ratio=None, macs="50%").budgets[0].share == 0.5
