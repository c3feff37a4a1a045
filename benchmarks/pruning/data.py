"""Calibration data and accuracy: what is fitted is never what is judged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.real_models import RealModel, cifar10_training, normalise_cifar10
from shave.ir.program import Program

Batches = list[tuple[torch.Tensor, ...]]


def cifar10_batches(count: int, size: int = 64, seed: int = 0) -> Batches:
    """Training images of CIFAR-10 in an order of chance."""
    images, _ = cifar10_training()
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return [(batch,) for batch in torch.from_numpy(normalise_cifar10(images[chosen])).split(size)]


def judge(model: RealModel, size: int = 250) -> Callable[[Program], float]:
    """Top-1 of a program in percent, on the model's test set."""
    inputs, labels = model.test_set()

    def accuracy(program: Program) -> float:
        correct = 0
        for start in range(0, len(inputs), size):
            logits = program(torch.from_numpy(inputs[start : start + size]))
            assert isinstance(logits, torch.Tensor)
            correct += int((logits.argmax(1).numpy() == labels[start : start + size]).sum())
        return 100 * correct / len(inputs)

    return accuracy
