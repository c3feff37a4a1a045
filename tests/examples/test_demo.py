from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from examples import demo
from shave.backends.timing import Timing


def result(model: str) -> demo.Result:
    return demo.Result(
        model=model,
        accuracy=(0.9973, 0.9945),
        file_bytes=(158_600, 1_234_567),
        macs=1_234_567,
        latency={engine: Timing((scale * 1e-4, scale * 3e-4)) for scale, engine in enumerate(demo.ENGINES, 1)},
        difference=1.26e-6,
    )


def test_the_table_holds_every_figure_within_80_columns() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(demo.render([result("digits_cnn"), result("digits_transformer")]))
    assert isinstance(console.file, io.StringIO)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.file.getvalue().splitlines()]
    cells = {row[0]: row[1:] for row in rows if row}
    assert cells["accuracy"] == ["99.73% -> 99.45%"] * 2
    assert cells["file size, KB"] == ["159 -> 1235"] * 2
    assert cells["MACs per image"] == ["1.23 M"] * 2
    assert cells["torch eager"] == ["100.0 / 200.0"] * 2
    assert cells["ONNX Runtime"] == ["200.0 / 400.0"] * 2
    assert cells["artifact"] == ["300.0 / 600.0"] * 2
    assert cells["largest difference of a score"] == ["1.3e-06"] * 2
    assert "…" not in console.file.getvalue()


def test_what_to_do_next_fits_80_columns() -> None:
    assert max(map(len, demo.NEXT_STEPS.splitlines())) <= 80


def test_accuracy_is_the_share_of_right_answers() -> None:
    scores = np.array([[0, 2, 1], [5, 2, 1], [0, 2, 3], [9, 0, 0]], dtype=np.float32)
    assert demo.accuracy(scores, np.array([1, 0, 2, 2])) == 0.75


def test_the_largest_difference_is_found() -> None:
    expected = np.zeros((3, 10), dtype=np.float32)
    actual = expected.copy()
    actual[1, 4], actual[2, 9] = 2**-12, -(2**-11)
    assert demo.largest_difference("m", expected, actual) == 2**-11


@pytest.mark.parametrize("wrong", [0.01, -0.01, np.nan, np.inf])
def test_scores_that_differ_stop_the_demo(wrong: float) -> None:
    expected = np.ones((3, 10), dtype=np.float32)
    actual = expected.copy()
    actual[2, 9] += wrong
    with pytest.raises(demo.Disagreement, match="digits_cnn: scores differ by up to"):
        demo.largest_difference("digits_cnn", expected, actual)


def test_scores_of_another_shape_stop_the_demo() -> None:
    with pytest.raises(demo.Disagreement, match=r"shape \(1, 10\), not \(3, 10\)"):
        demo.largest_difference("m", np.ones((3, 10), np.float32), np.ones((1, 10), np.float32))
