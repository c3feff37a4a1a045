"""The contract catches passes that break it: each of these breaks one promise, and one test tells."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import fx

from shave.ir.errors import PassError
from shave.ir.program import Program
from shave.ir.rewrite import PROVENANCE
from shave.passes.base import Context, Exactness, Pass
from shave.passes.report import Report
from tests.passes.contract import PassContract, print_digests
from tests.passes.examples import ReluToClamp, ReluToSilu, aten, replace_relus
from tests.passes.handmade import program_of


def program() -> Program:
    return program_of(
        lambda x: aten.neg.default(aten.relu.default(x)), {"x": torch.zeros(2, 3)}, dynamic={"x": {0: "batch"}}
    )


class Contract(PassContract):
    """Tried on one program by the tests below, and not collected itself."""

    tried: ClassVar[type[Pass]] = ReluToClamp

    def make_pass(self) -> Pass:
        return self.tried()

    def cases(self) -> Mapping[str, Callable[[], Program]]:
        return {"relu": program}

    def candidates(self, program: Program) -> Iterable[fx.Node]:
        return program.graph.find_nodes(op="call_function", target=aten.relu.default)


def contract_of(kind: type[Pass]) -> Contract:
    return type(f"Of{kind.__name__}", (Contract,), {"tried": kind})()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Exact(Pass):
    """Base of the passes below."""

    exactness: ClassVar[Exactness] = Exactness.EXACT


@dataclass(frozen=True)
class Moody(Exact):
    """Write relu in another way at each run."""

    name: ClassVar[str] = "moody"
    moods: ClassVar[Iterator[Any]] = itertools.cycle([0, 0.0])

    def apply(self, program: Program, context: Context) -> Report:
        return replace_relus(program, self.name, aten.clamp_min.default, next(self.moods))


@dataclass(frozen=True)
class Restless(Exact):
    """Find something to do at each run."""

    name: ClassVar[str] = "restless"

    def apply(self, program: Program, context: Context) -> Report:
        report = Report()
        (last,) = program.outputs
        with program.rewrite(by=self.name) as rewriter:
            output = program.graph.output_node()
            again = rewriter.call(aten.positive.default, (last,), before=output, sources=[last])
            rewriter.replace(last, again)
        report.applied(last, "said again")
        return report


@dataclass(frozen=True)
class Silent(Exact):
    """Look at nothing."""

    name: ClassVar[str] = "silent"

    def apply(self, program: Program, context: Context) -> Report:
        return Report()


@dataclass(frozen=True)
class Rootless(Exact):
    """Hide where new nodes come from."""

    name: ClassVar[str] = "rootless"

    def apply(self, program: Program, context: Context) -> Report:
        report = replace_relus(program, self.name, aten.clamp_min.default, 0)
        for node in program.graph.find_nodes(op="call_function", target=aten.clamp_min.default):
            node.meta["custom"][PROVENANCE]["from"] = []
        return report


@dataclass(frozen=True)
class Wrong(Exact):
    """Claim that silu is relu."""

    name: ClassVar[str] = "wrong"

    def apply(self, program: Program, context: Context) -> Report:
        return replace_relus(program, self.name, aten.silu.default)


@dataclass(frozen=True)
class WrongElsewhere(Exact):
    """Be right for the size traced alone, on which the manager tries it."""

    name: ClassVar[str] = "wrong-elsewhere"

    def apply(self, program: Program, context: Context) -> Report:
        report = Report()
        (output,) = program.outputs
        end = program.graph.output_node()
        with program.rewrite(by=self.name) as rewriter:
            size = rewriter.call(aten.sym_size.int, (program.inputs[0], 0), before=end, sources=[output])
            excess = rewriter.call(operator.sub, (size, 2), before=end, sources=[size])
            moved = rewriter.call(aten.add.Tensor, (output, excess), before=end, sources=[output])
            rewriter.replace(output, moved)
        report.applied(output, "moved by how far the batch is from 2")
        return report


BROKEN: list[tuple[type[Pass], str, type[Exception], str]] = [
    (Moody, "test_it_is_deterministic", AssertionError, "."),
    (Restless, "test_a_second_run_changes_nothing", AssertionError, "said again"),
    (Silent, "test_it_has_something_to_do_and_leaves_a_valid_program", AssertionError, "."),
    (Silent, "test_the_report_speaks_of_every_candidate", AssertionError, "relu_default"),
    (Rootless, "test_every_new_node_tells_where_it_comes_from", AssertionError, "stems from nothing"),
    (Wrong, "test_exact_passes_keep_the_outputs_whatever_the_dynamic_sizes", PassError, "output 'output' moved"),
    (WrongElsewhere, "test_exact_passes_keep_the_outputs_whatever_the_dynamic_sizes", AssertionError, "moved"),
]


@pytest.mark.parametrize(("kind", "test", "error", "match"), BROKEN, ids=lambda value: getattr(value, "name", ""))
def test_broken_promises_are_noticed(kind: type[Pass], test: str, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        getattr(contract_of(kind), test)("relu")


@pytest.mark.parametrize("test", sorted({test for _, test, _, _ in BROKEN}))
def test_a_pass_that_keeps_its_promises_is_let_through(test: str) -> None:
    getattr(contract_of(ReluToClamp), test)("relu")


def test_lossy_passes_need_a_measured_drift_alone() -> None:
    contract_of(ReluToSilu).test_exact_passes_keep_the_outputs_whatever_the_dynamic_sizes("relu")


def test_passes_outside_of_the_registry_are_noticed() -> None:
    with pytest.raises(Exception, match="there is no pass 'relu-to-clamp'"):
        contract_of(ReluToClamp).test_it_stands_in_the_registry_under_the_name_of_its_file()


def test_results_can_be_read_back(tmp_path: Path) -> None:
    contract_of(ReluToClamp).test_the_result_can_be_saved_and_read("relu", tmp_path)


def test_digests_tell_programs_apart(capsys: pytest.CaptureFixture[str]) -> None:
    print_digests(["tests.passes.simplify.test_dead_code:TestContract"])
    printed = capsys.readouterr().out
    assert '"chain"' in printed
    assert '"items"' in printed
