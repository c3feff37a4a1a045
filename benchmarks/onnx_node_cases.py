"""How many of onnx's own node cases the ONNX reader passes.

    python -m benchmarks.onnx_node_cases [--match REGEX] [--json]

Each case is read, run in torch and compared with the outputs that onnx states, at the tolerance of the case. The table
goes to stdout, progress and failures to stderr.
"""

import argparse
import json
import re
import sys
import warnings
from collections import Counter

import onnx
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.ir.from_onnx.node_cases import Outcome, all_cases, in_scope, run_case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", help="only the cases whose name contains this regular expression")
    parser.add_argument("--json", action="store_true", help="counts, exclusions and failures as JSON")
    options = parser.parse_args()
    stderr = Console(stderr=True)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with stderr.status("collecting the cases"):
        cases = [case for name, case in all_cases().items() if in_scope(case) and re.search(options.match, name)]
    outcomes = [run_case(case) for case in track(cases, "node cases", console=stderr)]
    report(outcomes, stderr, as_json=options.json)
    return int(any(outcome.status == "failed" for outcome in outcomes))


def report(outcomes: list[Outcome], stderr: Console, *, as_json: bool) -> None:
    counts = Counter(outcome.status for outcome in outcomes)
    reasons = Counter(outcome.detail for outcome in outcomes if outcome.status == "excluded")
    failures = {outcome.name: outcome.detail for outcome in outcomes if outcome.status == "failed"}
    attempted = len(outcomes) - counts["excluded"]
    passed = attempted - counts["failed"]
    if as_json:
        figures = {"onnx": onnx.__version__, "torch": torch.__version__, "attempted": attempted, "passed": passed}
        print(json.dumps({**figures, "counts": counts, "excluded": reasons, "failed": failures}, indent=2))
        return
    table = Table(title=f"Node cases of onnx {onnx.__version__}, default domain, opset 7 and newer")
    table.add_column("outcome")
    table.add_column("cases", justify="right")
    table.add_row("passed as they are", str(counts["passed"]))
    table.add_row("passed, small inputs as constants", str(counts["passed with constants"]))
    table.add_row("failed", str(counts["failed"]), end_section=True)
    for reason, count in reasons.most_common():
        table.add_row(f"excluded: {reason}", str(count))
    table.caption = f"{passed} of {attempted} attempted pass ({100 * passed / max(attempted, 1):.1f} %)"
    Console().print(table)
    for name, detail in failures.items():
        stderr.print(f"{name}: {detail}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
