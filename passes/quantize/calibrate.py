"""Runs a program on calibration data and lets observers see some of its values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import fx

from shave.ir.errors import PipelineError
from shave.ir.program import Program

PIECE = 16
"""Samples that run at a time: memory does not grow with the batches that are given."""


class Observes(Protocol):
    """What can be shown values."""

    def observe(self, values: torch.Tensor) -> None:
        """Take in one batch's value."""


def observe(program: Program, observers: Mapping[fx.Node, Observes], batches: Iterable[Sequence[torch.Tensor]]) -> None:
    """Show every batch's values of some nodes to their observers.

    Raises:
        PipelineError: A batch holds NaN, or makes a value NaN; says which.
    """
    watcher = _Watcher(program.module, observers)
    with torch.no_grad():
        for batch in batches:
            watcher.run(*batch)


def samples_of(
    batches: Iterable[tuple[torch.Tensor, ...]], program: Program, samples: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """The first samples, in pieces of at most :data:`PIECE` where the program lets the size of a batch vary.

    Raises:
        PipelineError: A batch holds a value that is not finite.
    """
    first = {spec.shape[0] if spec.shape else None for spec in program.signature.inputs}
    varies = len(first) == 1 and isinstance(name := next(iter(first)), str) and name in program.signature.dims
    left = samples
    for number, batch in enumerate(batches):
        if left <= 0:
            return
        for spec, tensor in zip(program.signature.inputs, batch, strict=True):
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise PipelineError(
                    f"batch {number} of the calibration data holds NaN or infinity in input {spec.name!r}: "
                    "leave that sample out"
                )
        if varies:
            whole = min(batch[0].shape[0], left)
            for start in range(0, whole, PIECE):
                yield tuple(tensor[start : min(start + PIECE, whole)] for tensor in batch)
            left -= whole
        else:
            yield batch
            left -= batch[0].shape[0] if None not in first and len(first) == 1 else 1


class _Watcher(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, observers: Mapping[fx.Node, Observes]) -> None:
        super().__init__(module)
        self._observers = observers

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        observer = self._observers.get(n)
        if observer is not None:
            if value.isnan().any():
                raise PipelineError(f"the calibration data makes {n.name} NaN: no range can be told from that")
            observer.observe(value)
        return value
