"""Whether fewer multiply-accumulates are less time: compiled latency before and after, in turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

import shave
from benchmarks.torchvision_import import import_torchvision
from shave.backends.timing import interleave

MODELS = ("resnet18", "resnet50")
PIPELINE = "prune-channels{macs=0.5 criterion=l2 multiple=32}"


def prepare(name: str, pipeline: str, folder: Path) -> None:
    """Compile an architecture of torchvision's, with seeded random weights, whole and pruned; compare with torch.

    Args:
        name: Of the architecture.
        pipeline: What prunes.
        folder: Where the artifacts go, with what they should give.
    """
    torch.manual_seed(0)
    module = getattr(import_torchvision().models, name)().eval()
    x = torch.randn(1, 3, 224, 224)
    whole = shave.trace(module, (x,))
    pruned = shave.PassManager(pipeline).run(whole, target="cpu")
    for key, program in (("whole", whole), ("pruned", pruned)):
        artifact = shave.compile(program)
        want, got = program(x), artifact(x.numpy())
        assert isinstance(want, torch.Tensor)
        error = np.abs(want.numpy() - got).max() / np.abs(want.numpy()).max()
        assert error <= 1e-3, f"{name}, {key}: the artifact is off by {error:g}"
        artifact.save(folder / f"{name}-{key}.shave")
    macs = {"whole": whole.cost().macs, "pruned": pruned.cost().macs}
    (folder / f"{name}.json").write_text(json.dumps({"pipeline": pipeline, "macs": macs}))


def measure(name: str, folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Time what :func:`prepare` has made.

    Args:
        name: Of the architecture.
        folder: Where the artifacts are.
        threads: Of one call.
        rounds: Turns of both.
    """
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    artifacts = {key: shave.load(folder / f"{name}-{key}.shave", threads=threads) for key in ("whole", "pruned")}
    times = interleave({key: (lambda run=run: run(x)) for key, run in artifacts.items()}, rounds=rounds)  # type: ignore[misc]
    made = json.loads((folder / f"{name}.json").read_text())
    macs = 1 - made["macs"]["pruned"] / made["macs"]["whole"]
    fallen = 1 - times["pruned"].minimum / times["whole"].minimum
    return {
        "model": name,
        "pipeline": made["pipeline"],
        "threads": threads,
        "macs_fallen": round(macs, 4),
        "whole_ms": round(times["whole"].minimum * 1e3, 3),
        "pruned_ms": round(times["pruned"].minimum * 1e3, 3),
        "latency_fallen": round(fallen, 4),
        "realised": round(fallen / macs, 4),
        "realised_median": round((1 - times["pruned"].median / times["whole"].median) / macs, 4),
    }
