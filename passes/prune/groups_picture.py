"""Groups as a picture: a row for each layer, a line for each group from the layer that makes it to the last reader."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from shave.passes.prune.groups import Group, Role, Slice, label_of

ROW, TRACK, MARGIN, LETTER, DOT = 18, 14, 12, 6.6, 4
INK = "#808890"
"""Text: it has enough contrast on white and on black, and the background stays clear."""
LEGEND = "filled: makes the channels; ring: sums over them; bar: acts on each by itself; grey: may not be cut"


def draw(groups: Sequence[Group]) -> str:
    """Give the text of an SVG file. Lines that do not meet share a column."""
    rows = _rows(groups)
    spans = {group.name: sorted(rows[label_of(part)] for part in group.slices) for group in groups}
    columns = _columns(spans)
    left = MARGIN + TRACK * (max(columns.values(), default=0) + 1) + 8
    longest = max([len(LEGEND) - left / LETTER, *map(len, rows)], default=0)
    width, height = left + longest * LETTER + MARGIN, MARGIN * 2 + ROW * (len(rows) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        'font-family="monospace" font-size="11">',
        f'<text x="{MARGIN}" y="{MARGIN + ROW * 0.5}" fill="{INK}">{LEGEND}</text>',
    ]
    parts.extend(
        f'<text x="{left:.0f}" y="{_middle(row) + 4:.0f}" fill="{INK}">{escape(name)}</text>'
        for name, row in rows.items()
    )
    for number, group in enumerate(groups):
        x, colour = MARGIN + TRACK * (columns[group.name] + 0.5), _colour(number, group)
        first, last = spans[group.name][0], spans[group.name][-1]
        title = f"{group.name}: {group.units} {group.kind}"
        parts.append(f"<g><title>{escape(f'{title}; {group.reason}' if group.reason else title)}</title>")
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="{_middle(first)}" y2="{_middle(last)}" stroke="{colour}" stroke-width="2"/>'
        )
        parts.extend(_mark(part, x, _middle(rows[label_of(part)]), colour) for part in group.slices)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>\n"])


def _rows(groups: Sequence[Group]) -> dict[str, int]:
    """The layers that hold weights of any group, in the order in which they run."""
    readers = {part.reader: label_of(part) for group in groups for part in group.slices}
    if not readers:
        return {}
    order = {node: place for place, node in enumerate(next(iter(readers)).graph.nodes)}
    names = dict.fromkeys(readers[reader] for reader in sorted(readers, key=order.__getitem__))
    return {name: row for row, name in enumerate(names, 1)}


def _columns(spans: dict[str, list[int]]) -> dict[str, int]:
    """The first column in which nothing lies yet, for each line from the first on."""
    ends: list[int] = []
    placed = {}
    for name, rows in sorted(spans.items(), key=lambda item: item[1][0]):
        free = next((column for column, end in enumerate(ends) if end < rows[0]), len(ends))
        if free == len(ends):
            ends.append(0)
        ends[free] = rows[-1]
        placed[name] = free
    return placed


def _middle(row: int) -> float:
    return MARGIN + ROW * (row + 0.5)


def _colour(number: int, group: Group) -> str:
    """Neighbours differ: hues go round by the golden angle."""
    return "#b0b4b8" if group.reason else f"hsl({number * 137.5 % 360:.0f}, 60%, 45%)"


def _mark(part: Slice, x: float, y: float, colour: str) -> str:
    if part.role is Role.CARRIES:
        return f'<line x1="{x - DOT}" x2="{x + DOT}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>'
    filled = colour if part.role is Role.PRODUCES else "#ffffff"
    return f'<circle cx="{x}" cy="{y}" r="{DOT}" fill="{filled}" stroke="{colour}" stroke-width="2"/>'
