"""The rows as a picture for the README: how much faster than the best peer, per model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.latency.measure import Row
from benchmarks.latency.report import groups, mean

INK = "#808890"
"""Text and lines: it has enough contrast on white and on black, and the background stays clear."""
COLOURS = ("#2f81f7", "#e3803b", "#3fa45b", "#a371f7")
BAR = 0.38
ENGINE = "shave"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write an SVG: a bar for each model and number of threads, a line where both are equally fast.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: No row has a ratio to show.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    series = {
        f"{threads} thread{'s' if threads > 1 else ''}" + (f", {precision}" if precision != "fp32" else ""): {
            **{row.model: ratio for row in group if (ratio := row.ratio("minimum", ENGINE)) is not None},
            "geometric mean": mean(group, "minimum", ENGINE),
        }
        for precision, threads, group in groups(rows)
    }
    names = list(dict.fromkeys(name for values in series.values() for name in values if name != "geometric mean"))
    if not names:
        raise ValueError(f"no row compares {ENGINE} with a peer")
    names.append("geometric mean")
    # Text stays text, and equal rows give equal files.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "latency", "font.family": "sans-serif"}):
        height = 0.16 * len(names) * (1 + len(series)) + 1.1
        figure = Figure(figsize=(8.5, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _bars(axes, names, series)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})


def _bars(axes: Any, names: Sequence[str], series: dict[str, dict[str, float | None]]) -> None:
    width = 2 * BAR / len(series)
    for position, (label, values) in enumerate(series.items()):
        shown = [(k, value) for k, name in enumerate(names) if (value := values.get(name)) is not None]
        places = [k - BAR + (position + 0.5) * width for k, _ in shown]
        bars = axes.barh(places, [value for _, value in shown], width, label=label, color=COLOURS[position % 4])
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=7, color=INK)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.08, y=0.01)
    axes.set_xlabel("time of the fastest peer / time of shave (longer is faster)", color=INK)
    axes.tick_params(colors=INK, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(frameon=False, labelcolor=INK, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(series))
