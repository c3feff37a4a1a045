"""Accuracy and file size of real models with weights as codes, measured through the compiled artifact.

Run as ``python -m benchmarks.codebook [MODEL ...]``: each scheme with 300 samples of data and, with ``--weights``, by
weights alone. Artifacts are written to files and loaded from them. Finished rows go to the history file
``benchmarks/history/codebook.jsonl``, and a row that is there is not measured again; ``--show`` prints the tables in
Markdown. Calibration data and test data have no sample in common.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import shave
from benchmarks.latency.history import append, machine, revision
from benchmarks.real_models import RealModel, accuracy, real_models

HISTORY = Path(__file__).parent / "history" / "codebook.jsonl"
MODELS = ("ResNet-8", "ResNet-20", "KWT-1")
SAMPLES = 300
FLOAT = "float32"
SETTINGS = {
    FLOAT: "",
    **{f"{bits} bits": f"codebook{{bits={bits}}}" for bits in (8, 6, 4, 3, 2)},
    "ternary": "codebook{scheme=ternary tables=channel}",
    "binary": "codebook{scheme=binary tables=channel}",
}


def measure(model: RealModel, weights: bool, done: set[tuple[Any, ...]]) -> None:
    """Every row of a model that is not there yet."""
    plans = [(setting, data) for data in ([True, False] if weights else [True]) for setting in SETTINGS]
    todo = [plan for plan in plans if (model.name, *plan) not in done and (plan[1] or plan[0] != FLOAT)]
    if not todo:
        return
    inputs, labels = model.test_set()
    batches = model.batches(SAMPLES, 50)
    program = shave.PassManager("simplify").run(model.load())
    context = {"date": time.strftime("%Y-%m-%d"), "revision": revision(), "machine": machine()}
    for setting, data in todo:
        start = time.process_time()
        small = shave.PassManager(SETTINGS[setting]).run(program, calibration=batches if data else None)
        seconds = time.process_time() - start
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.shave"
            shave.compile(small).save(path)
            artifact = shave.load(path)
            row = {
                "model": model.name, "setting": setting, "data": data,
                "top1": round(accuracy(artifact, inputs, labels), 2),
                "stated": model.accuracy, "samples": len(inputs),
                "weight_bytes": small.cost().weight_bytes,
                "stored_bytes": next(m.size for m in artifact.manifest.members if m.name.startswith("weights")),
                "artifact_bytes": path.stat().st_size,
                "seconds": round(seconds, 1),
            }  # fmt: skip
        append(HISTORY, json.dumps({**context, **row}))
        print(row, flush=True)


def rows() -> dict[tuple[Any, ...], dict[str, Any]]:
    """Those of the history, the last of each kind."""
    lines = HISTORY.read_text().splitlines() if HISTORY.exists() else []
    return {(row["model"], row["setting"], row["data"]): row for row in map(json.loads, lines)}


def show(found: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    """The table in Markdown."""
    print("| model | weights | top-1 with data | by weights alone | weights in the file, KB | share of float32 |")
    print("| --- | --- | --: | --: | --: | --: |")
    for model in MODELS:
        whole = found.get((model, FLOAT, True))
        for setting in SETTINGS:
            row, other = (found.get((model, setting, data)) for data in (True, False))
            some = row or other
            if some is None or whole is None:
                continue
            cells = ["" if each is None else f"{each['top1']:.2f}" for each in (row, other)]
            share = some["stored_bytes"] / whole["stored_bytes"]
            print(f"| {model} | {setting} | {' | '.join(cells)} | {some['stored_bytes'] / 1e3:.1f} | {share:.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names of models; all by default")
    parser.add_argument("--weights", action="store_true", help="by weights alone too")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    if options.show:
        show(rows())
        return
    for model in real_models():
        if model.name in MODELS and (not options.models or model.name in options.models):
            measure(model, options.weights, set(rows()))


if __name__ == "__main__":
    main()
