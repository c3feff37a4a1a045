"""Accuracy of the real models in 8-bit integers: in torch, through the compiled artifact, and where the two disagree.

Run as ``python -m benchmarks.quantization [MODEL ...] [-p PIPELINE] [--limit N] [--no-artifact]``. Calibrated with at
most 300 samples that no accuracy is measured on, without labels; rows go to
``benchmarks/history/quantization.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shave
from benchmarks.latency.history import append, machine, revision
from benchmarks.real_models import Array, RealModel, real_models
from shave.ir.program import Program

HISTORY = Path(__file__).parent / "history" / "quantization.jsonl"
SAMPLES = 300


def measure(model: RealModel, pipeline: str, limit: int | None, artifact: bool) -> dict[str, Any]:
    """One row."""
    inputs, labels = (each[:limit] for each in model.test_set())
    program = model.load()
    start = time.perf_counter()
    small = shave.PassManager(pipeline, check=False).run(program, calibration=model.batches(SAMPLES, 20))
    seconds = time.perf_counter() - start
    simulated = _classes(lambda batch: _run(small, batch), inputs)
    row: dict[str, Any] = {
        "model": model.name, "pipeline": pipeline, "samples": len(inputs), "stated": model.accuracy,
        "simulated": round(100 * float((simulated == labels).mean()), 2), "seconds": round(seconds, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "weight_share": round(small.cost().weight_bytes / (4 * program.cost().parameters), 3),
    }  # fmt: skip
    if artifact:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.shave"
            shave.compile(small).save(path)
            compiled = _classes(shave.load(path), inputs)
            row["artifact_bytes"] = path.stat().st_size
        row["artifact"] = round(100 * float((compiled == labels).mean()), 2)
        row["disagree"] = round(100 * float((compiled != simulated).mean()), 2)
    return row


def _classes(run: Any, inputs: Array, batch: int = 20) -> Array:
    return np.concatenate(
        [
            np.asarray(run(np.ascontiguousarray(inputs[start : start + batch]))).argmax(-1)
            for start in range(0, len(inputs), batch)
        ]
    )


def _run(program: Program, batch: Array) -> Array:
    result = program(torch.from_numpy(batch))
    assert isinstance(result, torch.Tensor)
    return result.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names of models; all by default")
    parser.add_argument("-p", "--pipeline", default="quantize")
    parser.add_argument("--limit", type=int, help="test samples to use; all by default")
    parser.add_argument("--no-artifact", action="store_true", help="only in torch")
    options = parser.parse_args()
    context = {"date": time.strftime("%Y-%m-%d"), "revision": revision(), "machine": machine()}
    for model in real_models():
        if not options.models or model.name in options.models:
            row = measure(model, options.pipeline, options.limit, not options.no_artifact)
            append(HISTORY, json.dumps({**context, **row}))
            print(row, flush=True)


if __name__ == "__main__":
    main()
