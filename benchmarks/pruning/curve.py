"""Accuracy against multiply-accumulates of the ImageNet models, before and after reconstruction, without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import shave
from benchmarks.pruning.data import judge
from benchmarks.real_models import real_models

SHARES = (0.9, 0.8, 0.7, 0.6)
MODELS = ("Tiny Darknet", "MobileNetV2")
PIPELINE = "prune-channels{{macs={share} criterion=fluctuation ranking=auto repair={repair}}}"
REPAIRS = ("none", "reconstruct")
CALIBRATION = 128
"""Images that the pass is given; more take longer."""


def rows(name: str, pipeline: str, shares: tuple[float, ...] = SHARES) -> Iterator[dict[str, Any]]:
    """One for each share and repair; accuracy on the 1000-image subset.

    Args:
        name: One of :data:`MODELS`.
        pipeline: What prunes, with ``{share}`` and ``{repair}`` in it.
        shares: Of the multiply-accumulates, to keep.
    """
    model = next(model for model in real_models() if model.name == name)
    whole, accuracy = model.load(), judge(model, 50)
    batches, full = model.batches(CALIBRATION, 16), whole.cost().macs
    for share in shares:
        for repair in REPAIRS:
            program = shave.PassManager(pipeline.format(share=share, repair=repair)).run(whole, calibration=batches)
            yield {
                "model": name,
                "pipeline": pipeline,
                "share": share,
                "repair": repair,
                "calibration": CALIBRATION,
                "macs_kept": round(program.cost().macs / full, 4),
                "accuracy": round(accuracy(program), 1),
                "whole": model.accuracy,
            }


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Top-1 against multiply-accumulates as SVG: full lines with layers reconstructed, dotted ones without repair."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink = "#808890"
    colours = dict(zip(MODELS, ("#2f81f7", "#e3803b"), strict=True))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "curve", "font.family": "sans-serif"}):
        figure = Figure(figsize=(5, 3.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for model, colour in colours.items():
            for repair, style in (("reconstruct", "-o"), ("none", ":o")):
                found = [row for row in rows if (row["model"], row["repair"]) == (model, repair)]
                points = sorted((100 * row["macs_kept"], row["accuracy"]) for row in found)
                points += [(100.0, row["whole"]) for row in found[:1]]
                axes.plot(*zip(*points, strict=True), style, color=colour, label=f"{model}, {repair}", markersize=3)
        axes.set_xlabel("% of the multiply-adds", color=ink, fontsize=8)
        axes.set_ylabel("top-1, %", color=ink, fontsize=8)
        axes.tick_params(colors=ink, labelsize=7)
        axes.legend(fontsize=7, labelcolor=ink, frameon=False)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
