"""The compile driver: model or program in, artifact out."""

from __future__ import annotations

import functools
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shave.backends.artifact import pack, read_artifact
from shave.backends.runtime import Artifact, check_threads
from shave.backends.target import Target
from shave.backends.targets import resolve
from shave.backends.tvm.oracle import cost_oracle, measured_oracle
from shave.ir.errors import UnsupportedError

if TYPE_CHECKING:
    from shave.ir.program import Program
    from shave.passes.base import Pass, Progress


def compile(
    program: Program | str | Path,
    target: str | Target = "cpu",
    *,
    passes: str | Pass | Iterable[str | Pass] | None = "exact",
    threads: int | None = None,
    calibration: Iterable[Any] | None = None,
    tuned: str | Path | None = None,
    figures: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Rewrite a program, generate code for it, and make it an artifact that can be called and saved.

    Lowering happens in this process, since it needs the weights; code is generated in worker processes, which survive
    neither LLVM's fatal errors nor TVM's crashes, while this process does. The workers start first and import TVM while
    the passes run. Code of kernels that this user compiled before comes from a cache on disk.

    Args:
        program: A program, or the path of an ``.onnx`` or ``.pt2`` file.
        target: What to compile for; see :func:`shave.backends.targets.resolve`.
        passes: What to run first, as :class:`shave.passes.manager.PassManager` takes it; None for nothing.
        threads: Threads for one call of the artifact, for which schedules are chosen too; see
            :func:`shave.backends.runtime.default_threads`. By default schedules are for all cores of the target.
        calibration: Input tuples for passes that need data.
        tuned: A database of :func:`shave.tune`: kernels for which it holds a faster schedule use that, and passes that
            weigh methods against each other take what it compares. All else, and what was measured on another
            machine, is by defaults and estimates; so is the whole of a program that was no faster in the end.
        figures: Costs and measurements to record in the manifest, as JSON data.
        progress: Called as ``progress(what, done, total)``; by default a bar on standard error, if a person watches it.

    Returns:
        The artifact. For a target that is not this machine it can be saved, not called.

    Raises:
        TargetError: No target has that name.
        ReadError: The file or the database cannot be read.
        PipelineError: The passes do not fit.
        UnsupportedError: The program holds something that cannot be compiled for the target.
        CompileError: Code generation failed.
        ValueError: ``threads`` is out of range.
    """
    target = resolve(target) if isinstance(target, str) else target
    if threads is not None:
        check_threads(threads)
        target = replace(target, cores=threads)
    if target.kind == "cuda":
        raise UnsupportedError(f"target {target.name}: code for CUDA cannot be generated yet; compile for a CPU")

    from shave.backends.tvm.worker import workers

    workers.start()
    database = None
    if tuned is not None:
        from shave.backends.tvm.tune.database import Database

        database = Database.read(Path(tuned))
    with nullcontext(progress) if progress is not None else _bar() as progress:
        if isinstance(program, (str, Path)):
            from shave.ir.reader import read

            progress("reading", 0, None)
            program = read(program)
        _warn_of_nan(program)
        from shave.passes.manager import PassManager

        manager = PassManager([] if passes is None else passes)
        oracle, schedules = cost_oracle(target), None
        if database is not None:
            from shave.backends.tvm.tune.database import Database, Tuned
            from shave.backends.tvm.tune.records import program_key

            if not database.helps(program_key(program, manager), target, target.cores):
                database = Database()
            oracle, schedules = measured_oracle(database, target), Tuned(database, target.cores)
        if passes is not None:
            program = manager.run(program, target=target, oracle=oracle, calibration=calibration, progress=progress)

        from shave.backends.tvm.build import build
        from shave.backends.tvm.cache import default_cache
        from shave.backends.tvm.lower import lower

        progress("lowering", 0, None)
        lowering = lower(program, target, schedules)
        if schedules is not None:
            counts = {"kernels": len(schedules.kernels), "decided": len(schedules.decided)}
            figures = {**(figures or {}), "tuning": counts}
        advance = functools.partial(progress, "generating code")
        library = build(lowering.module, target, workers.generate, default_cache(), advance)
        with tempfile.TemporaryFile(prefix="shave-") as stream:
            pack(
                stream,
                library=library,
                weights=lowering.weights,
                encoded=lowering.encoded,
                signature=lowering.signature,
                target=target,
                plan=lowering.plan,
                report=[_timeless(entry.to_json()) for entry in program.report],
                figures=figures,
                kernels=lowering.costs,
            )
            stream.flush()
            return Artifact(read_artifact(stream), threads)


def _warn_of_nan(program: Program) -> None:
    """Name the weights that hold NaN or infinity: every result they touch is lost."""
    import torch

    bad = [
        name for name, weight in program.weights() if weight.is_floating_point() and not torch.isfinite(weight).all()
    ]
    if bad:
        names = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        warnings.warn(f"weights hold NaN or infinity: {names}", RuntimeWarning, stacklevel=3)


def _timeless(entry: dict[str, Any]) -> dict[str, Any]:
    """A pass's report without the times it took, so that equal compilations give equal bytes."""
    return {key: value for key, value in entry.items() if key != "seconds"}


@contextmanager
def _bar() -> Iterator[Progress]:
    """Show what is being done on standard error, if a person watches it."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def report(what: str, done: int, total: int | None) -> None:
            description = what if total is None else f"{what} {done}/{total}"
            bar.update(task, description=description, completed=done, total=total)

        yield report
