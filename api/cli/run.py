"""``shave run``: inputs in, outputs out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from shave.cli.console import diagnostics, print_json, results
from shave.cli.models import load_arrays, open_runner, random_inputs
from shave.cli.options import AnyModel, Data, Json, Threads
from shave.ir.files import atomic_write


def run(
    file: AnyModel,
    data: Data = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the outputs (.npz).")] = None,
    threads: Threads = None,
    json: Json = False,
) -> None:
    """Run an artifact (or a model, in torch) on inputs from a file.

    Example: `shave run resnet18.shave --input photo.npz -o logits.npz`
    """
    signature, call = open_runner(file, threads)
    if data is None:
        diagnostics.print("no --input given: the inputs are random")
    arrays = load_arrays(data, signature) if data else random_inputs(signature)
    outputs = dict(zip([spec.name for spec in signature.outputs], call(arrays), strict=True))
    if output is not None:
        with atomic_write(output) as stream:
            np.savez(stream, allow_pickle=False, **outputs)
    if json:
        print_json({name: {"shape": a.shape, "dtype": a.dtype.name, **_summary(a)} for name, a in outputs.items()})
        return
    table = Table("output", "dtype", "shape", "min", "mean", "max", "largest at")
    for name, array in outputs.items():
        summary = _summary(array)
        figures = [f"{summary[key]:.5g}" if key in summary else "" for key in ("min", "mean", "max")]
        table.add_row(name, array.dtype.name, str(list(array.shape)), *figures, str(summary.get("largest_at", "")))
    results.print(table)


def _summary(array: np.ndarray[Any, Any]) -> dict[str, object]:
    """What can be told of an output at a glance; the places of the largest elements of up to eight rows."""
    if array.size == 0 or array.dtype.kind not in "fiub":
        return {}
    values = array.astype(np.float64)
    summary: dict[str, object] = {"min": values.min().item(), "mean": values.mean().item(), "max": values.max().item()}
    if array.ndim >= 1:
        summary["largest_at"] = values.reshape(-1, array.shape[-1])[:8].argmax(axis=-1).tolist()
    return summary
