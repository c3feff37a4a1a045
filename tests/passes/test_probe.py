import numpy as np
import pytest
import torch
from torch import nn

from shave.ir.errors import PipelineError, SignatureError
from shave.ir.from_torch import trace
from shave.passes.probe import as_inputs, probe_inputs
from tests.passes.examples import net_program


class Mixed(nn.Module):
    def forward(
        self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor, e: torch.Tensor
    ) -> torch.Tensor:
        return a.sum() + b.sum() + c.sum() + d.sum() + e.real.sum()


def test_random_inputs_suit_their_dtypes() -> None:
    examples = (
        torch.ones(50, dtype=torch.float16),
        torch.ones(50, dtype=torch.int64),
        torch.ones(500, dtype=torch.int8),
        torch.ones(50, dtype=torch.bool),
        torch.ones(50, dtype=torch.complex64),
    )
    program = trace(Mixed(), examples)
    half, index, byte, mask, wave = probe_inputs(program, seed=3)
    assert [tuple(t.shape) for t in (half, index, byte)] == [(50,), (50,), (500,)]
    assert [t.dtype for t in (half, index, byte, mask, wave)] == [example.dtype for example in examples]
    assert set(index.tolist()) == {0, 1}
    assert byte.min() < -100
    assert byte.max() > 100
    assert 0.5 < half.std() < 2
    assert mask.any()
    assert wave.imag.abs().sum() > 0
    assert all(
        torch.equal(a, b) for a, b in zip(probe_inputs(program, seed=3), (half, index, byte, mask, wave), strict=True)
    )
    assert not torch.equal(probe_inputs(program, seed=4)[0], half)


def test_calibration_comes_first() -> None:
    program = net_program()
    data = [(torch.ones(2, 3, 9, 11),), (torch.zeros(2, 3, 9, 11),)]
    assert torch.equal(probe_inputs(program, data)[0], data[0][0])
    with pytest.raises(PipelineError, match="holds no batch"):
        probe_inputs(program, [])


def test_arrays_that_cannot_be_written_are_copied() -> None:
    array = np.ones((2, 3, 9, 11), dtype=np.float32)
    array.flags.writeable = False
    (tensor,) = as_inputs(net_program(), {"x": array})
    tensor[0] = 5
    assert array.max() == 1


def test_unknown_inputs_are_named() -> None:
    with pytest.raises(SignatureError, match="no input is named 'y'"):
        as_inputs(net_program(), {"y": torch.ones(1)})


def test_of_a_large_batch_a_few_samples_are_taken() -> None:
    x, y = torch.randn(20, 5), torch.randn(20, 5)
    shared = {"input": {0: "batch"}, "other": {0: "batch"}}

    class Add(nn.Module):
        def forward(self, input: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return input + other

    program = trace(Add(), (x, y), dynamic_shapes=shared)
    assert [t.shape[0] for t in probe_inputs(program, [(x, y)])] == [8, 8]
    assert torch.equal(probe_inputs(program, [(x, y)])[0], x[:8])
    fixed = trace(Add(), (x, y))
    assert [t.shape[0] for t in probe_inputs(fixed, [(x, y)])] == [20, 20]
