"""Gradient steps for the tables alone: the codes stay, and so does everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import fx

from shave.ir.program import Program

RATE = 0.01
"""Of an Adam step, as a share of the mean magnitude of a table's values."""


def by_outputs(
    program: Program,
    tables: Sequence[fx.Node],
    teacher: Program,
    batches: Sequence[tuple[torch.Tensor, ...]],
    steps: int,
) -> tuple[float, float]:
    """Bring the outputs closer to a teacher's: mean squared error, each output by its variance.

    The rate falls to zero along a cosine. If the data as a whole fit no better in the end, the tables stay as they
    were.

    Args:
        program: Whose tables are trained, in place.
        tables: The ``get_attr`` nodes of the tables; no other program may have them.
        teacher: Gives the outputs wanted.
        batches: Input tuples, gone through again and again.
        steps: How many batches in all.

    Returns:
        The error over all batches before and after.
    """
    with torch.no_grad():
        wanted = [teacher.module(*batch) for batch in batches]
    parameters = [program.weight(node) for node in tables]
    before = [parameter.detach().clone() for parameter in parameters]

    def loss(number: int) -> torch.Tensor:
        outputs = program.module(*batches[number])
        pairs = [(o, w) for o, w in zip(outputs, wanted[number], strict=True) if o.is_floating_point()]
        losses = [((o - w) ** 2).mean() / w.var(correction=0).clamp_min(1e-12) for o, w in pairs]
        return torch.stack(losses).sum() if losses else torch.zeros(())

    def total() -> float:
        with torch.no_grad():
            return float(sum(loss(number) for number in range(len(batches)))) / len(batches)

    first = total()
    with _only(program, parameters):
        groups = [{"params": [p], "lr": RATE * max(float(p.detach().abs().mean()), 1e-12)} for p in parameters]
        optimizer = torch.optim.Adam(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        for step in range(steps):
            optimizer.zero_grad()
            value = loss(step % len(batches))
            if not value.requires_grad:
                break
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    last = total()
    if not last < first:
        _write(parameters, before)
        last = first
    return first, last


def by_trainer(program: Program, tables: Sequence[fx.Node], trainer: Callable[[Program], None]) -> None:
    """Let a trainer of programs move the tables and nothing else."""
    copy = program.clone(copy_weights=True)
    names = [str(node.target) for node in tables]
    trained = [dict(copy.weights())[name] for name in names]
    with _only(copy, trained):
        trainer(copy)
    _write([program.weight(node) for node in tables], [dict(copy.weights())[name] for name in names])


def _write(parameters: Sequence[torch.Tensor], values: Iterable[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


class _only:
    """While it lasts, no weight of a program takes gradients but some."""

    def __init__(self, program: Program, chosen: Sequence[torch.Tensor]) -> None:
        self._chosen = chosen
        self._all = [weight for _, weight in program.weights() if weight.is_floating_point()]
        self._before = [weight.requires_grad for weight in self._all]

    def __enter__(self) -> None:
        for weight in self._all:
            weight.requires_grad_(any(weight is each for each in self._chosen))

    def __exit__(self, *_: object) -> None:
        for weight, before in zip(self._all, self._before, strict=True):
            weight.requires_grad_(before)
            weight.grad = None
