"""``shave compare``: do two files compute the same."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from shave.cli.console import print_json, results
from shave.cli.models import load_arrays, open_runner, random_inputs
from shave.cli.options import AnyModel, Data, Json


def compare(
    reference: AnyModel,
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="An .onnx, .pt2 or .shave file to judge by it.")],
    data: Data = None,
    samples: Annotated[int, typer.Option(min=1, help="Number of random inputs where no --input is given.")] = 4,
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Fail (exit 1) if a relative difference is above this.")
    ] = None,
    json: Json = False,
) -> None:
    """Run two models or artifacts on the same inputs and measure how far their outputs are apart.

    Example: `shave compare resnet18.onnx resnet18.shave --tolerance 1e-4`
    """
    from shave.passes.compare import compare as compare_outputs

    signature, call = open_runner(reference)
    _, other_call = open_runner(other)
    batches = (
        [load_arrays(data, signature)] if data else [random_inputs(signature, seed=seed) for seed in range(samples)]
    )
    names = [spec.name for spec in signature.outputs]
    differences = compare_outputs(lambda *a: call(a), lambda *a: other_call(a), batches, names)
    within = tolerance is None or all(d.max_rel <= tolerance for d in differences.values())
    if json:
        print_json({"outputs": {n: d.to_json() for n, d in differences.items()}, "within_tolerance": within})
    else:
        table = Table("output", "max abs", "max rel", "SQNR", "cosine", "top-1 agrees")
        for name, d in differences.items():
            top1 = "" if d.top1 is None else f"{100 * d.top1:.2f} %"
            table.add_row(name, f"{d.max_abs:.3g}", f"{d.max_rel:.3g}", f"{d.sqnr_db:.1f} dB", f"{d.cosine:.6f}", top1)
        results.print(table)
    if not within:
        raise typer.Exit(1)
