"""Accuracy of the six real models, measured through the compiled artifact.

Run as ``python -m benchmarks.accuracy [--json] [MODEL ...]``. The artifact is written to a file and loaded from it, as
a user would; the labels were never used for anything else.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

import shave
from benchmarks.real_models import RealModel, accuracy, real_models


def measure(model: RealModel) -> dict[str, Any]:
    """Compile, save, load, and count what it gets right."""
    inputs, labels = model.test_set()
    program = model.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.shave"
        shave.compile(program).save(path)
        artifact = shave.load(path)
        return {
            "model": model.name,
            "samples": len(inputs),
            "stated": model.accuracy,
            "artifact": round(accuracy(artifact, inputs, labels), 2),
            "source_bytes": model.source.stat().st_size,
            "artifact_bytes": path.stat().st_size,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names of models; all by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = [model for model in real_models() if not options.models or model.name in options.models]
    rows = [measure(model) for model in track(chosen, console=Console(stderr=True), transient=True)]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("model", "samples", "stated top-1", "artifact top-1", "source file", "artifact")
    for row in rows:
        sizes = [f"{row[key] / 1e6:.2f} MB" for key in ("source_bytes", "artifact_bytes")]
        table.add_row(row["model"], str(row["samples"]), f"{row['stated']:.2f}", f"{row['artifact']:.2f}", *sizes)
    Console().print(table)


if __name__ == "__main__":
    main()
