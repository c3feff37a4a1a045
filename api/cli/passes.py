"""``shave passes``: what passes there are, and what options they take."""

from __future__ import annotations

from dataclasses import MISSING
from typing import Annotated, Any

import typer
from rich.table import Table

from shave.cli.console import print_json, results
from shave.cli.options import Json


def passes(
    name: Annotated[str | None, typer.Argument(help="A pass; without it all are listed.")] = None,
    json: Json = False,
) -> None:
    """List the passes and presets, or explain one pass and its options.

    Example: `shave passes fold-constants`
    """
    from shave.passes import registry

    if name is not None:
        _one(name, json)
        return
    from shave.passes.presets import PRESETS

    rows = {each: _first_line(registry.load(each)) for each in registry.names()}
    if json:
        print_json({"passes": rows, "presets": PRESETS})
        return
    table = Table("pass", "effect")
    for each, effect in rows.items():
        table.add_row(each, effect)
    results.print(table)
    presets = Table("preset", "passes")
    for each, text in PRESETS.items():
        presets.add_row(each, text)
    results.print(presets)


def _one(name: str, json: bool) -> None:
    from shave.passes import registry
    from shave.passes.options import options_of

    kind = registry.load(name)
    options = options_of(kind)
    if json:
        print_json(
            {
                "name": name,
                "effect": _first_line(kind),
                "exactness": kind.exactness.value,
                "options": {
                    option.name: {
                        "type": option.type_text,
                        "default": None if option.default is MISSING else option.default,
                        "required": option.default is MISSING,
                        "search": option.search,
                        "help": option.help,
                    }
                    for option in options.values()
                },
            }
        )
        return
    results.print(f"{name} ({kind.exactness.value})")
    results.print(_docstring(kind))
    if not options:
        return
    table = Table("option", "type", "default", "meaning")
    for option in options.values():
        table.add_row(
            option.name, option.type_text, "required" if option.default is MISSING else str(option.default), option.help
        )
    results.print(table)


def _docstring(kind: Any) -> str:
    import inspect

    return inspect.cleandoc(kind.__doc__ or "")


def _first_line(kind: Any) -> str:
    return _docstring(kind).partition("\n")[0]
