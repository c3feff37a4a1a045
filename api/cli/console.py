"""What commands share towards the person: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

results = Console(markup=False, highlight=False, soft_wrap=True)
"""stdout: what the command was called for."""

diagnostics = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
"""stderr: progress, warnings, errors."""


def print_json(data: Any) -> None:
    """Write data for machines, one document on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """NumPy scalars and the like as Python numbers."""
    return value.item() if hasattr(value, "item") else str(value)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int | None], None]]:
    """Show a bar per kind of work while it goes on; silent where stderr is no terminal.

    Gives a callable ``report(what, done, total)``.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    tasks: dict[str, Any] = {}
    with Progress(*columns, console=diagnostics, transient=True, disable=not diagnostics.is_terminal) as bars:

        def report(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield report


def bytes_text(count: float) -> str:
    """A size as people write it (``1.4 MB``)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def count_text(count: float) -> str:
    """A count as people write it (``1.82 G``)."""
    for unit in ("", " k", " M", " G", " T"):
        if count < 1000 or unit == " T":
            return f"{count:.0f}" if not unit else f"{count:.2f}{unit}"
        count /= 1000
    raise AssertionError("unreachable")


def milliseconds(seconds: float) -> str:
    """A duration as people write it."""
    return f"{seconds * 1e3:.3f} ms"
