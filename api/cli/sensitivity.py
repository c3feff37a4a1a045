"""``shave sensitivity``: how much each layer can spare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from shave.cli.console import print_json, progress, results
from shave.cli.models import load_batches, read_model
from shave.cli.options import Inputs, Json, Model


def sensitivity(
    model: Model,
    calibrate: Annotated[
        Path | None, typer.Option(help="Samples to run (.npz); without them the scan runs on random inputs.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="What tells which units go first, as in prune-channels.")] = "l2",
    only: Annotated[list[str], typer.Option(help="Scope to scan. Repeatable.")] = [],  # noqa: B006
    skip: Annotated[list[str], typer.Option(help="Scope to leave out. Repeatable.")] = [],  # noqa: B006
    svg: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also draw the table.")] = None,
    inputs: Inputs = [],  # noqa: B006 (typer's form of an option that may be repeated)
    json: Json = False,
) -> None:
    """Cut each group of channels by itself, ever more, and tell how far the outputs move.

    The error is the squared one, relative to the variance of the outputs: at 1.00 nothing of them is left.

    Example: `shave sensitivity resnet18.onnx --calibrate images.npz --svg sensitivity.svg`
    """
    from shave.passes.prune.sensitivity import RATIOS, scan
    from shave.passes.prune.sensitivity_chart import draw

    program = read_model(model, inputs)
    batches = load_batches(calibrate, program.signature) if calibrate else None
    with progress() as report:

        def track(groups):  # type: ignore[no-untyped-def]
            for done, group in enumerate(groups):
                report("scan", done, len(groups))
                yield group

        found = scan(program, criterion=criterion, calibration=batches, only=only, skip=skip, track=track)
    if svg is not None:
        svg.write_text(draw(found), encoding="utf-8")
    if json:
        print_json([each.to_json() for each in found])
        return
    table = Table("group", "units", *(f"-{ratio:.0%}" for ratio in RATIOS))
    for each in found:
        near = {min(RATIOS, key=lambda ratio, point=point: abs(ratio - point.ratio)): point for point in each.points}  # type: ignore[misc]
        cells = [f"{near[ratio].error:.2g}" if ratio in near else "" for ratio in RATIOS]
        table.add_row(each.group, str(each.units), *cells)
    results.print(table)
