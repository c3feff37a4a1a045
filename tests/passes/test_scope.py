from pathlib import Path

import pytest
from torch import fx

from shave.ir.errors import PipelineError
from shave.ir.names import ONNX, ONNX_OP
from shave.ir.program import Program
from shave.ir.reader import read
from shave.passes.scope import ancestors, labels_of, select
from tests.passes.examples import aten, net_program


@pytest.fixture(scope="module")
def program() -> Program:
    program = net_program()
    (conv, *_) = (node for node in program.calls if node.target is aten.conv2d.default)
    conv.meta["custom"] = {ONNX: "/first/conv/Conv", ONNX_OP: "Conv"}
    return program


def layers(program: Program) -> list[fx.Node]:
    return [node for node in program.calls if node.target in (aten.conv2d.default, aten.linear.default)]


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("first.conv", ["conv2d"]),
        ("first", ["conv2d"]),
        ("second", ["conv2d_1"]),
        ("head", ["linear"]),
        ("conv2d_1", ["conv2d_1"]),
        ("conv2d", ["conv2d", "conv2d_1"]),  # the operator's name is that of a node too
        ("aten.conv2d", ["conv2d", "conv2d_1"]),
        ("Conv2d", ["conv2d", "conv2d_1"]),
        ("Block", ["conv2d", "conv2d_1"]),
        ("Linear", ["linear"]),
        ("Conv", ["conv2d"]),
        ("/first/conv/Conv", ["conv2d"]),
        ("/first/conv", ["conv2d"]),
        ("second.conv.weight", ["conv2d_1"]),
        ("re:(first|second)\\.conv", ["conv2d", "conv2d_1"]),
        ("re:.*head.*", ["linear"]),
    ],
)
def test_entries_match_by_name_kind_and_expression(program: Program, entry: str, names: list[str]) -> None:
    assert [node.name for node in select(program, layers(program), [entry])] == names


def test_nothing_included_means_everything(program: Program) -> None:
    assert select(program, layers(program)) == layers(program)


def test_what_is_excluded_goes(program: Program) -> None:
    assert [node.name for node in select(program, layers(program), exclude=["first", "Linear"])] == ["conv2d_1"]
    assert [node.name for node in select(program, layers(program), ["Conv2d", "head"], ["second"])] == [
        "conv2d",
        "linear",
    ]
    assert len(select(program, layers(program), exclude=["relu"])) == 3, "no candidate, but there is a relu"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("frist.conv", "the scope 'frist.conv' matches nothing in this program; did you mean 'first.conv'"),
        ("Conv3d", "did you mean 'Conv2d'"),
        ("/first/conv/Cnov", "did you mean '/first/conv/Conv'"),
        ("re:third.*", "the scope 're:third.*' matches nothing"),
        ("re:[", r"the scope 're:\[' is no regular expression"),
        ("first.con", "matches nothing"),
    ],
)
@pytest.mark.parametrize("side", ["include", "exclude"])
def test_an_entry_that_matches_nothing_is_an_error(program: Program, side: str, entry: str, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        select(program, layers(program), **{side: [entry]})


def test_an_entry_that_matches_no_candidate_is_an_error(program: Program) -> None:
    with pytest.raises(PipelineError, match=r"matches aten\.relu relu.*could work on \(aten\.conv2d, aten\.linear\)"):
        select(program, layers(program), ["relu"])
    with pytest.raises(PipelineError, match="there is none in this program"):
        select(program, [], ["relu"])


def test_weights_can_be_candidates(program: Program) -> None:
    weights = program.graph.find_nodes(op="get_attr")
    assert [node.target for node in select(program, weights, ["first.conv"])] == [
        "first.conv.weight",
        "first.conv.bias",
    ]


def test_ancestors() -> None:
    assert list(ancestors("a.b.c")) == ["a.b.c", "a.b", "a"]
    assert list(ancestors("/a/b.c")) == ["/a/b.c", "/a/b", "/a"]
    assert list(ancestors("")) == []


def test_names_survive_saving(program: Program, tmp_path: Path) -> None:
    program.save(tmp_path / "p.pt2")
    again = read(tmp_path / "p.pt2")
    assert [labels_of(node) for node in layers(again)] == [labels_of(node) for node in layers(program)]
