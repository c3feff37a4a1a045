"""``shave tune``: measure a model on this machine, for ``shave compile --tuned``."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from shave.cli.console import diagnostics, milliseconds, print_json, results
from shave.cli.models import load_batches, read_model
from shave.cli.options import Inputs, Json, Pipeline, Target, Threads

if TYPE_CHECKING:
    from shave.backends.tvm.tune.tuning import Tuning

_INTERRUPTED = 130


def tune(
    files: Annotated[
        list[Path], typer.Argument(metavar="MODEL", help="An .onnx or .pt2 file; with --merge, databases.")
    ],
    target: Target = "cpu",
    minutes: Annotated[float, typer.Option(min=0.01, help="Time to spend on measurements.")] = 10,
    database: Annotated[
        Path, typer.Option(metavar="FILE.jsonl", help="Where measurements are kept; what is there is not repeated.")
    ] = Path("tuned.jsonl"),
    pipeline: Pipeline = "",
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Samples for passes that need data: .npz by input name, first axis is the sample."),
    ] = None,
    inputs: Inputs = [],  # noqa: B006 (typer's form of an option that may be repeated)
    threads: Threads = None,
    merge: Annotated[bool, typer.Option("--merge", help="Join databases into the one of --output instead.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="With --merge: the database to write.")] = None,
    json: Json = False,
) -> None:
    """Find the fastest ways to compute a model on this machine: methods of convolutions, schedules of kernels.

    Example: `shave tune resnet18.onnx --minutes 5 --database tuned.jsonl`
    """
    if merge != (output is not None):
        raise typer.BadParameter("--merge and --output go together", param_hint="--merge")
    if output is not None:
        _merge(files, output, json)
        return
    if len(files) != 1:
        raise typer.BadParameter("give one model; --merge takes several databases", param_hint="MODEL")
    from shave.backends.tvm.tune.tuner import tune as tune_program
    from shave.manager import PassManager

    program = read_model(files[0], inputs)
    manager = PassManager(pipeline)
    batches = load_batches(calibrate, program.signature) if calibrate else None
    if manager.passes:
        program = manager.run(program, calibration=batches)
    with _bar(60 * minutes) as progress:
        tuning = tune_program(program, target, minutes=minutes, database=database, threads=threads, progress=progress)
    _report(tuning, database, json)
    if tuning.interrupted:
        raise typer.Exit(_INTERRUPTED)


def _merge(files: list[Path], output: Path, json: bool) -> None:
    from shave.backends.tvm.tune.database import Database

    joined = Database(record for file in files for record in Database.read(file))
    joined.write(output)
    if json:
        print_json({"database": str(output), "records": len(joined)})
    else:
        results.print(f"{output}: {len(joined)} measurements")


@contextmanager
def _bar(seconds: float) -> Iterator[Callable[[Tuning], None]]:
    """Show the time, what was measured and the gain so far, if a person watches."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=diagnostics, transient=True, disable=not diagnostics.is_terminal) as bars:
        task = bars.add_task("preparing", total=seconds)

        def report(tuning: Tuning) -> None:
            total = tuning.measured + tuning.waiting
            text = f"{tuning.measured}/{total} candidates, {_gain(tuning):.1%} of kernel time saved"
            bars.update(task, description=text, completed=tuning.elapsed)

        yield report


def _report(tuning: Tuning, database: Path, json: bool) -> None:
    if json:
        print_json(_data(tuning, database))
        return
    for each in tuning.comparisons:
        first, *others = sorted(each.seconds.items(), key=lambda item: item[1])
        rest = ", ".join(f"{name} {milliseconds(seconds)}" for name, seconds in others)
        results.print(f"{_text(json_module.loads(each.problem))}: {first[0]} {milliseconds(first[1])}, {rest}")
    better = [entry for entry in tuning.kernels if entry.schedule is not None]
    table = Table("kernel", "calls", "default", "tuned", "schedule")
    for entry in better:
        fields = ", ".join(f"{name}={value}" for name, value in vars(entry.schedule).items())
        tuned = milliseconds(entry.seconds * entry.ratio)
        table.add_row(entry.kernel.name, str(entry.calls), milliseconds(entry.seconds), tuned, fields)
    if better:
        results.print(table)
    results.print(
        f"{database}: {len(better)} of {len(tuning.kernels)} kernels faster than the default, "
        f"together {milliseconds(tuning.default_seconds)} -> {milliseconds(tuning.seconds)}; "
        f"{tuning.measured} candidates measured, {tuning.waiting} left"
    )
    if tuning.outcome is not None:
        before, after = tuning.outcome.default_seconds, tuning.outcome.seconds
        verdict = "" if after <= before else "; it is compiled without, since that is faster"
        results.print(f"the whole model: {milliseconds(before)} -> {milliseconds(after)}{verdict}")
    if tuning.skipped:
        diagnostics.print(
            "nothing was measured: sizes or steps of the model are only known when it is called; "
            "--input NAME=SHAPE fixes sizes of an .onnx file"
        )


def _text(problem: dict[str, Any]) -> str:
    """What is computed in several ways."""
    channels = f"{problem['in_channels']} to {problem['out_channels']} channels"
    return f"convolution of {problem['height']}x{problem['width']}, {channels}"


def _data(tuning: Tuning, database: Path) -> dict[str, Any]:
    from shave.backends.tvm.schedules import plain

    return {
        "database": str(database),
        "seconds": tuning.elapsed,
        "interrupted": tuning.interrupted,
        "measured": tuning.measured,
        "waiting": tuning.waiting,
        "skipped": tuning.skipped,
        "comparisons": [{"problem": json_module.loads(c.problem), "seconds": c.seconds} for c in tuning.comparisons],
        "whole": tuning.outcome and {"default_s": tuning.outcome.default_seconds, "tuned_s": tuning.outcome.seconds},
        "default_s": tuning.default_seconds,
        "tuned_s": tuning.seconds,
        "kernels": [
            {
                "kernel": entry.kernel.name,
                "shape": plain(entry.kernel.shape),
                "calls": entry.calls,
                "default_s": entry.seconds,
                "ratio": entry.ratio,
                "schedule": None if entry.schedule is None else plain(entry.schedule),
            }
            for entry in tuning.kernels
        ],
    }


def _gain(tuning: Tuning) -> float:
    """Share of the kernels' time that is saved."""
    return 1 - tuning.seconds / tuning.default_seconds if tuning.default_seconds else 0.0
