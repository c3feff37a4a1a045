"""From a lowered Relax module to a shared library: code generation and linking."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shave.backends import host
from shave.backends.target import Target
from shave.backends.tvm.adapter import relax, tvm, tvm_target
from shave.ir.errors import CompileError


def build(module: Any, target: Target) -> bytes:
    """Generate code for a Relax module that is legalised, fused and scheduled, and link it.

    What remains to be done for ``main`` is TVM's own: tensors are given places (activations share them), shapes become
    arithmetic, and the function becomes bytecode of the virtual machine.

    Args:
        module: An ``IRModule`` with ``main(*inputs, weights)``; every call in it is a ``call_tir`` or a reshape.
        target: What to generate code for.

    Returns:
        The shared library, kernels and bytecode together; it holds no weights.

    Raises:
        CompileError: There is no linker, or it failed.
    """
    passes = relax.transform
    pipeline = tvm.transform.Sequential(
        [
            passes.RewriteDataflowReshape(),
            passes.ToNonDataflow(),
            passes.RemovePurityChecking(),
            passes.CallTIRRewrite(),
            passes.StaticPlanBlockMemory(),
            passes.LowerAllocTensor(),
            passes.KillAfterLastUse(),
            passes.LowerRuntimeBuiltin(),
            passes.ComputePrimValue(),
            passes.VMShapeLower(),
            passes.AttachGlobalSymbol(),
        ]
    )
    executable = relax.build(module, target=tvm_target(target), relax_pipeline=pipeline)
    with tempfile.TemporaryDirectory(prefix="shave-") as folder:
        path = Path(folder) / "library.so"
        executable.export_library(
            str(path),
            workspace_dir=folder,
            fcompile=lambda output, objects, **_: link(Path(output), [Path(o) for o in objects], target),
        )
        return path.read_bytes()


def link(output: Path, objects: list[Path], target: Target) -> None:
    """Link objects into a shared library, with the first linker for that target that is installed.

    Raises:
        CompileError: No linker is installed, or the first one failed.
    """
    for command in _linkers(target):
        if shutil.which(command[0]) is None:
            continue
        arguments = [*command, "-shared", "-s", "-o", str(output), *map(str, objects)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise CompileError(f"{shlex.join(command)} cannot link for {target.triple}: {reason}")
        return
    raise CompileError(
        f"no linker for {target.triple}: install gcc, clang or binutils for it, or `pip install ziglang`"
    )


def _linkers(target: Target) -> Iterator[list[str]]:
    """Commands to try, in order. Of a bare linker nothing more is asked than to join objects that need only libm."""
    machine = target.architecture
    if machine == host.architecture():
        if os.environ.get("CC"):
            yield shlex.split(os.environ["CC"])
        yield from (["cc"], ["gcc"], ["clang"], ["ld"], ["ld.lld"])
    else:
        yield from ([f"{machine}-linux-gnu-{name}"] for name in ("gcc", "clang", "ld"))
        yield ["ld.lld"]
    if find_spec("ziglang") is not None:
        yield [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu.2.28"]
