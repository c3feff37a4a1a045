"""TVM's own passes from a PrimFunc to machine code, and what functions with plain pointers need beside them."""

from __future__ import annotations

from typing import Any

from shave.backends.tvm.adapter import PrimFunc, tirx, tvm

PIPELINE = "shave"
"""Under which :func:`tvm.tirx.build` finds the passes."""

_CPU, _DEVICE_0 = 1, 0


@tirx.transform.prim_func_pass(opt_level=0, name="shave.name_device")  # type: ignore[untyped-decorator]
def _name_device(function: PrimFunc, _module: Any, _context: Any) -> PrimFunc:
    """Say where temporary memory comes from, as TVM's calling convention does for functions that have it."""
    body = function.body
    for key, value in (("device_type", _CPU), ("device_id", _DEVICE_0)):
        body = tirx.AttrStmt(tirx.const(0, "int32"), key, value, body)
    return function.with_body(body)


def _passes() -> tuple[Any, Any, Any]:
    lower, on_host, on_device = tirx.get_tir_pipeline("s_tir")
    return lower, lambda: tvm.transform.Sequential([_name_device, on_host()]), on_device


tirx.register_tir_pipeline(PIPELINE, _passes)
