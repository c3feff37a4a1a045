from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import shave
from examples import demo
from examples.digits import held_out
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


class StandIn:
    """Plays program, compiled artifact and loaded artifact by running the model in ONNX Runtime, off by ``error``."""

    def __init__(self, path: Path, error: float) -> None:
        self.session = demo.onnx_session(path)
        self.error = error
        self.macs, self.calls = 123, 0

    def __call__(self, image: torch.Tensor | np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.session.run(None, {"image": np.asarray(image)})[0] + np.float32(self.error)

    def cost(self) -> StandIn:
        return self

    def save(self, path: Path) -> None:
        path.write_bytes(b"12345")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[float], StandIn]:
    """Put a stand-in, off by so much, where the demo looks for shave."""

    def install(error: float) -> StandIn:
        player = StandIn(demo.MODELS[0], error)
        monkeypatch.setattr(demo, "MODELS", demo.MODELS[:1])
        monkeypatch.setattr(demo, "ARTIFACTS", tmp_path / "new" / "folder")
        for name in ("read", "compile", "load"):
            monkeypatch.setitem(vars(shave), name, lambda *_, **__: player)
        return player

    return install


def test_an_artifact_that_agrees_is_timed_and_shown(
    stand_in: Callable[[float], StandIn], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    player = stand_in(2**-12)
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert "100.00% -> 100.00%" in out
    assert "159 -> 0" in out
    assert "2.4e-04" in out
    assert "Where to go next" in out
    assert player.calls > 200  # 100 rounds of torch, 100 of the artifact
    assert (tmp_path / "new" / "folder" / "digits_cnn.shave").exists()


def test_an_artifact_that_disagrees_is_never_timed(
    stand_in: Callable[[float], StandIn], capsys: pytest.CaptureFixture[str]
) -> None:
    player = stand_in(0.5)
    assert demo.main() == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: digits_cnn: scores differ by up to 0.5, more than 0.001" in err
    assert player.calls == 1


@pytest.mark.parametrize("path", demo.MODELS, ids=lambda path: path.stem)
def test_the_whole_road_keeps_the_recorded_accuracy(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads(path.with_name("ACCURACY.json").read_text(encoding="utf-8"))["models"][path.stem]
    monkeypatch.setattr(demo, "ARTIFACTS", tmp_path)
    result = demo.measure(path, held_out(), Console(file=io.StringIO()))
    assert result.accuracy == pytest.approx((record["accuracy"], record["accuracy"]), abs=5e-5)
    assert result.difference < 2e-5
    assert result.file_bytes == (record["bytes"], (tmp_path / f"{path.stem}.shave").stat().st_size)
    assert result.macs == {"digits_cnn": 631_424, "digits_transformer": 1_688_192}[path.stem]
    assert set(result.latency) == set(demo.ENGINES)
