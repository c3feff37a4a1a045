"""Which public models can be pruned: half of every group goes, and what is left must be right.

For each model: units are drawn by chance, cut, the cut proven against the model without them, and the result written
as ONNX and run by ONNX Runtime. Results are kept, one JSON line a model, so that a second run tries only what is
missing or failed; ``--page`` writes them as docs/prunable-models.md.

    python -m benchmarks.prunable_models --results prunable.jsonl [--source timm] [--only NAME] [--page]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shave
from benchmarks import zoo
from shave.ir.program import Program
from shave.passes.compare import outputs_of
from shave.passes.prune.certificate import certify
from shave.passes.prune.groups import find_groups
from shave.passes.prune.surgery import cut

PAGE = Path(__file__).parents[1] / "docs" / "prunable-models.md"
RATIO = 0.5
_INTRODUCTION = """\
Written by `python -m benchmarks.prunable_models --results FILE --page`. Of every group half of the units, drawn by
chance, were cut. *Error* is the largest difference, relative to the largest magnitude of an output, between the cut
model and the whole model without the removed channels; *exact* says that setting to zero what the removed channels
feed gives the same, as no statistics (LayerNorm, softmax ...) run over them. *ONNX* is the difference of ONNX Runtime,
on the cut model written as ONNX, from torch; empty where that was left out. Weights are random, inputs as small as
each model takes."""
ONNX_TOLERANCE = 1e-3
"""Largest difference between ONNX Runtime and torch, relative to the largest magnitude of an output."""


@dataclass
class Outcome:
    """What came of one model; costs are in millions, before and after.

    Attributes:
        source: Where it is from.
        name: Its name there.
        failure: What went wrong, and at which step; empty if all went well.
        error: The largest relative difference of the certificate.
        onnx_error: The same of ONNX Runtime; None if ONNX was left out.
        exact: Whether no statistics had to leave channels out.
    """

    source: str
    name: str
    failure: str = ""
    groups: int = 0
    fixed: int = 0
    parameters: tuple[float, float] = (0, 0)
    macs: tuple[float, float] = (0, 0)
    error: float = 0
    onnx_error: float | None = None
    exact: bool = False
    seconds: float = 0


def attempt(source: str, name: str, *, onnx: bool = True) -> Outcome:
    """Prune one model and prove it; what fails is told in the outcome."""
    outcome, start, step = Outcome(source, name), time.perf_counter(), "making the model"
    try:
        module, inputs = zoo.load(source, name)
        step = "torch.export"
        program = shave.trace(module, inputs)
        tensors = tuple(torch.utils._pytree.tree_leaves(inputs))
        del module
        step = "pruning"
        pruned = _prune(program, outcome)
        step = "the certificate"
        _prove(program, pruned, tensors, outcome)
        if onnx:
            step = "ONNX"
            outcome.onnx_error = _onnx_error(pruned, tensors)
            if not outcome.onnx_error <= ONNX_TOLERANCE:
                outcome.failure = f"ONNX: ONNX Runtime differs by {outcome.onnx_error:.2g}"
    except Exception as error:  # each model may fail in its own way; the page tells how
        outcome.failure = f"{step}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    outcome.seconds = round(time.perf_counter() - start, 1)
    return outcome


def _prune(program: Program, outcome: Outcome) -> tuple[Program, dict[str, list[int]]]:
    groups = find_groups(program)
    generator = np.random.default_rng(0)
    keep = {
        group.name: sorted(map(int, generator.choice(group.units, max(1, round(group.units * RATIO)), replace=False)))
        for group in groups
        if not group.reason
    }
    outcome.groups, outcome.fixed = len(keep), len(groups) - len(keep)
    pruned = program.clone()
    cut(pruned, keep, by="prunable-models")
    pruned.verify(full=True)
    before, after = program.cost(), pruned.cost()
    outcome.parameters = (round(before.parameters / 1e6, 3), round(after.parameters / 1e6, 3))
    outcome.macs = (round(before.macs / 1e6, 3), round(after.macs / 1e6, 3))
    if not (after.parameters < before.parameters and after.macs < before.macs):
        raise ValueError("nothing became smaller")
    return pruned, keep


def _prove(program: Program, pruned: Any, inputs: tuple[torch.Tensor, ...], outcome: Outcome) -> None:
    smaller, keep = pruned
    certificate = certify(program, smaller, keep, inputs)
    outcome.error, outcome.exact = max(certificate.errors.values()), certificate.exact
    if not certificate.holds:
        raise ValueError(str(certificate))


def _onnx_error(pruned: Any, inputs: tuple[torch.Tensor, ...]) -> float:
    import onnxruntime

    program = pruned[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        program.to_onnx(path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [spec.name for spec in program.signature.inputs]
        gots = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
    wants = [want.numpy() for want in outputs_of(program(*inputs))]
    return max(
        float(np.abs(got - want).max() / max(np.abs(want).max(), 1e-12))
        for got, want in zip(gots, wants, strict=True)
        if want.size
    )


def main() -> None:
    """Try what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON lines; made if missing")
    parser.add_argument("--source", help="only models of this source")
    parser.add_argument("--only", nargs="*", help="only these models, whatever is known of them")
    parser.add_argument("--again", action="store_true", help="try again what failed")
    parser.add_argument("--skip-onnx", action="store_true", help="leave ONNX out")
    parser.add_argument("--page", action="store_true", help=f"write {PAGE.name} from the results, and try nothing")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    known = read(options.results)
    if options.page:
        PAGE.write_text(page(known))
        return
    for source, models in zoo.names().items():
        for name in models:
            before = known.get((source, name))
            wanted = name in options.only if options.only else before is None or (options.again and before.failure)
            if not wanted or (options.source and not source.startswith(options.source)):
                continue
            outcome = attempt(source, name, onnx=not options.skip_onnx)
            with options.results.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
            print(f"{outcome.seconds:6.1f} s  {name}  {outcome.failure or 'ok'}", flush=True)


def read(path: Path) -> dict[tuple[str, str], Outcome]:
    """The last outcome of each model."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        outcome = Outcome(**json.loads(line))
        found[outcome.source, outcome.name] = outcome
    return found


def page(outcomes: dict[tuple[str, str], Outcome]) -> str:
    """The page of the documentation."""
    lines = [
        "# Models that can be pruned",
        "",
        *_INTRODUCTION.splitlines(),
        "",
        "| source | models | pruned and proven |",
        "|---|---|---|",
    ]
    every = zoo.names()
    for source, models in every.items():
        done = Counter(bool(outcomes[source, name].failure) for name in models if (source, name) in outcomes)
        lines.append(f"| {source} | {len(models)} | {done[False]} |")
    for source, models in every.items():
        lines += ["", f"## {source}", "", "| model | groups | parameters, M | MACs, M | error | exact | ONNX |"]
        lines.append("|---|---|---|---|---|---|---|")
        for name in sorted(models):
            outcome = outcomes.get((source, name))
            if outcome is None:
                lines.append(f"| {name} | not tried | | | | | |")
            elif outcome.failure:
                lines.append(f"| {name} | {outcome.failure.replace('|', '/')} | | | | | |")
            else:
                costs = " | ".join(f"{a:.4g} to {b:.4g}" for a, b in (outcome.parameters, outcome.macs))
                exact = "yes" if outcome.exact else ""
                onnx = "" if outcome.onnx_error is None else f"{outcome.onnx_error:.1g}"
                errors = f"{outcome.error:.1g} | {exact} | {onnx}"
                lines.append(f"| {name} | {outcome.groups} | {costs} | {errors} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
