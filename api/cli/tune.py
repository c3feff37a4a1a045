"""``shave tune``: measure schedules on this machine, for ``shave compile --tuned``."""

from __future__ import annotations

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
    from shave.backends.tvm.tune.tuner import Tuning

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
    """Find faster schedules for the kernels of a model, by measuring them on this machine.

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
    if tuning.skipped:
        diagnostics.print(
            f"{len(tuning.skipped)} kernels have sizes that only a call knows and were left out; "
            "--input NAME=SHAPE fixes those of an .onnx file"
        )


def _data(tuning: Tuning, database: Path) -> dict[str, Any]:
    from shave.backends.tvm.schedules import plain

    return {
        "database": str(database),
        "seconds": tuning.elapsed,
        "interrupted": tuning.interrupted,
        "measured": tuning.measured,
        "waiting": tuning.waiting,
        "skipped": tuning.skipped,
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
