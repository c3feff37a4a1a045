"""Accuracy of real models after factorization without training: each method, with data and by weights alone.

Run as ``python -m benchmarks.factorize_accuracy [MODEL ...] [--method METHOD ...]``. Finished rows go to the history
``benchmarks/history/factorize_accuracy.jsonl``, and a row that is there is not measured again. ``--show`` prints the
tables in Markdown, ``--chart FILE.svg`` draws them. Calibration data and test data have no sample in common.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import shave
from benchmarks.latency.history import append, machine, revision
from benchmarks.real_models import Array, RealModel, accuracy, real_models
from shave.ir.errors import PipelineError
from shave.ir.program import Program

HISTORY = Path(__file__).parent / "history" / "factorize_accuracy.jsonl"
AMOUNTS = (0.7, 0.55, 0.85)
METHODS = {
    "KWT-1": ("svd", "tensor-train"),
    "ResNet-20": ("auto", "svd", "tucker", "separable", "cp"),
    "Tiny Darknet": ("auto", "svd", "tucker", "separable"),
    "MobileNetV2": ("svd",),
}
SAMPLES = {"Tiny Darknet": 128, "MobileNetV2": 128}
"""Calibration inputs, where 512 would take long."""


def plans(model: str, methods: Sequence[str]) -> Iterator[tuple[str, float, bool]]:
    """Method, share of MACs, and whether data are used."""
    for method in METHODS[model]:
        if methods and method not in methods:
            continue
        for amount in AMOUNTS:
            yield method, amount, True
            yield method, amount, False


def measure(model: RealModel, methods: Sequence[str], done: set[tuple[Any, ...]]) -> None:
    """Every row of a model, by all methods unless some are named, that is not there yet."""
    todo = [plan for plan in plans(model.name, methods) if (model.name, *plan) not in done]
    if not todo:
        return
    inputs, labels = model.test_set()
    batches = model.batches(SAMPLES.get(model.name, 512), 32)
    program = shave.PassManager("simplify").run(model.load())
    before = program.cost()
    context = {"date": time.strftime("%Y-%m-%d"), "revision": revision(), "machine": machine()}
    for method, amount, data in todo:
        text = f"factorize{{method={method} macs={amount}}}"
        start = time.perf_counter()
        try:
            split = shave.PassManager(text).run(program, calibration=batches if data else None)
        except PipelineError as error:
            print(f"{model.name}: {text}: {error}", flush=True)
            continue
        seconds = time.perf_counter() - start
        after = split.cost()
        row = {
            "model": model.name, "method": method, "amount": amount, "data": data,
            "macs": after.macs / before.macs, "params": after.parameters / before.parameters,
            "top1": round(accuracy(lambda batch, p=split: _run(p, batch), inputs, labels, 100), 2),
            "stated": model.accuracy, "samples": len(inputs), "seconds": round(seconds, 1),
        }  # fmt: skip
        append(HISTORY, json.dumps({**context, **row}))
        print(row, flush=True)


def _run(program: Program, batch: Array) -> Array:
    result = program(torch.from_numpy(batch))
    assert isinstance(result, torch.Tensor)
    return result.numpy()


def rows() -> list[dict[str, Any]]:
    """Those of the history, the last of each kind."""
    lines = HISTORY.read_text().splitlines() if HISTORY.exists() else []
    found = [json.loads(line) for line in lines]
    return list({(r["model"], r["method"], r["amount"], r["data"]): r for r in found}.values())


def show(found: Sequence[dict[str, Any]]) -> None:
    """The tables in Markdown."""
    print("| model | method | MACs kept | top-1 with data | by weights alone | whole |")
    print("| --- | --- | --: | --: | --: | --: |")
    known = {(r["model"], r["method"], r["amount"], r["data"]): r for r in found}
    for model, methods in METHODS.items():
        for method in methods:
            for amount in sorted(AMOUNTS, reverse=True):
                pair = [known.get((model, method, amount, data)) for data in (True, False)]
                if any(pair):
                    first = next(row for row in pair if row)
                    cells = [f"{row['top1']:.2f}" if row else "" for row in pair]
                    macs = f"{100 * first['macs']:.0f} %"
                    print(f"| {model} | {method} | {macs} | {cells[0]} | {cells[1]} | {first['stated']:.2f} |")


def chart(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Top-1 against MACs, one panel per model; full lines with data, broken ones by weights alone."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = "#808890"
    colours = {"auto": "#2f81f7", "svd": "#e3803b", "tucker": "#3fa45b", "separable": "#a371f7", "cp": "#d64545",
               "tensor-train": "#808890"}  # fmt: skip
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "factorize", "font.family": "sans-serif"}):
        models = [model for model in METHODS if any(row["model"] == model for row in found)]
        figure = Figure(figsize=(3.1 * len(models), 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        for place, model in enumerate(models, 1):
            axes = figure.add_subplot(1, len(models), place)
            for method in METHODS[model]:
                for data, style in ((True, "-o"), (False, ":o")):
                    points = sorted(
                        (100 * r["macs"], r["top1"])
                        for r in found
                        if (r["model"], r["method"], r["data"]) == (model, method, data)
                    )
                    points.append((100.0, next(r["stated"] for r in found if r["model"] == model)))
                    label = method if data else None
                    axes.plot(*zip(*points, strict=True), style, color=colours[method], label=label, markersize=3)
            axes.set_title(model, color=ink, fontsize=9)
            axes.set_xlabel("% of the MACs", color=ink, fontsize=8)
            axes.tick_params(colors=ink, labelsize=7)
            axes.legend(fontsize=7, labelcolor=ink, frameon=False)
            if place == 1:
                axes.set_ylabel("top-1, % (dotted: by weights alone)", color=ink, fontsize=8)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="names of models; all by default")
    parser.add_argument("--method", action="append", default=[], help="one of several; all by default")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--chart", type=Path)
    options = parser.parse_args()
    if not options.show and options.chart is None:
        done = {(r["model"], r["method"], r["amount"], r["data"]) for r in rows()}
        for model in real_models():
            if model.name in METHODS and (not options.models or model.name in options.models):
                measure(model, options.method, done)
        return
    if options.show:
        show(rows())
    if options.chart is not None:
        chart(rows(), options.chart)


if __name__ == "__main__":
    main()
