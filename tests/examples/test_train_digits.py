from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("digits_cnn", "digits_transformer")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both models after three epochs."""
    folder = tmp_path_factory.mktemp("trained") / "models"
    subprocess.run(
        [sys.executable, "-m", "examples.train_digits", "--output", folder, "--epochs", "3"],
        check=True,
        capture_output=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=EXAMPLES.parent,
    )
    return folder


@pytest.fixture(scope="module", autouse=True)
def committed_files_stay() -> object:
    """Whatever the tests of this module do, the committed models are left as they were."""
    before = {path: path.read_bytes() for path in (EXAMPLES / "models").iterdir()}
    yield
    assert {path: path.read_bytes() for path in (EXAMPLES / "models").iterdir()} == before


def test_a_short_run_writes_both_models_and_their_record(trained: Path) -> None:
    assert sorted(path.name for path in trained.iterdir()) == ["ACCURACY.json", *(f"{name}.onnx" for name in NAMES)]
    record = json.loads((trained / "ACCURACY.json").read_text(encoding="utf-8"))
    assert record["epochs"] == 3
    for name in NAMES:
        assert record["models"][name]["bytes"] == (trained / f"{name}.onnx").stat().st_size
    # Ten classes: chance is a tenth. Three epochs show that the CNN learns.
    assert record["models"]["digits_cnn"]["accuracy"] > 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_model_is_of_the_script_as_it_stands(trained: Path, name: str) -> None:
    def structure(path: Path) -> tuple[object, ...]:
        graph = onnx.load(path).graph
        operators = [(node.op_type, list(node.attribute)) for node in graph.node]
        weights = sorted(tuple(tensor.dims) for tensor in graph.initializer)
        return operators, weights, list(graph.input), list(graph.output)

    assert structure(trained / f"{name}.onnx") == structure(EXAMPLES / "models" / f"{name}.onnx")


def test_training_moved_the_weights(trained: Path) -> None:
    for name in NAMES:
        assert (trained / f"{name}.onnx").read_bytes() != (EXAMPLES / "models" / f"{name}.onnx").read_bytes()
