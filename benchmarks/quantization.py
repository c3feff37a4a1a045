"""Accuracy of the real models in 8-bit integers: in torch, through the compiled artifact, and where the two disagree.

Run as ``python -m benchmarks.quantization [MODEL ...] [-p PIPELINE] [--limit N] [--no-artifact] [--exact]``. Calibrated
with at most 300 samples that no accuracy is measured on, without labels; rows go to
``benchmarks/history/quantization.jsonl``. ``--exact`` also computes the quantized program without rounding between
quantize nodes, in float64, and tells how far torch and the artifact are from that.
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
from torch import fx

import shave
from benchmarks.latency.history import append, machine, revision
from benchmarks.real_models import Array, RealModel, real_models
from shave.ir.program import Program

HISTORY = Path(__file__).parent / "history" / "quantization.jsonl"
SAMPLES = 300


def measure(model: RealModel, pipeline: str, limit: int | None, artifact: bool, exact: bool) -> dict[str, Any]:
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
            row["file_share"] = round(path.stat().st_size / (4 * program.cost().parameters), 3)
        row["artifact"] = round(100 * float((compiled == labels).mean()), 2)
        row["disagree"] = round(100 * float((compiled != simulated).mean()), 2)
        if exact:
            truth = _classes(lambda batch: _InDoubles(small.module).run(torch.from_numpy(batch))[0].numpy(), inputs)
            row["simulated_off_exact"] = round(100 * float((simulated != truth).mean()), 2)
            row["artifact_off_exact"] = round(100 * float((compiled != truth).mean()), 2)
    return row


class _InDoubles(fx.Interpreter):
    """Computes in float64 whatever a program computes in float32."""

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _wide(super().get_attr(target, args, kwargs))

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _wide(super().placeholder(target, args, kwargs))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        name = str(target)
        if not name.startswith("quantized_decomposed"):
            return super().call_function(target, args, kwargs)
        if ".quantize_per_tensor" in name:
            x, scale, zero, low, high, dtype = args
            return (x / scale).round().add(zero).clamp(low, high).to(dtype)
        if ".dequantize_per_tensor" in name:
            return (args[0].double() - args[2]) * args[1]
        # Weights: the operator wants its scales as they were.
        narrow = [a.float() if isinstance(a, torch.Tensor) and a.dtype == torch.float64 else a for a in args]
        return _wide(super().call_function(target, tuple(narrow), kwargs))

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            return super().run_node(n)


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value


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
    parser.add_argument("--exact", action="store_true", help="also in float64")
    options = parser.parse_args()
    context = {"date": time.strftime("%Y-%m-%d"), "revision": revision(), "machine": machine()}
    for model in real_models():
        if not options.models or model.name in options.models:
            row = measure(model, options.pipeline, options.limit, not options.no_artifact, options.exact)
            append(HISTORY, json.dumps({**context, **row}))
            print(row, flush=True)


if __name__ == "__main__":
    main()
