"""``shave inspect``: what is in a file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from shave.cli.console import bytes_text, count_text, print_json, results
from shave.cli.models import read_model
from shave.cli.options import AnyModel, Inputs, Json


def inspect(
    file: AnyModel,
    inputs: Inputs = [],  # noqa: B006 (typer's form of an option that may be repeated)
    graph: Annotated[bool, typer.Option("--graph", help="Print every node.")] = False,
    json: Json = False,
) -> None:
    """Show inputs, outputs, cost and operators of a model, or what an artifact was made from.

    Example: `shave inspect resnet18.onnx`
    """
    facts = _artifact(file) if file.suffix == ".shave" else _model(file, inputs, graph)
    if json:
        print_json(facts)
        return
    text = facts.pop("graph", None)
    operators = facts.pop("operators", None)
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), "\n".join(map(str, value)) if isinstance(value, list) else str(value))
    results.print(table)
    if operators:
        counts = Table("operator", "calls", "multiply-accumulates")
        for name, entry in operators.items():
            counts.add_row(name, str(entry["calls"]), count_text(entry["macs"]) if entry["macs"] else "")
        results.print(counts)
    if text:
        results.print(text)


def _model(path: Path, inputs: list[str], graph: bool) -> dict[str, Any]:
    from shave.ir.ops import op_name

    program = read_model(path, inputs)
    cost = program.cost()
    calls = Counter(op_name(node) for node in program.calls)
    macs: Counter[str] = Counter()
    for node in program.calls:
        macs[op_name(node)] += cost.macs_by_node.get(node.name, 0)
    return {
        "file": str(path),
        "inputs": list(map(str, program.signature.inputs)),
        "outputs": list(map(str, program.signature.outputs)),
        "parameters": count_text(cost.parameters),
        "multiply_accumulates": count_text(cost.macs),
        "weights": bytes_text(cost.weight_bytes),
        "peak_activations": bytes_text(cost.peak_activation_bytes),
        "operators": {
            name: {"calls": count, "macs": macs[name]}
            for name, count in sorted(calls.items(), key=lambda item: (-macs[item[0]], -item[1], item[0]))
        },
        **({"graph": str(program)} if graph else {}),
    }


def _artifact(path: Path) -> dict[str, Any]:
    from shave.backends.artifact import open_artifact

    contents = open_artifact(path)
    manifest = contents.manifest
    return {
        "file": str(path),
        "size": bytes_text(path.stat().st_size),
        "inputs": list(map(str, manifest.signature.inputs)),
        "outputs": list(map(str, manifest.signature.outputs)),
        "target": f"{manifest.platform.target} ({manifest.platform.cpu}, {manifest.platform.triple})",
        "needs": ", ".join(manifest.platform.features),
        "members": [f"{m.name}  {bytes_text(m.size)}  sha256 {m.sha256}" for m in manifest.members],
        "passes": [entry.get("text", "") for entry in manifest.report],
        "figures": [f"{name}: {value}" for name, value in manifest.figures.items()],
        "made_with": [f"{name} {number}" for name, number in manifest.versions.items()],
    }
