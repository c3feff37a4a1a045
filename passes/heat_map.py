"""A table of errors as a picture: the darker, the worse."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

ROW, CELL, LETTER, MARGIN = 18, 54, 6.6, 12
INK = "#808890"
"""Text: it has enough contrast on white and on black, and the background stays clear."""
BEST, WORST = -4.0, 0.0
"""Decimal logarithms of the errors at the ends of the scale."""


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes:
        column: Its number, from 0.
        error: A squared error, relative: decides the colour.
        text: What stands in it.
        note: What is shown when it is pointed at.
    """

    column: int
    error: float
    text: str
    note: str


def draw(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """Give the text of an SVG file with a row for each of ``rows``: its name and its cells."""
    left = MARGIN + max((len(name) for name, _ in rows), default=0) * LETTER + 8
    width, height = left + CELL * len(columns) + MARGIN, MARGIN + ROW * (len(rows) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        'font-family="monospace" font-size="11">',
        _text(MARGIN, MARGIN + ROW * 0.7, title),
    ]
    for number, column in enumerate(columns):
        parts.append(_text(left + CELL * (number + 0.5), MARGIN + ROW * 1.7, column, "middle"))
    for number, (name, cells) in enumerate(rows, 2):
        top = MARGIN + ROW * number
        parts.append(_text(left - 8, top + ROW * 0.7, name, "end"))
        for cell in cells:
            x = left + CELL * cell.column
            parts.append(
                f'<rect x="{x:.1f}" y="{top}" width="{CELL - 1}" height="{ROW - 1}" fill="{_colour(cell.error)}">'
                f"<title>{escape(cell.note)}</title></rect>"
            )
            parts.append(_text(x + CELL / 2, top + ROW * 0.7, cell.text, "middle", "#ffffff"))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _colour(error: float) -> str:
    """From green over amber to red, by the logarithm."""
    if not math.isfinite(error):
        return "hsl(0, 60%, 25%)"
    place = (math.log10(max(error, 1e-30)) - BEST) / (WORST - BEST)
    return f"hsl({130 * (1 - min(1.0, max(0.0, place))):.0f}, 55%, 36%)"
