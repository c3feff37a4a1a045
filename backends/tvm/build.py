"""From a lowered Relax module to a shared library: code generation, kernel by kernel, and linking.

A module falls into jobs that know nothing of one another: each PrimFunc becomes an object of its own, and the Relax
functions become the bytecode of the virtual machine. Functions find each other by their names when the objects are
linked. So jobs may run anywhere and in any order, and their results may be kept (:mod:`shave.backends.tvm.cache`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from shave.backends import host
from shave.backends.manifest import installed
from shave.backends.target import Target
from shave.backends.tvm.adapter import PrimFunc, relax, tirx, tvm, tvm_target
from shave.backends.tvm.cache import Cache
from shave.backends.tvm.pipeline import PIPELINE
from shave.ir.errors import CompileError

CODEGEN = 1
"""Version of what this file does to a function; another number makes all kept code stale."""

_SIZE = struct.Struct("<Q")


@dataclass(frozen=True)
class Job:
    """One piece of a library.

    Attributes:
        name: What it computes, for messages.
        code: An ``IRModule`` as TVM's JSON: one PrimFunc, or Relax functions and the signatures of what they call.
        target: What to generate code for.
    """

    name: str
    code: str
    target: Target

    @property
    def key(self) -> str:
        """A digest of everything that decides the result."""
        target = [self.target.cpu, self.target.triple, self.target.attributes, self.target.cores]
        versions = [CODEGEN, installed("apache-tvm"), installed("apache-tvm-ffi")]
        text = json.dumps([versions, target, self.code])
        return hashlib.sha256(text.encode()).hexdigest()


Generate = Callable[[Sequence[Job]], Iterator[tuple[int, bytes]]]
"""Does jobs in any order; gives the number of each with what :func:`generate` makes of it."""

Advance = Callable[[int, int], None]
"""Called with the number of jobs done and their total."""


def generate_here(jobs: Sequence[Job]) -> Iterator[tuple[int, bytes]]:
    """Do jobs in this process, one after the other."""
    return ((number, generate(job)) for number, job in enumerate(jobs))


def build(
    module: Any,
    target: Target,
    generate: Generate = generate_here,
    cache: Cache | None = None,
    advance: Advance = lambda done, total: None,
) -> bytes:
    """Generate code for a Relax module that is legalised, fused and scheduled, and link it.

    Args:
        module: An ``IRModule`` with ``main(*inputs, weights)``; every call in it is a ``call_tir`` or a reshape.
        target: What to generate code for.
        generate: Who generates the code.
        cache: Where results are looked up and kept; nowhere by default.
        advance: Told of the progress.

    Returns:
        The shared library, kernels and bytecode together; it holds no weights.

    Raises:
        CompileError: Code generation failed, there is no linker, or it failed.
    """
    cache = Cache(None) if cache is None else cache
    jobs = split(module, target)
    keys = [job.key for job in jobs]
    made = {number: kept for number, key in enumerate(keys) if (kept := cache.get(key)) is not None}
    advance(len(made), len(jobs))
    missing = [number for number in range(len(jobs)) if number not in made]
    for position, content in generate([jobs[number] for number in missing]):
        number = missing[position]
        made[number] = content
        cache.put(keys[number], content)
        advance(len(made), len(jobs))
    if missing:
        cache.trim()
    with tempfile.TemporaryDirectory(prefix="shave-") as folder:
        objects: list[Path] = []
        for number in range(len(jobs)):
            for content in _unpacked(made[number]):
                objects.append(Path(folder) / f"{len(objects)}.o")
                objects[-1].write_bytes(content)
        path = Path(folder) / "library.so"
        link(path, objects, target)
        return path.read_bytes()


def split(module: Any, target: Target) -> list[Job]:
    """The jobs of a module: first its Relax functions, if any, then the PrimFuncs, the longest first."""
    kernels = []
    program = {}
    for variable, function in module.functions.items():
        if isinstance(function, PrimFunc):
            named = function.with_attr("global_symbol", variable.name_hint)
            code = tvm.ir.save_json(tvm.IRModule({variable: named}))
            kernels.append(Job(variable.name_hint, code, target))
            program[variable] = _signature(named)
        else:
            program[variable] = function
    kernels.sort(key=lambda job: (-len(job.code), job.name))
    if len(kernels) == len(program):
        return kernels  # a static program has no Relax functions
    code = tvm.ir.save_json(tvm.IRModule(program, attrs=module.attrs))
    return [Job("the program", code, target), *kernels]


def _signature(function: Any) -> Any:
    """A function without its body, which callers do not look at."""
    return function.with_body(tirx.Evaluate(tirx.const(0, "int32")))


def generate(job: Job) -> bytes:
    """Do one job: machine code of a kernel, or bytecode.

    What remains to be done for Relax functions is TVM's own: tensors are given places (activations share them), shapes
    become arithmetic, and the functions become bytecode of the virtual machine.

    Returns:
        Objects, each behind its length.
    """
    module = tvm.ir.load_json(job.code)
    target = tvm_target(job.target)
    with tempfile.TemporaryDirectory(prefix="shave-") as folder:
        if all(isinstance(function, PrimFunc) for function in module.functions.values()):
            path = Path(folder) / "kernel.o"
            tvm.tirx.build(module, target=target, pipeline=PIPELINE).write_to_file(str(path))
            return _packed([path])
        objects: list[Path] = []
        _bytecode(module, target).export_library(
            str(Path(folder) / "library.so"),
            workspace_dir=folder,
            fcompile=lambda _output, files, **_options: objects.extend(map(Path, files)),
        )
        return _packed(objects)


def _bytecode(module: Any, target: Any) -> Any:
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
    known = {variable.name_hint for variable in module.functions}
    with target:
        module = pipeline(module)
    builder = relax.ExecBuilder()
    rest = relax.vm_build._vmcodegen(builder, module)
    # Arithmetic on shapes, which the passes above wrote. Machine code of the kernels comes from other jobs.
    own = {v: f for v, f in rest.functions.items() if isinstance(f, PrimFunc) and v.name_hint not in known}
    code = tvm.tirx.build(tvm.IRModule(own, attrs=rest.attrs), target=target)
    return relax.vm_build._ffi_api.VMLink(builder, target, code, [], {})


def _packed(paths: Sequence[Path]) -> bytes:
    contents = [path.read_bytes() for path in paths]
    return b"".join(_SIZE.pack(len(content)) + content for content in contents)


def _unpacked(content: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(content):
        (size,) = _SIZE.unpack_from(content, at)
        at += _SIZE.size
        yield content[at : at + size]
        at += size


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
