"""``shave groups``: which channels go together, and which may not go."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from shave.cli.console import print_json, results
from shave.cli.models import read_model
from shave.cli.options import Inputs, Json, Model

if TYPE_CHECKING:
    from shave.passes.prune.groups import Group


def groups(
    model: Model,
    svg: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also draw them.")] = None,
    inputs: Inputs = [],  # noqa: B006 (typer's form of an option that may be repeated)
    json: Json = False,
) -> None:
    """Show the groups of channels that pruning can only cut together, and why others stay.

    Example: `shave groups resnet18.onnx --svg groups.svg`
    """
    from shave.passes.prune.groups import find_groups
    from shave.passes.prune.groups_picture import draw

    found = find_groups(read_model(model, inputs))
    if svg is not None:
        svg.write_text(draw(found), encoding="utf-8")
    if json:
        print_json([_facts(group) for group in found])
        return
    table = Table("group", "units", "kind", "made by", "read by")
    for group in found:
        if not group.reason:
            facts = _facts(group)
            table.add_row(group.name, str(group.units), group.kind, *map(_some, (facts["made_by"], facts["read_by"])))
    results.print(table)
    stay = Table("stays", "units", "because")
    for group in found:
        if group.reason:
            stay.add_row(group.name, str(group.units), group.reason)
    if stay.rows:
        results.print(stay)


def _facts(group: Group) -> dict[str, Any]:
    from shave.passes.prune.groups import Role, label_of

    def layers(role: Role) -> list[str]:
        return list(dict.fromkeys(label_of(part) for part in group.slices if part.role is role))

    return {
        "name": group.name,
        "kind": group.kind,
        "units": group.units,
        "reason": group.reason,
        "made_by": layers(Role.PRODUCES),
        "read_by": layers(Role.CONSUMES),
        "carried_by": layers(Role.CARRIES),
        "factors": list(group.factors),
        "weights": [
            {
                "weight": str(part.weight.target),
                "axis": part.axis,
                "role": part.role.value,
                "width": part.index.shape[1],
            }
            for part in group.slices
        ],
    }


def _some(names: list[str]) -> str:
    """The first few of a list."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
