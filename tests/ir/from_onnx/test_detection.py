"""NonMaxSuppression against ONNX Runtime."""

import numpy as np
import pytest

from shave.ir.errors import ReadError
from shave.ir.from_onnx.export import export_onnx
from tests.ir.from_onnx.runtime import assert_like_runtime, one_node_model

RNG = np.random.default_rng(0)


def inputs(batch: int = 2, classes: int = 3, boxes: int = 17) -> dict[str, np.ndarray]:
    corners = RNG.uniform(0, 1, (batch, boxes, 2))
    sizes = RNG.uniform(0.1, 0.6, (batch, boxes, 2))
    return {
        "boxes": np.concatenate([corners, corners + sizes], -1).astype(np.float32),
        "scores": RNG.permutation(batch * classes * boxes).reshape(batch, classes, boxes).astype(np.float32) / 100,
    }


def model(given, *, most: int, iou: float = 0.4, score: float | None = None, **attributes):
    constants = {"most": np.array([most]), "iou": np.array([iou], np.float32)}
    constants |= {} if score is None else {"score": np.array([score], np.float32)}
    order = ["boxes", "scores", *constants]
    return one_node_model("NonMaxSuppression", given, constants, order=order, opset=11, **attributes)


@pytest.mark.parametrize(("most", "iou", "score"), [(5, 0.4, None), (100, 0.1, 0.5), (1, 0.9, None), (100, 0.4, 9.0)])
@pytest.mark.parametrize("center_point_box", [0, 1])
def test_same_boxes_in_the_same_order(most, iou, score, center_point_box):
    given = inputs()
    (selected,) = assert_like_runtime(
        model(given, most=most, iou=iou, score=score, center_point_box=center_point_box), given, rtol=0, atol=0
    )
    assert (len(selected) == 0) == (score == 9.0)


def test_flipped_corners_are_the_same_box():
    given = inputs()
    given["boxes"][:, ::2] = given["boxes"][:, ::2, [2, 3, 0, 1]]
    assert_like_runtime(model(given, most=6), given, rtol=0, atol=0)


def test_equal_scores_go_by_index():
    given = inputs(1, 1, 5)
    given["scores"][:] = 0.5
    assert_like_runtime(model(given, most=3, iou=0.99), given, rtol=0, atol=0)


def test_too_many_rounds_are_refused():
    given = {"boxes": np.zeros((1, 2000, 4), np.float32), "scores": np.zeros((1, 1, 2000), np.float32)}
    with pytest.raises(ReadError, match=r"node 'the_node' .NonMaxSuppression.: selects up to 2000 boxes per class"):
        export_onnx(model(given, most=5000))
