import io
from pathlib import Path

import pytest
import torch

from shave.ir.errors import PipelineError
from shave.ir.reader import read
from shave.passes.compare import compare
from shave.passes.instruments import Dump, Numerics, PrintAfterChange, Statistics, Timing
from shave.passes.manager import PassManager
from tests.passes.examples import Idle, ReluToClamp, ReluToSilu, net_program

PIPELINE = (Idle(), ReluToSilu(), ReluToClamp())  # only the second one changes something


def test_timing_is_a_tree_with_the_verifier_in_its_own_rows() -> None:
    timing = Timing()
    result = PassManager(PIPELINE, instruments=[timing]).run(net_program())
    assert [(row.depth, row.label) for row in timing.rows[:12]] == [
        (0, "pipeline"), (1, "start"),
        (1, "idle"), (2, "clone"), (2, "apply"), (2, "verify"), (2, "hash"),
        (1, "relu-to-silu"), (2, "clone"), (2, "apply"), (2, "verify"), (2, "hash"),
    ]  # fmt: skip
    total, start, *passes = (row.seconds for row in timing.rows if row.depth < 2)
    assert total >= start + sum(passes)
    assert passes == [pytest.approx(sum(report.seconds.values())) for report in result.report]
    assert len(str(timing).splitlines()) == len(timing.rows)
    assert "100.0 %  pipeline" in str(timing)


def test_programs_are_printed_after_a_change() -> None:
    stream = io.StringIO()
    PassManager(PIPELINE, instruments=[PrintAfterChange(stream)]).run(net_program())
    assert stream.getvalue().startswith("# after pass 2 of 3, relu-to-silu\nprogram(x: float32[2, 3, 9, 11])")
    assert stream.getvalue().count("# after") == 1
    assert "silu(" in stream.getvalue()


def test_printing_can_be_limited_to_some_passes(capsys: pytest.CaptureFixture[str]) -> None:
    PassManager([ReluToSilu()], instruments=[PrintAfterChange(only=["other"])]).run(net_program())
    assert capsys.readouterr().err == ""
    PassManager([ReluToSilu()], instruments=[PrintAfterChange(only=["relu-to-silu"])]).run(net_program())
    assert "# after pass 1 of 1" in capsys.readouterr().err


def test_dumps_are_numbered_and_load_again(tmp_path: Path) -> None:
    program = net_program()
    result = PassManager(PIPELINE, instruments=[Dump(tmp_path / "new" / "dump")]).run(program)
    folder = tmp_path / "new" / "dump"
    assert sorted(path.name for path in folder.iterdir()) == [
        "000_input.pt2",
        "000_input.txt",
        "002_relu-to-silu.pt2",
        "002_relu-to-silu.txt",
    ]
    assert read(folder / "002_relu-to-silu.pt2").structural_hash() == result.structural_hash()
    assert read(folder / "000_input.pt2").structural_hash() == program.structural_hash()
    assert (folder / "000_input.txt").read_text() == f"{program}\n"


def test_a_dump_replaces_an_earlier_one_but_never_other_files(tmp_path: Path) -> None:
    (tmp_path / "007_old-pass.txt").write_text("")
    PassManager(PIPELINE, instruments=[Dump(tmp_path)]).run(net_program())
    names = {path.name for path in tmp_path.iterdir()}
    assert "007_old-pass.txt" not in names
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(PipelineError, match=r"holds thesis\.tex, which is no dump"):
        PassManager([ReluToClamp()], instruments=[Dump(tmp_path)]).run(net_program())
    assert {path.name for path in tmp_path.iterdir()} == names | {"thesis.tex"}


def test_numerics_compare_with_the_program_given() -> None:
    program = net_program()
    x = torch.randn(2, 3, 9, 11)
    numerics = Numerics([(x,)])
    result = PassManager([ReluToSilu(), Idle(), ReluToClamp()], instruments=[numerics]).run(program)
    assert numerics.rows == [("relu-to-silu", compare(program, result, [(x,)], ["output"]))]
    assert str(numerics).startswith("relu-to-silu\n  output: max abs")
    default = Numerics()
    PassManager([ReluToSilu()], instruments=[default]).run(program, calibration=[(x,)])
    assert default.rows == numerics.rows


def test_statistics_count_nodes_and_cost() -> None:
    statistics = Statistics()
    program = net_program()
    PassManager(PIPELINE, instruments=[statistics]).run(program)
    assert [text for text, _ in statistics.rows] == ["input", "idle", "relu-to-silu", "relu-to-clamp"]
    before, after = statistics.rows[0][1], statistics.rows[-1][1]
    assert (before.nodes["aten.relu"], after.nodes["aten.silu"], "aten.relu" in after.nodes) == (2, 2, False)
    # Worked out by hand: 5*3*9+5, 7*5*9+7 and 4*7+4 parameters; outputs of 7x9 and 5x7.
    assert before.cost.parameters == 140 + 322 + 32
    assert before.cost.macs == 2 * (7 * 9 * 5 * 27 + 5 * 7 * 7 * 45 + 28)
    assert str(statistics).splitlines()[-2:] == ["  aten.relu: 2 -> 0", "  aten.silu: 0 -> 2"]
