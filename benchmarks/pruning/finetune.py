"""ResNet-20 on CIFAR-10: pruned, then trained on the 20,000 training images that are here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import shave
from benchmarks.pruning.data import cifar10_batches, judge
from benchmarks.pruning.training import Recipe, Teacher, train
from benchmarks.real_models import RealModel, real_models
from shave.ir.program import Program

PIPELINE = "prune-channels{macs=0.58 criterion=fpgm ranking=auto}"


def resnet20() -> RealModel:
    return next(model for model in real_models() if model.name == "ResNet-20")


def finetune(
    pipeline: str, recipe: Recipe, checkpoint: Path, minutes: float, calibration: int
) -> dict[str, Any] | None:
    """Prune, train, judge; None if time ran out. What was done is kept beside the checkpoint and taken up again.

    Args:
        pipeline: What prunes.
        recipe: How to train.
        checkpoint: Path without ending of the files that keep the state.
        minutes: For training, in this run.
        calibration: Training images that the pass is given.
    """
    model = resnet20()
    whole, accuracy = model.load(), judge(model)
    start = checkpoint.with_suffix(".pt2")
    if not start.exists():
        pruned = shave.PassManager(pipeline).run(whole, calibration=cifar10_batches(calibration))
        pruned.save(start)
        print(
            f"pruned: {accuracy(pruned):.2f} % at {pruned.cost().macs / whole.cost().macs:.1%} of the MACs", flush=True
        )
    program = shave.read(start).clone(copy_weights=True)
    before = accuracy(program)
    if not train(program, _teacher(whole), recipe, checkpoint=checkpoint, minutes=minutes):
        print(f"so far: {accuracy(program):.2f} %", flush=True)
        return None
    cost, full = program.cost(), whole.cost()
    return {
        "model": model.name,
        "pipeline": pipeline,
        "calibration": calibration,
        "epochs": recipe.epochs,
        "recipe": vars(recipe),
        "macs": cost.macs,
        "macs_whole": full.macs,
        "parameters": cost.parameters,
        "parameters_whole": full.parameters,
        "whole": round(accuracy(whole), 2),
        "pruned": round(before, 2),
        "trained": round(accuracy(program), 2),
    }


def _teacher(program: Program) -> Teacher:
    """The whole program, compiled: it runs several times as fast as in torch."""
    artifact = shave.compile(program, target="cpu")
    return lambda x: torch.from_numpy(artifact(x.contiguous().numpy()))
