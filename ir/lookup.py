"""Weights kept as numbers of values in a table, as an operator, ``shave::lookup``.

    lookup(Tensor codes, Tensor codebook, int bits, int[] shape, int? axis=None) -> Tensor

gives a tensor of ``shape`` whose element i, in row-major order, is ``codebook[code i]``. Codes take ``bits`` bits
each, 1 to 8, packed as :mod:`shave.ir.bits` describes into uint8 [ceil(elements * bits / 8)]. The codebook is [values],
or, with ``axis``, [shape[axis], values]: a table for each place along that axis. It is differentiable in the codebook:
the gradient of a value is the sum of those of all elements that have it.

Importing this module registers the operator with torch; whatever handles programs imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from shave.ir.bits import MAX_BITS, pack, packed_size, unpack

__all__ = ["codes_of", "lookup", "pack_codes"]


def pack_codes(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes of any shape and integer dtype to what the operator takes.

    Raises:
        ValueError: A code takes more bits.
    """
    return torch.from_numpy(pack(codes.detach().to(torch.uint8).cpu().numpy(), bits)).to(codes.device)


def codes_of(codes: torch.Tensor, bits: int, shape: Sequence[int]) -> torch.Tensor:
    """The packed codes as uint8 of ``shape``; undoes :func:`pack_codes`."""
    numbers = unpack(codes.detach().cpu().numpy(), bits, prod(shape))
    return torch.from_numpy(numbers.reshape(tuple(shape))).to(codes.device)


@torch.library.custom_op(
    "shave::lookup",
    mutates_args=(),
    schema="(Tensor codes, Tensor codebook, int bits, int[] shape, int? axis=None) -> Tensor",
)
def lookup(
    codes: torch.Tensor, codebook: torch.Tensor, bits: int, shape: Sequence[int], axis: int | None = None
) -> torch.Tensor:
    """The operator; see the module."""
    _check(codes, codebook, bits, shape, axis)
    places = _places(codes, codebook, bits, shape, axis)
    if places.numel() and int(places.max()) >= codebook.numel():
        raise ValueError(f"lookup: a code is beyond the {codebook.shape[-1]} values of the codebook")
    return codebook.reshape(-1)[places]


def _places(
    codes: torch.Tensor, codebook: torch.Tensor, bits: int, shape: Sequence[int], axis: int | None
) -> torch.Tensor:
    """Where in the flat codebook each element is."""
    places = codes_of(codes, bits, shape).long()
    if axis is None:
        return places
    tables = torch.arange(shape[axis], device=codes.device) * codebook.shape[1]
    return places + tables.reshape([-1 if k == axis else 1 for k in range(len(shape))])


@lookup.register_fake
def _(
    codes: torch.Tensor, codebook: torch.Tensor, bits: int, shape: Sequence[int], axis: int | None = None
) -> torch.Tensor:
    _check(codes, codebook, bits, shape, axis)
    return codebook.new_empty(list(shape))


def _check(codes: torch.Tensor, codebook: torch.Tensor, bits: int, shape: Sequence[int], axis: int | None) -> None:
    """Refuse what the operator does not compute.

    Raises:
        ValueError: Names the argument at fault.
    """
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"lookup: bits is {bits}, but lies between 1 and {MAX_BITS}")
    if codes.dtype != torch.uint8 or list(codes.shape) != [packed_size(prod(shape), bits)]:
        found = f"{codes.dtype} {list(codes.shape)}"
        raise ValueError(f"lookup: codes is {found}, not {bits} bits for each of {list(shape)}")
    if axis is not None and not 0 <= axis < len(shape):
        raise ValueError(f"lookup: axis is {axis}, but shape has {len(shape)} axes")
    tables = [] if axis is None else [shape[axis]]
    if list(codebook.shape[:-1]) != tables or codebook.dim() != len(tables) + 1:
        raise ValueError(f"lookup: codebook is {list(codebook.shape)}, not {[*tables, 'values']}".replace("'", ""))
    values = codebook.shape[-1]
    if not 1 <= values <= 1 << bits:
        raise ValueError(f"lookup: codebook has {values} values, but {bits} bits tell 1 to {1 << bits} apart")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    codes, codebook, ctx.bits, ctx.shape, ctx.axis = inputs
    ctx.save_for_backward(codes, codebook)


@torch.library.custom_op(
    "shave::lookup_gradient",
    mutates_args=(),
    schema="(Tensor gradient, Tensor codes, Tensor codebook, int bits, int[] shape, int? axis) -> Tensor",
)
def lookup_gradient(
    gradient: torch.Tensor,
    codes: torch.Tensor,
    codebook: torch.Tensor,
    bits: int,
    shape: Sequence[int],
    axis: int | None,
) -> torch.Tensor:
    """Sums of a gradient over the elements of each value of the codebook; an operator, so that it can be traced."""
    places = _places(codes, codebook, bits, shape, axis).reshape(-1)
    sums = torch.zeros(codebook.numel(), dtype=gradient.dtype, device=gradient.device)
    return sums.index_add_(0, places, gradient.reshape(-1)).reshape(codebook.shape)


@lookup_gradient.register_fake
def _(
    gradient: torch.Tensor,
    codes: torch.Tensor,
    codebook: torch.Tensor,
    bits: int,
    shape: Sequence[int],
    axis: int | None,
) -> torch.Tensor:
    return torch.empty_like(codebook, dtype=gradient.dtype)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    codes, codebook = ctx.saved_tensors
    sums = lookup_gradient(gradient, codes, codebook, ctx.bits, ctx.shape, ctx.axis)
    return None, sums, None, None, None


lookup.register_autograd(_backward, setup_context=_setup_context)
