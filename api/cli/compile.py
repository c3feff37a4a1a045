"""``shave compile``: a model file in, an artifact out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shave.cli.console import bytes_text, count_text, diagnostics, print_json, progress, results
from shave.cli.models import load_batches, read_model
from shave.cli.options import Inputs, Json, Model, Pipeline, Target


def compile(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact to write (.shave).")],
    target: Target = "cpu",
    pipeline: Pipeline = "",
    calibrate: Annotated[
        Path | None,
        typer.Option(help="Samples for passes that need data: .npz by input name, first axis is the sample."),
    ] = None,
    tuned: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="What `shave tune` measured.")] = None,
    inputs: Inputs = [],  # noqa: B006 (typer's form of an option that may be repeated)
    exact: Annotated[
        bool, typer.Option("--exact/--no-exact", help="Run the passes that change nothing beyond rounding.")
    ] = True,
    json: Json = False,
) -> None:
    """Compile a model to one deployable file.

    Example: `shave compile resnet18.onnx --target cpu -o resnet18.shave`
    """
    from shave.backends.compiler import compile as compile_program
    from shave.manager import PassManager

    if not output.parent.is_dir():
        raise typer.BadParameter(f"the folder {output.parent} does not exist", param_hint="--output")
    with progress() as report:
        report(f"read {model.name}", 0, 1)
        manager = PassManager(pipeline)
        program = read_model(model, inputs)
        report(f"read {model.name}", 1, 1)
        if manager.passes:
            batches = load_batches(calibrate, program.signature) if calibrate else None
            program = manager.run(program, target=target, tuned=tuned, calibration=batches, progress=report)
        artifact = compile_program(program, target, passes="exact" if exact else None, tuned=tuned, progress=report)
        artifact.save(output)
    cost = program.cost()
    size = output.stat().st_size
    if json:
        print_json(
            {
                "artifact": str(output),
                "bytes": size,
                "signature": artifact.signature.to_json(),
                "target": artifact.manifest.platform.target,
                "macs": cost.macs,
                "parameters": cost.parameters,
                "passes": [entry["text"] for entry in artifact.manifest.report],
                "tuning": artifact.manifest.figures.get("tuning"),
            }
        )
        return
    results.print(
        f"{output}: {bytes_text(size)} for {artifact.manifest.platform.target}, "
        f"{count_text(cost.macs)} multiply-accumulates, {count_text(cost.parameters)} parameters"
    )
    if tuned is not None:
        counts = artifact.manifest.figures["tuning"]
        diagnostics.print(f"{tuned} decided {counts['decided']} of {counts['kernels']} kernels")
    diagnostics.print(f"next: shave run {output} --input X.npz, or: shave bench {output}")
