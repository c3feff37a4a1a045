"""The one door to Apache TVM: names that moved between releases, environment and version checks, targets.

Every other module takes TVM's names from here, so that an upgrade is one diff and one test run. Importing this module
imports TVM, after two things that TVM leaves to its user are set right:

* the number of worker threads: TVM takes half of the processors on x86 unless ``TVM_NUM_THREADS`` says otherwise;
* the pair of ``apache-tvm`` and ``apache-tvm-ffi``: the C++ interface between the two is not stable, nothing else
  compares them, and a wrong pair imports, compiles and then crashes (``save_json``, ``tensorize``, tuning).
"""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import Any

from shave.backends.target import Target

TESTED_FFI = {"0.27.0.post1": ("0.1.14.post0", "0.1.14.post1")}


def check_versions(tvm_version: str, ffi_version: str) -> None:
    """Refuse a pair of TVM and TVM-FFI that was not tested together.

    Raises:
        ImportError: The pair is not known to work; the message says what to install.
    """
    if tvm_version not in TESTED_FFI:
        raise ImportError(f"apache-tvm {tvm_version} is not supported: install apache-tvm=={' or '.join(TESTED_FFI)}")
    if ffi_version not in TESTED_FFI[tvm_version]:
        raise ImportError(
            f"apache-tvm-ffi {ffi_version} does not fit apache-tvm {tvm_version}: "
            f"install apache-tvm-ffi=={TESTED_FFI[tvm_version][-1]}"
        )


def default_threads(environment: dict[str, str]) -> str:
    """Value for ``TVM_NUM_THREADS``: what the user asked for, else the processors this process may use."""
    asked = environment.get("TVM_NUM_THREADS") or environment.get("OMP_NUM_THREADS")
    if asked is not None and asked.isdigit() and int(asked) > 0:
        return asked
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return str(usable or 1)


check_versions(version("apache-tvm"), version("apache-tvm-ffi"))
os.environ["TVM_NUM_THREADS"] = default_threads(dict(os.environ))

import tvm  # noqa: E402  (the environment comes first)
from tvm import relax, te, tirx, topi  # noqa: E402
from tvm.script.ir_builder import IRBuilder  # noqa: E402
from tvm.tirx.script import builder as T  # noqa: E402

PrimFunc = tirx.PrimFunc
Expr = tvm.ir.Expr

__all__ = [
    "Expr",
    "IRBuilder",
    "PrimFunc",
    "T",
    "check_versions",
    "default_threads",
    "relax",
    "te",
    "tirx",
    "topi",
    "tvm",
    "tvm_target",
]


def tvm_target(target: Target) -> Any:
    """TVM's own description of a CPU target (CUDA targets need a host and are made by their backend)."""
    return tvm.target.Target(
        {
            "kind": "llvm",
            "mcpu": target.cpu,
            "mtriple": target.triple,
            "mattr": list(target.attributes),
            "num-cores": target.cores,
        }
    )
