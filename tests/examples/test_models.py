from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from examples.digits import held_out, training

MODELS = Path(__file__).resolve().parents[2] / "examples" / "models"
RECORD: dict[str, Any] = json.loads((MODELS / "ACCURACY.json").read_text(encoding="utf-8"))
NAMES = ("digits_cnn", "digits_transformer")
LEAST_ACCURACY = {"digits_cnn": 0.99, "digits_transformer": 0.98}

pytestmark = pytest.mark.parametrize("name", NAMES)


def scores(name: str, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(MODELS / f"{name}.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def test_accuracy_is_the_recorded_one(name: str) -> None:
    images, labels = held_out()
    right = int(np.sum(scores(name, images).argmax(1) == labels))
    assert right == RECORD["models"][name]["correct"]
    assert right / len(labels) == pytest.approx(RECORD["models"][name]["accuracy"], abs=5e-5)
    assert right / len(labels) >= LEAST_ACCURACY[name]


def test_the_record_is_of_this_file_and_this_split(name: str) -> None:
    file = (MODELS / f"{name}.onnx").read_bytes()
    assert hashlib.sha256(file).hexdigest() == RECORD["models"][name]["sha256"]
    assert len(file) == RECORD["models"][name]["bytes"]
    assert RECORD["held_out_images"] == len(held_out()[1])
    assert RECORD["training_images"] == len(training()[1])


def test_both_files_together_stay_under_a_megabyte(name: str) -> None:
    assert sum((MODELS / f"{other}.onnx").stat().st_size for other in NAMES) < 1_000_000
    assert sorted(path.name for path in MODELS.iterdir()) == ["ACCURACY.json", *(f"{other}.onnx" for other in NAMES)]


def test_the_file_is_valid_whole_and_says_nothing_of_the_machine_it_came_from(name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    text = (MODELS / f"{name}.onnx").read_bytes()
    assert b".py" not in text
    assert b"site-packages" not in text


def test_the_batch_size_is_free(name: str) -> None:
    (given,) = onnx.load(MODELS / f"{name}.onnx").graph.input
    assert given.name == "image"
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    images = held_out()[0][:7]
    alone = np.concatenate([scores(name, images[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(scores(name, images), alone, rtol=1e-5, atol=1e-5)


def test_the_files_hold_what_the_passes_are_to_be_shown_on(name: str) -> None:
    nodes = onnx.load(MODELS / f"{name}.onnx").graph.node
    ops = Counter(node.op_type for node in nodes)
    if name == "digits_cnn":
        groups = [a.i for node in nodes if node.op_type == "Conv" for a in node.attribute if a.name == "group"]
        assert ops["BatchNormalization"] == ops["Conv"] == 10
        assert sum(group > 1 for group in groups) == 4
        assert ops["Add"] == 4
        assert ops["ReduceMean"] == 1
    else:
        assert ops["LayerNormalization"] == 7
        assert ops["Softmax"] == ops["Erf"] == 3
        assert ops["MatMul"] == 18
