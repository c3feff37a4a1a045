"""What ``shave bench --profile`` shows: where the time goes, and how much of it the machine could do without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from shave.cli.console import count_text, milliseconds, print_json, results

if TYPE_CHECKING:
    from shave.backends.kernel_cost import KernelCost
    from shave.backends.runtime import KernelTime
    from shave.backends.tvm.roofline import Roofline

_SHOWN_NODES = 2


@dataclass(frozen=True)
class Entry:
    """One kernel's part in a call.

    Attributes:
        name: Name of its function.
        family: Its family; None where the artifact does not tell.
        nodes: Names of the nodes that it computes.
        calls: How often it runs.
        seconds: Time of all its calls together.
        limit: Least time for its multiply-adds and bytes; None where the artifact does not tell.
        macs: Its multiply-adds, where the artifact tells.
    """

    name: str
    family: str | None
    nodes: tuple[str, ...]
    calls: int
    seconds: float
    limit: float | None
    macs: int | None

    @property
    def lost(self) -> float:
        """Seconds above the limit; all of them where none is known."""
        return max(0.0, self.seconds - (self.limit or 0.0))


def entries(times: Sequence[KernelTime], costs: Mapping[str, KernelCost], roofline: Roofline | None) -> list[Entry]:
    """Join what was measured with what the artifact tells of each kernel; most time lost comes first.

    Args:
        times: Time of each kernel.
        costs: Work of each kernel, by its name.
        roofline: What the machine can do; None gives no limits.
    """
    joined = []
    for time in times:
        cost = costs.get(time.name)
        if cost is None or roofline is None:
            joined.append(Entry(time.name, None, (), time.calls, time.seconds, None, None))
            continue
        limit = cost.calls * roofline.seconds(cost.macs / cost.calls, cost.bytes / cost.calls, integers=cost.integers)
        joined.append(Entry(time.name, cost.family, cost.nodes, time.calls, time.seconds, limit, cost.macs))
    return sorted(joined, key=lambda entry: -entry.lost)


def show(listed: Sequence[Entry], roofline: Roofline | None, *, json: bool) -> None:
    """Print the entries, for a person or for a machine."""
    seconds = sum(entry.seconds for entry in listed)
    limits = [entry.limit for entry in listed if entry.limit is not None]
    limit = sum(limits) if limits else None
    if json:
        kernels = [{**vars(entry), "lost": entry.lost} for entry in listed]
        print_json({"roofline": roofline and vars(roofline), "seconds": seconds, "limit": limit, "kernels": kernels})
        return
    table = Table(box=SIMPLE_HEAD)
    table.add_column("kernel", no_wrap=True, overflow="ellipsis")
    table.add_column("computes", no_wrap=True, overflow="ellipsis")
    for title, width in (("calls", 5), ("time", 9), ("limit", 9), ("lost", 9), ("of limit", 8)):
        table.add_column(title, justify="right", min_width=width)  # names give way where the terminal is narrow
    for entry in listed:
        against = _against(entry.limit, entry.seconds, entry.lost)
        table.add_row(entry.name, _computes(entry), str(entry.calls), milliseconds(entry.seconds), *against)
    table.add_section()
    lost = sum(entry.lost for entry in listed)
    calls = str(sum(entry.calls for entry in listed))
    table.add_row("all", "", calls, milliseconds(seconds), *_against(limit, seconds, lost))
    results.print(table)
    if roofline is None:
        results.print("no limits: this artifact takes inputs whose sizes are only known when it is called")
        return
    memory = roofline.bandwidths[-1][1] / 1e9
    results.print(
        f"limits: {count_text(roofline.macs_per_second)} multiply-adds/s in float32, "
        f"{count_text(roofline.integer_macs_per_second)} in 8-bit integers, and {memory:.1f} GB/s from memory "
        f"(more from caches), measured on {roofline.threads} thread{'s' if roofline.threads > 1 else ''}"
    )


def _computes(entry: Entry) -> str:
    shown = ", ".join(entry.nodes[:_SHOWN_NODES])
    more = len(entry.nodes) - _SHOWN_NODES
    return f"{shown} and {more} more" if more > 0 else shown


def _against(limit: float | None, seconds: float, lost: float) -> tuple[str, str, str]:
    if limit is None:
        return "", "", ""
    return milliseconds(limit), milliseconds(lost), f"{100 * limit / seconds:.0f} %" if seconds else ""
