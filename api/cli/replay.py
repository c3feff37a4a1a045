"""``shave replay``: run again what failed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shave.cli.console import results


def replay(
    folder: Annotated[Path, typer.Argument(help="A reproducer: the folder that a failing pass left behind.")],
) -> None:
    """Run a failing pass again on the program, data and seed it failed on.

    Example: `shave replay shave-reproducer-fold-batchnorm-1`
    """
    from shave.passes.reproducer import replay as replay_folder

    program = replay_folder(folder)
    results.print(f"{folder}: the pass no longer fails: {program.report[-1]}")
