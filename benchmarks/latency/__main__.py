"""Latency at batch 1 of shave beside torch, torch.compile, ONNX Runtime, OpenVINO and ncnn, in turns, in one run.

Every engine runs in a process of its own that is stopped while others have their turn. Outputs are compared with torch
eager first; who is off, or cannot run a model, is named and not timed. Each row is kept as a line of JSON as soon as it
is finished, so Ctrl-C loses only the one at work.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.latency import chart, history, report
from benchmarks.latency.engines import ENGINES
from benchmarks.latency.measure import Prepared, measure
from benchmarks.latency.models import Model, models
from benchmarks.latency.precisions import PRECISIONS
from shave.backends import host
from shave.backends.tvm import roofline

WIDTH = 200
"""Columns of the table where standard output is no terminal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or show what was measured; 130 if a person stopped it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    lines: list[str] = []
    interrupted = False
    if options.show:
        lines = _kept(parser, options)
    else:
        chosen = _chosen(parser, options)
        try:
            _measure_all(chosen, options, lines)
        except KeyboardInterrupt:
            interrupted = True
    if lines:
        _show(lines, options)
    return 130 if interrupted else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--models", type=_names, metavar="A,B", help="all by default; --list names them")
    parser.add_argument(
        "--engines", type=_names, metavar="A,B", help="default: all of the precision, shave tuned only with --tuned"
    )
    parser.add_argument("--threads", type=_numbers, default=[1, 2], metavar="N,M", help="default: 1,2")
    parser.add_argument("--precision", type=_names, default=["fp32"], metavar="P", help=", ".join(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=30, help="turns of each engine (default: 30)")
    parser.add_argument(
        "--tolerance", type=float, help="largest relative difference to accept (default: the precision's)"
    )
    parser.add_argument("--limit", type=float, default=300, help="seconds for an engine to get ready (default: 300)")
    parser.add_argument("--tuned", type=Path, metavar="DB", help="database of `shave tune` for the engine shave tuned")
    parser.add_argument(
        "--history", type=Path, default=history.DEFAULT, metavar="FILE", help="where rows are kept, as JSON lines"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing, show the latest rows of --history")
    parser.add_argument("--list", action="store_true", help="name the models and engines")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="rows as JSON lines on standard output")
    form.add_argument("--markdown", action="store_true", help="the README's table on standard output")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="also draw the ratios to the best peer")
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Model]:
    """The models to measure; complete the options, and end the program where they name what is not there."""
    known = {model.name: model for model in models()}
    if options.list:
        Console().print("\n".join([*known, "", *ENGINES]), highlight=False, markup=False)
        parser.exit()
    options.models = options.models or list(known)
    for what, names, allowed in (
        ("model", options.models, known),
        ("engine", options.engines or (), ENGINES),
        ("precision", options.precision, PRECISIONS),
    ):
        if missing := [name for name in names if name not in allowed]:
            parser.error(f"no {what} is named {missing[0]!r}; there are: {', '.join(allowed)}")
    if "shave tuned" in (options.engines or ()) and options.tuned is None:
        parser.error("the engine shave tuned needs --tuned DB")
    most = len(host.usable_processors())
    if bad := [number for number in options.threads if not 1 <= number <= most]:
        parser.error(f"--threads {bad[0]}: this process may use 1 to {most}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    return [known[name] for name in options.models]


def _measure_all(chosen: Sequence[Model], options: argparse.Namespace, lines: list[str]) -> None:
    """Append a line for each model, precision and number of threads to ``lines`` and to the history."""
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        total = len(chosen) * len(options.precision) * len(options.threads)
        task = bar.add_task("the machine's limits", total=total)

        def tell(what: str) -> None:
            bar.update(task, description=escape(what))

        limits = [roofline.measure(threads) for threads in options.threads]
        for model in chosen:
            for precision in options.precision:
                tell(f"{model.name}: load")
                engines = options.engines or [
                    name for name in PRECISIONS[precision].engines if name != "shave tuned" or options.tuned
                ]
                tolerance = options.tolerance or PRECISIONS[precision].tolerance
                run = history.context(options.rounds, tolerance)
                try:
                    prepared = Prepared(model, precision)
                except ImportError as error:
                    console.print(f"{model.name} is left out: {error}", highlight=False, markup=False)
                    bar.advance(task, len(limits))
                    continue
                with prepared:
                    for limit in limits:
                        row = measure(
                            model.name,
                            precision,
                            prepared,
                            limit,
                            engines,
                            rounds=options.rounds,
                            tolerance=tolerance,
                            limit=options.limit,
                            tuned=options.tuned,
                            progress=tell,
                        )
                        lines.append(history.line(row, limit, run))
                        history.append(options.history, lines[-1])
                        bar.advance(task)


def _kept(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """The lines of the history that the options do not leave out, the latest of each kind."""
    try:
        rows = history.latest(options.history.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        parser.error(f"cannot show {options.history}: {error}")
    return [
        line
        for line, row in rows
        if row.threads in options.threads
        and row.precision in options.precision
        and (options.models is None or row.model in options.models)
    ]


def _show(lines: Sequence[str], options: argparse.Namespace) -> None:
    rows = [row for _, row in history.latest(lines)]
    if options.chart:
        chart.draw(rows, options.chart)
    if options.json:
        print("\n".join(lines))
    elif options.markdown:
        print(report.markdown(rows, json.loads(lines[-1])["versions"]))
    else:
        Console(width=None if sys.stdout.isatty() else WIDTH).print(report.table(rows))


if __name__ == "__main__":
    sys.exit(main())
