"""Selection of boxes."""

import torch
from torch import Tensor

from shave.ir.from_onnx.registry import OnnxNode, onnx_op
from shave.ir.from_onnx.values import Value, as_int

# Each round of the greedy selection is unrolled.
_MOST_ROUNDS = 1000


@onnx_op("NonMaxSuppression", since=10)
def non_max_suppression(
    node: OnnxNode,
    boxes: Tensor,
    scores: Tensor,
    max_boxes: Value | None = None,
    iou_threshold: Tensor | None = None,
    score_threshold: Tensor | None = None,
) -> Tensor:
    """Greedy selection of boxes (batch, boxes, 4) by scores (batch, classes, boxes), for every batch entry and class.

    Gives one row (batch, class, box) per selected box. All batch entries and classes take a round together.
    """
    rounds = min(0 if max_boxes is None else as_int(max_boxes), boxes.shape[1])
    if not isinstance(rounds, int) or rounds > _MOST_ROUNDS:
        raise ValueError(f"selects up to {rounds} boxes per class, at most {_MOST_ROUNDS} can be unrolled")
    if rounds <= 0:
        return torch.empty((0, 3), dtype=torch.int64)
    overlaps = _overlaps(boxes, bool(node.attr("center_point_box", 0))) > (
        0.0 if iou_threshold is None else iou_threshold
    )
    alive = torch.ones_like(scores, dtype=torch.bool) if score_threshold is None else scores > score_threshold
    chosen, valid = [], []
    for _ in range(rounds):
        best = scores.masked_fill(~alive, -torch.inf).argmax(-1, keepdim=True)
        chosen.append(best)
        valid.append(alive.gather(-1, best))
        # Neither the chosen box nor what overlaps with it can be chosen again.
        covered = overlaps.gather(1, best.expand(-1, -1, overlaps.shape[-1]))
        alive = (alive & ~covered).scatter(-1, best, False)
    rows = torch.cat(valid, -1).nonzero()
    box = torch.cat(chosen, -1)[rows.unbind(-1)]
    return torch.cat([rows[:, :2], box.unsqueeze(-1)], -1)


def _overlaps(boxes: Tensor, centred: bool) -> Tensor:
    """Intersection over union of every two boxes, (batch, boxes, boxes); zero where there is no area."""
    first, second = boxes[..., :2], boxes[..., 2:]
    if centred:
        low, high = first - second / 2, first + second / 2
    else:
        low, high = torch.minimum(first, second), torch.maximum(first, second)
    area = (high - low).prod(-1)
    sides = torch.minimum(high.unsqueeze(1), high.unsqueeze(2)) - torch.maximum(low.unsqueeze(1), low.unsqueeze(2))
    shared = sides.clamp(min=0).prod(-1)
    union = area.unsqueeze(1) + area.unsqueeze(2) - shared
    return torch.where(shared > 0, shared / union, 0.0)
