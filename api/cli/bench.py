"""``shave bench``: how fast is it, beside others, in one run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from shave.cli.console import milliseconds, print_json, progress, results
from shave.cli.models import load_arrays, open_runner, random_inputs
from shave.cli.options import Artifact, Data, Json, Threads
from shave.ir.errors import ShaveError, UnsupportedError


class DisagreementError(ShaveError):
    """Two files that are to be timed against each other give different outputs."""


def bench(
    file: Artifact,
    against: Annotated[
        list[Path],
        typer.Option(
            help="Another .shave, an .onnx (in ONNX Runtime) or a .pt2 (in torch), timed in turns. Repeatable."
        ),
    ] = [],  # noqa: B006 (typer's form of an option that may be repeated)
    data: Data = None,
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each competitor.")] = 30,
    tolerance: Annotated[float, typer.Option(min=0, help="Largest relative difference of outputs to accept.")] = 1e-3,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time each kernel beside the least that this machine needs for it.")
    ] = False,
    json: Json = False,
) -> None:
    """Time an artifact, alone or against others in turns (A B A B ...), after comparing their outputs.

    Example: `shave bench resnet18.shave --against resnet18.onnx --threads 1`
    """
    if profile:
        if against or file.suffix != ".shave":
            raise typer.BadParameter("--profile looks into one .shave file and times it against nothing else")
        _profile(file, data, threads, rounds, json=json)
        return
    from shave.backends.timing import interleave

    signature, call = open_runner(file, threads)
    arrays = load_arrays(data, signature) if data else random_inputs(signature)
    expected = call(arrays)
    callables: dict[str, Callable[[], object]] = {file.name: lambda: call(arrays)}
    with progress() as report:
        for position, other in enumerate(against):
            report("compare outputs", position, len(against))
            other_call = _competitor(other, threads)
            _check(file, other, expected, other_call(arrays), tolerance)
            name = other.name if other.name not in callables else str(other)
            callables[name] = lambda run=other_call: run(arrays)  # type: ignore[misc]
        report("measure", 0, None)
        timings = interleave(callables, rounds=rounds)
    first = timings[file.name]
    if json:
        rows = {
            name: {"minimum_s": t.minimum, "median_s": t.median, "samples_s": t.samples} for name, t in timings.items()
        }
        print_json({"threads": threads, "rounds": rounds, "results": rows})
        return
    table = Table("file", "minimum", "median", f"times {file.name}")
    for name, timing in timings.items():
        table.add_row(
            name, milliseconds(timing.minimum), milliseconds(timing.median), f"{timing.median / first.median:.2f}"
        )
    results.print(table)


def _profile(file: Path, data: Path | None, threads: int | None, rounds: int, *, json: bool) -> None:
    from shave.backends.runtime import load
    from shave.backends.tvm.roofline import measure
    from shave.cli.profile import entries, show

    artifact = load(file, threads=threads)
    arrays = load_arrays(data, artifact.signature) if data else random_inputs(artifact.signature)
    with progress() as report:
        report("measure the machine", 0, None)
        roofline = measure(artifact.threads) if artifact.manifest.kernels else None
        report("measure the kernels", 0, None)
        times = artifact.profile(*arrays, rounds=rounds)
    costs = {cost.name: cost for cost in artifact.manifest.kernels}
    show(entries(times, costs, roofline), roofline, json=json)


def _competitor(path: Path, threads: int | None) -> Callable[[Any], Any]:
    """How to run a competitor on its own best-known engine."""
    if path.suffix != ".onnx":
        if path.suffix == ".pt2" and threads is not None:
            import torch

            torch.set_num_threads(threads)
        return open_runner(path, threads)[1]
    try:
        import onnxruntime
    except ImportError as error:
        raise UnsupportedError(f"{path}: timing an .onnx file needs ONNX Runtime; pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda arrays: tuple(session.run(None, dict(zip(names, arrays, strict=True))))


def _check(file: Path, other: Path, expected: Any, got: Any, tolerance: float) -> None:
    """Refuse to time what computes something else."""
    if len(expected) != len(got):
        raise DisagreementError(f"{other} gives {len(got)} outputs, {file} gives {len(expected)}")
    for position, (want, have) in enumerate(zip(expected, got, strict=True)):
        if want.shape != have.shape:
            raise DisagreementError(f"output {position}: {other} gives {have.shape}, {file} gives {want.shape}")
        scale = float(np.abs(want.astype(np.float64)).max(initial=0)) or 1.0
        worst = float(np.abs(want.astype(np.float64) - have.astype(np.float64)).max(initial=0)) / scale
        if not worst <= tolerance:
            raise DisagreementError(
                f"output {position} of {other} is off by {worst:.3g} of the largest value; "
                "if that is intended, give --tolerance"
            )
