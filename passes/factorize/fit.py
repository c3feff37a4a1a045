"""Least squares over the factors of a product, one factor at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from shave.passes.factorize.metric import Metric

Factors = tuple[torch.Tensor, ...]

STEPS = 8
"""Steps of conjugate gradients for one factor; each lowers the error, and the next sweep goes on from there."""
TOLERANCE = 1e-3
"""Sweeps end when one lowers the error by less than that share of it."""


def alternate(
    factors: Factors, product: Callable[[Factors], torch.Tensor], target: torch.Tensor, metric: Metric, sweeps: int
) -> Factors:
    """Lower the error of a product that is linear in each of its factors.

    With all factors but one fixed, the error is a quadratic function of that one. It is lowered by conjugate gradients,
    which need its Hessian as a map alone: the product with a direction in the factor's place, and its adjoint, which
    automatic differentiation gives. So no method has equations of its own, and no step can raise the error.

    Args:
        factors: Where to start.
        product: From the factors to a matrix like ``target``.
        target: What to come near to.
        metric: What an error is.
        sweeps: Largest number of rounds over all factors.

    Returns:
        The new factors.
    """
    current = list(factors)
    error = metric.energy(target - product(tuple(current)))
    for _ in range(sweeps):
        for place in range(len(current)):
            current[place] = _improve(current, place, product, target, metric)
        before, error = error, metric.energy(target - product(tuple(current)))
        if before - error <= TOLERANCE * before:
            break
    return tuple(current)


def _improve(
    factors: list[torch.Tensor],
    place: int,
    product: Callable[[Factors], torch.Tensor],
    target: torch.Tensor,
    metric: Metric,
) -> torch.Tensor:
    """A better factor in one place, the others as they are."""
    variable = factors[place].detach().clone().requires_grad_(True)
    with torch.enable_grad():
        value = product((*factors[:place], variable, *factors[place + 1 :]))

    def adjoint(matrix: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(value, variable, matrix, retain_graph=True)
        return found

    def forward(direction: torch.Tensor) -> torch.Tensor:
        return product((*factors[:place], direction, *factors[place + 1 :]))

    with torch.no_grad():
        found = variable.detach().clone()
        # Scaled by the diagonal of the Hessian it would converge sooner; its blocks are alike enough as they are.
        residual = adjoint(metric.apply(target - value.detach()))
        direction, size = residual.clone(), float((residual**2).sum())
        for _ in range(STEPS):
            if size <= 0:
                break
            moved = forward(direction)
            along = metric.apply(moved)
            curvature = float((moved * along).sum())
            if curvature <= 0:
                break
            length = size / curvature
            found += length * direction
            residual -= length * adjoint(along)
            size, before = float((residual**2).sum()), size
            direction = residual + size / before * direction
    return found
