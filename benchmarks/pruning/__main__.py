"""The command line of these benchmarks."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from benchmarks.pruning import curve, finetune, speed, untrained
from benchmarks.pruning.history import record, rows
from benchmarks.pruning.training import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    each = commands.add_parser("finetune", help="ResNet-20 on CIFAR-10, pruned and trained")
    each.set_defaults(run=_finetune)
    each.add_argument("--pipeline", default=finetune.PIPELINE)
    each.add_argument("--checkpoint", type=Path, required=True, help="path without ending; training goes on from it")
    each.add_argument("--minutes", type=float, default=math.inf, help="stop training after these, to go on later")
    each.add_argument("--calibration", type=int, default=2048, help="training images that the pass is given")
    each.add_argument("--epochs", type=int, default=Recipe.epochs)
    each.add_argument("--rate", type=float, default=Recipe.rate)

    each = commands.add_parser("untrained", help="ResNet-20 without training, beside Torch-Pruning")
    each.set_defaults(run=_untrained)
    each.add_argument("--calibration", type=int, default=1024, help="training images that are given")
    each.add_argument("--shares", type=_numbers, default=untrained.SHARES, help="of the MACs, to keep")
    each.add_argument("--methods", default="", help="only those whose names begin so")

    each = commands.add_parser("curve", help="accuracy against MACs of an ImageNet model, without training")
    each.set_defaults(run=_curve)
    each.add_argument("model", choices=curve.MODELS)
    each.add_argument("--pipeline", default=curve.PIPELINE, help="with {share} and {repair} in it")
    each.add_argument("--shares", type=_numbers, default=curve.SHARES, help="of the MACs, to keep")

    each = commands.add_parser("speed", help="latency against MACs of torchvision's architectures")
    each.set_defaults(run=_speed)
    each.add_argument("models", nargs="*", default=list(speed.MODELS))
    each.add_argument("--pipeline", default=speed.PIPELINE)
    each.add_argument("--folder", type=Path, required=True, help="where artifacts are, or go if they are not there")
    each.add_argument("--prepare", action="store_true", help="compile only")
    each.add_argument("--threads", type=int, default=1)
    each.add_argument("--rounds", type=int, default=30)

    each = commands.add_parser("show", help="the tables, as Markdown, from benchmarks/history/pruning.jsonl")
    each.set_defaults(run=_show)
    each.add_argument("--chart", type=Path, metavar="FILE.svg", help="also draw the curves")

    options = parser.parse_args()
    options.run(options)


def _finetune(options: argparse.Namespace) -> None:
    recipe = Recipe(epochs=options.epochs, rate=options.rate)
    row = finetune.finetune(options.pipeline, recipe, options.checkpoint, options.minutes, options.calibration)
    if row is not None:
        record("finetune", row)


def _untrained(options: argparse.Namespace) -> None:
    for row in untrained.rows(options.calibration, options.shares, options.methods):
        record("untrained", row)


def _curve(options: argparse.Namespace) -> None:
    for row in curve.rows(options.model, options.pipeline, options.shares):
        record("curve", row)


def _speed(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.models:
        if not (options.folder / f"{name}.json").exists():
            speed.prepare(name, options.pipeline, options.folder)
        if not options.prepare:
            record("speed", speed.measure(name, options.folder, options.threads, options.rounds))


def _show(options: argparse.Namespace) -> None:
    found = rows("untrained", ("method", "share"))
    shares = sorted({row["share"] for row in found}, reverse=True)
    print("| without training | " + " | ".join(f"{share:.0%} of the MACs" for share in shares) + " |")
    print("| --- |" + " --: |" * len(shares))
    for method in dict.fromkeys(row["method"] for row in found):
        cells = {row["share"]: f"{row['accuracy']:.2f}" for row in found if row["method"] == method}
        print(f"| {method} | " + " | ".join(cells.get(share, "") for share in shares) + " |")
    for row in rows("finetune", ("pipeline",)):
        share = row["macs"] / row["macs_whole"]
        print(f"\n{row['model']}, {row['pipeline']}, {share:.1%} of the MACs, {row['epochs']} epochs:", end=" ")
        print(f"{row['whole']:.2f} -> {row['pruned']:.2f} -> {row['trained']:.2f} %")
    found = rows("curve", ("model", "share", "repair"))
    if options.chart:
        curve.draw(found, options.chart)
    print("\n| model | MACs kept | " + " | ".join(curve.REPAIRS) + " |\n| --- | --: |" + " --: |" * len(curve.REPAIRS))
    for model, share in dict.fromkeys((row["model"], row["share"]) for row in found):
        cells = {
            row["repair"]: f"{row['accuracy']:.1f}" for row in found if (row["model"], row["share"]) == (model, share)
        }
        print(f"| {model} | {share:.0%} | " + " | ".join(cells.get(repair, "") for repair in curve.REPAIRS) + " |")
    print("\n| model | threads | MACs fallen | ms | latency fallen | realised |\n| --- | --: | --: | --: | --: | --: |")
    for row in rows("speed", ("model", "threads")):
        times = f"{row['whole_ms']:.1f} -> {row['pruned_ms']:.1f}"
        print(f"| {row['model']} | {row['threads']} | {row['macs_fallen']:.1%} | {times} ", end="")
        print(f"| {row['latency_fallen']:.1%} | {row['realised']:.0%} |")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


if __name__ == "__main__":
    main()
