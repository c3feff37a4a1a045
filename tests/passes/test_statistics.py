from __future__ import annotations

import numpy as np
import pytest
import torch

from shave.passes.statistics import MAX_FEATURES, SAMPLE_ROWS, Moments, Sample, input_moments
from tests.passes.examples import net_program
from tests.passes.handmade import draw, program_of

aten = torch.ops.aten


def rows(count: int, features: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(seed)) * 3 + 5


def test_parts_add_up_to_the_whole() -> None:
    whole, parts = Moments.empty(4), Moments.empty(4)
    x = rows(50, 4)
    whole.add(x)
    for start in range(0, 50, 7):
        parts.add(x[start : start + 7])
    assert parts.count == whole.count == 50
    assert whole.mean.numpy() == pytest.approx(x.double().numpy().mean(0))
    assert whole.covariance.numpy() == pytest.approx(np.cov(x.double().numpy(), rowvar=False, bias=True))
    assert parts.covariance.numpy() == pytest.approx(whole.covariance.numpy())


def test_the_covariance_shrinks_as_rows_are_few() -> None:
    shares = []
    for count in (3, 10, 100, 10000):
        moments = Moments.empty(20)
        moments.add(rows(count, 20) * torch.linspace(0.1, 2, 20))
        covariance, share = moments.shrunk()
        shares.append(share)
        assert torch.linalg.eigvalsh(covariance)[0] > 0
        assert covariance.trace() == pytest.approx(float(moments.covariance.trace()))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2
    assert 1e-6 <= shares[-1] < 0.01


def test_a_sample_of_all_rows_is_their_covariance() -> None:
    x = rows(50, 8, seed=3)
    moments, sample = Moments.empty(8), Sample(8, torch.Generator().manual_seed(0))
    for start in range(0, 50, 7):
        moments.add(x[start : start + 7])
        sample.add(x[start : start + 7])
    covariance, share = moments.shrunk()
    root, ridge, same = sample.shrunk()
    assert (sample.count, same) == (50, pytest.approx(share))
    assert sample.mean.numpy() == pytest.approx(x.double().numpy().mean(0))
    assert (root.T @ root + ridge * torch.eye(8)).numpy() == pytest.approx(covariance.numpy(), rel=1e-4, abs=1e-4)


def test_each_row_is_as_likely_in_a_sample_as_any_other() -> None:
    total = 4 * SAMPLE_ROWS
    sample = Sample(1, torch.Generator().manual_seed(0))
    for part in torch.arange(total, dtype=torch.float32)[:, None].split(1000):
        sample.add(part)
    root, ridge, _ = sample.shrunk()
    kept = root.shape[0]
    assert kept == SAMPLE_ROWS
    assert (sample.count, float(sample.mean)) == (total, (total - 1) / 2)
    spread = float(root.square().sum()) + ridge  # of a uniform distribution: total^2 / 12
    assert spread == pytest.approx(total**2 / 12, rel=0.05)


def test_many_features_are_sampled() -> None:
    features = MAX_FEATURES + 1
    program = program_of(
        lambda x, w: aten.linear.default(x, w), {"x": torch.zeros(2, features)}, {"w": torch.ones(1, features)}
    )
    (linear,) = program.calls
    readers = {linear: (program.inputs[0], features, lambda value: value)}
    found = input_moments(program, readers, [(torch.ones(2, features),)])
    assert isinstance(found[linear], Sample)


def test_what_nodes_read_is_seen() -> None:
    program = program_of(
        lambda x, w: aten.linear.default(aten.relu.default(x), w), {"x": torch.zeros(2, 6)}, draw({"w": (3, 6)})
    )
    relu, linear = program.calls
    batches = [(rows(2, 6, seed) - 5,) for seed in range(5)]
    readers = {linear: (relu, 6, lambda value: value), relu: (program.inputs[0], 6, lambda value: value[:1])}
    found = input_moments(program, readers, batches)
    assert list(found) == [linear, relu]
    seen = torch.cat([batch[0] for batch in batches]).relu().double()
    assert (found[linear].count, found[relu].count) == (10, 5)
    assert found[linear].mean.numpy() == pytest.approx(seen.numpy().mean(0))


def test_more_samples_take_no_more_memory() -> None:
    program = net_program()
    (layer,) = (node for node in program.calls if node.target is aten.linear.default)
    source = layer.args[0]
    assert isinstance(source, torch.fx.Node)
    x = torch.randn(2, 3, 9, 11)
    few, many = (
        input_moments(program, {layer: (source, 7, lambda value: value)}, ((x,) for _ in range(count)))[layer]
        for count in (1, 20)
    )
    assert many.products.numel() == few.products.numel() == 49
    assert many.count == 20 * few.count
    assert many.covariance.numpy() == pytest.approx(few.covariance.numpy())
