"""Accuracy against multiply-accumulates of the ImageNet models, before and after reconstruction, without training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import shave
from benchmarks.pruning.data import imagenet_batches, judge
from benchmarks.real_models import real_models

SHARES = (0.95, 0.9, 0.8, 0.7, 0.6)
SCALES = {"Tiny Darknet": (1 / 255, 0.0), "MobileNetV2": (1 / 127.5, -1.0)}
"""How each takes its pixels."""
PIPELINE = "prune-channels{{macs={share} criterion=fluctuation ranking=auto repair={repair}}}"
REPAIRS = ("none", "statistics", "reconstruct")


def rows(name: str, pipeline: str, shares: tuple[float, ...] = SHARES) -> Iterator[dict[str, Any]]:
    """One for each share and repair; accuracy on the 1000-image subset.

    Args:
        name: One of :data:`SCALES`.
        pipeline: What prunes, with ``{share}`` and ``{repair}`` in it.
        shares: Of the multiply-accumulates, to keep.
    """
    model = next(model for model in real_models() if model.name == name)
    whole, accuracy = model.load(), judge(model, 50)
    batches, full = imagenet_batches(*SCALES[name]), whole.cost().macs
    for share in shares:
        for repair in REPAIRS:
            program = shave.PassManager(pipeline.format(share=share, repair=repair)).run(whole, calibration=batches)
            yield {
                "model": name,
                "pipeline": pipeline,
                "share": share,
                "repair": repair,
                "macs_kept": round(program.cost().macs / full, 4),
                "accuracy": round(accuracy(program), 1),
                "whole": model.accuracy,
            }
