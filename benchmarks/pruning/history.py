"""Rows of all runs as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.latency.history import append, machine, revision

DEFAULT = Path(__file__).parents[1] / "history" / "pruning.jsonl"


def record(kind: str, row: Mapping[str, Any], path: Path = DEFAULT) -> None:
    """Add a row, with when, where and with what it was measured."""
    run = {"kind": kind, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "revision": revision()}
    append(path, json.dumps({**run, "machine": machine(), **row}, allow_nan=False))
    print(json.dumps(dict(row)), flush=True)


def rows(kind: str, key: tuple[str, ...], path: Path = DEFAULT) -> list[dict[str, Any]]:
    """The last row of each kind and key, in the order of the first ones."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        row = json.loads(line)
        if row["kind"] == kind:
            found[tuple(row[each] for each in key)] = row
    return list(found.values())
