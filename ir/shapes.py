"""Symbolic sizes: torch's symbols on the inside, the user's names on the outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from shave.ir.signature import Dim


def shape_names(shape: Sequence[Any], names: Mapping[str, str]) -> tuple[Dim, ...]:
    """Write sizes with the names that the user knows; ``names`` maps torch's symbols (``s77``) to them."""
    return tuple(size_name(size, names) for size in shape)


def size_name(size: Any, names: Mapping[str, str]) -> Dim:
    """Write one size: an int stays, a symbol or expression becomes text."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    import sympy

    expression = size.node.expr
    renamed = {symbol: sympy.Symbol(names.get(str(symbol), str(symbol))) for symbol in expression.free_symbols}
    replaced = expression.subs(renamed)
    return int(replaced) if replaced.is_Integer else str(replaced)


def same_shape(left: Sequence[Any], right: Sequence[Any]) -> bool:
    """Whether two shapes are equal for every value of their symbols; asks without adding a guard."""
    return len(left) == len(right) and all(map(same_size, left, right))


def same_size(left: Any, right: Any) -> bool:
    """Whether two sizes are equal for every value of their symbols."""
    return bool(_expression(left) == _expression(right))


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


def hint(size: Any, known: Mapping[str, int] | None = None) -> int:
    """A concrete number for a size.

    ``known`` gives the values of torch's symbols; without, it is that of the traced example, and 1 where a size depends
    on data.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    expression = size.node.expr
    if known and any(str(symbol) in known for symbol in expression.free_symbols):
        values = {
            symbol: known.get(str(symbol), size.node.shape_env.backed_var_to_val.get(symbol, 1))
            for symbol in expression.free_symbols
        }
        return int(expression.subs(values))
    traced = size.node.hint
    return 1 if traced is None else int(traced)


def hints(shape: Sequence[Any], known: Mapping[str, int] | None = None) -> tuple[int, ...]:
    """Concrete numbers for a shape; see :func:`hint`."""
    return tuple(hint(size, known) for size in shape)
