"""Trains a program on the CIFAR-10 training images of ``../shared/data``, with the whole program as its teacher.

Distillation after Hinton et al. 2015; random crops and flips; SGD with Nesterov momentum and a cosine schedule.
Training may be stopped after any epoch and be taken up again from its checkpoint.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from benchmarks.real_models import cifar10_training, normalise_cifar10
from shave.ir.ops import argument, op_name
from shave.ir.program import Program

Teacher = Callable[[torch.Tensor], torch.Tensor]
"""Gives logits [N, classes] for images [N, 3, 32, 32]."""


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Times through the training images.
        rate: Largest learning rate.
        batch: Images of one step.
        warm_up: Epochs in which the rate rises.
        momentum: Of Nesterov's method.
        decay: Of the weights.
        temperature: By which both logits are divided.
        labels: Weight of the labels beside the teacher.
        seed: Of the order, crops and flips.
    """

    epochs: int = 12
    rate: float = 0.03
    batch: int = 128
    warm_up: float = 0.5
    momentum: float = 0.9
    decay: float = 1e-4
    temperature: float = 4.0
    labels: float = 0.1
    seed: int = 0


def train(
    program: Program,
    teacher: Teacher,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    minutes: float = math.inf,
    tell: Callable[[str], None] = print,
) -> bool:
    """Train the weights of a program in place.

    Args:
        program: Owns its weights.
        teacher: Whom it is to agree with.
        recipe: How to train.
        checkpoint: File without ending that training goes on from, if it is there, and that each epoch is written to.
        minutes: Stop after the epoch in which so many have passed.
        tell: Told of each epoch.

    Returns:
        Whether all epochs are done.
    """
    images, labels = (torch.from_numpy(each) for each in cifar10_training())
    batch_statistics(program, True)
    weights = {name: tensor for name, tensor in program.weights() if tensor.is_floating_point()}
    learned = {name: tensor for name, tensor in weights.items() if isinstance(tensor, torch.nn.Parameter)}
    for tensor in learned.values():
        tensor.requires_grad_()
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(
        learned.values(), recipe.rate, momentum=recipe.momentum, weight_decay=recipe.decay, nesterov=True
    )
    epoch = _restore(checkpoint, weights, learned, optimiser)
    steps, started = len(images) // recipe.batch, time.monotonic()
    while epoch < recipe.epochs and time.monotonic() - started < minutes * 60:
        generator = torch.Generator().manual_seed(recipe.seed + epoch)
        total = 0.0
        for step, (x, truth) in enumerate(_batches(images, labels, recipe.batch, generator)):
            optimiser.param_groups[0]["lr"] = _rate(recipe, epoch + step / steps)
            loss = _loss(program.module(x)[0], teacher(x), truth, recipe)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach())
        epoch += 1
        tell(f"epoch {epoch}: loss {total / steps:.4f}, {time.monotonic() - started:.0f} s")
        _save(checkpoint, epoch, weights, learned, optimiser)
    batch_statistics(program, False)
    return epoch >= recipe.epochs


def batch_statistics(program: Program, use: bool) -> None:
    """Let batch norms use and learn the statistics of each batch, or those that they have learned."""
    for node in program.calls:
        if op_name(node) == "aten.batch_norm":
            position = [each.name for each in node.target._schema.arguments].index("training")  # type: ignore[union-attr]
            assert argument(node, "training") is not use
            node.args = (*node.args[:position], use, *node.args[position + 1 :])
    program.module.recompile()


def _loss(logits: torch.Tensor, wanted: torch.Tensor, truth: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    t = recipe.temperature
    soft = functional.kl_div(
        functional.log_softmax(logits / t, 1), functional.softmax(wanted / t, 1), reduction="batchmean"
    )
    return (1 - recipe.labels) * t * t * soft + recipe.labels * functional.cross_entropy(logits, truth)


def _rate(recipe: Recipe, epoch: float) -> float:
    if epoch < recipe.warm_up:
        return recipe.rate * (epoch + 0.01) / recipe.warm_up
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * (epoch - recipe.warm_up) / (recipe.epochs - recipe.warm_up)))


def _batches(
    images: torch.Tensor, labels: torch.Tensor, size: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches, channels last; each image shifted by up to four pixels and, half of them, mirrored."""
    order = torch.randperm(len(images), generator=generator)
    pixels = torch.arange(32)
    for start in range(0, len(images) - size + 1, size):
        chosen = order[start : start + size]
        padded = functional.pad(torch.from_numpy(normalise_cifar10(images[chosen].numpy())), (4, 4, 4, 4))
        top, left = torch.randint(0, 9, (2, size), generator=generator)
        mirrored = torch.rand(size, generator=generator) < 0.5
        columns = left[:, None] + torch.where(mirrored[:, None], pixels.flip(0), pixels)
        rows = top[:, None] + pixels
        crops = padded[torch.arange(size)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        yield crops.permute(0, 3, 1, 2), labels[chosen]


def _restore(
    checkpoint: Path | None,
    weights: dict[str, torch.Tensor],
    learned: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.SGD,
) -> int:
    """Load a checkpoint, if there is one; give the epochs that are done."""
    if checkpoint is None or not checkpoint.with_suffix(".json").exists():
        return 0
    stored = load_file(checkpoint.with_suffix(".safetensors"))
    with torch.no_grad():
        for name, tensor in weights.items():
            tensor.copy_(stored[f"weight.{name}"])
    for name, tensor in learned.items():
        optimiser.state[tensor]["momentum_buffer"] = stored[f"momentum.{name}"].clone().reshape(tensor.shape)
    return int(json.loads(checkpoint.with_suffix(".json").read_text())["epoch"])


def _save(
    checkpoint: Path | None,
    epoch: int,
    weights: dict[str, torch.Tensor],
    learned: dict[str, torch.nn.Parameter],
    optimiser: torch.optim.SGD,
) -> None:
    if checkpoint is None:
        return
    stored = {f"weight.{name}": tensor.detach().contiguous() for name, tensor in weights.items()}
    for name, tensor in learned.items():
        stored[f"momentum.{name}"] = optimiser.state[tensor]["momentum_buffer"].contiguous()
    save_file(stored, checkpoint.with_suffix(".safetensors"))
    checkpoint.with_suffix(".json").write_text(json.dumps({"epoch": epoch}))
