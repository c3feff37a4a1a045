"""Names of functions that tell what they compute: equal code has equal names in all libraries.

A running number would give the same kernel another name in each model; then neither could generated code be kept for
the next compilation, nor could the profiles of two artifacts be compared.
"""

from __future__ import annotations

import hashlib
from typing import Any

from shave.backends.tvm.adapter import PrimFunc, relax, tvm

_DIGITS = 8


def name_by_content(module: Any) -> tuple[Any, dict[str, str]]:
    """Rename every PrimFunc of a module to its own name, without the number behind it, and a digest of its code.

    Returns:
        The module with calls of the new names, and the new name of each old one.
    """
    renamed: dict[Any, Any] = {}
    functions: dict[Any, Any] = {}
    first: dict[str, Any] = {}
    for variable, function in sorted(module.functions.items(), key=lambda item: item[0].name_hint):
        if not isinstance(function, PrimFunc):
            continue
        bare = function.without_attr("global_symbol")
        digest = hashlib.sha256(tvm.ir.save_json(bare).encode()).hexdigest()[:_DIGITS]
        name = f"{variable.name_hint.rstrip('0123456789').rstrip('_')}_{digest}"
        if name not in first:
            first[name] = tvm.ir.GlobalVar(name)
            relax.expr._update_type(first[name], variable.ty)
            functions[first[name]] = bare
        renamed[variable] = first[name]
    renamer = _Renamer(renamed)
    for variable, function in module.functions.items():
        if variable not in renamed:
            functions[variable] = renamer.visit_expr(function)
    names = {old.name_hint: new.name_hint for old, new in renamed.items()}
    return tvm.IRModule(functions, attrs=module.attrs), names


@relax.expr_functor.mutator
class _Renamer(relax.PyExprMutator):  # type: ignore[misc]
    def __init__(self, renamed: dict[Any, Any]) -> None:
        super().__init__()
        self._renamed = renamed

    def visit_global_var_(self, op: Any) -> Any:
        """Give the new name of a function."""
        return self._renamed.get(op, op)
