"""``shave bisect``: which pass breaks the outputs, and at which node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shave.cli.console import diagnostics, print_json, progress, results
from shave.cli.models import load_arrays, load_batches, random_inputs, read_model
from shave.cli.options import Data, Json, Model, Pipeline

if TYPE_CHECKING:
    from shave.passes.bisect import Finding


def bisect(
    model: Model,
    pipeline: Pipeline,
    data: Data = None,
    calibrate: Annotated[Path | None, typer.Option(help="Samples for passes that need data (.npz).")] = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Relative difference of an output that counts as broken.")] = (
        1e-4
    ),
    json: Json = False,
) -> None:
    """Find the first pass behind which the outputs move, and the first node that does (exit 1 if there is one).

    Example: `shave bisect model.onnx -p "simplify, quantize" --tolerance 0.05`
    """
    import torch

    from shave.passes.bisect import bisect as search
    from shave.passes.bisect import outputs_within

    program = read_model(model)
    arrays = load_arrays(data, program.signature) if data else random_inputs(program.signature)
    inputs = [torch.from_numpy(array) for array in arrays]
    batches = load_batches(calibrate, program.signature) if calibrate else None
    with progress() as report:
        holds = outputs_within(program, [inputs], max_rel=tolerance)
        finding = search(program, pipeline, holds, calibration=batches, progress=report)
    if json:
        print_json(None if finding is None else _plain(finding))
    elif finding is None:
        results.print(f"outputs stay within {tolerance:g} behind all passes")
    else:
        results.print(str(finding))
    if finding is not None:
        diagnostics.print("to see the pass at work: shave explain, with the node's name")
        raise typer.Exit(1)


def _plain(finding: Finding) -> dict[str, object]:
    node = finding.node
    return {
        "pass": str(finding.step),
        "node": None if node is None else {"op": node.op, "names": node.names, "difference": node.difference.to_json()},
    }
