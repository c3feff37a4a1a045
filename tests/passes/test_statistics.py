from __future__ import annotations

import numpy as np
import pytest
import torch

from shave.passes.statistics import Moments, input_moments
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
