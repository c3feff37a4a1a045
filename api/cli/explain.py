"""``shave explain``: what passes did to a node, and why not more."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from shave.cli.console import print_json, progress, results
from shave.cli.models import load_batches, read_model
from shave.cli.options import Inputs, Json, Model, Pipeline, Target


def explain(
    model: Model,
    node: Annotated[
        str | None,
        typer.Argument(help="A node, module, ONNX node, weight or operator, or re:EXPRESSION; without it all of them."),
    ] = None,
    pipeline: Pipeline = "exact",
    calibrate: Annotated[Path | None, typer.Option(help="Samples for passes that need data (.npz).")] = None,
    target: Target = "cpu",
    tuned: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="What `shave tune` measured, for passes that ask.")
    ] = None,
    inputs: Inputs = [],  # noqa: B006 (typer's form of an option that may be repeated)
    json: Json = False,
) -> None:
    """Run passes and tell for each node that came into question: applied, or skipped and why.

    Example: `shave explain resnet18.onnx -p fold-batchnorm layer1.0.bn1`
    """
    from shave.manager import PassManager
    from shave.passes.explain import explain as look_up

    manager = PassManager(pipeline)
    program = read_model(model, inputs)
    batches = load_batches(calibrate, program.signature) if calibrate else None
    with progress() as report:
        program = manager.run(program, target=target, tuned=tuned, calibration=batches, progress=report)
    if node is None:
        found = [(report.text, report.entries) for report in program.report]
    else:
        found = [(each.text, each.entries) for each in look_up(program.report, node)]
    if json:
        print_json([{"pass": text, "entries": [entry.to_json() for entry in entries]} for text, entries in found])
        return
    table = Table("pass", "node", "known as", "verdict", "what or why")
    for text, entries in found:
        for entry in entries:
            known = next((name for name in entry.names if name != entry.node), "")
            verdict = Text(entry.verdict, style="green" if entry.verdict == "applied" else "yellow")
            table.add_row(text, entry.node, known, verdict, entry.text)
        if not entries:
            table.add_row(text, "", "", "", "no node came into question")
    results.print(table)
