import pytest

from shave.ir.errors import PipelineError
from shave.passes.explain import explain
from shave.passes.manager import PassManager
from shave.passes.report import PassReport
from tests.passes.examples import Idle, ReluToClamp, ScaleWeight, net_program


@pytest.fixture(scope="module")
def reports() -> tuple[PassReport, ...]:
    return PassManager([Idle(), ReluToClamp(), ScaleWeight(1.0 + 1e-7)]).run(net_program()).report


@pytest.mark.parametrize("query", ["first.relu", "first", "relu", "re:fir.*"])
def test_each_pass_says_what_it_did(reports: tuple[PassReport, ...], query: str) -> None:
    idle, clamp, scale = explain(reports, query)
    assert str(idle).splitlines()[0] == "idle: skipped relu (aten.relu): idle passes do nothing"
    assert str(clamp).splitlines()[0].startswith("relu-to-clamp: applied relu (aten.relu): became clamp_min")
    assert str(scale) == "scale-weight{factor=1.0000001}: did not come into question"


def test_kinds_give_every_node(reports: tuple[PassReport, ...]) -> None:
    assert [entry.node for entry in explain(reports, "aten.relu")[0].entries] == ["relu", "relu_1"]
    assert [entry.node for entry in explain(reports, "relu")[0].entries] == ["relu", "relu_1"]
    assert [entry.node for entry in explain(reports, "second")[0].entries] == ["relu_1"]
    assert [entry.node for entry in explain(reports, "Block")[0].entries] == ["relu", "relu_1"]


def test_unknown_nodes_get_the_nearest(reports: tuple[PassReport, ...]) -> None:
    with pytest.raises(
        PipelineError, match=r"no pass recorded anything about 'frist\.relu'; did you mean 'first\.relu'"
    ):
        explain(reports, "frist.relu")
    with pytest.raises(PipelineError, match=r"no pass recorded anything about 'x'$"):
        explain((), "x")
