"""What factorization saves of the classical networks: MACs, parameters, and time on one thread of this machine.

Weights are random, so that there is no rank to find in them: ranks are those that keep the published share of the MACs
or of the weights (Kim et al., ICLR 2016; Novikov et al., NIPS 2015), and what is measured is what they are worth. What
variational Bayes and the cost oracle choose by themselves is shown on networks with trained weights.

    python -m benchmarks.factorize_speed --build FOLDER [CASE ...]   # splits and compiles; a case that is there is kept
    python -m benchmarks.factorize_speed --time FOLDER [CASE ...]    # both in turns; rows go to benchmarks/history
    python -m benchmarks.factorize_speed --show                      # the table in Markdown
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import shave
from benchmarks.latency.history import append, machine, revision
from benchmarks.real_models import real_models
from benchmarks.torchvision_import import import_torchvision
from shave.backends.targets import resolve
from shave.backends.timing import interleave
from shave.ir.program import Program

HISTORY = Path(__file__).parent / "history" / "factorize_speed.jsonl"


@dataclass(frozen=True)
class Case:
    """A network or layer with the pipeline that splits it.

    Attributes:
        module: Makes it, with random weights.
        shape: Of one sample.
        pipeline: What splits it.
        published: What was reported elsewhere.
        direct: Whether the whole network is also timed without Winograd's method.
        batches: Samples per call; each is compiled for and timed.
    """

    module: Callable[[], nn.Module]
    shape: tuple[int, ...]
    pipeline: str
    published: str
    direct: bool = False
    batches: tuple[int, ...] = (1,)


def _torchvision(name: str, **given: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        network: nn.Module = getattr(import_torchvision().models, name)(weights=None, **given)
        return network

    return make


def _trained(name: str) -> Callable[[], nn.Module]:
    return lambda: next(model for model in real_models() if model.name == name).load().module


def _linear(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(inputs, outputs)


_IMAGE = (3, 224, 224)
_NOVIKOV = "factorize{method=tensor-train rank=4 gain=params out-shape=[4,4,4,4,4,4] in-shape=[2,7,8,8,7,4]}"


def _fully_connected() -> dict[str, Case]:
    """The three layers of VGG-16, and the tensor train of the first, for one and for 100 inputs."""
    found = {}
    for name, inputs, outputs, rank, published in (
        ("fc6", 25088, 4096, 250, "13.4x fewer weights"),
        ("fc7", 4096, 4096, 350, "5.8x fewer weights"),
        ("fc8", 4096, 1000, 250, "8.1x fewer weights"),
    ):
        pipeline = f"factorize{{method=svd rank={rank} gain=params}}"
        found[f"{name} svd"] = Case(_linear(inputs, outputs), (inputs,), pipeline, published, batches=(1, 100))
    published = "392 MB to under 1 MB; 16.1 ms to 1.2 ms"
    found["fc6 train"] = Case(_linear(25088, 4096), (25088,), _NOVIKOV, published, batches=(1, 100))
    return found


CASES = {
    "AlexNet": Case(
        _torchvision("alexnet"), _IMAGE,
        "factorize{method=svd params=0.213 layers=[re:classifier.*]}, factorize{macs=0.4 layers=[re:features.*]}",
        "2.67x MACs, 5.46x weights", True,
    ),
    "AlexNet, convolutions": Case(_torchvision("alexnet"), _IMAGE, "factorize{macs=0.3745}", "2.67x MACs", True),
    "VGG-16": Case(
        _torchvision("vgg16"), _IMAGE, "factorize{method=tucker macs=0.2028 layers=[re:features.*]}",
        "4.93x MACs, 3.34x", True,
    ),
    "VGG-16 and its linear layers": Case(
        _torchvision("vgg16"), _IMAGE,
        "factorize{method=svd params=0.2 layers=[re:classifier.*]}, "
        "factorize{method=tucker macs=0.2028 layers=[re:features.*]}",
        "", True,
    ),
    "GoogLeNet": Case(
        _torchvision("googlenet", aux_logits=False, init_weights=False),
        _IMAGE, "factorize{macs=0.4854}", "2.06x MACs", True,
    ),
    "AlexNet, by time": Case(_torchvision("alexnet"), _IMAGE, "factorize{time=0.45}", "", True),
    "VGG-16, by time": Case(_torchvision("vgg16"), _IMAGE, "factorize{time=0.5}", "", True),
    **{
        f"{name}, {ranks}": Case(_trained(name), shape, f"factorize{{{options}}}", "", True)
        for name, shape in (("Tiny Darknet", _IMAGE), ("ResNet-20", (3, 32, 32)))
        for ranks, options in (("VBMF", "rank=vbmf gain=macs"), ("by cost", "rank=cost"))
    },
    **_fully_connected(),
}  # fmt: skip


def build(folder: Path, name: str) -> None:
    """Split and compile a case, beside the network as it is."""
    case, place = CASES[name], folder / name.replace(" ", "_")
    if (place / "figures.json").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    program = _trace(case.module().eval(), case, None)
    start = time.perf_counter()
    target = replace(resolve("cpu"), cores=1)
    split = shave.PassManager(["simplify", case.pipeline], check=False).run(program, target=target)
    seconds = time.perf_counter() - start
    print(f"{name}: split in {seconds:.0f} s", flush=True)
    pipelines = {"whole": (program, "exact"), "split": (split, "exact")}
    if case.direct:
        pipelines["direct"] = (program, "simplify, pool-first")
    for kind, (each, passes) in pipelines.items():
        for batch in case.batches:
            fixed = _trace(each.module, case, batch)
            shave.compile(fixed, target="cpu", threads=1, passes=passes).save(place / f"{kind}_{batch}.shave")
        print(f"{name}: compiled {kind}", flush=True)
    before, after = program.cost(), split.cost()
    figures = {
        "case": name, "pipeline": case.pipeline, "published": case.published,
        "macs": before.macs / after.macs, "params": before.parameters / after.parameters,
        "bytes": [before.weight_bytes, after.weight_bytes], "seconds": round(seconds, 1),
    }  # fmt: skip
    (place / "figures.json").write_text(json.dumps(figures))


def _trace(module: nn.Module, case: Case, batch: int | None) -> Program:
    """A program for a number of samples, or for any number."""
    x = torch.randn(batch or max(case.batches), *case.shape)
    if batch is None and len(case.batches) > 1:
        return shave.trace(module, (x,), dynamic_shapes={"input": {0: "batch"}})
    return shave.trace(module, (x,))


def measure(folder: Path, name: str, rounds: int) -> None:
    """Time a case, all its artifacts in turns, and keep a row for each number of samples."""
    place = folder / name.replace(" ", "_")
    run = {"date": time.strftime("%Y-%m-%d"), "revision": revision(), "machine": machine()}
    for batch in CASES[name].batches:
        x = np.random.default_rng(0).standard_normal((batch, *CASES[name].shape)).astype(np.float32)
        artifacts = {
            path.stem.removesuffix(f"_{batch}"): shave.load(path, threads=1)
            for path in sorted(place.glob(f"*_{batch}.shave"))
        }
        timings = interleave({kind: (lambda a=a, x=x: a(x)) for kind, a in artifacts.items()}, rounds=rounds)
        row = {**json.loads((place / "figures.json").read_text()), "batch": batch}
        row["ms"] = {kind: round(1e3 * timing.minimum, 4) for kind, timing in timings.items()}
        append(HISTORY, json.dumps({**run, **row}))
        print(name, batch, row["ms"], flush=True)


def show() -> None:
    """The table of the history's last rows in Markdown."""
    lines = HISTORY.read_text().splitlines() if HISTORY.exists() else []
    rows = {(row["case"], row["batch"]): row for row in map(json.loads, lines)}
    print("| case | published | MACs | weights | whole, ms | split, ms | times as fast | without Winograd, ms |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: |")
    for (name, batch), row in rows.items():
        ms = row["ms"]
        speed = ms["whole"] / ms["split"]
        cells = [
            name if batch == 1 else f"{name}, {batch} inputs",
            row["published"],
            f"{row['macs']:.2f}x",
            f"{row['params']:.2f}x",
            f"{ms['whole']:.3g}",
            f"{ms['split']:.3g}",
            f"{speed:.2f}x",
            f"{ms['direct']:.3g}" if "direct" in ms else "",
        ]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"any of {', '.join(CASES)}; all by default")
    parser.add_argument("--build", type=Path, metavar="FOLDER")
    parser.add_argument("--time", type=Path, metavar="FOLDER")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    for name in options.cases or CASES:
        if options.build:
            build(options.build, name)
        if options.time:
            measure(options.time, name, options.rounds)
    if options.show:
        show()


if __name__ == "__main__":
    main()
