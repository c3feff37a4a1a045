"""A sensitivity scan as a picture: a row for each group, a cell for each cut, the darker the worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from shave.passes.prune.sensitivity import RATIOS, Sensitivity

ROW, CELL, LETTER, MARGIN = 18, 54, 6.6, 12
INK = "#808890"
"""Text: it has enough contrast on white and on black, and the background stays clear."""
BEST, WORST = -4.0, 0.0
"""Decimal logarithms of the errors at the ends of the scale."""


def draw(scan: Sequence[Sensitivity]) -> str:
    """Give the text of an SVG file. A cell stands at the ratio that is nearest to its own."""
    longest = max((len(each.group) for each in scan), default=0)
    left = MARGIN + longest * LETTER + 8
    width, height = left + CELL * len(RATIOS) + MARGIN, MARGIN + ROW * (len(scan) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        'font-family="monospace" font-size="11">',
        _text(MARGIN, MARGIN + ROW * 0.7, "squared error of the outputs, by the share of a group that goes"),
    ]
    for column, ratio in enumerate(RATIOS):
        parts.append(_text(left + CELL * (column + 0.5), MARGIN + ROW * 1.7, f"{ratio:.1%}", "middle"))
    for row, each in enumerate(scan, 2):
        top = MARGIN + ROW * row
        parts.append(_text(left - 8, top + ROW * 0.7, each.group, "end"))
        for point in each.points:
            column = min(range(len(RATIOS)), key=lambda place, ratio=point.ratio: abs(RATIOS[place] - ratio))  # type: ignore[misc]
            x = left + CELL * column
            parts.append(
                f'<rect x="{x:.1f}" y="{top}" width="{CELL - 1}" height="{ROW - 1}" fill="{_colour(point.error)}">'
                f"<title>{escape(each.group)}: {point.units} of {each.units} stay</title></rect>"
            )
            parts.append(_text(x + CELL / 2, top + ROW * 0.7, f"{point.error:.2g}", "middle", "#ffffff"))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _colour(error: float) -> str:
    """From green over amber to red, by the logarithm."""
    if not math.isfinite(error):
        return "hsl(0, 60%, 25%)"
    place = (math.log10(max(error, 1e-30)) - BEST) / (WORST - BEST)
    return f"hsl({130 * (1 - min(1.0, max(0.0, place))):.0f}, 55%, 36%)"
