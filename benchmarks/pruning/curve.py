"""Accuracy against multiply-accumulates of the ImageNet models, before and after reconstruction, without training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import shave
from benchmarks.pruning.data import judge
from benchmarks.real_models import real_models

SHARES = (0.9, 0.8, 0.7, 0.6)
MODELS = ("Tiny Darknet", "MobileNetV2")
PIPELINE = "prune-channels{{macs={share} criterion=fluctuation ranking=auto repair={repair}}}"
REPAIRS = ("none", "reconstruct")
CALIBRATION = 128
"""Images that the pass is given; more take longer."""


def rows(name: str, pipeline: str, shares: tuple[float, ...] = SHARES) -> Iterator[dict[str, Any]]:
    """One for each share and repair; accuracy on the 1000-image subset.

    Args:
        name: One of :data:`MODELS`.
        pipeline: What prunes, with ``{share}`` and ``{repair}`` in it.
        shares: Of the multiply-accumulates, to keep.
    """
    model = next(model for model in real_models() if model.name == name)
    whole, accuracy = model.load(), judge(model, 50)
    batches, full = model.batches(CALIBRATION, 16), whole.cost().macs
    for share in shares:
        for repair in REPAIRS:
            program = shave.PassManager(pipeline.format(share=share, repair=repair)).run(whole, calibration=batches)
            yield {
                "model": name,
                "pipeline": pipeline,
                "share": share,
                "repair": repair,
                "calibration": CALIBRATION,
                "macs_kept": round(program.cost().macs / full, 4),
                "accuracy": round(accuracy(program), 1),
                "whole": model.accuracy,
            }
