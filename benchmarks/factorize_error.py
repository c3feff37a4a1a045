"""Errors of linear layers split at half their weights: fitted to data, and by weights alone, on data not seen before.

Run as ``python -m benchmarks.factorize_error``. KWT-1 has its trained weights and speech; the model in the shape of
BERT has random weights and random tokens, so that what it computes is about as far from low rank as can be.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from benchmarks.latency.models import models
from benchmarks.real_models import real_models
from shave.ir.program import Program
from shave.passes.factorize.layer import Layer, is_candidate, read
from shave.passes.factorize.metric import Metric
from shave.passes.factorize.svd import Svd
from shave.passes.probe import as_inputs
from shave.passes.statistics import input_moments

Batches = list[tuple[torch.Tensor, ...]]


def kwt() -> tuple[Program, Batches, Batches]:
    """The program, data to fit to, and other data."""
    model = next(model for model in real_models() if model.name == "KWT-1")
    program, unseen = model.load(), model.test_set()[0][:300]
    first, second = (
        [as_inputs(program, part) for part in np.array_split(data, 10)] for data in (model.calibration(), unseen)
    )
    return program, first, second


def bert(layers: int) -> tuple[Program, Batches, Batches]:
    """The same with random weights; ``layers`` sequences of 128 tokens to fit to, half as many others."""
    program, _ = next(model for model in models() if model.name.startswith("BERT")).load()
    generator = torch.Generator().manual_seed(1)
    drawn = [(torch.randint(30000, (1, 128), generator=generator),) for _ in range(layers + layers // 2)]
    return program, drawn[:layers], drawn[layers:]


def compare(program: Program, seen: Batches, unseen: Batches) -> Iterator[tuple[str, float, float]]:
    """For each layer that can be split, at half its weights, the relative error of its output: plain, with data."""
    layers = [layer for node in filter(is_candidate, program.calls) if isinstance(layer := read(program, node), Layer)]
    readers = {layer.node: (layer.source, layer.features, layer.sampler(0)) for layer in layers}
    fitted, judge = input_moments(program, readers, seen), input_moments(program, readers, unseen)
    for layer in layers:
        outputs, features = layer.weight.shape
        rank = (max(1, outputs * features // (2 * (outputs + features))),)
        after, about = judge[layer.node].covariance, judge[layer.node].mean
        errors = []
        for metric in (Metric(), Metric.of(fitted[layer.node])):
            error = layer.weight - Svd(layer, metric).fit(rank, 0).product
            # Without data the bias stays, so that the mean of what the layer reads counts too.
            left = error @ about if metric.mean is None else error @ (about - metric.mean)
            energy = (error @ after * error).sum() + left.square().sum()
            errors.append(float(energy / (layer.weight @ after * layer.weight).sum()) ** 0.5)
        yield layer.node.name, errors[0], errors[1]


def report(name: str, found: Sequence[tuple[str, float, float]]) -> None:
    """One line of a table."""
    ratios = [data / plain for _, plain, data in found]
    plain, data = (statistics.median(row[place] for row in found) for place in (1, 2))
    half = sum(ratio <= 0.5 for ratio in ratios)
    print(
        f"| {name} | {len(found)} | {plain:.3f} | {data:.3f} | {statistics.median(ratios):.2f} | {half} |", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bert", type=int, default=24, help="sequences to fit BERT's shape to; 0: none")
    options = parser.parse_args()
    print("| model | layers | plain: median error | with data | ratio, median | at most half |")
    print("| --- | --: | --: | --: | --: | --: |")
    report("KWT-1", list(compare(*kwt())))
    if options.bert:
        report("BERT-base, random", list(compare(*bert(options.bert))))


if __name__ == "__main__":
    main()
