"""``shave targets``: what can be compiled for."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from shave.cli.console import bytes_text, print_json, results
from shave.cli.options import Json


def targets(json: Json = False) -> None:
    """List the targets and what they can do; `cpu` is this machine.

    Example: `shave targets --json`
    """
    from shave.backends.targets import list_targets

    found = list_targets()
    if json:
        print_json([{**asdict(target), "features": sorted(target.features)} for target in found])
        return
    table = Table("target", "kind", "vector", "int8 dot product", "cores", "L1", "L2")
    for target in found:
        table.add_row(
            target.name,
            target.kind,
            f"{8 * target.vector_bytes} bit",
            target.int8_dot,
            str(target.cores),
            bytes_text(target.l1_bytes),
            bytes_text(target.l2_bytes),
        )
    results.print(table)
