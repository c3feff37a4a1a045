"""Calibration data and accuracy: what is fitted is never what is judged."""

from __future__ import annotations

import tarfile
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.pruning.training import training_images
from benchmarks.real_models import DATA, Array, RealModel, normalise_cifar10
from shave.ir.program import Program

Batches = list[tuple[torch.Tensor, ...]]


def cifar10_batches(count: int, size: int = 64, seed: int = 0) -> Batches:
    """Training images of CIFAR-10 in an order of chance."""
    images, _ = training_images()
    chosen = np.random.default_rng(seed).permutation(len(images))[:count]
    return _cut(normalise_cifar10(images[chosen]), size)


def imagenet_batches(scale: float, shift: float, size: int = 16) -> Batches:
    """All 334 calibration images."""
    return _cut(imagenet_images(scale, shift), size)


def imagenet_images(scale: float, shift: float, count: int | None = None) -> Array:
    """Calibration images spread over the classes, the centre 224 of 256 pixels, ``pixel * scale + shift``."""
    from PIL import Image

    images = []
    with tarfile.open(DATA / "imagenet_calibration334" / "images_256.tar") as archive:
        members = [member for member in archive.getmembers() if member.name.endswith(".jpg")]
        for member in members[:: max(1, len(members) // (count or len(members)))][:count]:
            stream = archive.extractfile(member)
            assert stream is not None
            pixels = np.asarray(Image.open(stream).convert("RGB"), np.float32)[16:240, 16:240]
            images.append(pixels.transpose(2, 0, 1) * np.float32(scale) + np.float32(shift))
    return np.stack(images)


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


def _cut(images: Array, size: int) -> Batches:
    return [(batch,) for batch in torch.from_numpy(images).split(size)]
