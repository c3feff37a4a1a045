"""The proof that a cut is right: the model with the same channels left out gives the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from shave.ir.axes.analysis import analyse
from shave.ir.axes.terms import Term
from shave.ir.program import Program
from shave.passes.check import ROUNDINGS, rounded_otherwise
from shave.passes.compare import outputs_of
from shave.passes.prune.groups import groups_of
from shave.passes.prune.oracle import Ablated

TOLERANCE = 1e-5
"""Largest difference in float32, relative to the largest magnitude of an output. Programs that magnify roundings beyond
that get as much as they do to the roundings of their own inputs, :data:`shave.passes.check.ROUNDINGS` times."""


@dataclass(frozen=True)
class Certificate:
    """What a cut was compared with, and what came out.

    Attributes:
        groups: Names of the groups that were cut.
        errors: For each output by name, the largest difference relative to the largest magnitude; infinite where one
            has a NaN.
        tolerance: Bound on all of them; see :data:`TOLERANCE`.
        restated: Calls (names of nodes) whose statistics leave channels out: the cut equals the model without
            the channels, but not the model with zeros in their place.
    """

    groups: tuple[str, ...]
    errors: Mapping[str, float]
    tolerance: float
    restated: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the cut is right."""
        return all(error <= self.tolerance for error in self.errors.values())

    @property
    def exact(self) -> bool:
        """Whether zeroing what the removed channels feed gives the same as the cut."""
        return not self.restated

    def __str__(self) -> str:
        worst = max(self.errors.values(), default=0.0)
        verdict = "equals" if self.holds else "DIFFERS FROM"
        what = "the model with the weights that the removed channels feed set to zero"
        if self.restated:
            what = f"the model without the removed channels ({len(self.restated)} statistics leave them out)"
        return f"cut of {len(self.groups)} groups {verdict} {what}: largest relative difference {worst:.2g}"


def certify(
    before: Program,
    after: Program,
    keep: Mapping[str, Sequence[int]],
    inputs: Sequence[torch.Tensor],
    tolerance: float = TOLERANCE,
) -> Certificate:
    """Compare a cut program with the one that it was cut from.

    Args:
        before: The program that the groups are of.
        after: What was made of it.
        keep: For each group that was cut, the units that stayed.
        inputs: To run both on.
        tolerance: See :data:`TOLERANCE`.
    """
    layout = analyse(before)
    _, atoms = groups_of(before, layout)
    gone: dict[Term, NDArray[np.bool_]] = {}
    for name, units in keep.items():
        gone[atoms[name]] = ~np.isin(np.arange(atoms[name].size), units)
    removed: dict[fx.Node, dict[int, NDArray[np.bool_]]] = {}
    for node, axes in layout.axes.items():
        for axis, term in enumerate(axes):
            for atom, index in layout.positions(term).items():
                if atom in gone and gone[atom].any():
                    mask = removed.setdefault(node, {}).setdefault(axis, np.zeros(term.size, dtype=bool))
                    mask[index[gone[atom]].reshape(-1)] = True
    oracle = Ablated(before, removed)
    wants = _outputs(oracle.run, inputs)
    gots = _outputs(lambda *tensors: outputs_of(after(*tensors)), inputs)
    names = [spec.name for spec in before.signature.outputs]
    errors = {name: _error(want, got) for name, want, got in zip(names, wants, gots, strict=True)}
    restated = tuple(dict.fromkeys(oracle.restated))
    if max(errors.values(), default=0.0) > tolerance:
        generator = torch.Generator().manual_seed(0)
        moved = _outputs(oracle.run, [rounded_otherwise(tensor, generator) for tensor in inputs])
        noise = [_error(want, got) for want, got in zip(wants, moved, strict=True)]
        tolerance = max(tolerance, ROUNDINGS * max(filter(np.isfinite, noise), default=0.0))
    return Certificate(tuple(keep), errors, tolerance, restated)


def _outputs(run: Callable[..., Sequence[torch.Tensor]], inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run; what is random draws the same each time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(run(*inputs))


def _error(want: torch.Tensor, got: torch.Tensor) -> float:
    if want.shape != got.shape or want.dtype != got.dtype:
        return float("inf")
    want, got = want.detach().double(), got.detach().double()
    if not want.numel():
        return 0.0
    # Infinities that stand in both places are equal (masks of attention).
    difference = (want - got).abs().masked_fill(want == got, 0.0)
    scale = want.abs().masked_fill(want.isinf(), 0.0).max()
    error = float(difference.max() / scale) if scale else float(difference.max())
    return error if np.isfinite(error) else float("inf")
