"""Which weights of a lowered program can be stored smaller than the kernels read them: those that are decoded.

When a dequantize or lookup of weights is folded, the folded weight remembers what it was decoded from. Moves of its
axes are followed; whatever else is computed from it is an ordinary weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from shave.backends.encoding import Array, Encoded, Encoding
from shave.backends.packing import Packing
from shave.ir.bits import MAX_BITS, pack
from shave.ir.ops import Trait, argument, has_trait, op_name
from shave.ir.program import Program

_KEY = "small form"
_RESHAPES = (
    "view",
    "reshape",
    "_unsafe_view",
    "unsqueeze",
    "squeeze",
    "flatten",
    "unflatten",
    "contiguous",
    "clone",
    "alias",
)
_LEVELS = 1 << MAX_BITS
_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


def small_form(node: fx.Node) -> Encoded | None:
    """What a weight was decoded from, if it is known."""
    form: Encoded | None = node.meta.get(_KEY)
    return form


def is_decoding(node: fx.Node) -> bool:
    """Whether a call makes a weight from its stored form."""
    name = op_name(node)
    return has_trait(node, Trait.OPAQUE) and (name == "shave.lookup" or ".dequantize" in name)


def keep_small_form(program: Program, node: fx.Node, folded: fx.Node) -> None:
    """Let the weight that a call is folded to remember what it is decoded from."""
    if is_decoding(node):
        form = _lookup(program, node) if op_name(node) == "shave.lookup" else _affine(program, node)
    else:
        form = _moved(node)
    if form is not None:
        folded.meta[_KEY] = form


def _lookup(program: Program, node: fx.Node) -> Encoded | None:
    codes, codebook, bits, shape, axis = (argument(node, n) for n in ("codes", "codebook", "bits", "shape", "axis"))
    values = program.weight(codebook).detach()
    if values.dtype != torch.float32:
        return None
    table = values.numpy()
    lead = [1] * len(shape) if axis is None else _along(axis, table.shape[0], len(shape))
    parts = {"codes": program.weight(codes).numpy(), "codebook": table.reshape(*lead, table.shape[-1])}
    return Encoded(Encoding("lookup", bits, tuple(shape)), parts)


def _affine(program: Program, node: fx.Node) -> Encoded | None:
    tensor = program.weight(argument(node, "input"))
    if tensor.dtype not in _INTEGERS or not tensor.numel():
        return None
    numbers = tensor.numpy()
    low, high = int(numbers.min()), int(numbers.max())
    if high - low >= _LEVELS:
        return None
    names = [parameter.name for parameter in node.target._schema.arguments]  # type: ignore[union-attr]
    scale, zero = (
        _array(program, argument(node, name if name in names else f"{name}s")) for name in ("scale", "zero_point")
    )
    view: tuple[int, ...] = numbers.shape
    lead: Sequence[int] = [1] * len(view)
    if "group_size" in names:
        view = numbers.reshape(*view[:-1], -1, int(argument(node, "group_size"))).shape
        lead = [*view[:-1], 1]
    elif "axis" in names:
        axis = int(argument(node, "axis")) % len(view)
        lead = _along(axis, view[axis], len(view))
    bits = max(1, (high - low).bit_length())
    parts = {
        "codes": pack((numbers.astype(np.int64) - low).astype(np.uint8), bits),
        "scale": _spread(scale.astype(np.float32), lead),
        "zero": _spread((zero.astype(np.int64) - low).astype(np.int32), lead),
    }
    return Encoded(Encoding("affine", bits, view), parts).then(Packing().reshape(*numbers.shape))


def _moved(node: fx.Node) -> Encoded | None:
    """Follow a change of shape or of the order of axes."""
    inputs = node.all_input_nodes
    form = small_form(inputs[0]) if len(inputs) == 1 else None
    if form is None:
        return None
    given, made = inputs[0].meta["val"], node.meta["val"]
    name = op_name(node).removeprefix("aten.")
    rank = given.dim()
    if given.dtype != made.dtype:
        return None
    if name == "t":
        return form.then(Packing().transpose(*reversed(range(rank))))
    if name == "permute":
        return form.then(Packing().transpose(*(d % rank for d in argument(node, "dims"))))
    if name == "transpose":
        order = list(range(rank))
        first, second = (argument(node, d) % rank for d in ("dim0", "dim1"))
        order[first], order[second] = second, first
        return form.then(Packing().transpose(*order))
    return form.then(Packing().reshape(*made.shape)) if name in _RESHAPES else None


def _along(axis: int, size: int, rank: int) -> Sequence[int]:
    return [size if k == axis else 1 for k in range(rank)]


def _spread(values: Array, shape: Sequence[int]) -> Array:
    """One value for all, or one for each place."""
    return np.full(shape, values.reshape(())) if values.size == 1 else values.reshape(shape)


def _array(program: Program, value: Any) -> Array:
    """A parameter, given as a number, as a weight, or not at all (a zero)."""
    if isinstance(value, fx.Node):
        return program.weight(value).detach().numpy()
    return np.asarray(0 if value is None else value)
