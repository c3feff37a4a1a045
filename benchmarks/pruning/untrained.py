"""ResNet-20 without any training: shave beside Torch-Pruning, cut to the same multiply-accumulates."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

import shave
from benchmarks.pruning.data import Batches, cifar10_batches, judge
from benchmarks.pruning.finetune import resnet20
from benchmarks.real_models import ResNet20, load_resnet20
from shave.ir.program import Program

SHARES = (0.8, 0.7, 0.58, 0.5)
"""Of the multiply-accumulates, to keep."""

OURS = {
    "shave, L2, no repair": "prune-channels{{macs={share} criterion=l2 repair=none}}",
    "shave, L2, statistics": "prune-channels{{macs={share} criterion=l2 repair=statistics}}",
    "shave, L2": "prune-channels{{macs={share} criterion=l2}}",
    "shave, FPGM, auto": "prune-channels{{macs={share} criterion=fpgm ranking=auto}}",
    "shave, variance, auto": "prune-channels{{macs={share} criterion=variance ranking=auto}}",
}
"""Pipelines by name."""


def rows(calibration: int, shares: Sequence[float] = SHARES, methods: str = "") -> Iterator[dict[str, Any]]:
    """One for each method and share.

    Args:
        calibration: Training images that are given.
        shares: Of the multiply-accumulates, to keep.
        methods: Only those whose names begin so.
    """
    model = resnet20()
    whole, accuracy, batches = model.load(), judge(model), cifar10_batches(calibration)
    full = whole.cost().macs
    for share in shares:
        for name, pipeline in OURS.items():
            if not name.startswith(methods):
                continue
            program = shave.PassManager(pipeline.format(share=share)).run(whole, calibration=batches)
            yield _row(name, share, program.cost().macs / full, accuracy(program), calibration)
        for criterion in ("L2", "FPGM") if "Torch-Pruning".startswith(methods) else ():
            module = torch_pruning(criterion, share * full)
            program = _traced(module)
            cost = program.cost().macs / full
            yield _row(f"Torch-Pruning, {criterion}", share, cost, accuracy(program), 0)
            program = _traced(estimate_norms(module, batches))
            yield _row(f"Torch-Pruning, {criterion}, norms re-estimated", share, cost, accuracy(program), calibration)


def torch_pruning(criterion: str, macs: float) -> nn.Module:
    """Cut the inner channels of blocks in many small steps, the same share of each, until ``macs`` hold.

    Torch-Pruning takes the zero-padded shortcut for an elementwise operator, so that channels of the stream cannot be
    cut with it; only what lies inside of a block is.
    """
    import torch_pruning as tp

    module: nn.Module = load_resnet20()
    inner = {layer.conv1 for layer in module.modules() if hasattr(layer, "conv1") and not isinstance(layer, ResNet20)}
    ignored = [layer for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)) and layer not in inner]
    importance = {
        "L2": tp.importance.GroupMagnitudeImportance(p=2),
        "FPGM": tp.importance.FPGMImportance(),
    }[criterion]
    pruner = tp.pruner.BasePruner(
        module,
        torch.zeros(1, 3, 32, 32),
        importance=importance,
        pruning_ratio=0.8,
        iterative_steps=64,
        ignored_layers=ignored,
    )
    while _traced(module).cost().macs > macs:
        pruner.step()
    return module


def estimate_norms(module: nn.Module, batches: Batches) -> nn.Module:
    """The same with statistics of its norms from data."""
    module = copy.deepcopy(module)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
    module.train()
    with torch.no_grad():
        for (batch,) in batches:
            module(batch)
    return module.eval()


def _traced(module: nn.Module) -> Program:
    return shave.trace(module.eval(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes={"x": {0: "N"}})


def _row(method: str, share: float, macs: float, accuracy: float, calibration: int) -> dict[str, Any]:
    return {
        "method": method,
        "share": share,
        "macs_kept": round(macs, 4),
        "accuracy": round(accuracy, 2),
        "calibration": calibration,
    }
