import pytest
import torch

from shave.ir.errors import PassError, PipelineError
from shave.ir.program import Program
from shave.passes.base import Pass
from shave.passes.bisect import bisect, outputs_within
from tests.passes.examples import Fail, Idle, ReluToClamp, ReluToSilu, ScaleWeight, net_program

X = (torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(3)),)
HARMLESS = ScaleWeight(1 + 1e-6)


@pytest.mark.parametrize("position", range(5))
def test_the_guilty_pass_is_found_wherever_it_stands(position: int) -> None:
    program = net_program()
    passes: list[Pass] = [HARMLESS] * 4
    passes.insert(position, ScaleWeight(3.0))
    asked: list[Program] = []

    def holds(candidate: Program) -> bool:
        asked.append(candidate)
        return outputs_within(program, [X])(candidate)

    finding = bisect(program, passes, holds, calibration=[X])
    assert finding is not None
    assert (finding.step.position, finding.step.instance) == (position + 1, ScaleWeight(3.0))
    assert finding.node is not None
    assert (finding.node.op, finding.node.difference.max_rel) == ("aten.linear", pytest.approx(2, rel=0.5))
    assert "head" in finding.node.names
    assert len(asked) <= 2 + 3


def test_the_node_is_the_first_that_is_off() -> None:
    program = net_program()
    finding = bisect(program, [ReluToSilu()], outputs_within(program, [X]), calibration=iter([X]))
    assert finding is not None
    assert finding.node is not None
    assert finding.node.names[-1] == "first.relu"
    assert str(finding).startswith("pass 1 of 1, relu-to-silu breaks it, first at aten.silu (")
    assert outputs_within(program, [X])(finding.before)
    assert not outputs_within(program, [X])(finding.after)


def test_a_predicate_may_fail_without_a_node_beyond_the_tolerance() -> None:
    program = net_program()
    finding = bisect(program, [HARMLESS, ReluToClamp()], lambda p: "clamp_min" not in str(p))
    assert finding is not None
    assert (finding.step.position, finding.node) == (2, None)
    assert "no single node is beyond the tolerance" in str(finding)


def test_a_pipeline_that_breaks_nothing() -> None:
    program = net_program()
    assert bisect(program, [Idle(), ReluToClamp()], outputs_within(program, [X])) is None
    assert bisect(program, [Idle()], outputs_within(program, [X])) is None


def test_the_predicate_must_hold_at_first() -> None:
    with pytest.raises(PipelineError, match="fails on the program given already"):
        bisect(net_program(), [Idle()], lambda program: False)


def test_a_pass_that_fails_by_itself_is_its_own_finding() -> None:
    with pytest.raises(PassError, match="pass 1 of 1, fail failed"):
        bisect(net_program(), [Fail()], lambda program: True)
