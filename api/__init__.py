"""shave: a compiler that makes neural networks smaller and faster, and proves each rewrite.

Public names are loaded on first use, so that ``import shave`` is quick and pulls in neither torch nor tvm.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shave.ir.program import Program as Program

__version__ = "0.1.0"

_HOMES = {
    "Program": "shave.ir.program",
    "trace": "shave.ir.from_torch",
    "from_exported": "shave.ir.from_torch",
    "read": "shave.ir.reader",
    "PassManager": "shave.manager",
    "compile": "shave.backends.compiler",
    "load": "shave.backends.runtime",
    "tune": "shave.backends.tvm.tune.tuner",
}

__all__ = ["PassManager", "Program", "__version__", "compile", "from_exported", "load", "read", "trace", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'shave' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
