"""A scan of groups as a picture: a row for each group, a cell for each cut."""

from __future__ import annotations

from collections.abc import Sequence

from shave.passes.heat_map import Cell
from shave.passes.heat_map import draw as draw_map
from shave.passes.prune.sensitivity import RATIOS, Point, Sensitivity


def draw(scan: Sequence[Sensitivity]) -> str:
    """Give the text of an SVG file. A cell stands at the ratio that is nearest to its own."""
    title = "squared error of the outputs, by the share of a group that goes"
    rows = [(each.group, [_cell(each, point) for point in each.points]) for each in scan]
    return draw_map(title, [f"{ratio:.1%}" for ratio in RATIOS], rows)


def _cell(group: Sensitivity, point: Point) -> Cell:
    column = min(range(len(RATIOS)), key=lambda place: abs(RATIOS[place] - point.ratio))
    return Cell(column, point.error, f"{point.error:.2g}", f"{group.group}: {point.units} of {group.units} stay")
