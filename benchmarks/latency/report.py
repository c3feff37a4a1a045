"""The rows as a table: for a terminal, and in Markdown for the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from benchmarks.latency.engines import OURS, PACKAGES
from benchmarks.latency.measure import Row, geometric_mean


def table(rows: Sequence[Row]) -> Table:
    """Every engine with minimum / median in milliseconds, the ratios, and what was not timed below."""
    engines = engines_of(rows)
    ours = [name for name in OURS if name in engines]
    made = Table(caption=caption(rows))
    made.add_column("model")
    made.add_column("precision")
    made.add_column("threads", justify="right")
    for name in [*engines, *(f"best peer / {name}" for name in ours), *(f"limit / {name}" for name in ours)]:
        made.add_column(name, justify="right")
    for row in rows:
        times = [time_cell(row, name, "\n") for name in engines]
        ratios = [pair(row.ratio("minimum", name), row.ratio("median", name), "\n") for name in ours]
        limits = [number(row.of_limit(name)) for name in ours]
        made.add_row(row.model, row.precision, str(row.threads), *times, *ratios, *limits)
    made.add_section()
    for precision, threads, group in groups(rows):
        means = [pair(mean(group, "minimum", name), mean(group, "median", name), "\n") for name in ours]
        made.add_row("geometric mean", precision, str(threads), *("" for _ in engines), *means)
    return made


def caption(rows: Sequence[Row]) -> str:
    """What the figures are, and why any are missing."""
    reasons = [
        f"{row.model}, {row.threads} threads: {name} not timed: {result.reason}"
        for row in rows
        for name, result in row.engines.items()
        if result.reason
    ]
    return "\n".join(["minimum and median of each, milliseconds; ratios of minima and of medians", *reasons])


def markdown(rows: Sequence[Row], versions: Mapping[str, str]) -> str:
    """The README's table: one line per model, minima in milliseconds, a column for each number of threads.

    Args:
        rows: What to show.
        versions: Those of the engines' packages.
    """
    several = len({row.precision for row in rows}) > 1
    engines = engines_of(rows)
    ours = [name for name in OURS if name in engines]
    peers = [name for name in engines if name not in OURS]
    lines = []
    for precision, threads, group in groups(rows):
        title = f"{threads} thread{'s' if threads > 1 else ''}" + (f", {precision}" if several else "")
        ratios = [f"best peer / {name}: minimum, median" for name in ours]
        header = [
            title,
            *(labelled(name, versions) for name in peers),
            *ours,
            *ratios,
            *(f"limit / {name}" for name in ours),
        ]
        lines += [markdown_row(header), markdown_row(["---", *("--:" for _ in header[1:])])]
        for row in group:
            times = [milliseconds(row, name) for name in [*peers, *ours]]
            ratio = [pair(row.ratio("minimum", name), row.ratio("median", name), ", ") for name in ours]
            lines.append(markdown_row([row.model, *times, *ratio, *(number(row.of_limit(name)) for name in ours)]))
        means = [f"**{pair(mean(group, 'minimum', n), mean(group, 'median', n), ', ')}**" for n in ours]
        lines.append(markdown_row(["**geometric mean**", *("" for _ in [*peers, *ours]), *means, *("" for _ in ours)]))
        lines.append("")
    return "\n".join(lines)


def engines_of(rows: Sequence[Row]) -> list[str]:
    """Names of the engines that any row has, in the order of the rows."""
    return list(dict.fromkeys(name for row in rows for name in row.engines))


def groups(rows: Sequence[Row]) -> list[tuple[str, int, list[Row]]]:
    """Rows that may be averaged: by precision and number of threads."""
    keys = dict.fromkeys((row.precision, row.threads) for row in rows)
    return [(p, t, [row for row in rows if (row.precision, row.threads) == (p, t)]) for p, t in keys]


def mean(rows: Sequence[Row], figure: str, engine: str) -> float | None:
    """Geometric mean of the ratios there are; None if there are none."""
    ratios = [ratio for row in rows if (ratio := row.ratio(figure, engine)) is not None]
    return geometric_mean(ratios) if ratios else None


def time_cell(row: Row, engine: str, between: str) -> str:
    """Minimum and median, or a dash."""
    result = row.engines.get(engine)
    if result is None or result.minimum is None or result.median is None:
        return "-"
    return f"{figure(result.minimum * 1e3)}{between}{figure(result.median * 1e3)}"


def milliseconds(row: Row, engine: str) -> str:
    """The minimum, or a dash."""
    result = row.engines.get(engine)
    return "-" if result is None or result.minimum is None else figure(result.minimum * 1e3)


def pair(minimum: float | None, median: float | None, between: str) -> str:
    """Two ratios."""
    return f"{number(minimum)}{between}{number(median)}"


def number(value: float | None) -> str:
    """A ratio, or a dash."""
    return "-" if value is None else f"{value:.2f}"


def figure(value: float) -> str:
    """Three digits that mean something."""
    decimals = sum(value < bound for bound in (100, 10, 1))
    return f"{value:.{decimals}f}"


def labelled(engine: str, versions: Mapping[str, str]) -> str:
    """An engine with its version, as far as it matters."""
    found = versions.get(PACKAGES[engine], "")
    return f"{engine} {'.'.join(found.split('.')[:2])}".strip()


def markdown_row(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
