"""How much the outputs move, to first order, when a unit goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shave.ir.program import Program
from shave.passes.prune.groups import Group, Slice
from shave.passes.prune.importance.criterion import Criterion, Evidence, Score, filters
from shave.passes.prune.roles import Role


class Taylor(Criterion):
    """Squared first-order change of the outputs when the weights that read a unit become zero.

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", with the squared outputs in the place of
    a loss, so that no labels are needed: for random signs v the mean of (sum of w * d(v . f)/dw)^2 over v is the
    squared norm of the change that the expansion of the outputs f predicts.
    """

    needs_data = True

    def score(self, evidence: Evidence, groups: Sequence[Group]) -> dict[str, Score]:
        """See the class."""
        assert evidence.batches is not None
        program = evidence.program.clone(copy_weights=True)
        parts = {group.name: _parts(group) for group in groups}
        wanted = {str(each.weight.target) for slices in parts.values() for each in slices}
        tensors = {name: tensor for name, tensor in program.weights() if name in wanted}
        for name, tensor in program.weights():
            tensor.requires_grad_(name in wanted)
        totals = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in groups}
        for batch in evidence.batches():
            _backward(program, batch, evidence.generator)
            for name, slices in parts.items():
                for change in _changes(slices, tensors):
                    totals[name] += change.square()
            for tensor in tensors.values():
                tensor.grad = None
        return {name: Score(total) for name, total in totals.items()}


def _parts(group: Group) -> list[Slice]:
    """What reads the units: that is what their removal zeroes. What makes them, if nothing is known to read them."""
    return [each for each in group.slices if each.role is Role.CONSUMES] or filters(group)


def _backward(program: Program, batch: tuple[torch.Tensor, ...], generator: torch.Generator) -> None:
    with torch.enable_grad():
        outputs = [output for output in program.module(*batch) if output.requires_grad]
        signs = [torch.randint(0, 2, output.shape, generator=generator) * 2 - 1 for output in outputs]
        total = sum(((output * sign).sum() for output, sign in zip(outputs, signs, strict=True)), torch.zeros(()))
        if outputs:
            total.backward()


def _changes(slices: Sequence[Slice], tensors: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The change of the signed sum of the outputs by each unit, over all its weights."""
    found = []
    for each in slices:
        tensor = tensors[str(each.weight.target)]
        if tensor.grad is not None:
            product = (tensor.detach() * tensor.grad).double().movedim(each.axis, 0)
            found.append(product[torch.from_numpy(each.index).reshape(-1)].reshape(len(each.index), -1).sum(1))
    return [torch.stack(found).sum(0)] if found else []
