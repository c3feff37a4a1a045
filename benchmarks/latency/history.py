"""Rows of all runs as JSON lines: one line per model, precision and number of threads, readable years later."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.latency.engines import PACKAGES
from benchmarks.latency.measure import Row
from shave.backends import host
from shave.backends.manifest import installed
from shave.backends.tvm.roofline import Roofline

DEFAULT = Path(__file__).parents[1] / "history" / "latency.jsonl"


def context(rounds: int, tolerance: float) -> dict[str, Any]:
    """What holds for every row of a run: when, where, with what."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
        "machine": machine(),
        "versions": versions(),
        "rounds": rounds,
        "tolerance": tolerance,
    }


def line(row: Row, roofline: Roofline, run: Mapping[str, Any]) -> str:
    """One line of the file, without its end."""
    return json.dumps({**run, "roofline": asdict(roofline), **row.to_json()}, allow_nan=False)


def append(path: Path, text: str) -> None:
    """Add a line, so that what an interrupted run has finished is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text + "\n")


def latest(lines: Iterable[str]) -> list[tuple[str, Row]]:
    """The last line of each model, precision and number of threads, in the order of their first ones, with its row.

    Raises:
        ValueError: A line is no row.
    """
    found: dict[tuple[str, str, int], tuple[str, Row]] = {}
    for number, text in enumerate(lines, 1):
        try:
            row = Row.from_json(json.loads(text))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number} is no row of this benchmark: {error!r}") from error
        found[row.model, row.precision, row.threads] = (text, row)
    return list(found.values())


def revision() -> str | None:
    """The commit, with ``-dirty`` behind it if files differ from it; None outside of a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def machine() -> dict[str, Any]:
    """Processor, cores and caches."""
    return {
        "processor": _processor(),
        "cores": host.usable_cores(),
        "cache_bytes": {f"L{level}": host.cache_bytes(level) for level in (1, 2, 3)},
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of every engine that is installed, of TVM and of what quantizes for OpenVINO."""
    names = dict.fromkeys([*PACKAGES.values(), "nncf", "apache-tvm"])
    return {name: number for name in names if (number := installed(name)) is not None}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
