"""A walk gives what the program gives, however little memory there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import fx

from shave.passes.repair.spool import Spool
from shave.passes.repair.walk import Walk
from tests.passes.prune.nets import NETS, data


@pytest.mark.parametrize("memory", [0, 4096, 2**30])
@pytest.mark.parametrize("name", NETS)
def test_it_computes_what_the_program_does(name: str, memory: int) -> None:
    program = NETS[name]()
    batches = data(program, 3)
    with Spool(memory) as spool:
        walk = Walk(program, [[spool.put(each) for each in batch] for batch in batches], spool)
        output = program.outputs[0]
        walk.pin(output)
        walk.advance(output)
        for batch, got in zip(batches, walk.values(output), strict=True):
            assert torch.equal(got, program(*batch))  # type: ignore[arg-type]


def test_values_go_when_all_have_read_them() -> None:
    program = NETS["residual"]()
    with Spool() as spool:
        walk = Walk(program, [[spool.put(each) for each in batch] for batch in data(program, 2)], spool)
        first = next(iter(walk.calls))
        walk.pin(first)
        held = 0
        for node in walk.calls:
            walk.advance(node)
            held = max(held, sum(walk.has(each) for each in walk.calls))
        assert walk.has(first)
        assert held < 6
        walk.unpin(first)
        assert not walk.has(first)
        assert not any(walk.has(node) for node in walk.calls)


def test_a_weight_may_change_ahead_of_its_use() -> None:
    program = NETS["perceptron"]().clone(copy_weights=True)
    batch = data(program, 1)[0]
    layers = [node for node in program.calls if "linear" in str(node.target)]
    with Spool() as spool:
        walk = Walk(program, [[spool.put(each) for each in batch]], spool)
        source = layers[-1].args[0]
        assert isinstance(source, fx.Node)
        walk.advance(source)
        with program.rewrite(by="test") as rewriter:
            weight = layers[-1].args[1]
            assert isinstance(weight, fx.Node)
            rewriter.set_weight(layers[-1], weight, program.weight(weight).detach() * 2)
        walk.pin(layers[-1])
        walk.advance(layers[-1])
        assert torch.equal(next(walk.values(layers[-1])), program(*batch))  # type: ignore[arg-type]


def test_files_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with Spool(0) as spool:
        stored = [spool.put(torch.arange(5.0)), spool.put(torch.ones(2, 3, dtype=torch.bfloat16))]
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
        assert torch.equal(spool.get(stored[0]), torch.arange(5.0))
        assert torch.equal(spool.get(stored[1]), torch.ones(2, 3, dtype=torch.bfloat16))
        spool.drop(stored[0])
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    assert not list(tmp_path.iterdir())


def test_memory_is_given_back() -> None:
    with Spool(100) as spool:
        first = spool.put(torch.zeros(20))
        assert first.path is None
        assert spool.put(torch.zeros(20)).path is not None
        spool.drop(first)
        assert spool.put(torch.zeros(20)).path is None
