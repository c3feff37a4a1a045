"""Rows of the latency benchmark: ratios, differences, history, tables, chart."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.latency import __main__ as command
from benchmarks.latency import chart, history, report
from benchmarks.latency.engines import ENGINES, PACKAGES
from benchmarks.latency.measure import Result, Row, difference, geometric_mean
from shave.backends.tvm.roofline import Roofline

ROOFLINE = Roofline(1, 1e9, 4e9, ((1000, 2e9), (2000, 1e9)))


def row(model: str = "A", threads: int = 1, shave: float = 0.002) -> Row:
    engines = {
        "torch eager": Result(0.008, 0.009, 0.0),
        "ONNX Runtime": Result(0.003, 0.006, 1e-7),
        "OpenVINO": Result(0.004, 0.005, 1e-7),
        "ncnn": Result(reason="pnnx does not convert it"),
        "shave": Result(shave, 0.004, 1e-7),
    }
    return Row(model, "fp32", threads, 1_000_000, 500, 0.001, engines)


def line(one: Row) -> str:
    return history.line(one, ROOFLINE, history.context(rounds=3, tolerance=1e-3))


def test_the_best_peer_is_chosen_for_each_figure():
    assert row().best_peer("minimum") == 0.003
    assert row().best_peer("median") == 0.005
    assert row().ratio("minimum") == pytest.approx(1.5)
    assert row().ratio("median") == pytest.approx(1.25)
    assert row().of_limit() == pytest.approx(0.5)


def test_an_engine_without_times_has_no_ratio():
    assert row().ratio("minimum", "shave tuned") is None
    alone = Row("A", "fp32", 1, 1, 1, 1.0, {"shave": Result(0.1, 0.1), "ncnn": Result(reason="no")})
    assert alone.ratio("minimum") is None


def test_geometric_mean():
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1)
    assert geometric_mean([1.0, 4.0, 16.0]) == pytest.approx(4)
    with pytest.raises(ValueError, match="no values"):
        geometric_mean([])


def test_difference_is_relative_to_the_largest_value():
    expected = [np.array([[4.0, -8.0]], np.float32), np.array([1], np.int64)]
    assert difference(expected, expected) == 0
    assert difference(expected, [np.array([4.0, -7.0]), np.array([1])]) == pytest.approx(1 / 8)
    assert difference(expected, [expected[0] * 2, expected[1]]) == pytest.approx(1)


@pytest.mark.parametrize(
    "got",
    [
        [],
        [np.zeros(3)],
        [np.array([np.nan, 1.0])],
        [np.array([np.inf, 1.0])],
    ],
)
def test_what_cannot_be_compared_is_infinitely_different(got):
    assert difference([np.ones(2)], got) == math.inf


def test_history_gives_rows_back(tmp_path):
    path = tmp_path / "deep" / "latency.jsonl"
    rows = [row("A"), row("B", threads=2)]
    for one in rows:
        history.append(path, line(one))
    assert [found for _, found in history.latest(path.read_text().splitlines())] == rows


def test_a_line_of_history_says_where_and_with_what():
    data = json.loads(line(row()))
    assert data["machine"]["cores"] >= 1
    assert data["machine"]["processor"]
    assert data["versions"]["torch"]
    assert data["roofline"] == {
        "threads": 1, "macs_per_second": 1e9, "integer_macs_per_second": 4e9, "bandwidths": [[1000, 2e9], [2000, 1e9]],
    }  # fmt: skip
    assert data["engines"]["ncnn"] == {
        "minimum": None,
        "median": None,
        "error": None,
        "reason": "pnnx does not convert it",
    }
    assert data["date"].endswith("+00:00")


def test_the_last_line_of_a_kind_counts():
    first, again = row(shave=0.002), row(shave=0.001)
    found = history.latest([line(first), line(row("B")), line(again)])
    assert [one for _, one in found] == [again, row("B")]


def test_history_names_the_line_that_is_no_row():
    with pytest.raises(ValueError, match="line 2 is no row"):
        history.latest([line(row()), '{"model": "A"}'])


def test_every_engine_has_a_package():
    assert PACKAGES.keys() == ENGINES.keys()


def test_markdown_has_a_table_for_each_number_of_threads():
    text = report.markdown([row("A"), row("B", shave=0.001), row("A", threads=2)], {"onnxruntime": "1.31.1"})
    lines = text.splitlines()
    assert lines[0].startswith("| 1 thread | torch eager | ONNX Runtime 1.31 |")
    assert "| A | 8.00 | 3.00 | 4.00 | - | 2.00 | 1.50, 1.25 | 0.50 |" in lines
    assert f"**{math.sqrt(1.5 * 3):.2f}, 1.25**" in text
    assert any(text.startswith("| 2 threads |") for text in lines)
    assert len({text.count("|") for text in lines if text}) == 1


def test_the_table_says_why_an_engine_is_missing():
    assert "A, 1 threads: ncnn not timed: pnnx does not convert it" in report.caption([row()])


def test_the_chart_is_svg_with_every_model_and_ratio(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "chart.svg"
    chart.draw([row("A & B"), row("C", threads=2, shave=0.006)], path)
    tree = ElementTree.parse(path)
    assert tree.getroot().tag == "{http://www.w3.org/2000/svg}svg"
    words = " ".join("".join(element.itertext()) for element in tree.iter("{http://www.w3.org/2000/svg}text"))
    for text in ("A & B", "C", "1.50", "0.50", "geometric mean", "1 thread", "2 threads"):
        assert text in words
    again = tmp_path / "again.svg"
    chart.draw([row("A & B"), row("C", threads=2, shave=0.006)], again)
    assert again.read_bytes() == path.read_bytes()


def test_a_chart_needs_a_ratio(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="no row"):
        chart.draw([Row("A", "fp32", 1, 1, 1, 1.0, {"shave": Result(0.1, 0.1)})], tmp_path / "chart.svg")
    assert list(tmp_path.iterdir()) == []


def test_shows_what_was_measured(tmp_path, capsys):
    path = tmp_path / "latency.jsonl"
    for one in (row("A"), row("B"), row("A", threads=2)):
        history.append(path, line(one))
    assert command.main(["--show", "--history", str(path), "--models", "A", "--threads", "1", "--json"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [(json.loads(text)["model"], json.loads(text)["threads"]) for text in shown] == [("A", 1)]
    assert command.main(["--show", "--history", str(path), "--markdown"]) == 0
    assert "| B |" in capsys.readouterr().out
    assert command.main(["--show", "--history", str(path)]) == 0
    assert "geometric mean" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "Nothing"], "no model is named 'Nothing'"),
        (["--engines", "Nothing"], "no engine is named 'Nothing'"),
        (["--precision", "fp3"], "no precision is named 'fp3'"),
        (["--engines", "shave tuned"], "needs --tuned"),
        (["--threads", "4096"], "--threads 4096"),
        (["--rounds", "0"], "--rounds 0"),
        (["--show", "--history", "nowhere"], "cannot show nowhere"),
    ],
)
def test_refuses_what_it_cannot_do(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
