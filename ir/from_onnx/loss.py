"""Losses, as they appear in exported training graphs and metrics."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shave.ir.from_onnx.registry import OnnxNode, onnx_op

# torch's own default: no class has this index, so nothing is ignored.
_IGNORE_NOTHING = -100


def _loss(node: OnnxNode, log_probability: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    return F.nll_loss(
        log_probability,
        target.to(torch.int64),
        weight,
        ignore_index=node.attr("ignore_index", _IGNORE_NOTHING),
        reduction=node.attr("reduction", "mean"),
    )


@onnx_op("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(
    node: OnnxNode, log_probability: Tensor, target: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Minus the log-probability of the target class."""
    return _loss(node, log_probability, target, weight)


@onnx_op("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(
    node: OnnxNode, scores: Tensor, labels: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross entropy of scores, and the log-probabilities it was made from."""
    log_probability = F.log_softmax(scores, 1)
    return _loss(node, log_probability, labels, weight), log_probability
