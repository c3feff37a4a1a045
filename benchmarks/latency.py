"""Latency of un-tuned artifacts beside torch eager and ONNX Runtime, in turns, outputs compared first.

Run as ``python -m benchmarks.latency [--threads N] [--json] [MODEL ...]``; batch 1, float32, random inputs. ResNet-18
has random weights and needs torchvision; the others are the real models of ``../shared/data``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import shave
from benchmarks.real_models import DATA, real_models
from benchmarks.torchvision_import import import_torchvision
from shave.backends.timing import interleave
from shave.ir.program import Program

TOLERANCE = 1e-4


def resnet18() -> Program:
    torch.manual_seed(0)
    module = import_torchvision().models.resnet18(weights=None).eval()
    return shave.trace(module, (torch.zeros(1, 3, 224, 224),))


def models() -> dict[str, Callable[[], Program]]:
    real = {model.name: model.load for model in real_models()} if DATA.is_dir() else {}
    return {"ResNet-18": resnet18, **real}


def measure(name: str, load: Callable[[], Program], threads: int, rounds: int) -> dict[str, Any]:
    """Time one model on all engines."""
    torch.set_num_threads(threads)
    program = load()
    shapes = [[size if isinstance(size, int) else 1 for size in spec.shape] for spec in program.signature.inputs]
    arrays = [np.random.default_rng(0).standard_normal(shape).astype(np.float32) for shape in shapes]
    tensors = [torch.from_numpy(array) for array in arrays]
    artifact = shave.compile(program, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        program.to_onnx(Path(folder) / "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    feeds = dict(zip([value.name for value in session.get_inputs()], arrays, strict=True))
    with torch.no_grad():
        expected = program.module(*tensors)[0].numpy()
    for engine, output in (("shave", artifact(*arrays)), ("ONNX Runtime", session.run(None, feeds)[0])):
        worst = float(np.abs(output - expected).max() / np.abs(expected).max())
        if not worst <= TOLERANCE:
            raise SystemExit(f"{name}: {engine} is off by {worst:.3g}; nothing is timed")

    def eager() -> object:
        with torch.no_grad():
            return program.module(*tensors)

    timings = interleave(
        {"torch eager": eager, "ONNX Runtime": lambda: session.run(None, feeds), "shave": lambda: artifact(*arrays)},
        rounds=rounds,
    )
    rows = {engine: {"minimum_s": t.minimum, "median_s": t.median} for engine, t in timings.items()}
    return {"model": name, "threads": threads, "engines": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names of models; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chosen = {name: load for name, load in models().items() if not options.models or name in options.models}
    rows = [
        measure(name, load, options.threads, options.rounds)
        for name, load in track(chosen.items(), console=Console(stderr=True), transient=True)
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("model", "threads", "torch eager", "ONNX Runtime", "shave", "ONNX Runtime / shave")
    for row in rows:
        cells = [f"{e['minimum_s'] * 1e3:.3f} / {e['median_s'] * 1e3:.3f} ms" for e in row["engines"].values()]
        ours, theirs = row["engines"]["shave"], row["engines"]["ONNX Runtime"]
        ratios = f"{theirs['minimum_s'] / ours['minimum_s']:.2f} / {theirs['median_s'] / ours['median_s']:.2f}"
        table.add_row(row["model"], str(row["threads"]), *cells, ratios)
    console = Console()
    console.print(table)
    console.print("minimum / median of each", highlight=False)


if __name__ == "__main__":
    main()
