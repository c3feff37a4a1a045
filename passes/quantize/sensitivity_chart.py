"""What integers cost as a picture: a row for each product, the worst first."""

from __future__ import annotations

from collections.abc import Sequence

from shave.passes.heat_map import Cell
from shave.passes.heat_map import draw as draw_map
from shave.passes.quantize.sensitivity import Damage

COLUMNS = {"own": "sqnr_db", "alone": "alone_db", "without": "without_db", "up to": "cumulative_db"}


def draw(scan: Sequence[Damage]) -> str:
    """Give the text of an SVG file."""
    rows = []
    for each in scan:
        ratios = [getattr(each, attribute) for attribute in COLUMNS.values()]
        cells = [
            Cell(column, 10 ** (-ratio / 10), f"{ratio:.1f}", f"{each.node}: {ratio:.2f} dB")
            for column, ratio in enumerate(ratios)
        ]
        rows.append((label(each), cells))
    title = "signal to noise in dB: of each product, and of the outputs with it alone, without it, without all up to it"
    return draw_map(title, list(COLUMNS), rows)


def label(damage: Damage) -> str:
    """The name that its user knows best."""
    return damage.names[1] if len(damage.names) > 1 else damage.node
