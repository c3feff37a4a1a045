"""Winograd's convolution as an operator, ``shave::winograd_conv2d``.

    winograd_conv2d(Tensor x, Tensor weight, Tensor? bias, int[2] padding, int tile) -> Tensor

computes a 3x3 convolution of stride 1 with zero padding, [N, C, H, W] to [N, O, H + 2 p - 2, W + 2 q - 2], in tiles of
``tile`` x ``tile`` outputs. The weight is given transformed: [a * a, O, C] with a = tile + 2, whose element
``(i * a + j, o, c)`` is ``(G w[o, c] GT)[i, j]``; see :mod:`shave.ir.cook_toom`.

Importing this module registers the operator with torch; whatever handles programs imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from shave.ir.cook_toom import TAPS, Transforms, transforms

__all__ = [
    "Transforms",
    "restore_weight",
    "transform_weight",
    "transforms",
    "winograd_conv2d",
    "winograd_reference",
]


def transform_weight(weight: torch.Tensor, tile: int) -> torch.Tensor:
    """Transform [O, C, 3, 3] to what the operator takes, [a * a, O, C]; computed in float64 and given so."""
    g = torch.from_numpy(transforms(tile).G.copy())
    flat = weight.detach().to(torch.float64).reshape(-1, TAPS * TAPS)
    return (torch.kron(g, g) @ flat.T).reshape(-1, *weight.shape[:2])


def restore_weight(weight: torch.Tensor, tile: int) -> torch.Tensor:
    """The 3x3 weight [O, C, 3, 3] whose transform comes closest to the one given, [a * a, O, C]; in float64.

    That is the pseudo-inverse of G along both axes; it undoes :func:`transform_weight` but for rounding.
    """
    inverse = torch.linalg.pinv(torch.from_numpy(transforms(tile).G.copy()))
    flat = torch.kron(inverse, inverse) @ weight.detach().to(torch.float64).flatten(1)
    return flat.T.reshape(*weight.shape[1:], TAPS, TAPS).contiguous()


def winograd_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int], tile: int
) -> torch.Tensor:
    """Compute the operator from torch's own, in the dtype of its arguments; differentiable."""
    height, width = _output_size(x, padding)
    matrices = transforms(tile)
    rows, columns = -(-height // tile), -(-width // tile)
    halo = TAPS - 1
    padded = functional.pad(
        x,
        (
            padding[1],
            columns * tile + halo - padding[1] - x.shape[3],
            padding[0],
            rows * tile + halo - padding[0] - x.shape[2],
        ),
    )
    # [N, C, rows, columns, a, a]
    windows = padded.unfold(2, matrices.size, tile).unfold(3, matrices.size, tile)
    bt = torch.from_numpy(matrices.BT.copy()).to(x)
    at = torch.from_numpy(matrices.AT.copy()).to(x)
    factors = bt @ windows @ bt.T
    square = weight.reshape(matrices.size, matrices.size, *weight.shape[1:])
    products = torch.einsum("ncrsij,ijoc->norsij", factors, square)
    tiles = at @ products @ at.T
    # [N, O, rows, tile, columns, tile]
    whole = tiles.permute(0, 1, 2, 4, 3, 5).reshape(x.shape[0], weight.shape[1], rows * tile, columns * tile)
    result = whole[:, :, :height, :width]
    return result if bias is None else result + bias[:, None, None]


def _output_size(x: torch.Tensor, padding: Sequence[int]) -> tuple[int, int]:
    return x.shape[2] + 2 * padding[0] - TAPS + 1, x.shape[3] + 2 * padding[1] - TAPS + 1


@torch.library.custom_op(
    "shave::winograd_conv2d",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor? bias, int[2] padding, int tile) -> Tensor",
)
def winograd_conv2d(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int], tile: int
) -> torch.Tensor:
    """The operator; see the module."""
    _check(x, weight, bias, padding, tile)
    return winograd_reference(x, weight, bias, padding, tile).contiguous()


@winograd_conv2d.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int], tile: int
) -> torch.Tensor:
    _check(x, weight, bias, padding, tile)
    return x.new_empty(x.shape[0], weight.shape[1], *_output_size(x, padding))


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: Sequence[int], tile: int) -> None:
    """Refuse what the operator does not compute.

    Raises:
        ValueError: Names the argument at fault.
    """
    products = transforms(tile).size ** 2
    if x.dim() != 4:
        raise ValueError(f"winograd_conv2d: x has {x.dim()} axes, not 4")
    if weight.dim() != 3 or weight.shape[0] != products or weight.shape[2] != x.shape[1]:
        raise ValueError(f"winograd_conv2d: weight is {list(weight.shape)}, not [{products}, out, {x.shape[1]}]")
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != weight.shape[1]):
        raise ValueError(f"winograd_conv2d: bias is {list(bias.shape)}, not [{weight.shape[1]}]")
    if min(padding) < 0:
        raise ValueError(f"winograd_conv2d: padding {list(padding)} is negative")
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        raise ValueError("winograd_conv2d: x, weight and bias differ in dtype")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, bias, ctx.padding, ctx.tile = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Differentiate the composite, computed anew: its intermediate values are several times the input's size."""
    needed = ctx.needs_input_grad[:3]
    with torch.enable_grad():
        leaves: list[Any] = [
            None if value is None else value.detach().requires_grad_(need)
            for value, need in zip(ctx.saved_tensors, needed, strict=True)
        ]
        output = winograd_reference(leaves[0], leaves[1], leaves[2], ctx.padding, ctx.tile)
        wanted = [leaf for leaf, need in zip(leaves, needed, strict=True) if need]
        gradients = iter(torch.autograd.grad(output, wanted, gradient))
    return (*(next(gradients) if need else None for need in needed), None, None)


winograd_conv2d.register_autograd(_backward, setup_context=_setup_context)
