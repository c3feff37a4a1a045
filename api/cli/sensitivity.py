"""``shave sensitivity``: how much each layer can spare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.table import Table

from shave.cli.console import print_json, progress, results
from shave.cli.models import load_batches, read_model
from shave.cli.options import Inputs, Json, Model

if TYPE_CHECKING:
    from shave.passes.prune.sensitivity import Sensitivity
    from shave.passes.quantize.sensitivity import Damage

T = TypeVar("T")


def sensitivity(
    model: Model,
    calibrate: Annotated[
        Path | None, typer.Option(help="Samples to run (.npz); without them a pruning scan runs on random inputs.")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(help="Scan what integers cost instead, with this pass: quantize, quantize{calibrate=minmax} ..."),
    ] = None,
    criterion: Annotated[str, typer.Option(help="What tells which units go first, as in prune-channels.")] = "l2",
    only: Annotated[list[str], typer.Option(help="Scope to scan, when pruning. Repeatable.")] = [],  # noqa: B006
    skip: Annotated[list[str], typer.Option(help="Scope to leave out, when pruning. Repeatable.")] = [],  # noqa: B006
    svg: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also draw the table.")] = None,
    inputs: Inputs = [],  # noqa: B006 (typer's form of an option that may be repeated)
    json: Json = False,
) -> None:
    """Tell which layers hurt: cut each group of channels by itself, ever more, or compute in integers.

    When pruning, the error is the squared one, relative to the variance of the outputs: at 1.00 nothing of them is
    left. With --quantize, the columns are signal to noise in dB: of the layer by itself, and of the outputs with it
    alone in integers, with all but it, and with all but it and those above it.

    Example: `shave sensitivity resnet18.onnx --calibrate images.npz --svg sensitivity.svg`

    Example: `shave sensitivity resnet18.onnx --calibrate images.npz --quantize quantize`
    """
    program = read_model(model, inputs)
    batches = load_batches(calibrate, program.signature) if calibrate else None
    if quantize is not None and (batches is None or only or skip):
        raise typer.BadParameter(
            "it needs --calibrate" if batches is None else f"give scopes to the pass: {quantize}{{skip=[...]}}",
            param_hint="--quantize",
        )
    with progress() as report:

        def track(items: Sequence[T]) -> Iterable[T]:
            for done, item in enumerate(items):
                report("scan", done, len(items))
                yield item

        if quantize is None:
            from shave.passes.prune.sensitivity import scan
            from shave.passes.prune.sensitivity_chart import draw

            groups = scan(program, criterion=criterion, calibration=batches, only=only, skip=skip, track=track)
            table, picture, data = _of_groups(groups), draw(groups), [each.to_json() for each in groups]
        else:
            from shave.passes.manager import PassManager
            from shave.passes.quantize.sensitivity import scan as scan_products
            from shave.passes.quantize.sensitivity_chart import draw as draw_products

            assert batches is not None
            program = PassManager("simplify").run(program)
            products = scan_products(program, quantize, calibration=batches, track=track)
            table, picture = _of_products(products), draw_products(products)
            data = [each.to_json() for each in products]
    if svg is not None:
        svg.write_text(picture, encoding="utf-8")
    if json:
        print_json(data)
    else:
        results.print(table)


def _of_groups(scan: Sequence[Sensitivity]) -> Table:
    from shave.passes.prune.sensitivity import RATIOS

    table = Table("group", "units", *(f"-{ratio:.0%}" for ratio in RATIOS))
    for each in scan:
        near = {min(RATIOS, key=lambda ratio, point=point: abs(ratio - point.ratio)): point for point in each.points}  # type: ignore[misc]
        cells = [f"{near[ratio].error:.2g}" if ratio in near else "" for ratio in RATIOS]
        table.add_row(each.group, str(each.units), *cells)
    return table


def _of_products(scan: Sequence[Damage]) -> Table:
    from shave.passes.quantize.sensitivity_chart import COLUMNS, label

    table = Table("product", *COLUMNS)
    for each in scan:
        table.add_row(label(each), *(f"{getattr(each, attribute):.1f}" for attribute in COLUMNS.values()))
    return table
