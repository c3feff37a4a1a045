"""Two trained models through the whole road: ONNX in, compiled artifact out, both run on digits they never saw.

    make demo                       # or: python -m examples.demo

Each model is read, compiled for this machine, saved as one ``.shave`` file and loaded again. The scores of the
artifact are compared with those of ONNX Runtime on the original file before anything is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import shave
from examples.digits import Digits, held_out
from shave.backends.timing import Timing, interleave
from shave.ir.errors import ShaveError

HERE = Path(__file__).parent
MODELS = (HERE / "models" / "digits_cnn.onnx", HERE / "models" / "digits_transformer.onnx")
ARTIFACTS = HERE.parent / "build" / "demo"
TOLERANCE = 1e-3  # of scores that span about six
ENGINES = ("torch eager", "ONNX Runtime", "artifact")
NEXT_STEPS = """
Where to go next, after ". .venv/bin/activate"
  shave inspect build/demo/digits_cnn.shave   what is inside the artifact
  shave bench build/demo/digits_cnn.shave     time it alone or against others
  shave passes                                every rewrite and its options
  shave compile MODEL.onnx -o OUT.shave       your own model
  python -m examples.train_digits             how the two models were made
  docs/                                       write a pass, debug a pipeline
"""


@dataclass(frozen=True)
class Result:
    """One model before and after.

    Attributes:
        model: Its name.
        accuracy: Share of the held-out digits classified rightly, by the original and by the artifact.
        file_bytes: Size of the ONNX file and of the artifact.
        macs: Multiply-accumulates for one image.
        latency: Of one image, by the name of the engine.
        difference: Largest absolute difference between scores of the original and of the artifact.
    """

    model: str
    accuracy: tuple[float, float]
    file_bytes: tuple[int, int]
    macs: int
    latency: Mapping[str, Timing]
    difference: float


class Disagreement(Exception):
    """The artifact and the original model give different scores."""


def accuracy(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of the rows of ``scores`` [N, classes] whose largest entry is at the label [N]."""
    return float(np.mean(scores.argmax(axis=1) == labels))


def largest_difference(model: str, expected: NDArray[np.float32], actual: NDArray[np.float32]) -> float:
    """Largest absolute difference of two arrays of scores.

    Raises:
        Disagreement: Their shapes differ, or some score differs by more than ``TOLERANCE`` or is not a number.
    """
    if expected.shape != actual.shape:
        raise Disagreement(f"{model}: the artifact gives scores of shape {actual.shape}, not {expected.shape}")
    difference = float(np.max(np.abs(expected.astype(np.float64) - actual)))
    if not difference <= TOLERANCE:  # so that NaN fails, too
        raise Disagreement(f"{model}: scores differ by up to {difference:.2g}, more than {TOLERANCE:g}")
    return difference


def measure(path: Path, data: Digits, console: Console) -> Result:
    """Compile one model, compare the artifact with the original, then time both; progress goes to ``console``."""
    model, (images, labels) = path.stem, data
    with console.status(f"{model}: reading"):
        program = shave.read(path)

    artifact = ARTIFACTS / f"{model}.shave"
    artifact.parent.mkdir(parents=True, exist_ok=True)
    shave.compile(program, target="cpu").save(artifact)  # shows its own progress
    loaded = shave.load(artifact, threads=1)

    with console.status(f"{model}: comparing"):
        session = onnx_session(path)
        expected = session.run(None, {"image": images})[0]
        actual = loaded(images)
        difference = largest_difference(model, expected, actual)

    with console.status(f"{model}: timing"):
        image = images[:1].copy()
        tensor = torch.from_numpy(image)
        latency = interleave(
            {
                "torch eager": lambda: program(tensor),
                "ONNX Runtime": lambda: session.run(None, {"image": image}),
                "artifact": lambda: loaded(image),
            },
            rounds=100,
            warmup=10,
            min_seconds=0.002,
        )
    return Result(
        model=model,
        accuracy=(accuracy(expected, labels), accuracy(actual, labels)),
        file_bytes=(path.stat().st_size, artifact.stat().st_size),
        macs=shave.read(path, input_shapes={"image": image.shape}).cost().macs,
        latency=latency,
        difference=difference,
    )


def onnx_session(path: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime with everything it can optimise and one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def render(results: Sequence[Result]) -> Table:
    """The one table of the demo, one column for each model, within 80 characters."""
    table = Table(title="Held-out digits, before (ONNX) and after (artifact)")
    table.add_column("", no_wrap=True)
    for result in results:
        table.add_column(result.model, justify="right", no_wrap=True)

    table.add_row("accuracy", *("{:.2%} -> {:.2%}".format(*r.accuracy) for r in results))
    table.add_row("file size, KB", *("{:.0f} -> {:.0f}".format(*(b / 1000 for b in r.file_bytes)) for r in results))
    table.add_row("MACs per image", *(f"{r.macs / 1e6:.2f} M" for r in results))
    table.add_section()
    table.add_row("latency of one image, one thread,")
    table.add_row("µs, minimum / median")
    for engine in ENGINES:
        table.add_row(f"  {engine}", *(microseconds(r.latency[engine]) for r in results))
    table.add_section()
    table.add_row("largest difference of a score", *(f"{r.difference:.1e}" for r in results))
    return table


def microseconds(timing: Timing) -> str:
    """Minimum and median of a timing."""
    return f"{timing.minimum * 1e6:.1f} / {timing.median * 1e6:.1f}"


def main() -> int:
    """Run the demo; 0 if every artifact agrees with its model."""
    torch.set_num_threads(1)
    data, errors = held_out(), Console(stderr=True)
    try:
        results = [measure(path, data, errors) for path in MODELS]
    except (Disagreement, ShaveError) as error:
        errors.print(f"error: {error}", style="red", markup=False)
        return 1
    console = Console()
    console.print(render(results))
    console.print(NEXT_STEPS, end="", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
